"""MNIST, CIFAR-10 and ImageNet where torchvision keeps them on disk; the first two are fetched if absent."""

from __future__ import annotations

import secrets
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision import datasets  # type: ignore[import-untyped]
from torchvision.datasets.utils import check_integrity  # type: ignore[import-untyped]

from ispasp.datasets.drawing import draw, planned
from ispasp.datasets.folders import FolderFiles
from ispasp.datasets.labels import match_classes
from ispasp.datasets.request import Data, Request, check_size, image_data
from ispasp.datasets.tree import TEST, TRAIN, image_tree
from ispasp.errors import CalibrationError, SettingError, listing
from ispasp.paths import expanded
from ispasp.preparation import ImagePreparation

NAMES = ("MNIST", "CIFAR10", "ImageNet")
CONNECT_SECONDS = 5.0  # before a server counts as out of reach, and between two pieces of a download
MAX_FETCH_BYTES = 512 * 2**20


def torchvision_set(name: str, preparation: ImagePreparation, request: Request) -> Data:
    """The training images for calibration and the test images for evaluation.

    Args:
        name: ``"CIFAR10@FOLDER"``; the folder is torchvision's ``root``. ImageNet needs ``val`` there with
            the 1,000 wnid folders, and takes the calibration images from ``train`` if that is there too.
        preparation, request: as everywhere.

    Raises:
        SettingError: the name is not of that form.
        CalibrationError: the data are not there and cannot be fetched, or are damaged.
    """
    dataset, root = named(name)
    if dataset == "ImageNet":
        return image_tree(imagenet(root), preparation, request)
    kind = getattr(datasets, dataset)
    train, test = _read(kind, root, True), _read(kind, root, False)
    classes = tuple(str(digit) for digit in range(10)) if dataset == "MNIST" else tuple(train.classes)
    check_size(preparation, sum(planned(len(train), len(test), request)), request.purpose)

    def picture(item: tuple[Any, int]) -> tuple[tuple[Tensor, int], bytes]:
        source, position = item
        image, label = source[position]
        return (preparation.pixels(image), label), image.tobytes()

    calibration, evaluation, notes = draw(
        [(train, position) for position in range(len(train))],
        [(test, position) for position in range(len(test))],
        request,
        picture,
        "images",
    )
    match = match_classes(classes, request)
    labels = None
    if (outputs := match.labels) is not None:
        labels = [outputs[label] for _, label in calibration], [outputs[label] for _, label in evaluation]
    return image_data(
        preparation,
        [pixels for pixels, _ in calibration],
        [pixels for pixels, _ in evaluation],
        labels,
        match.classes,
        [*notes, *match.notes],
    )


def named(name: str) -> tuple[str, Path]:
    """The data set and the folder of ``"CIFAR10@FOLDER"``.

    Raises:
        SettingError: the name is not of that form.
    """
    dataset, _, folder = name.partition("@")
    if dataset not in NAMES or not folder:
        raise SettingError(
            f"Got torchvision:{name}: give one of {listing(NAMES)} and the folder it lies in, "
            "such as torchvision:CIFAR10@data."
        )
    return dataset, expanded(folder, CalibrationError)


def imagenet(root: Path) -> FolderFiles:
    """The images of ImageNet's train and val folders.

    Raises:
        CalibrationError: there is no val folder.
    """
    splits = [name for name in (*TRAIN[:1], *TEST[:1]) if (root / name).is_dir()]
    if TEST[0] not in splits:
        raise CalibrationError(
            f"ImageNet was not found in {root}: put its val folder there, with one folder per wnid (and train, "
            "if there is room); it cannot be fetched without an account at image-net.org."
        )
    return FolderFiles(root, only=splits)


def _read(kind: Any, root: Path, train: bool) -> Any:
    """A torchvision data set, fetched first where it is absent."""
    try:
        return _checked(_found_or_fetched(kind, root, train))
    except CalibrationError:
        raise
    # What the readers of the raw files raise on damaged ones.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CalibrationError(
            f"{kind.__name__} in {root} cannot be read ({reason}): remove it there, to have it fetched anew, "
            "or put an intact copy in its place."
        ) from error


def _found_or_fetched(kind: Any, root: Path, train: bool) -> Any:
    with suppress(RuntimeError):  # not there, or only as archives
        return kind(root, train=train)
    _fetch(kind, root)
    return kind(root, train=train, download=True)


def _checked(found: Any) -> Any:
    """The data set itself. Raises ValueError where its labels are not one of ten classes per image."""
    if len(found.targets) != len(found.data):
        raise ValueError(f"it has {len(found.targets)} labels for {len(found.data)} images")
    if (highest := max(map(int, found.targets), default=0)) > 9:
        raise ValueError(f"it has a label {highest}")
    return found


def _fetch(kind: Any, root: Path) -> None:
    """Put the archives where torchvision looks for them before it fetches anything itself.

    torchvision sets no time limit, so that without a network it can hang for minutes.
    """
    if kind is datasets.MNIST:
        folder = root / kind.__name__ / "raw"
        wanted = [(file, md5, [mirror + file for mirror in kind.mirrors]) for file, md5 in kind.resources]
    else:
        folder = root
        wanted = [(kind.filename, kind.tgz_md5, [kind.url])]
    for file, md5, addresses in wanted:
        path = folder / file
        if not check_integrity(path, md5):
            _download(kind.__name__, addresses, path)
            if not check_integrity(path, md5):
                path.unlink()
                raise CalibrationError(
                    f"{file} of {kind.__name__} came damaged from the network: try again, or put it into "
                    f"{folder} yourself."
                )


def _download(name: str, addresses: Sequence[str], path: Path) -> None:
    """Fetch the first address that answers.

    Raises:
        CalibrationError: none does, or the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    reason = ""
    started = time.monotonic()
    for address in addresses:
        if reason and time.monotonic() - started > 2 * CONNECT_SECONDS:
            break
        try:
            with urllib.request.urlopen(address, timeout=CONNECT_SECONDS) as answer:
                path.parent.mkdir(parents=True, exist_ok=True)
                with partial.open("wb") as file:
                    while piece := answer.read(2**20):
                        file.write(piece)
                        if file.tell() > MAX_FETCH_BYTES:
                            raise OSError("the file is larger than it should be")
            partial.replace(path)
            return
        except (urllib.error.URLError, OSError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
            if isinstance(cause, socket.gaierror):
                break
        finally:
            partial.unlink(missing_ok=True)
    raise CalibrationError(
        f"No intact {name} lies in {path.parent}, and it cannot be fetched ({reason.rstrip('.')}): copy {path.name} "
        "there from a machine with a network, or use a folder of images (folder:PATH)."
    )

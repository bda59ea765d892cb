"""Class folders: which images calibrate, which evaluate, and which class each belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ispasp.datasets.decoding import Undecodable, decode
from ispasp.datasets.drawing import Skipped, draw, planned
from ispasp.datasets.labels import match_classes
from ispasp.datasets.request import Data, Request, check_size, image_data
from ispasp.errors import CalibrationError, listing
from ispasp.preparation import ImagePreparation

TRAIN = ("train", "training")
TEST = ("val", "valid", "validation", "test")  # the first that is there is evaluated on


class Files(Protocol):
    """Image files of one place.

    Attributes:
        names: their paths below the place, with forward slashes.
        place: the place, for messages.
        notes: what was left out, in sentences.
    """

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def place(self) -> str: ...
    @property
    def notes(self) -> Sequence[str]: ...

    def read(self, name: str) -> bytes:
        """A file's content. Raises Undecodable when it cannot be had."""
        ...


class Picture(NamedTuple):
    """An image's path, and the class folder it lies in (empty: none)."""

    name: str
    label: str


@dataclass(frozen=True)
class Layout:
    """Calibration images, evaluation images (None: the same pool), class names, and notes."""

    calibration: list[Picture]
    evaluation: list[Picture] | None
    classes: tuple[str, ...]
    notes: list[str]

    def planned(self, request: Request) -> tuple[int, int]:
        """How many of them are drawn for calibration and for evaluation."""
        return planned(
            len(self.calibration), None if self.evaluation is None else len(self.evaluation), request
        )


@dataclass(frozen=True)
class Drawn:
    """Pictures drawn from class folders.

    Attributes:
        calibration, evaluation: pictures with their pixels (C, height, width) uint8; the first are
            to calibrate or to train with.
        outputs: the model's output of each class; None where labels are unknown.
        classes: names in the order of the outputs; empty where labels are unknown.
        notes: sentences for the user.
        digests: SHA-256 of the evaluation files.
    """

    calibration: list[tuple[Picture, Tensor]]
    evaluation: list[tuple[Picture, Tensor]]
    outputs: dict[str, int] | None
    classes: tuple[str, ...]
    notes: list[str]
    digests: frozenset[bytes]

    def labels(self, pictures: Sequence[Picture]) -> list[int] | None:
        """The model's output of each picture; None where unknown."""
        return None if self.outputs is None else [self.outputs[picture.label] for picture in pictures]


def image_tree(files: Files, preparation: ImagePreparation, request: Request) -> Data:
    """Data from images in class folders, decoding only what is drawn.

    Raises:
        CalibrationError: there are too few images, too many that do not decode, or too much for memory.
    """
    drawn = drawn_pictures(files, layout(files.names, files.place), preparation, request)
    first, second = (
        drawn.labels([picture for picture, _ in part]) for part in (drawn.calibration, drawn.evaluation)
    )
    return image_data(
        preparation,
        [pixels for _, pixels in drawn.calibration],
        [pixels for _, pixels in drawn.evaluation],
        None if first is None or second is None else (first, second),
        drawn.classes,
        drawn.notes,
    )


def drawn_pictures(
    files: Files, found: Layout, preparation: ImagePreparation, request: Request, *, unread: bool = False
) -> Drawn:
    """What ``request`` wants of the ``files``, which are arranged as ``found``.

    Args:
        files, found, preparation, request: as everywhere.
        unread: leave training images unread that calibrate nothing, and their pixels empty; copies are not noticed
            then.

    Raises:
        CalibrationError: as ``image_tree``.
    """
    first, evaluated = found.planned(request)
    needed = evaluated + (min(request.calibration, first) if unread else first)
    check_size(preparation, needed, request.purpose)
    skipped = Skipped("images", needed, files.place)
    match = match_classes(found.classes, request)
    digests: dict[Picture, bytes] = {}
    nothing = torch.empty(0)  # one for all, which may be millions
    calibration, evaluation, notes = draw(
        found.calibration,
        found.evaluation,
        request,
        _reader(files, preparation, skipped, digests),
        "images",
        (lambda picture: ((picture, nothing), picture)) if unread else None,
    )
    return Drawn(
        calibration,
        evaluation,
        None if match.labels is None else dict(zip(found.classes, match.labels, strict=True)),
        match.classes,
        [*files.notes, *found.notes, *skipped.notes(), *notes, *match.notes],
        frozenset(digests[picture] for picture, _ in evaluation),
    )


def layout(names: Sequence[str], place: str) -> Layout:
    """How the image files ``names`` are arranged; the order of the result is that of their paths.

    A single folder around everything is passed over, as archives often have one.

    Raises:
        CalibrationError: there are no images.
    """
    if not names:
        raise CalibrationError(
            f"{place} holds no images: give JPEG, PNG, WebP, BMP, TIFF or PPM files, best in one folder per class."
        )
    paths = {name: tuple(part for part in name.split("/") if part not in ("", ".")) for name in sorted(names)}
    while _wrapped(list(paths.values())):
        paths = {name: parts[1:] for name, parts in paths.items()}
    tops = {parts[0].lower() for parts in paths.values() if len(parts) > 1}
    train = next((name for name in TRAIN if name in tops), None)
    test = next((name for name in TEST if name in tops), None)
    if not (train and test) and not (tops and tops <= {*TRAIN, *TEST}):
        calibration, classes, notes = _labelled(paths)
        return Layout(calibration, None, classes, notes)
    notes = []
    used = [split for split in (train, test) if split]
    if others := sorted(tops - set(used)):
        notes.append(f"Images are taken from the folders {listing(used)}; {listing(others)} is left out.")
    parts_of = [
        {name: parts[1:] for name, parts in paths.items() if len(parts) > 1 and parts[0].lower() == split}
        for split in used
    ]
    # Over both parts, so that a label means the same in each.
    labelled = [_labelled(part) for part in parts_of]
    classes = tuple(sorted({name for _, names_, _ in labelled for name in names_}))
    if any(not names_ for _, names_, _ in labelled):
        classes = ()
    for _, _, said in labelled:
        notes += said
    return Layout(labelled[0][0], labelled[1][0] if len(labelled) > 1 else None, classes, notes)


def _wrapped(paths: Sequence[tuple[str, ...]]) -> bool:
    """Whether one folder holds everything, in folders of its own, and its name says nothing."""
    return (
        len({parts[0] for parts in paths}) == 1
        and min(len(parts) for parts in paths) > 2
        and paths[0][0].lower() not in (*TRAIN, *TEST)
    )


def _labelled(paths: dict[str, tuple[str, ...]]) -> tuple[list[Picture], tuple[str, ...], list[str]]:
    """Pictures with the class folder each lies in, the classes in order, and notes."""
    foldered = {name: parts for name, parts in paths.items() if len(parts) > 1}
    if not foldered:
        return [Picture(name, "") for name in paths], (), []
    notes = []
    if loose := len(paths) - len(foldered):
        notes.append(f"{loose:,} images lie beside the class folders and are left out.")
    pictures = [Picture(name, parts[0]) for name, parts in foldered.items()]
    return pictures, tuple(sorted({picture.label for picture in pictures})), notes


def _reader(
    files: Files, preparation: ImagePreparation, skipped: Skipped, digests: dict[Picture, bytes]
) -> Callable[[Picture], tuple[tuple[Picture, Tensor], bytes] | None]:
    def read(picture: Picture) -> tuple[tuple[Picture, Tensor], bytes] | None:
        try:
            content = files.read(picture.name)
            pixels = decode(content, preparation)
        except Undecodable as reason:
            skipped.add(repr(picture.name), str(reason))
            return None
        digests[picture] = sha256(content).digest()
        return (picture, pixels), digests[picture]

    return read

"""The images and sentence pairs that ship with the sample models, and batches made of them."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ispasp import zoo
from ispasp.errors import CalibrationError, SettingError, listing
from ispasp.settings import check_whole_number
from ispasp.shipped import damaged, read_shipped
from sample_models import nli_grammar
from sample_models.nli_logic import LABELS

if TYPE_CHECKING:
    from ispasp.preparation import TextPreparation

DATASETS = ("cifar10", "mnist")
PAIR_DATASETS = ("nli",)
SPLITS = ("calibration", "test", "train")  # the calibration examples are training examples
TRAINING_PAIRS = 20_000  # written anew in seconds; the grammar has more
MAX_TRAINING_PAIRS = 200_000
_MEMBER = re.compile(r"(?P<split>[a-z]+)/(?P<label>\w+)/\d+\.(jpg|png)")
_CHANNELS = {"L": 1, "RGB": 3}


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images of one size.

    Attributes:
        images: (N, C, H, W) uint8, N >= 1.
        labels: (N,) int64, positions in ``classes``.
        classes: class names.

    Raises:
        CalibrationError: shapes or types are others, or a label names no class.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or len(self.images) == 0:
            raise CalibrationError(
                f"Got images of shape {tuple(self.images.shape)} and type {self.images.dtype}: "
                "give at least one, as (N, C, H, W) uint8."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise CalibrationError(
                f"Got labels of shape {tuple(self.labels.shape)} and type {self.labels.dtype} for "
                f"{len(self.images)} images: give one int64 label for each."
            )
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= len(self.classes):
            raise CalibrationError(
                f"Got labels from {int(self.labels.min())} to {int(self.labels.max())} for "
                f"{len(self.classes)} classes: give positions in the list of classes."
            )

    def __len__(self) -> int:
        return len(self.images)

    def part(self, index: Tensor) -> Images:
        """Those at the positions ``index`` (n,) int64, in its order."""
        return Images(self.images[index], self.labels[index], self.classes)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Labelled sentence pairs.

    Attributes:
        premises: N sentences.
        hypotheses: N sentences.
        labels: (N,) int64, positions in ``classes``.
        classes: class names.
    """

    premises: tuple[str, ...]
    hypotheses: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.premises)

    def part(self, index: Tensor) -> Pairs:
        """Those at the positions ``index`` (n,) int64, in its order."""
        at = index.tolist()
        premises, hypotheses = [self.premises[i] for i in at], [self.hypotheses[i] for i in at]
        return Pairs(tuple(premises), tuple(hypotheses), self.labels[index], self.classes)


Examples = TypeVar("Examples", Images, Pairs)


def sample_images(dataset: str, split: str, folder: Traversable | None = None) -> Images:
    """The shipped images of a data set: 512 to calibrate with, 1,000 to test with, and more to train on.

    They come one class after the other in turn, so that any prefix holds each class equally
    often, give or take one. Classes are in alphabetical order, which is that of the sample
    models' outputs.

    Args:
        dataset: one of ``DATASETS``.
        split: ``"calibration"`` (the first 512 of the training images), ``"test"`` or ``"train"``.
        folder: where ``data/<dataset>.zip`` and ``data/<dataset>_train.zip`` lie; the shipped ``sample_models`` by
            default.

    Raises:
        SettingError: the data set or split is unknown.
        ModelError: the archive is missing or damaged.
    """
    if dataset not in DATASETS:
        raise SettingError(f"Unknown data set {dataset!r}: choose one of {listing(DATASETS)}.")
    _check_split(split)
    file = f"data/{dataset}{'_train' if split == 'train' else ''}.zip"
    content = read_shipped(file, folder)
    try:
        return _decode(content, split)
    # What zipfile and PIL raise on damaged input; UnidentifiedImageError is an OSError.
    except (
        zipfile.BadZipFile,
        zlib.error,
        Image.DecompressionBombError,
        CalibrationError,
        OSError,
        EOFError,
        RuntimeError,
        SyntaxError,
        ValueError,
    ) as error:
        raise damaged(file, error) from error


def training_count(dataset: str) -> int:
    """How many examples of a data set there are to train on, told without decoding one.

    Raises:
        SettingError: the data set is unknown.
        ModelError: the archive is missing or damaged.
    """
    if dataset in PAIR_DATASETS:
        return TRAINING_PAIRS
    if dataset not in DATASETS:
        raise SettingError(
            f"Unknown data set {dataset!r}: choose one of {listing(DATASETS + PAIR_DATASETS)}."
        )
    file = f"data/{dataset}_train.zip"
    try:
        with zipfile.ZipFile(io.BytesIO(read_shipped(file))) as archive:
            return len(archive.namelist())
    except zipfile.BadZipFile as error:
        raise damaged(file, error) from error


def sample_pairs(dataset: str, split: str, training: int = TRAINING_PAIRS) -> Pairs:
    """The sentence pairs of a data set: 512 to calibrate with, 1,000 to test with, and more to train on.

    They are written anew at each call by ``sample_models.nli_grammar``, always the same. Any prefix
    holds each class equally often, give or take one; classes are in the order of the sample model's
    outputs.

    Args:
        dataset: one of ``PAIR_DATASETS``.
        split: ``"calibration"`` (the first 512 of the training pairs), ``"test"`` or ``"train"``.
        training: how many training pairs, at least 1; 10,000 are written in about 3 seconds.

    Raises:
        SettingError: the data set or split is unknown, or there cannot be so many.
    """
    if dataset not in PAIR_DATASETS:
        raise SettingError(f"Unknown data set {dataset!r}: choose one of {listing(PAIR_DATASETS)}.")
    _check_split(split)
    check_whole_number("training", training, at_least=1, at_most=MAX_TRAINING_PAIRS)
    count = {"calibration": 512, "test": 1000, "train": training}[split]
    pairs = nli_grammar.pairs("test" if split == "test" else "train", count)
    return Pairs(
        tuple(pair.premise for pair in pairs),
        tuple(pair.hypothesis for pair in pairs),
        torch.tensor([LABELS.index(pair.label) for pair in pairs], dtype=torch.int64),
        LABELS,
    )


def sample_batches(
    name: str, split: str, samples: int | None = None, seed: int = 0, batch_size: int = 64
) -> list[tuple[Tensor, Tensor]] | list[dict[str, Tensor]]:
    """Batches of a sample model's own data, as it reads them, with labels.

    Args:
        name: one of ``ispasp.zoo.names()``.
        split: ``"calibration"``, ``"test"`` or ``"train"``.
        samples: how many examples ``choose`` takes; None for all, in order.
        seed: of that choice.
        batch_size: examples per batch, at least 1.

    Returns:
        ``batches`` for a model of images, ``pair_batches`` for one of sentence pairs.

    Raises:
        ModelError: the name is unknown, a shipped file is missing or damaged, or transformers is
            needed and not installed.
        SettingError: a setting is out of its range.
    """
    card = zoo.card(name)
    if card.kind == "image":
        images = sample_images(card.dataset, split)
        chosen = images if samples is None else choose(images, samples, seed)
        return batches(chosen, card.mean, card.std, batch_size)
    preparation = cast("TextPreparation", zoo.preparation(name))
    pairs = sample_pairs(card.dataset, split)
    return pair_batches(pairs if samples is None else choose(pairs, samples, seed), preparation, batch_size)


def pair_batches(pairs: Pairs, preparation: TextPreparation, batch_size: int = 64) -> list[dict[str, Tensor]]:
    """Tokenised batches in the order of ``pairs``; the last may be smaller.

    Returns:
        ``input_ids``, ``attention_mask`` and what else the tokenizer gives, (n, max_length) int64
        each, and ``labels`` (n,) int64.

    Raises:
        SettingError: ``batch_size`` is not a whole number from 1.
    """
    check_whole_number("batch_size", batch_size, at_least=1)
    encoded = preparation.encode(pairs.premises, pairs.hypotheses) | {"labels": pairs.labels}
    return [
        {key: value[start : start + batch_size] for key, value in encoded.items()}
        for start in range(0, len(pairs), batch_size)
    ]


def batches(
    images: Images, mean: Sequence[float], std: Sequence[float], batch_size: int = 64
) -> list[tuple[Tensor, Tensor]]:
    """Normalised batches in the order of ``images``; the last may be smaller.

    Args:
        images: N images of C channels.
        mean: C values, of pixels in [0, 1]; subtracted.
        std: C values above 0; divided by.
        batch_size: images per batch, at least 1.

    Returns:
        Pairs of (n, C, H, W) float32 and (n,) int64.

    Raises:
        SettingError: ``batch_size`` is not a whole number from 1, or ``mean`` or ``std`` do not
            have one (for ``std`` positive) value per channel.
    """
    check_whole_number("batch_size", batch_size, at_least=1)
    channels = images.images.shape[1]
    if len(mean) != channels or len(std) != channels or not all(value > 0 for value in std):
        raise SettingError(
            f"Got mean {tuple(mean)} and std {tuple(std)} for images of {channels} channel(s): "
            "give one value per channel, and only positive ones as std."
        )
    shift = torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1)
    return [
        ((pixels.float() / 255 - shift) / scale, labels)
        for pixels, labels in zip(
            images.images.split(batch_size), images.labels.split(batch_size), strict=True
        )
    ]


def choose(examples: Examples, samples: int, seed: int) -> Examples:
    """A random subset without replacement, in the order of ``examples``.

    The same seed always gives the same subset, and a smaller one is part of a larger one.

    Args:
        examples: N images or sentence pairs.
        samples: how many to take, 1 to N.
        seed: 0 or a positive whole number below 2**63.

    Raises:
        SettingError: ``samples`` or ``seed`` is out of its range or not a whole number.
    """
    check_whole_number("samples", samples, at_least=1, at_most=len(examples))
    check_whole_number("seed", seed, at_least=0, at_most=2**63 - 1)
    generator = torch.Generator().manual_seed(seed)
    return examples.part(torch.randperm(len(examples), generator=generator)[:samples].sort().values)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise SettingError(f"Unknown split {split!r}: choose one of {listing(SPLITS)}.")


def _decode(content: bytes, split: str) -> Images:
    """Decode one split, in memory: no member's path is ever used as a path.

    Raises:
        ValueError: the archive does not hold what it should; or what zipfile and PIL raise.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: _MEMBER.fullmatch(name) for name in archive.namelist()}
        foreign = [name for name, match in members.items() if match is None]
        if foreign:
            raise ValueError(f"{foreign[0]!r} is not named split/class/number.jpg or .png")
        labelled = [(name, match["split"], match["label"]) for name, match in members.items() if match]
        # Over all splits, so that a label means the same in each.
        classes = tuple(sorted({label for _, _, label in labelled}))
        wanted = [(name, label) for name, found, label in labelled if found == split]
        if not wanted:
            raise ValueError(f"it has no {split} images")
        pixels = _stack([archive.read(name) for name, _ in wanted])
    labels = torch.tensor([classes.index(label) for _, label in wanted], dtype=torch.int64)
    return Images(pixels, labels, classes)


def _stack(encoded: list[bytes]) -> Tensor:
    """(N, C, H, W) uint8 from JPEG or PNG files of one size, all grey or all RGB."""
    arrays: list[np.ndarray] = []
    first: tuple[tuple[int, int], str] | None = None
    for content in encoded:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            first = first or (image.size, image.mode)
            if (image.size, image.mode) != first or image.mode not in _CHANNELS:
                raise ValueError(f"a {image.size} {image.mode} image lies among {first[0]} {first[1]} ones")
            arrays.append(np.array(image).reshape(image.height, image.width, _CHANNELS[image.mode]))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()

"""What every source of data is asked for, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from ispasp.errors import CalibrationError
from ispasp.preparation import ImagePreparation, TextPreparation
from ispasp.settings import check_whole_number

MAX_INPUT_BYTES = 8 * 2**30  # calibration and evaluation inputs together
EVERYTHING = 2**62  # as number of samples: all that are left of what is evaluated on
SHOWN = 16  # pictures or sentence pairs kept for display

Preparation = TypeVar("Preparation", ImagePreparation, TextPreparation)
_READS: dict[type, tuple[str, str]] = {
    ImagePreparation: ("images", "folder:PATH, zip:PATH, torchvision:NAME@FOLDER, sample:NAME or noise"),
    TextPreparation: ("sentence pairs", "pairs:FILE with a TSV or JSONL file, or sample:nli"),
    type(None): (
        "batches that are prepared already, as nothing that came with it tells how to make them of raw data",
        "python:path/to/file.py:function",
    ),
}


@dataclass(frozen=True)
class Request:
    """What is wanted of a source.

    Attributes:
        preparation: how raw data become model inputs; None where the model's own file brings batches.
        model_classes: names of the model's outputs, in their order; empty where unknown.
        outputs: how many classes the model puts out; None where unknown.
        samples: calibration examples.
        evaluation: evaluation examples; never among the calibration ones.
        seed: draws the examples.
        purpose: what the samples are for, in a word: ``"calibration"`` or ``"training"``.
        calibration: of a request for training, how many examples the run that is trained was calibrated with.

    Raises:
        SettingError: a number is out of its range.
    """

    preparation: ImagePreparation | TextPreparation | None
    model_classes: tuple[str, ...]
    outputs: int | None
    samples: int
    evaluation: int
    seed: int
    purpose: str = "calibration"
    calibration: int = 0

    def __post_init__(self) -> None:
        check_whole_number("samples", self.samples, at_least=1)
        check_whole_number("evaluation", self.evaluation, at_least=1)
        check_whole_number("seed", self.seed, at_least=0, at_most=2**63 - 1)

    def reading(self, kind: type[Preparation], source: object) -> Preparation:
        """The preparation, where it is of the ``kind`` that ``source`` needs.

        Raises:
            CalibrationError: the model reads something else.
        """
        if isinstance(self.preparation, kind):
            return self.preparation
        reads, remedy = _READS[type(self.preparation)]
        raise CalibrationError(f"The model reads {reads}, which {source} does not give: use {remedy}.")

    @property
    def classes(self) -> int | None:
        """How many classes there are to label with, where known."""
        return self.outputs or len(self.model_classes) or None

    def measured(self, pool: int) -> int:
        """Of how many examples a trained run is measured, where one pool is trained on as well: few enough to train."""
        return min(self.evaluation, max(1, pool // 5, pool - self.samples))

    def fewer(self, found: int, what: str) -> list[str]:
        """A note where so many samples are fewer than were asked for; ``what`` they are, in the plural."""
        if found >= self.samples or self.samples == EVERYTHING:
            return []
        return [f"Only {found:,} {what} for {self.purpose}, where {self.samples:,} were asked for."]


@dataclass(frozen=True, eq=False)
class Data:
    """Data as a model reads them.

    Attributes:
        calibration: batches as ``ispasp.calibration`` reads them: (inputs, labels), or dicts with
            ``labels``; without labels where these are unknown.
        evaluation: the same, of other examples.
        classes: names in the order of the labels; empty where labels are unknown.
        notes: sentences for the user: what was skipped, how labels were matched, ...
        pictures: (n, C, height, width) uint8, the first n <= 16 calibration images as the model sees
            them; None where the data are no images.
        texts: the first 16 calibration sentence pairs, or none.
    """

    calibration: list[Any]
    evaluation: list[Any]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    pictures: Tensor | None = None
    texts: tuple[str, ...] = ()


def image_data(
    preparation: ImagePreparation,
    calibration: Sequence[Tensor],
    evaluation: Sequence[Tensor],
    labels: tuple[list[int], list[int]] | None,
    classes: tuple[str, ...],
    notes: Iterable[str],
) -> Data:
    """Data from uint8 pixels (C, height, width) per image, and labels of both parts where known."""
    first, second = labels or (None, None)
    batches = image_batches(preparation, calibration, first)
    return Data(
        calibration=batches,
        evaluation=image_batches(preparation, evaluation, second),
        classes=classes if labels else (),
        notes=tuple(notes),
        pictures=torch.stack(list(calibration[:SHOWN])),
    )


def batch_size(preparation: ImagePreparation | TextPreparation) -> int:
    """64 examples; 32 where a side of the images is above 128 pixels."""
    large = isinstance(preparation, ImagePreparation) and max(preparation.size) > 128
    return 32 if large else 64


def image_batch(preparation: ImagePreparation, images: Tensor, labels: Tensor | None) -> Any:
    """One batch of normalised images as the model's forward takes them."""
    if preparation.keyword:
        named = {preparation.keyword: images}
        return named if labels is None else {**named, "labels": labels}
    return images if labels is None else (images, labels)


def input_bytes(preparation: ImagePreparation | TextPreparation) -> int:
    """What the inputs of one example take in memory."""
    if isinstance(preparation, ImagePreparation):
        height, width = preparation.size
        return 4 * preparation.channels * height * width
    return 8 * 3 * preparation.max_length


def check_size(
    preparation: ImagePreparation | TextPreparation, examples: int, purpose: str = "calibration"
) -> None:
    """Refuse what would not fit into memory, before anything is read.

    Raises:
        CalibrationError: the inputs of so many examples take more than ``MAX_INPUT_BYTES``.
    """
    each = input_bytes(preparation)
    if each * examples > MAX_INPUT_BYTES:
        raise CalibrationError(
            f"The inputs of {examples:,} examples take {each * examples / 2**30:.1f} GiB; the limit is "
            f"{MAX_INPUT_BYTES // 2**30} GiB, so ask for at most {MAX_INPUT_BYTES // each:,} "
            f"{purpose} and evaluation examples together."
        )


def shown(pairs: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The first sentence pairs, one line each."""
    return tuple(f"{premise} → {hypothesis}" for premise, hypothesis in islice(pairs, SHOWN))


def image_batches(
    preparation: ImagePreparation, pixels: Sequence[Tensor], labels: list[int] | None
) -> list[Any]:
    """Batches of uint8 pixels (C, height, width) per image, normalised, and their labels where known."""
    size = batch_size(preparation)
    return [
        image_batch(
            preparation,
            preparation.normalised(torch.stack(list(pixels[start : start + size]))),
            None if labels is None else torch.tensor(labels[start : start + size], dtype=torch.int64),
        )
        for start in range(0, len(pixels), size)
    ]

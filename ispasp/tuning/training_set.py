"""What fine-tuning trains on: examples by number. ``ispasp.datasets.file_set`` is the one that reads files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ispasp import calibration
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError


class TrainingSet(Protocol):
    """Training examples 0 to ``len() - 1``, as inputs of the model.

    Attributes:
        labelled: whether every example has a label.
        images: whether an example is a single image (C, H, W) of floating-point numbers and nothing else.
        notes: sentences about what could not be used so far; more may come while files are read.
    """

    @property
    def labelled(self) -> bool: ...
    @property
    def images(self) -> bool: ...
    @property
    def notes(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> TrainingSet:
        """The same examples, given out on ``device``; a new set has them on the CPU, or where its batches lie."""
        ...

    def batches(self, order: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """One batch per list of example numbers, in the order of both, on the device of the set.

        Files are read ahead of the loop. Leaving it early leaves nothing behind.
        """
        ...


class MemorySet:
    """Examples that lie in memory.

    Args:
        batches: as in ``ispasp.prune``; labels count where every batch has them.

    Raises:
        CalibrationError: empty, inconsistent, or not finite.
    """

    notes: Sequence[str] = ()

    def __init__(self, batches: Iterable[Any]) -> None:
        given = calibration.read(batches, "training")
        first = given[0]
        labels = [batch.labels for batch in given if batch.labels is not None]
        for batch in given:
            if batch.labels is not None and batch.labels.shape[:1] != (len(batch),):
                raise CalibrationError(
                    f"A batch of the training data has {batch.labels.numel():,} labels for {len(batch):,} examples: "
                    "give one label for each."
                )
        self._all = Batch(
            tuple(torch.cat(parts) for parts in zip(*(batch.inputs for batch in given), strict=True)),
            {name: torch.cat([batch.keywords[name] for batch in given]) for name in first.keywords},
            torch.cat(labels) if len(labels) == len(given) else None,
        )

    @property
    def labelled(self) -> bool:
        return self._all.labels is not None

    @property
    def images(self) -> bool:
        tensors = self._all.tensors
        return len(tensors) == 1 and tensors[0].ndim == 4 and tensors[0].is_floating_point()

    def __len__(self) -> int:
        return len(self._all)

    def to(self, device: torch.device) -> MemorySet:
        """The same examples, moved to ``device`` once; this set itself where they lie there."""
        if self._all.tensors[0].device == device:
            return self
        moved = object.__new__(MemorySet)
        moved._all = self._all.to(device)
        return moved

    def batches(self, order: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """One batch per list of example numbers, on the device of the set."""
        device = self._all.tensors[0].device
        for numbers in order:
            yield _at(self._all, torch.tensor(numbers, dtype=torch.int64, device=device))


def _at(batch: Batch, index: Tensor) -> Batch:
    """The examples at the positions ``index`` (n,) int64, in its order."""
    return Batch(
        tuple(value[index] for value in batch.inputs),
        {name: value[index] for name, value in batch.keywords.items()},
        None if batch.labels is None else batch.labels[index],
    )

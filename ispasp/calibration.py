"""What a batch of calibration data is, and whether it can be used.

A batch is a tensor; a tuple or list of tensors; or a dict of keyword tensors. Labels are recognised
and kept out of the model's inputs: the last element of a tuple when it is an integer tensor of at
most one dimension, and the keys ``labels`` and ``label`` of a dict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ispasp import padding
from ispasp.errors import CalibrationError

LABEL_KEYS = ("labels", "label")


@dataclass(frozen=True)
class Batch:
    """Positional and keyword inputs of one forward call, and the labels (N,) where known."""

    inputs: tuple[Tensor, ...]
    keywords: dict[str, Tensor]
    labels: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.inputs, *self.keywords.values())

    @property
    def mask(self) -> Tensor | None:
        """(N, T) bool, true at tokens that count; None where all do (``ispasp.padding``)."""
        return padding.mask_of(self.keywords)

    def __len__(self) -> int:
        return self.tensors[0].shape[0]

    def to(self, device: torch.device, layout: torch.memory_format = torch.preserve_format) -> Batch:
        """A copy on ``device`` that in-place operations may overwrite; images (N, C, H, W) in ``layout``."""

        def moved(t: Tensor) -> Tensor:
            return t.to(device, copy=True, memory_format=layout if t.ndim == 4 else torch.preserve_format)

        return Batch(
            tuple(map(moved, self.inputs)),
            {name: moved(t) for name, t in self.keywords.items()},
            None if self.labels is None else self.labels.to(device),
        )

    def copy(self) -> Batch:
        """A copy where it is, which in-place operations may overwrite."""
        return self.to(self.tensors[0].device)

    def first(self, count: int) -> Batch:
        """The first ``count`` examples."""
        return self._part(slice(count))

    def after(self, count: int) -> Batch:
        """All but the first ``count`` examples."""
        return self._part(slice(count, None))

    def _part(self, part: slice) -> Batch:
        return Batch(
            tuple(t[part] for t in self.inputs),
            {name: t[part] for name, t in self.keywords.items()},
            None if self.labels is None else self.labels[part],
        )


def as_batch(given: Any) -> Batch:
    """Read one batch as the module's docstring says.

    Raises:
        CalibrationError: it is none of the accepted forms, or an input is not a tensor.
    """
    if isinstance(given, Batch):
        batch = given
    elif isinstance(given, Tensor):
        batch = Batch((given,), {})
    elif isinstance(given, Mapping):
        labels = next((given[key] for key in LABEL_KEYS if isinstance(given.get(key), Tensor)), None)
        batch = Batch((), {k: v for k, v in given.items() if k not in LABEL_KEYS}, labels)
    elif isinstance(given, (tuple, list)) and given:
        *rest, last = given
        is_labels = (
            bool(rest) and isinstance(last, Tensor) and last.ndim <= 1 and not last.is_floating_point()
        )
        batch = Batch(tuple(rest), {}, last) if is_labels else Batch(tuple(given), {})
    else:
        raise CalibrationError(
            f"A calibration batch is a {type(given).__name__}; give a tensor, a tuple of tensors, or a dict of tensors."
        )
    if not batch.tensors:
        raise CalibrationError(
            "A calibration batch has no inputs; give a tensor, a tuple, or a dict of tensors."
        )
    for value in batch.tensors:
        if not isinstance(value, Tensor):
            raise CalibrationError(
                f"A calibration batch holds a {type(value).__name__} among its inputs; every input must be a tensor."
            )
    return batch


def read(given: Iterable[Any], what: str = "calibration") -> list[Batch]:
    """Read and check all batches: same number, type and shape of inputs (batch size apart), finite.

    Args:
        given: iterable of batches, or a single tensor, which is one batch.
        what: the word used in messages.

    Raises:
        CalibrationError: empty, not iterable, inconsistent, or not finite.
    """
    if isinstance(given, (Tensor, Mapping)):
        given = [given]
    try:
        items = iter(given)
    except TypeError:
        raise CalibrationError(
            f"The {what} data is a {type(given).__name__}; give an iterable of batches, such as a DataLoader."
        ) from None
    batches = [as_batch(item) for item in items]
    if not batches:
        raise CalibrationError(f"The {what} data is empty; give at least one batch of one example.")
    first = batches[0]
    for number, batch in enumerate(batches, start=1):
        if list(batch.keywords) != list(first.keywords) or len(batch.inputs) != len(first.inputs):
            raise CalibrationError(
                f"Batch {number} of the {what} data has other inputs than batch 1; every batch must have the same."
            )
        for value, reference in zip(batch.tensors, first.tensors, strict=True):
            _check(value, reference, number, what)
    return batches


def digest(batches: Iterable[Batch]) -> str:
    """SHA-256, hexadecimal, over name, type, shape and bytes of every input; labels do not count."""
    sha = hashlib.sha256()
    for batch in batches:
        named = [(str(position), value) for position, value in enumerate(batch.inputs)]
        for name, value in named + sorted(batch.keywords.items()):
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            sha.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def copies(batches: Iterable[Batch], among: Iterable[Batch]) -> int:
    """How many examples of ``batches`` have the very inputs of one of ``among``."""
    seen = {identity for batch in among for identity in _identities(batch)}
    return sum(identity in seen for batch in batches for identity in _identities(batch))


def _identities(batch: Batch) -> list[bytes]:
    """A digest of each example's inputs, labels apart."""
    hashes = [hashlib.sha256() for _ in range(len(batch))]
    for value in batch.to(torch.device("cpu")).tensors:
        rows = value.detach().reshape(len(value), -1) if value.numel() else value.new_empty(len(value), 0)
        # As bytes, since numpy knows no bfloat16.
        for hashed, row in zip(hashes, rows.contiguous().view(torch.uint8).numpy(), strict=True):
            hashed.update(row)
    return [hashed.digest() for hashed in hashes]


def _check(value: Tensor, reference: Tensor, number: int, what: str) -> None:
    if value.ndim == 0 or value.shape[0] == 0:
        raise CalibrationError(
            f"Batch {number} of the {what} data holds no examples; give at least one per batch."
        )
    if value.shape[1:] != reference.shape[1:] or value.dtype != reference.dtype:
        raise CalibrationError(
            f"Batch {number} of the {what} data is {tuple(value.shape)} {value.dtype}, "
            f"batch 1 is {tuple(reference.shape)} {reference.dtype}; only the batch size may differ."
        )
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        count = int((~torch.isfinite(value)).sum())
        raise CalibrationError(
            f"Batch {number} of the {what} data has {count} values that are NaN or infinite; remove or repair them."
        )

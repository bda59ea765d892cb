"""Measure a model: accuracy, agreement with the dense model, parameters, multiply-adds."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from ispasp import padding
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError, ModelError, listing
from ispasp.graph import exclusive


def first_tensor(output: object) -> Tensor:
    """The logits of a model that returns a tensor, a tuple, a dict or a model-output object.

    Raises:
        ModelError: there is no tensor in the output.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(logits := getattr(output, "logits", None), Tensor):
        return logits
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            return leaf
    raise ModelError(f"The model returns a {type(output).__name__} without a tensor; it must return logits.")


def class_dimension(output: Tensor) -> int | None:
    """Where a model's output carries its classes: dimension 1 of (N, classes) and of maps (N, classes, h, w),
    the last of (N, tokens, classes); None where there is one number per example, and no class."""
    dimension = 1 if output.ndim > 3 else output.ndim - 1
    return None if output.ndim < 2 or output.shape[dimension] < 2 else dimension


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter; the CPU when it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def copy_to(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of ``model`` on ``device``, in eval mode.

    Raises:
        ModelError: it holds tensors that cannot be copied.
    """
    try:
        return copy.deepcopy(model).to(device).eval()
    except RuntimeError as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({error}); "
            "build it anew, or clear activations that it keeps."
        ) from error


@torch.no_grad()
def forward(model: nn.Module, batch: Batch, layout: torch.memory_format = torch.preserve_format) -> object:
    """Whatever ``model`` returns for one batch, computed on the model's device, images in ``layout``."""
    moved = batch.to(device_of(model), layout)
    return model(*moved.inputs, **moved.keywords)


def try_forward(model: nn.Module, batch: Batch, what: str) -> None:
    """Run two examples, so that data the model cannot take is named before the work begins.

    Raises:
        CalibrationError: the model does not run on them; ``what`` is the word for the data.
    """
    few = batch.first(2)
    try:
        forward(model, few)
    except Exception as error:  # whatever a forward raises means the same to a user
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        shapes = listing(f"{tuple(t.shape)} {t.dtype}" for t in few.tensors)
        raise CalibrationError(
            f"{type(model).__name__} does not run on two examples of the {what} data, {shapes}: {cause}. "
            "Give batches of the shape and type that the model takes."
        ) from error


def predictions(model: nn.Module, batches: Sequence[Batch]) -> Iterator[Tensor]:
    """Top-1 class (N,) of each batch, on the CPU; of every token (P,) that is no padding where each has one; (0,) where
    the output has no classes.

    The model should be in eval mode.
    """
    layout = _fastest_layout(model, batches[0].first(2)) if batches else torch.preserve_format
    for batch in batches:
        output, mask = first_tensor(forward(model, batch, layout)).cpu(), batch.mask
        output = padding.counted(None if mask is None else mask.cpu(), output)
        classes = class_dimension(output)
        yield torch.empty(0, dtype=torch.int64) if classes is None else output.argmax(classes)


def _fastest_layout(model: nn.Module, few: Batch) -> torch.memory_format:
    """Channels last on a CPU, where convolutions of odd widths take about 0.7 of the time so; as they are for a model
    whose ``view`` depends on it."""
    if device_of(model).type == "cpu" and any(t.ndim == 4 for t in few.tensors):
        try:
            forward(model, few, torch.channels_last)
        except RuntimeError:
            return torch.preserve_format
        return torch.channels_last
    return torch.preserve_format


@dataclass(frozen=True)
class Predictions:
    """What the dense and the pruned model predict for the same examples; counts every token where each has a class.

    Attributes:
        dense, pruned: (n,) int32 on the CPU, top-1 classes.
        labels: (n,) int32 on the CPU, the true classes; None where they are unknown.
    """

    dense: Tensor = field(repr=False)
    pruned: Tensor = field(repr=False)
    labels: Tensor | None = field(default=None, repr=False)

    @property
    def agreement(self) -> float:
        """Share of examples for which both predict the same class."""
        return _share(self.dense == self.pruned)

    @property
    def accuracy_before(self) -> float | None:
        """Top-1 accuracy of the dense model in [0, 1]; None without labels."""
        return None if self.labels is None else _share(self.dense == self.labels)

    @property
    def accuracy_after(self) -> float | None:
        """The same of the pruned model."""
        return None if self.labels is None else _share(self.pruned == self.labels)


def _share(true: Tensor) -> float:
    return true.double().mean().item()


def compare(
    dense: Sequence[Tensor], pruned: Sequence[Tensor], batches: Sequence[Batch]
) -> Predictions | None:
    """Put together what ``predictions`` gave for the dense and the pruned model; None where there are no classes."""
    before, after = (torch.cat([p.flatten() for p in parts]).int() for parts in (dense, pruned))
    if not len(before):
        return None
    labels = None
    if all(batch.labels is not None and batch.labels.ndim == 1 for batch in batches):
        labels = torch.cat([batch.labels.cpu() for batch in batches if batch.labels is not None]).int()
    fits = labels is not None and len(labels) == len(before)
    return Predictions(before, after, labels if fits else None)


def report(predictions: Predictions | None) -> dict[str, Any]:
    """The entries of a run's report about them; all None where nothing was measured."""
    return {
        "examples": len(predictions.dense) if predictions else 0,
        "accuracy_before": predictions.accuracy_before if predictions else None,
        "accuracy_after": predictions.accuracy_after if predictions else None,
        "agreement": predictions.agreement if predictions else None,
    }


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; buffers are not counted."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def count_macs(model: nn.Module, batch: Batch) -> int:
    """Multiply-adds (MACs) of one example: convolutions and matrix products, half of torch's FLOPs."""
    example = batch.first(1).to(device_of(model))
    with exclusive(), FlopCounterMode(display=False) as counter:
        model(*example.inputs, **example.keywords)
    return counter.get_total_flops() // 2

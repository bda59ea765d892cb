"""The copies of models that are trained: in single precision, in the layout that is fastest, and cast back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ispasp import evaluate
from ispasp.calibration import Batch
from ispasp.errors import ModelError

# Another layout of images (N, C, h, w) in memory, with the channels together.
images_last = functools.partial(torch.Tensor.contiguous, memory_format=torch.channels_last)


def check_modules(models: Iterable[object]) -> None:
    """Make sure that these are models.

    Raises:
        ModelError: one is no module.
    """
    for model in models:
        if not isinstance(model, nn.Module):
            raise ModelError(f"The model is a {type(model).__name__}; give a torch.nn.Module.")


def is_narrow(models: Sequence[nn.Module]) -> bool:
    """Whether any of them has parameters of half precision, which could not hold the steps.

    Raises:
        ModelError: one is no module.
    """
    check_modules(models)
    values = [value for model in models for value in model.parameters()]
    return any(v.is_floating_point() and v.dtype.itemsize < 4 for v in values)


def single(value: Tensor) -> Tensor:
    """Floating-point values in single precision, others as they are."""
    return value.float() if value.is_floating_point() else value


def working(model: nn.Module, device: torch.device, batch: Batch, widened: bool, what: str) -> nn.Module:
    """A copy on ``device`` in eval mode that runs on ``batch``, in single precision where ``widened``.

    Raises:
        CalibrationError: it does not run; ``what`` is the word for the data.
        ModelError: it cannot be copied.
    """
    copied = evaluate.copy_to(model, device)
    if widened:
        copied.float()
    evaluate.try_forward(copied, batch, f"single-precision {what}" if widened else what)
    return copied


def to_channels_last(models: Sequence[nn.Module], few: Batch) -> bool:
    """Bring the models to the layout in which convolutions are faster, in place, if they run in it."""
    try:
        for model in models:
            evaluate.forward(model.to(memory_format=torch.channels_last), few, torch.channels_last)
    except RuntimeError:  # a view that it does not allow, or parameters of five dimensions
        for model in models:
            model.to(memory_format=torch.contiguous_format)
        return False
    return True


def set_batch_norms(model: nn.Module, training: bool) -> None:
    """Batch norms normalise by the batch where asked for; dropout and the rest stay as they are."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train(training)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def types_of(model: nn.Module) -> dict[str, torch.dtype]:
    """The type of every tensor of the model's state, by name."""
    return {name: value.dtype for name, value in model.state_dict().items()}

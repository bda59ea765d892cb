"""A model that a user's own Python function returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ispasp import user_code
from ispasp.calibration import Batch, read
from ispasp.errors import ISpaSPError, ModelError
from ispasp.models import checkpoint
from ispasp.models.source import RANDOM, LoadedModel, ModelSource, seeded


def load(source: ModelSource, *, allow_code: bool) -> LoadedModel:
    """The model that ``path/to/file.py:function`` returns, tried on the example that comes with it.

    The function returns a module with an attribute ``example_inputs``, or ``(module, example inputs)``;
    the inputs are one batch as ``ispasp.calibration`` reads it.

    Raises:
        ModelError: running code is not allowed; the file or function is missing, raises (the message
            names the user's own line) or returns something else; or the model's forward does not take
            the example.
    """
    if source.weights == RANDOM:
        raise ModelError(
            f"{source.name} gives its model the weights itself: leave the weights out, or give a checkpoint file."
        )
    model, given = _called(source.name, allow_code)
    if given is None:
        raise ModelError(
            f"{source.name} returned a {type(model).__name__} without example inputs: return "
            "(model, example inputs), or give the model an attribute example_inputs."
        )
    if source.weights:
        checkpoint.fit(model, checkpoint.read_state(source.weights), source.weights)
    try:
        (batch,) = read([given], what="example")
    except ISpaSPError as error:
        raise ModelError(f"The example inputs of {source.name} cannot be used: {error}") from error
    _try(model, batch, source.name)
    whence = f"weights of {source.weights}" if source.weights else "with the weights that it came with"
    path, function = user_code.split(source.name)
    return LoadedModel(
        source=source,
        model=model,
        example=_two(batch),
        preparation=None,
        classes=(),
        words=f"{type(model).__name__} from {source.name}, {whence}",
        record={"kind": "python", "path": str(path), "function": function},
    )


def build(record: Mapping[str, Any], *, allow_code: bool) -> nn.Module:
    """What the function returns today; its weights do not matter.

    Raises:
        ModelError: as ``load`` does, or the record is damaged.
    """
    path, function = record.get("path"), record.get("function")
    if not isinstance(path, str) or not isinstance(function, str):
        raise ModelError("The record of the model is damaged: it lacks path or function; save the run again.")
    return _called(f"{path}:{function}", allow_code)[0]


def _called(spec: str, allow_code: bool) -> tuple[nn.Module, Any]:
    """The module in eval mode on the CPU, and its example inputs; None where there are none."""
    try:
        with seeded():
            returned = user_code.call(spec, allow_code=allow_code)
    except user_code.UserCodeError as error:
        raise ModelError(str(error)) from error
    pair = returned if isinstance(returned, (tuple, list)) else (returned, None)
    if len(pair) != 2 or not isinstance(pair[0], nn.Module):
        what = (
            ", ".join(type(part).__name__ for part in pair) if pair is returned else type(returned).__name__
        )
        raise ModelError(f"{spec} returned {what or 'nothing'}: return (model, example inputs).")
    model, inputs = pair
    return model.cpu().eval(), inputs if inputs is not None else getattr(model, "example_inputs", None)


@torch.no_grad()
def _try(model: nn.Module, batch: Batch, spec: str) -> None:
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*batch.inputs, **batch.keywords)
    except TypeError as error:
        labels = "" if batch.labels is None else "; its last part, whole numbers, was taken for labels"
        raise ModelError(
            f"The forward of {type(model).__name__} takes {signature}, which the example inputs of {spec} do "
            f"not fit ({error}{labels}): return all it needs, as a tuple in that order or as a dict by name."
        ) from error
    try:
        with user_code.blamed_on(spec):
            model(*batch.copy().inputs, **batch.copy().keywords)
    except user_code.UserCodeError as error:
        shapes = ", ".join(str(tuple(value.shape)) for value in batch.tensors)
        raise ModelError(f"{type(model).__name__} fails on its example inputs {shapes}: {error}") from error


def _two(batch: Batch) -> Batch:
    """The first two examples; a single one twice."""
    if len(batch) > 1:
        return batch.first(2)
    return Batch(
        tuple(torch.cat([value, value]) for value in batch.inputs),
        {name: torch.cat([value, value]) for name, value in batch.keywords.items()},
    )

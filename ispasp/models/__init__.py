"""Where models come from: the samples, torchvision, Hugging Face, and a user's own Python function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ispasp.errors import ModelError
from ispasp.models.checkpoint import read_state
from ispasp.models.source import KINDS, RANDOM, LoadedModel, ModelSource, parse

__all__ = ["KINDS", "RANDOM", "LoadedModel", "ModelSource", "build", "load", "parse", "read_state"]


def load(source: ModelSource, *, allow_code: bool = False) -> LoadedModel:
    """Load a model with its weights, on the CPU, in eval mode.

    Args:
        source: what ``parse`` returns.
        allow_code: whether a Python file that the source names may be run.

    Raises:
        ModelError: it is unknown, not permitted, cannot be read or fetched, or the weights belong to
            another architecture.
    """
    # Each kind is imported when one is loaded: torchvision takes a second, which the others do not need.
    if source.kind == "sample":
        from ispasp.models import sample

        return sample.load(source)
    if source.kind == "torchvision":
        from ispasp.models import torchvision_models

        return torchvision_models.load(source)
    if source.kind == "huggingface":
        from ispasp.models import huggingface

        return huggingface.load(source)
    from ispasp.models import python_file

    return python_file.load(source, allow_code=allow_code)


def build(record: Mapping[str, Any], *, allow_code: bool = False, seed: int = 0) -> nn.Module:
    """The architecture that ``LoadedModel.record`` describes, with fresh random weights, in eval mode.

    Needs no network, and no file but the Python one of a ``python:`` source.

    Args:
        record: the ``record`` of a loaded model, also after a way through JSON.
        allow_code: whether a Python file that the record names may be run.
        seed: of the random weights, but for those of a Python file; 0 to 2**63 - 1.

    Raises:
        ModelError: the record is damaged or names what is not here, or running code is not permitted.
    """
    kind = record.get("kind")
    if kind == "sample":
        from ispasp.models import sample

        return sample.build(record, seed)
    if kind == "torchvision":
        from ispasp.models import torchvision_models

        return torchvision_models.build(record, seed)
    if kind == "huggingface":
        from ispasp.models import huggingface

        return huggingface.build(record, seed)
    if kind == "python":
        from ispasp.models import python_file

        return python_file.build(record, allow_code=allow_code)
    raise ModelError(f"The record of the model is damaged: its kind is {kind!r}; save the run again.")

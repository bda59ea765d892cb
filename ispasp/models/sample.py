"""The models that ship with ispasp, as a source like the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ispasp import zoo
from ispasp.models import checkpoint
from ispasp.models.source import (
    RANDOM,
    UNTRAINED,
    LoadedModel,
    ModelSource,
    example,
    seeded,
)


def load(source: ModelSource) -> LoadedModel:
    """A sample model with its trained weights, random ones, or those of a checkpoint.

    Args:
        source: ``name`` is one of ``zoo.names()``.

    Raises:
        ModelError: the name is unknown, a text model's and transformers is not installed, or the weights
            cannot be read or belong to another architecture.
    """
    card = zoo.card(source.name)
    if not source.weights:
        model, whence = zoo.load(source.name), "its trained weights"
    else:
        model, whence = build({"name": source.name}), UNTRAINED
        if source.weights != RANDOM:
            checkpoint.fit(model, checkpoint.read_state(source.weights), source.weights)
            whence = f"weights of {source.weights}"
    preparation = zoo.preparation(source.name)
    return LoadedModel(
        source=source,
        model=model,
        example=example(preparation),
        preparation=preparation,
        classes=card.classes,
        words=f"{source.name}, a sample model, {whence}",
        record={"kind": "sample", "name": source.name},
    )


def build(record: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The architecture of a sample model with fresh random weights.

    Raises:
        ModelError: the name is unknown, or a text model's and transformers is not installed.
    """
    with seeded(seed):
        return zoo.build(record.get("name", "")).eval()

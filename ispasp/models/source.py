"""Where a model comes from, as one line of text, and what is known of it once it is loaded."""

from __future__ import annotations

import contextlib
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ispasp import zoo
from ispasp.calibration import Batch
from ispasp.errors import ModelError, listing

if TYPE_CHECKING:
    from ispasp.preparation import ImagePreparation, TextPreparation

RANDOM = "random"
UNTRAINED = "random weights: accuracy means nothing"
# kind -> what follows the colon; a sample is written without kind and colon
KINDS = {
    "sample": "NAME",
    "torchvision": "NAME",
    "huggingface": "FOLDER_OR_HUB_NAME",
    "python": "path/to/file.py:function",
}
_SEED = 0  # of weights that nobody asked to be others
_BUILDING = threading.RLock()


@dataclass(frozen=True)
class ModelSource:
    """A source of one model; ``str()`` of it, without the weights, is what ``parse`` reads.

    Attributes:
        kind: one of ``KINDS``.
        name: name of a sample or a torchvision model; folder or hub name; file and function.
        weights: empty for the trained or published ones, ``"random"``, or the path of a checkpoint
            file: safetensors, or a state dict saved by torch.

    Raises:
        ModelError: the kind is unknown, or the name is missing.
    """

    kind: str
    name: str
    weights: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ModelError(f"Unknown source of models {self.kind!r}: give {_accepted()}.")
        if not self.name.strip():
            raise ModelError(f"The source of the model names none: give {_accepted()}.")

    def __str__(self) -> str:
        return self.name if self.kind == "sample" else f"{self.kind}:{self.name}"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model, and what is needed to feed it and to build it again.

    Attributes:
        source: where it comes from.
        model: in eval mode, on the CPU.
        example: two examples, for tracing.
        preparation: how raw data become its inputs; None where a Python function brings its own
            batches, or where nothing that says how came with the model.
        classes: names of the outputs, in their order; empty where unknown.
        words: one line for people: what it is, and where its weights come from.
        record: plain JSON values from which ``build`` makes the architecture again.
    """

    source: ModelSource
    model: nn.Module = field(repr=False)
    example: Batch = field(repr=False)
    preparation: ImagePreparation | TextPreparation | None
    classes: tuple[str, ...] = field(repr=False)
    words: str
    record: dict[str, Any] = field(repr=False)


def parse(text: str, weights: str = "") -> ModelSource:
    """Read ``"cifar10_resnet20"``, ``"torchvision:resnet34"``, ``"huggingface:FOLDER_OR_HUB_NAME"`` or
    ``"python:path/to/file.py:function"``.

    Args:
        text: where the architecture comes from.
        weights: where the weights come from, as in ``ModelSource``.

    Raises:
        ModelError: it is none of these.
    """
    text = text.strip()
    kind, colon, name = text.partition(":")
    if colon and kind in KINDS:
        return ModelSource(kind, name.strip(), weights)
    if text in zoo.names():
        return ModelSource("sample", text, weights)
    raise ModelError(f"Unknown model {text!r}: give {_accepted()}.")


@contextlib.contextmanager
def seeded(seed: int = _SEED) -> Iterator[None]:
    """Build a module here: the seed alone decides its random weights, and the caller's random state stays."""
    with _BUILDING:
        state = torch.get_rng_state()
        # The generator of the CPU alone: torch.manual_seed would reset those of other devices too.
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(state)


def example(preparation: ImagePreparation | TextPreparation) -> Batch:
    """Two pictures of noise, or two sentence pairs of unlike length so that padding is among the tokens."""
    # It imports torchvision, which takes a second that the rest of this module does not need.
    from ispasp.preparation import TextPreparation

    if isinstance(preparation, TextPreparation):
        premises = ("A man is asleep.", "Two dogs run across a wide green field in the rain.")
        return Batch((), preparation.encode(premises, ("He sleeps.", "There are some animals outside.")))
    generator = torch.Generator().manual_seed(_SEED)
    pixels = torch.randn(2, preparation.channels, *preparation.size, generator=generator)
    return Batch((), {preparation.keyword: pixels}) if preparation.keyword else Batch((pixels,), {})


def cause(error: Exception) -> str:
    """The first line of an error of another library, short enough to stand within a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return textwrap.shorten(lines[0] if lines else type(error).__name__, 200, placeholder=" ...").rstrip(".:")


def _accepted() -> str:
    forms = [f"{kind}:{form}" for kind, form in KINDS.items() if kind != "sample"]
    return f"a sample ({listing(zoo.names())}), {', '.join(forms[:-1])} or {forms[-1]}"

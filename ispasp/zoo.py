"""The sample models by name: what each is (its card), and the trained module."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.resources.abc import Traversable
from typing import Any, get_args, get_origin, get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from torch import nn

from ispasp.errors import ModelError, listing
from ispasp.shipped import damaged, read_shipped
from sample_models.architectures import CifarResNet, TwoLayerNet

_ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "cifar10_resnet20": CifarResNet,
    "mnist_mlp": TwoLayerNet,
}


@dataclass(frozen=True)
class Card:
    """What a sample model is and how it came to be, as written by ``sample_models/train.py``.

    Attributes:
        name: the name under which ``load`` finds the model.
        data: the data it was trained on, in words.
        dataset: name of the shipped images, for ``ispasp.data.sample_images``.
        command: the command that reproduces the weights.
        seed: the seed of that command.
        epochs: passes over the training data.
        training_minutes: wall time of the training, minutes.
        accuracy_train: top-1 accuracy on the training images, in [0, 1].
        accuracy_test: top-1 accuracy on all ``test_images`` held-out images, in [0, 1].
        test_images: how many images ``accuracy_test`` was measured on; the shipped test images
            are among them.
        parameters: number of trainable parameters.
        input_shape: (C, H, W) of one image.
        mean: per channel, of pixels in [0, 1]; subtracted before the model sees them.
        std: per channel; what the difference is divided by.
        classes: class names, in the order of the model's outputs.
        torch: the torch version it was trained with.
    """

    name: str
    data: str
    dataset: str
    command: str
    seed: int
    epochs: int
    training_minutes: float
    accuracy_train: float
    accuracy_test: float
    test_images: int
    parameters: int
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    torch: str


def names() -> list[str]:
    """Names of the sample models, sorted."""
    return sorted(_ARCHITECTURES)


def card(name: str, folder: Traversable | None = None) -> Card:
    """The card of a sample model.

    Args:
        name: one of ``names()``.
        folder: where ``<name>.json`` lies; the shipped ``sample_models`` by default.

    Raises:
        ModelError: the name is unknown, or the card is missing or damaged.
    """
    _check_known(name)
    file = f"{name}.json"
    content = read_shipped(file, folder)
    hints = get_type_hints(Card)
    try:
        values = json.loads(content)
        if not isinstance(values, dict) or set(values) != {field.name for field in fields(Card)}:
            raise ValueError("its fields are not those of a card")
        made = Card(**{key: _typed(key, value, hints[key]) for key, value in values.items()})
        if made.name != name:
            raise ValueError(f"it describes {made.name!r}")
    except ValueError as error:
        raise damaged(file, error) from error
    return made


def build(name: str) -> nn.Module:
    """The architecture of a sample model with fresh random weights.

    Raises:
        ModelError: the name is unknown.
    """
    _check_known(name)
    return _ARCHITECTURES[name]()


def load(name: str, folder: Traversable | None = None) -> nn.Module:
    """A sample model with its trained weights, on the CPU, in evaluation mode.

    Every call makes a new module.

    Args:
        name: one of ``names()``.
        folder: where ``<name>.safetensors`` lies; the shipped ``sample_models`` by default.

    Raises:
        ModelError: the name is unknown, or the weights are missing, damaged, or do not fit
            the architecture tensor by tensor.
    """
    model = build(name)
    file = f"{name}.safetensors"
    content = read_shipped(file, folder)
    try:
        weights = tensors_from_bytes(content)
        for key, expected in model.state_dict().items():
            if key in weights and weights[key].dtype != expected.dtype:
                raise ValueError(f"{key} is {weights[key].dtype} where {expected.dtype} belongs")
            if key in weights and not weights[key].isfinite().all():
                raise ValueError(f"{key} holds values that are not finite")
        model.load_state_dict(weights, strict=True)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise damaged(file, error) from error
    return model.eval()


def _check_known(name: str) -> None:
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise ModelError(f"Unknown model {name!r}: choose one of {listing(names())}.")


def _typed(key: str, value: object, kind: Any) -> Any:
    """``value`` as the card's field type: str, int, float, or a tuple of one of them.

    Raises:
        ValueError: the value is of another type.
    """
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{key} must be a list")
        return tuple(_typed(key, item, get_args(kind)[0]) for item in value)
    accepted = (int, float) if kind is float else (kind,)
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise ValueError(f"{key} must be {kind.__name__}")
    return kind(value)

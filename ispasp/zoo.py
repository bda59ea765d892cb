"""The sample models by name: what each is (its card), and the trained module."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from torch import nn

from ispasp.errors import ModelError, listing
from ispasp.shipped import damaged, read_shipped
from sample_models import nli_model
from sample_models.architectures import CifarMobileNetV2, CifarResNet, TwoLayerNet

if TYPE_CHECKING:
    from ispasp.preparation import ImagePreparation, TextPreparation

_IMAGE_ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "cifar10_mobilenetv2": CifarMobileNetV2,
    "cifar10_resnet20": CifarResNet,
    "mnist_mlp": TwoLayerNet,
}
_TEXT_ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {"nli_bert": nli_model.bert}
_OF_IMAGES = {"input_shape", "mean", "std"}
_OF_TEXTS = {"max_length", "transformers"}


@dataclass(frozen=True)
class Card:
    """What a sample model is and how it came to be, as written by ``sample_models/train.py``.

    Attributes:
        name: the name under which ``load`` finds the model.
        data: the data it was trained on, in words.
        dataset: name of the shipped data, for ``ispasp.data.sample_images`` or ``sample_pairs``.
        command: the command that reproduces the weights.
        seed: the seed of that command.
        epochs: passes over the training data.
        training_minutes: wall time of the training, minutes.
        accuracy_train: top-1 accuracy on the training examples, in [0, 1].
        accuracy_test: top-1 accuracy on all ``test_examples`` held-out examples, in [0, 1].
        test_examples: how many ``accuracy_test`` was measured on; the shipped test examples are
            among them.
        parameters: number of trainable parameters.
        classes: class names, in the order of the model's outputs.
        torch: the torch version it was trained with.
        input_shape: image models: (C, H, W) of one image; else empty.
        mean: image models: per channel, of pixels in [0, 1]; subtracted before the model sees them.
        std: image models: per channel; what the difference is divided by.
        max_length: text models: tokens per sentence pair, padding included; else 0.
        transformers: text models: the transformers version it was trained with; else empty.
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
    test_examples: int
    parameters: int
    classes: tuple[str, ...]
    torch: str
    input_shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    max_length: int = 0
    transformers: str = ""

    @property
    def kind(self) -> str:
        """What the model reads: ``"image"`` or ``"text"``, which is a sentence pair."""
        return "text" if self.name in _TEXT_ARCHITECTURES else "image"


def names() -> list[str]:
    """Names of the sample models, sorted."""
    return sorted({*_IMAGE_ARCHITECTURES, *_TEXT_ARCHITECTURES})


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
        if not isinstance(values, dict) or set(values) != _fields(name):
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
        ModelError: the name is unknown, or a text model's and transformers is not installed.
    """
    _check_known(name)
    if name in _TEXT_ARCHITECTURES:
        _check_transformers(name)
        return _TEXT_ARCHITECTURES[name]()
    return _IMAGE_ARCHITECTURES[name]()


def load(name: str, folder: Traversable | None = None) -> nn.Module:
    """A sample model with its trained weights, on the CPU, in evaluation mode.

    Every call makes a new module.

    Args:
        name: one of ``names()``.
        folder: where ``<name>.safetensors``, for a text model ``<name>/model.safetensors``, lies; the
            shipped ``sample_models`` by default.

    Raises:
        ModelError: the name is unknown, transformers is needed and not installed, or the weights are
            missing, damaged, or do not fit the architecture tensor by tensor.
    """
    model = build(name)
    file = f"{name}/model.safetensors" if name in _TEXT_ARCHITECTURES else f"{name}.safetensors"
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


def preparation(name: str) -> ImagePreparation | TextPreparation:
    """How raw data becomes the input of a sample model.

    Raises:
        ModelError: the name is unknown, its card is missing or damaged, or it is a text model's and
            transformers is not installed.
    """
    # It imports torchvision, which takes a second that nothing else here needs.
    from ispasp.preparation import ImagePreparation, TextPreparation

    known = card(name)
    if known.kind == "text":
        _check_transformers(name)
        return TextPreparation(nli_model.tokenizer(), known.max_length)
    _, height, width = known.input_shape
    return ImagePreparation((height, width), min(height, width), known.mean, known.std)


def _check_known(name: str) -> None:
    if not isinstance(name, str) or name not in names():
        raise ModelError(f"Unknown model {name!r}: choose one of {listing(names())}.")


def _check_transformers(name: str) -> None:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"The sample model {name} needs transformers, which is not installed: "
            'pip install "ispasp[huggingface]".'
        ) from error


def _fields(name: str) -> set[str]:
    """What the card of a model must hold, no more and no less."""
    foreign = _OF_IMAGES if name in _TEXT_ARCHITECTURES else _OF_TEXTS
    return {field.name for field in fields(Card)} - foreign


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

"""What a Hugging Face model reads: its tokenizer or picture preparation, and an example to trace it with."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ispasp.calibration import Batch
from ispasp.errors import ModelError
from ispasp.models.source import cause, example
from ispasp.preparation import ImagePreparation, TextPreparation

MAX_LENGTH = 128
_PICTURES, _TOKENS = "pixel_values", "input_ids"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
_PICTURE_FILE = "preprocessor_config.json"
# As PIL numbers them, and preprocessor_config.json with it.
_INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


@dataclass(frozen=True)
class Inputs:
    """How the model is fed.

    Attributes:
        preparation: None where nothing beside the model says how.
        example: two examples.
        problem: why there is no preparation; empty where there is one.
    """

    preparation: ImagePreparation | TextPreparation | None
    example: Batch
    problem: str = ""


def inputs(model: Any, folder: Path) -> Inputs:
    """Read the preparation that lies in ``folder`` beside ``model``, a model of transformers.

    Raises:
        ModelError: it is damaged or belongs to another model, or the model reads neither text nor pictures.
    """
    if model.main_input_name == _PICTURES:
        if not (folder / _PICTURE_FILE).is_file():
            problem = f"there is no {_PICTURE_FILE}, so give data that is prepared already"
            return Inputs(None, _pixels(model.config), problem)
        pictures = _pictures(folder, getattr(model.config, "num_channels", 3))
        return Inputs(pictures, example(pictures))
    if model.main_input_name != _TOKENS:
        raise ModelError(
            f"{type(model).__name__} reads {model.main_input_name}; only models that read {_PICTURES} or "
            f"{_TOKENS} can be used here."
        )
    text, problem = _text(model, folder)
    return Inputs(text, example(text) if text else _tokens(model), problem)


def _text(model: Any, folder: Path) -> tuple[TextPreparation | None, str]:
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None, "there is no tokenizer, so give data that is tokenised already"
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # damaged files raise many types
        raise ModelError(
            f"The tokenizer in {folder} cannot be read ({cause(error)}): get it again, or remove its files."
        ) from error
    if tokenizer.pad_token is None:
        return None, "its tokenizer has no padding token, so give data that is tokenised already"
    if (vocabulary := getattr(model.config, "vocab_size", None)) and len(tokenizer) > vocabulary:
        raise ModelError(
            f"The tokenizer in {folder} knows {len(tokenizer)} tokens, the model {vocabulary}: "
            "they do not belong together, so get both again."
        )
    accepted = inspect.signature(model.forward).parameters
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in accepted]
    return TextPreparation(tokenizer, min(_length(model), tokenizer.model_max_length)), ""


def _length(model: Any) -> int:
    """Tokens that the model has positions for, at most ``MAX_LENGTH``."""
    positions = getattr(model.config, "max_position_embeddings", None) or MAX_LENGTH
    for name, module in model.named_modules():
        # RoBERTa counts from the position after the padding's.
        if (
            isinstance(module, nn.Embedding)
            and name.endswith("position_embeddings")
            and module.padding_idx is not None
        ):
            positions -= module.padding_idx + 1
    return int(min(MAX_LENGTH, positions))


def _tokens(model: Any) -> Batch:
    """Random tokens, the last ones of the second example masked."""
    shape = (2, _length(model))
    generator = torch.Generator().manual_seed(0)
    keywords = {_TOKENS: torch.randint(model.config.vocab_size, shape, generator=generator)}
    if "attention_mask" in inspect.signature(model.forward).parameters:
        keywords["attention_mask"] = torch.ones(shape, dtype=torch.int64)
        keywords["attention_mask"][1, shape[1] // 2 :] = 0
    return Batch((), keywords)


def _pictures(folder: Path, channels: int) -> ImagePreparation:
    from transformers import AutoImageProcessor

    try:
        made = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return _preparation(made, channels)
    except Exception as error:  # damaged files raise many types
        raise ModelError(
            f"{folder / _PICTURE_FILE} cannot be used ({cause(error)}): mend it, or remove it and give "
            "data that is prepared already."
        ) from error


def _preparation(made: Any, channels: int) -> ImagePreparation:
    """What a processor of transformers does, as an ImagePreparation.

    Raises:
        ValueError: it does something that cannot be said so.
    """
    size = dict(made.size or {})
    crop = dict(made.crop_size or {}) if made.do_center_crop else {}
    edge, resize = size.get("shortest_edge"), None
    if not made.do_resize:
        raise ValueError("it does not resize")
    if size.get("height") and size.get("width"):
        final = (size["height"], size["width"])
        if crop and (crop["height"], crop["width"]) != final:
            raise ValueError("it resizes to a fixed size and then cuts another")
    elif edge and hasattr(made, "crop_pct"):
        # ConvNeXT's processor, ResNet's too: below 384 it cuts the middle, from there on it squeezes.
        final = (edge, edge)
        resize = int(edge / made.crop_pct) if edge < 384 else None
    elif edge and crop:
        final, resize = (crop["height"], crop["width"]), edge
    else:
        raise ValueError("it gives pictures of no fixed size")
    mean = _per_channel(made.image_mean, channels) if made.do_normalize else [0.0] * channels
    std = _per_channel(made.image_std, channels) if made.do_normalize else [1.0] * channels
    # Pixels here go up to 1; there they are multiplied by a factor that need not be 1/255.
    full = 255 * (made.rescale_factor if made.do_rescale else 1.0)
    return ImagePreparation(
        size=final,
        resize=resize,
        mean=tuple(value / full for value in mean),
        std=tuple(value / full for value in std),
        interpolation=_INTERPOLATIONS[int(made.resample)],
        keyword=_PICTURES,
    )


def _per_channel(given: float | list[float], channels: int) -> list[float]:
    values = (
        [float(value) for value in given] if isinstance(given, (list, tuple)) else [float(given)] * channels
    )
    if len(values) != channels:
        raise ValueError(f"it normalises {len(values)} channels, the model reads {channels}")
    return values


def _pixels(config: Any) -> Batch:
    """Noise of the configured size; 224 x 224 where it names none."""
    size = getattr(config, "image_size", None) or 224
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = getattr(config, "num_channels", 3)
    return example(
        ImagePreparation((height, width), None, (0.0,) * channels, (1.0,) * channels, keyword=_PICTURES)
    )

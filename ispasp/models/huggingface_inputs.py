"""What a Hugging Face model reads: its tokenizer or picture preparation, and an example to trace it with."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
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
MIN_LENGTH = 4  # tokens that a pair of sentences needs
MAX_SIDE = 4096  # pixels
_MAX_SETTINGS_BYTES = 2**24
_MAX_PATH = 4096
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
# Where a tokenizer once came from, which transformers writes down and never reads.
_NOT_READ = {"name_or_path", "special_tokens_map_file"}
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
        _check_inside(folder, _TOKENIZER_SETTINGS)
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
    length, limit = _length(model), tokenizer.model_max_length
    if isinstance(limit, int) and limit >= MIN_LENGTH:
        length = min(length, limit)
    return TextPreparation(tokenizer, length), ""


def _check_inside(folder: Path, files: tuple[str, ...]) -> None:
    """Refuse settings by which a file elsewhere would be read.

    Raises:
        ValueError: a value in one of the ``files`` is the path of a file outside of the folder, or the file is
            damaged.
    """
    for file in files:
        path = folder / file
        if not path.is_file():
            continue
        if path.stat().st_size > _MAX_SETTINGS_BYTES:
            raise ValueError(f"{file} is larger than {_MAX_SETTINGS_BYTES // 2**20} MiB")
        for key, value in _strings(json.loads(path.read_text(encoding="utf-8"))):
            if key in _NOT_READ or len(value) > _MAX_PATH:
                continue
            try:
                found = Path(value).expanduser()
                is_file = found.exists() and not found.is_dir()  # a device is one too
                outside = is_file and not found.resolve().is_relative_to(folder.resolve())
            except (OSError, RuntimeError):  # no path at all
                continue
            if outside:
                raise ValueError(f"{file} names {value} as its {key}, which lies outside of the folder")


def _strings(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text within JSON values, with the key that it stands under."""
    if isinstance(values, str):
        yield key, values
    elif isinstance(values, dict):
        for name, value in values.items():
            yield from _strings(value, name)
    elif isinstance(values, list):
        for value in values:
            yield from _strings(value, key)


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
    # Models of several inputs keep it elsewhere; that they need more than tokens shows when they are tried.
    vocabulary = getattr(model.config, "vocab_size", None) or 1
    keywords = {_TOKENS: torch.randint(vocabulary, shape, generator=generator)}
    if "attention_mask" in inspect.signature(model.forward).parameters:
        keywords["attention_mask"] = torch.ones(shape, dtype=torch.int64)
        keywords["attention_mask"][1, shape[1] // 2 :] = 0
    return Batch((), keywords)


def _pictures(folder: Path, channels: int) -> ImagePreparation:
    from transformers import AutoImageProcessor

    try:
        _check_inside(folder, (_PICTURE_FILE,))
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
    if channels not in (1, 3):
        raise ValueError(f"it prepares grey or colour pictures, the model reads {channels!r} channels")
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
    for side in final if resize is None else (*final, resize):
        _check_side(side)
    mean = _per_channel(made.image_mean, channels) if made.do_normalize else [0.0] * channels
    std = _per_channel(made.image_std, channels) if made.do_normalize else [1.0] * channels
    # Pixels here go up to 1; there they are multiplied by a factor that need not be 1/255.
    full = 255 * (made.rescale_factor if made.do_rescale else 1.0)
    mean, std = [value / full for value in mean], [value / full for value in std]
    if not all(abs(value) <= 1e6 for value in mean) or not all(1e-6 <= value <= 1e6 for value in std):
        raise ValueError(f"it subtracts {mean} and divides by {std}: give finite numbers, the latter above 0")
    return ImagePreparation(
        size=final,
        resize=resize,
        mean=tuple(mean),
        std=tuple(std),
        interpolation=_INTERPOLATIONS[int(made.resample)],
        keyword=_PICTURES,
    )


def _check_side(side: Any) -> None:
    """Raises ValueError where a picture's side is no whole number of pixels from 1 to ``MAX_SIDE``."""
    if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= MAX_SIDE:
        raise ValueError(
            f"its pictures have a side of {side!r}, which must be a whole number from 1 to {MAX_SIDE}"
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
    for number in (height, width, channels):
        _check_side(number)
    if channels * height * width > 3 * MAX_SIDE**2:
        raise ValueError(
            f"its pictures have {channels} channels of {height} x {width} pixels, which is too much"
        )
    return example(
        ImagePreparation((height, width), None, (0.0,) * channels, (1.0,) * channels, keyword=_PICTURES)
    )

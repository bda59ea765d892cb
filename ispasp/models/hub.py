"""Find the folder of a Hugging Face model: on disk, among earlier downloads, or on the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ispasp.errors import ModelError
from ispasp.models.checkpoint import check_bytes
from ispasp.models.source import RANDOM, cause
from ispasp.paths import expanded

CONFIG = "config.json"
# In the order of preference; an index names the parts of a model in several files.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_BESIDES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece*",
    "preprocessor_config.json",
)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TIMEOUT = 5.0  # seconds until the hub must answer


def folder_of(name: str, *, weights: bool) -> Path:
    """The folder that ``name`` is, or that the hub's model of this name was fetched to.

    Args:
        name: a folder's path, or a name on the hub; a folder goes first.
        weights: whether its weights are needed too.

    Raises:
        ModelError: neither, or no path at all; or the hub does not answer within seconds or refuses.
    """
    path = expanded(name, ModelError)
    if path.is_dir():
        return path
    if not _HUB_NAME.fullmatch(name):
        raise ModelError(f"There is no folder {name}: give a folder with a {CONFIG}, or a name on the hub.")
    return _fetched(name, weights)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the folder's weights, safetensors ones where there are any.

    Raises:
        ModelError: there are none, an index is damaged or points elsewhere, or they are larger than 4 GiB.
    """
    found = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise ModelError(
            f"{folder} holds neither model.safetensors nor pytorch_model.bin: save the model there with "
            f'save_pretrained, give a checkpoint file (weights=PATH), or weights="{RANDOM}".'
        )
    files = [folder / found]
    if found.endswith(".index.json"):
        try:
            names = sorted(set(json.loads(files[0].read_text())["weight_map"].values()))
            inside = all(Path(name).name == name for name in names)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            inside, names = False, []
        if not inside or not names:
            raise ModelError(
                f"{files[0]} is damaged: it does not list files beside it; save the model again."
            )
        files = [folder / name for name in names]
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise ModelError(f"{absent[0]} is missing, a part of the weights: get the whole model again.")
    check_bytes(sum(file.stat().st_size for file in files), f"The model in {folder}")
    return files


def _fetched(name: str, weights: bool) -> Path:
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
    except ImportError as error:
        raise needs_transformers(f"huggingface:{name}") from error
    wanted = [CONFIG, *_BESIDES]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        if (folder / CONFIG).is_file() and (
            not weights or any((folder / file).is_file() for file in WEIGHTS)
        ):
            return folder
    except Exception:  # not among earlier downloads, whatever the type that says so
        pass
    try:
        if constants.HF_HUB_OFFLINE:
            raise ModelError("HF_HUB_OFFLINE is set")
        # The download repeats itself for half a minute where nobody answers: ask first, once.
        info = HfApi().model_info(name, timeout=_TIMEOUT, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        found = next((file for file in WEIGHTS if file in sizes), None)
        if weights and found:
            stem, ending = found.removesuffix(".index.json").rsplit(".", 1)
            parts = [file for file in sizes if re.fullmatch(rf"{stem}(-\d+-of-\d+)?\.{ending}", file)]
            check_bytes(sum(sizes[file] for file in parts), name)
            wanted += [found, *parts]
        return Path(snapshot_download(name, revision=info.sha, allow_patterns=wanted))
    except Exception as error:  # the hub's client and what lies below it raise many types
        raise ModelError(
            f"The Hugging Face model {name} is no folder here and cannot be fetched from the hub ({cause(error)}): "
            "give a folder that holds it (config.json and model.safetensors), or a torchvision or sample model."
        ) from error


def needs_transformers(what: str) -> ModelError:
    """The error where the optional extra is not installed."""
    return ModelError(
        f'{what} needs transformers, which is not installed here: pip install "ispasp[huggingface]".'
    )

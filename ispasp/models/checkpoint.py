"""Read the tensors of a checkpoint file, and nothing else of it; fit them to an architecture, strictly.

Two formats are read: safetensors, and state dicts saved by torch, the latter without running any code
that they may hold. The format is told by the content, never by the name.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import load_file
from torch import Tensor, nn

from ispasp.errors import ModelError
from ispasp.models.source import cause
from ispasp.paths import expanded

MAX_BYTES = 4 * 2**30
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_TORCH_ARCHIVE, _TORCH_LEGACY = b"PK\x03\x04", b"\x80"
_TYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_TYPES |= {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_COUNTER = ".num_batches_tracked"
_NEEDED = "save model.state_dict() with safetensors or torch.save"


def read_state(given: str | Path | bytes, name: str = "") -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU.

    ``{"state_dict": ...}``, ``{"model": ...}`` and a prefix ``module.`` of all names are taken off.

    Args:
        given: a file's path, or its content.
        name: what to call it in messages; the path where empty.

    Raises:
        ModelError: it cannot be read, is larger than 4 GiB, is of another format, holds more than
            tensors, or a value is not finite.
    """
    name = name or ("the checkpoint" if isinstance(given, bytes) else str(given))
    if not isinstance(given, bytes):
        given = expanded(given, ModelError)
    try:
        start = _checked_start(given, name)
        if start.startswith(_TORCH_ARCHIVE):
            _check_archive(given, name)
        if start.startswith((_TORCH_ARCHIVE, _TORCH_LEGACY)):
            state = _unwrapped(_read_torch(given, name), name)
        elif start[8:9] == b"{":
            state = tensors_from_bytes(given) if isinstance(given, bytes) else _copied(load_file(given))
        else:
            raise ModelError(f"{name} is neither a safetensors file nor a state dict of torch: {_NEEDED}.")
    except ModelError:
        raise
    except Exception as error:  # damaged files raise many types, none of which a user could mend
        raise ModelError(
            f"{name} cannot be read ({cause(error)}): it is damaged or cut short, so get it again."
        ) from error
    _check_tensors(state, name)
    return state


def fit(model: nn.Module, state: Mapping[str, Tensor], name: str) -> nn.Module:
    """Load ``state`` into ``model``, strictly; in place.

    Raises:
        ModelError: names or shapes do not fit (the message names the first three).
    """
    own = model.state_dict()
    # Old files have no counters of batches, which nothing but training reads.
    copied = OrderedDict({key: own[key] for key in own if key.endswith(_COUNTER)} | dict(state))
    # torch's files carry versions by which modules translate their names; without, they are today's.
    versions = getattr(state, "_metadata", None)
    vars(copied)["_metadata"] = vars(own).get("_metadata") if versions is None else versions
    try:
        model.load_state_dict(copied, strict=True)
    except (RuntimeError, ValueError) as error:
        wrong = mismatches({key: value.shape for key, value in own.items()}, state)
        raise misfit(model, name, wrong or [cause(error)]) from error
    return model


def mismatches(own: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``state`` from fitting tensors of the shapes ``own``, one entry for each name."""
    wrong = [f"missing {key}" for key in own if key not in state and not key.endswith(_COUNTER)]
    wrong += [f"unexpected {key}" for key in state if key not in own and not key.endswith(_COUNTER)]
    wrong += [
        f"{key} is {tuple(value.shape)} in place of {tuple(own[key])}"
        for key, value in state.items()
        if key in own and own[key] != value.shape
    ]
    return wrong


def misfit(model: nn.Module, name: str, wrong: list[str]) -> ModelError:
    """The error for weights of another architecture; the first three of ``wrong`` are named."""
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return ModelError(
        f"The weights in {name} do not belong to this {type(model).__name__}: {'; '.join(wrong[:3])}{more}. "
        "Give a checkpoint of this architecture, or choose the architecture that it was saved from."
    )


def check_bytes(size: int, name: str) -> None:
    """Refuse what is larger than 4 GiB.

    Raises:
        ModelError: it is.
    """
    if size > MAX_BYTES:
        raise ModelError(
            f"{name} is {size / 2**30:.1f} GiB; at most {MAX_BYTES // 2**30} GiB are read, so give a smaller model."
        )


def _checked_start(given: str | Path | bytes, name: str) -> bytes:
    """The first bytes, after the size was found small enough."""
    if isinstance(given, bytes):
        check_bytes(len(given), name)
        return given[:9]
    path = Path(given)
    if not path.is_file():
        raise ModelError(
            f"There is no checkpoint file {name}: give the path of one, or leave the weights out."
        )
    check_bytes(path.stat().st_size, name)
    with path.open("rb") as file:
        return file.read(9)


def _check_archive(given: str | Path | bytes, name: str) -> None:
    """Refuse programs, and archives that would unfold to more than the limit.

    Raises:
        ModelError: it is one; or what zipfile raises.
    """
    with zipfile.ZipFile(io.BytesIO(given) if isinstance(given, bytes) else given) as archive:
        members = archive.infolist()
    inner = {member.filename.partition("/")[2] for member in members}
    is_script = any(member == "constants.pkl" or member.startswith("code/") for member in inner)
    is_program = "archive_format" in inner or any(m.filename.endswith("_program.json") for m in members)
    if is_script or is_program:
        kind = "an exported program (.pt2)" if is_program else "a TorchScript archive"
        raise ModelError(
            f"{name} is {kind}, which can run code when it is read, so it is refused: {_NEEDED}."
        )
    check_bytes(sum(member.file_size for member in members), f"{name}, unpacked,")


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their own: those read from a file change with it, and end the process where it is cut."""
    return {key: value.clone() for key, value in state.items()}


def _read_torch(given: str | Path | bytes, name: str) -> Any:
    """What torch.save wrote, made of tensors and plain containers only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(
                io.BytesIO(given) if isinstance(given, bytes) else given,
                map_location="cpu",
                weights_only=True,
            )
    except pickle.UnpicklingError as error:
        # torch's own words advise unsafe reading.
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        held = (
            f"holds more than tensors ({foreign[1]})" if foreign else "is damaged or holds more than tensors"
        )
        raise ModelError(
            f"{name} {held}, which could run code when it is read, so it is refused: {_NEEDED}."
        ) from error


def _unwrapped(loaded: Any, name: str) -> dict[str, Tensor]:
    """The state dict proper."""
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, dict) or not loaded:
        raise ModelError(f"{name} holds a {type(loaded).__name__} in place of named tensors: {_NEEDED}.")
    if all(isinstance(key, str) and key.startswith("module.") for key in loaded):
        loaded = {key.removeprefix("module."): value for key, value in loaded.items()}
    return loaded


def _check_tensors(state: Mapping[Any, Any], name: str) -> None:
    total = 0
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ModelError(f"{name} holds {key!r}, a {type(value).__name__}, among its tensors: {_NEEDED}.")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise ModelError(f"{key} in {name} is a sparse, quantised or empty tensor; save dense weights.")
        if value.dtype not in _TYPES:
            raise ModelError(
                f"{key} in {name} is {value.dtype}; save weights as float32, float16 or bfloat16."
            )
        # A few bytes can pose as a tensor of any size, by repeating them.
        total += value.numel() * value.element_size()
    check_bytes(total, f"What {name} holds")
    for key, value in state.items():
        if not bool(value.isfinite().all()):
            raise ModelError(f"{key} in {name} holds values that are not finite; give weights that are.")

"""What a fine-tuning leaves on disk after an epoch, so that it can go on from there to the last bit the same.

One safetensors file, replaced as a whole; what is no tensor lies as JSON in its header.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ispasp import plain_files
from ispasp.calibration import Batch
from ispasp.errors import RunError
from ispasp.tuning.records import EpochDone
from ispasp.tuning.settings import TuneSettings
from ispasp.tuning.training_set import TrainingSet

FILE = "checkpoint.safetensors"
PARTS = ("weights", "best", "optimiser")  # of a state: tensors by name


@dataclass(frozen=True)
class TuneState:
    """Where a fine-tuning is after an epoch. Tensors are on the CPU and shared with nobody.

    Attributes:
        fingerprint: of what it is a fine-tuning of (``fingerprint``).
        stage: as in ``EpochDone``.
        epoch: how many epochs are done.
        curve: all of them.
        weights: the model's state, by name, in the types in which it is trained.
        best: the best weights, by name, in the model's own types; empty while those given are the best.
        optimiser: its tensors, as ``"momentum_buffer/layer1.0.conv1.weight"``.
        scaler: state of the loss's scale; empty but for fp16.
    """

    fingerprint: str
    stage: str
    epoch: int
    curve: tuple[EpochDone, ...]
    weights: dict[str, Tensor] = field(repr=False)
    best: dict[str, Tensor] = field(repr=False)
    optimiser: dict[str, Tensor] = field(repr=False)
    scaler: dict[str, float] = field(default_factory=dict)


def fingerprint(
    pruned: nn.Module,
    dense: nn.Module | None,
    training: TrainingSet,
    settings: TuneSettings,
    stage: str = "",
    epochs: int | None = None,
) -> str:
    """SHA-256, hexadecimal, over everything that decides what comes out, but for most of the training examples.

    Args:
        pruned, dense, training, settings, stage, epochs: as ``tune_steps`` takes them.
    """
    sha = hashlib.sha256()
    plain = [dataclasses.asdict(settings), stage, settings.epochs if epochs is None else epochs]
    sha.update(json.dumps([*plain, len(training), training.labelled]).encode())
    for model in (pruned, dense):
        update(sha, {} if model is None else model.state_dict())
    for batch in training.batches([[0, len(training) - 1]]):
        update(sha, named(batch))
    return sha.hexdigest()


def named(batch: Batch) -> dict[str, Tensor]:
    """A batch's inputs by number, and its labels."""
    labels = {} if batch.labels is None else {"labels": batch.labels}
    return {str(index): value for index, value in enumerate(batch.tensors)} | labels


def update(sha: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    """Have a digest cover name, type, shape and bytes of these."""
    for name, value in tensors.items():
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write(state: TuneState, folder: Path) -> None:
    """Write ``state`` to ``folder``, which is made; what was there stays until the new file is whole.

    Raises:
        RunError: the disk is full, or cannot be written.
    """
    tensors = {f"{part}/{name}": v for part in PARTS for name, v in getattr(state, part).items()}
    plain = {name: getattr(state, name) for name in ("fingerprint", "stage", "epoch", "scaler")}
    plain["curve"] = [dataclasses.asdict(done) for done in state.curve]
    partial = folder / f".{FILE}.{secrets.token_hex(4)}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, {"state": json.dumps(plain, allow_nan=False)})
        partial.replace(folder / FILE)
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(
            f"The checkpoint of epoch {state.epoch} cannot be written to {folder}: {error}. Make room there, or choose "
            "another folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read(folder: Path, fingerprint: str) -> TuneState | None:
    """The state in ``folder``; None where there is none.

    Raises:
        RunError: it is damaged, or of another model, other data or other settings.
    """
    path = folder / FILE
    try:
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as file:
            plain = plain_files.parse((file.metadata() or {})["state"])
            tensors: dict[str, Any] = {part: {} for part in PARTS}
            for key in file.keys():  # noqa: SIM118  it is no dict
                part, _, name = key.partition("/")
                tensors[part][name] = file.get_tensor(key)
        plain["curve"] = tuple(plain_files.check_fields(EpochDone(**done)) for done in plain["curve"])
        state = plain_files.check_fields(TuneState(**plain, **tensors))
        epochs = [done.epoch for done in state.curve]
        if len(epochs) != state.epoch or epochs != list(range(1, len(epochs) + 1)):
            raise ValueError("its epochs do not fit")
        if any(done.best for done in state.curve) != bool(state.best):
            raise ValueError("its best weights do not fit its epochs")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"The checkpoint in {folder} is damaged ({error}); remove it to begin anew."
        ) from error
    if state.fingerprint != fingerprint:
        raise foreign(str(folder))
    return state


def foreign(where: str) -> RunError:
    """The error about a checkpoint that belongs to another fine-tuning."""
    return RunError(
        f"The checkpoint in {where} is of another model, other training data or other settings; give what it was made "
        "with, or another place."
    )

"""Small runs that can be fine-tuned in a moment: one of a sample model, one of two blocks from a Python file."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ispasp import runs
from ispasp.records import BlockPruned, Progress
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from ispasp.tuning import runs as tunings
from ispasp.tuning.records import Began, EpochDone
from ispasp.tuning.request import TuneRequest

FUNCTIONS = """
import time

import torch
from torch import nn

def model():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)]
    return nn.Sequential(*layers), torch.zeros(2, 6)

def examples(count, seed):
    torch.manual_seed(0)
    centres = 2 * torch.randn(3, 6)
    torch.manual_seed(seed)
    labels = torch.arange(count) % 3
    return centres[labels] + torch.randn(count, 6), labels

def data():
    return [examples(90, 1)], [examples(30, 2)]

def unlabelled():
    return [examples(90, 1)[0]], [examples(30, 2)[0]]

def one_pool():
    return [examples(100, 3)]

def anew():
    inputs, labels = examples(100, time.time_ns() % 2**31)
    order = torch.randperm(100)
    return [(inputs[order], labels[order])]
"""


def sample_run(folder: Path) -> Path:
    """A pruned ``mnist_mlp``."""
    settings = RunSettings("mnist_mlp", keep=0.05, samples=32, evaluation=64, device="cpu", multiple=1)
    return saved(runs.execute(settings, folder))


def own_run(folder: Path, data: str = "data", **more: Any) -> Path:
    """A pruned model of two blocks, whose model and data a Python file gives."""
    (folder / "mine.py").write_text(FUNCTIONS)
    source = f"python:{folder / 'mine.py'}"
    settings = RunSettings(
        f"{source}:model",
        data=f"{source}:{data}",
        samples=32,
        evaluation=30,
        multiple=1,
        device="cpu",
        **more,
    )
    return saved(runs.execute(settings, folder / "runs", allow_code=True))


def quick(**more: Any) -> TuneRequest:
    """Two short epochs on 80 examples; ``more`` are other settings."""
    changes = {"epochs": 2, "batch_size": 16, "learning_rate": 0.002, **more}
    return TuneRequest.of_preset("quick", changes, train_examples=80)


def paper(**more: Any) -> TuneRequest:
    """Two epochs after each block, and two at the end."""
    changes = {"epochs": 2, "after_block": 2, "batch_size": 16, "learning_rate": 0.02}
    return TuneRequest.of_preset("paper", changes | more)


def saved(events: Iterable[Any]) -> Path:
    """The folder of the run that some work ends with."""
    *_, last = events
    assert isinstance(last, RunSaved)
    return last.path


def tuned(parent: Path, request: TuneRequest, folder: Path | None = None, **more: Any) -> Path:
    """A fine-tuned run, beside its parent by default."""
    return saved(tunings.execute(parent, request, folder or parent.parent, allow_code=True, **more))


def told(events: Iterable[Any]) -> list[Any]:
    """All events but the progress, and what there was before."""
    return [event for event in events if not isinstance(event, (Progress, Began))]


def weights(path: Path) -> dict[str, Tensor]:
    return load_file(path / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    """Whether two runs have the same weights to the last bit."""
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def cut_off(events: Iterator[Any], after: int) -> list[Any]:
    """Have a fine-tuning interrupted behind so many epochs and pruned blocks; its events."""
    seen: list[Any] = []
    for event in events:
        seen.append(event)
        if sum(isinstance(one, (EpochDone, BlockPruned)) for one in seen) == after:
            if isinstance(event, BlockPruned):  # whose checkpoint is there when something else begins
                while getattr(next(events), "doing", "") == f"pruning {event.block.name}":
                    pass
            break
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    return told(seen)


def begun(parent: Path, request: TuneRequest, folder: Path, after: int) -> list[Any]:
    """A fine-tuning that was cut off, as ``cut_off``."""
    return cut_off(tunings.execute(parent, request, folder, allow_code=True), after)


def full(*_: object, **__: object) -> None:
    """Writes to a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def changed(file: Path) -> Iterator[dict[str, Any]]:
    """The values of a JSON file, to be changed."""
    plain = json.loads(file.read_text())
    yield plain
    file.write_text(json.dumps(plain))

"""Runs that are cut off between two blocks and gone on with."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ispasp import runs, store, unfinished
from ispasp.errors import RunError
from ispasp.onepass import OnePass
from ispasp.records import BlockPruned, BlockStarted
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = RunSettings("cifar10_resnet20", keep=0.4, samples=48, evaluation=60, selector="obs", device="cpu")

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from ispasp import runs
from ispasp.records import BlockPruned
from ispasp.run_settings import RunSettings
torch.set_num_threads(1)
for event in runs.execute(RunSettings(**eval(sys.argv[1])), Path(sys.argv[2])):
    if isinstance(event, BlockPruned) and event.index == 4:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(settings: RunSettings, folder: Path) -> None:
    """Begin a run in a process of its own that is killed after its fifth block."""
    command = [sys.executable, "-c", KILLED, repr(settings.plain()), str(folder)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def execute(settings: RunSettings, folder: Path) -> Path:
    *_, last = runs.execute(settings, folder)
    assert isinstance(last, RunSaved)
    return last.path


def same(one: Path, other: Path) -> None:
    first, second = (store.open_run(path) for path in (one, other))
    assert first.trace == second.trace
    for ours, theirs in zip(first.trace, second.trace, strict=True):
        assert torch.equal(ours.importance, theirs.importance)
    assert [block.error_after for block in first.blocks_pruned] == [
        b.error_after for b in second.blocks_pruned
    ]
    weights, others = (load_file(path / "model.safetensors") for path in (one, other))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return execute(SETTINGS, tmp_path_factory.mktemp("whole"))


def test_a_killed_run_goes_on_to_the_same_result(whole: Path, tmp_path: Path) -> None:
    finished = execute(replace(SETTINGS, model="mnist_mlp", reconstruct="none"), tmp_path)
    killed(SETTINGS, tmp_path)
    assert [run.path for run in store.list_runs(tmp_path)] == [
        finished
    ]  # intact, and nothing half-written beside it
    (left,) = unfinished.find(tmp_path)
    assert (left.settings, left.blocks_done, left.blocks_total, left.lineage) == (SETTINGS, 5, 9, {})
    events = list(runs.resume(tmp_path, left.run_id))
    assert isinstance(events[-1], RunSaved)
    same(events[-1].path, whole)
    assert unfinished.find(tmp_path) == [] and not (tmp_path / unfinished.FOLDER).exists()


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, selector="ispasp", reconstruct="none", recalibrate=True, multiple=1),
        replace(
            SETTINGS, selector="ispasp", reconstruct="symmetric", model="cifar10_mobilenetv2", samples=16
        ),
    ],
    ids=["none", "symmetric"],
)
def test_every_kind_of_re_fit_goes_on(settings: RunSettings, tmp_path: Path, monkeypatch: Any) -> None:
    same(resumed(settings, tmp_path, monkeypatch), execute(settings, tmp_path / "whole"))


def resumed(settings: RunSettings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was cut off and gone on with."""
    cut_off(settings, folder, monkeypatch)
    (left,) = unfinished.find(folder)
    assert left.blocks_done == 3
    selections: list[str] = []
    choose = OnePass._choose

    def counted(one_pass: OnePass, collected: Any, kept: int) -> Iterator[Any]:
        selections.append(collected.block.name)
        return choose(one_pass, collected, kept)

    with monkeypatch.context() as patch:
        patch.setattr(OnePass, "_choose", counted)
        events = list(runs.resume(folder, left.run_id))
    started = [event.block.name for event in events if isinstance(event, BlockStarted)]
    assert selections == started[3:]  # the finished ones were taken over, not chosen again
    assert isinstance(events[-1], RunSaved)
    return events[-1].path


def cut_off(settings: RunSettings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that finds the disk full after three blocks."""
    keep = unfinished.Attempt.keep

    def full(attempt: unfinished.Attempt, index: int, block: Any) -> None:
        if index == 3:
            raise RunError("no space left")
        keep(attempt, index, block)

    with monkeypatch.context() as patch:
        patch.setattr(unfinished.Attempt, "keep", full)
        with pytest.raises(RunError, match="no space left"):
            execute(settings, folder)


def test_stop_leaves_nothing_behind(tmp_path: Path) -> None:
    events = runs.execute(SETTINGS, tmp_path)
    assert any(isinstance(event, BlockPruned) for event in events)
    assert unfinished.find(tmp_path) == []  # it is under work
    (under_work,) = (path for path in (tmp_path / unfinished.FOLDER).iterdir() if path.is_dir())
    for use in (
        lambda: unfinished.discard(tmp_path, under_work.name),
        lambda: list(runs.resume(tmp_path, under_work.name)),
    ):
        with pytest.raises(RunError, match="being worked on"):
            use()
    events.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence_and_the_run_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: Any
) -> None:
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if Path(target).name == "0002":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(RunError, match="No space left on device.*Make room"):
            execute(SETTINGS, tmp_path)
    assert [run.blocks_done for run in unfinished.find(tmp_path)] == [2]
    assert store.list_runs(tmp_path) == []


def test_other_data_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    cut_off(SETTINGS, tmp_path, monkeypatch)
    (left,) = unfinished.find(tmp_path)
    plan = tmp_path / unfinished.FOLDER / left.run_id / "plan.json"
    plan.write_text(plan.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(RunError, match="layer1.0.conv1.*not those it began with"):
        list(runs.resume(tmp_path, left.run_id))
    unfinished.discard(tmp_path, left.run_id)
    assert unfinished.find(tmp_path) == []


def test_damaged_remains_are_refused(tmp_path: Path) -> None:
    place = tmp_path / unfinished.FOLDER / "one"
    place.mkdir(parents=True)
    (place / "plan.json").write_text("{}")
    assert unfinished.find(tmp_path) == []
    with pytest.raises(RunError, match="discard it and run again"):
        list(runs.resume(tmp_path, "one"))
    unfinished.discard(tmp_path, "one")
    assert not place.exists()

"""Runs that are cut off between two blocks and gone on with."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ispasp import runs, store, sweeps, unfinished
from ispasp.errors import RunError
from ispasp.jobs import Registry, State
from ispasp.onepass import OnePass
from ispasp.records import BlockPruned, BlockStarted, Finished, Progress
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from ispasp.sweeps import SweepSettings
from ispasp.unfinished import Discarded

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


@pytest.mark.slow
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
        pytest.param(
            replace(
                SETTINGS, selector="ispasp", reconstruct="symmetric", model="cifar10_mobilenetv2", samples=16
            ),
            marks=pytest.mark.slow,
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


def test_a_run_that_is_closed_can_be_gone_on_with_at_once(whole: Path, tmp_path: Path) -> None:
    events = runs.execute(SETTINGS, tmp_path)
    assert any(isinstance(event, BlockPruned) and event.index == 2 for event in events)
    events.close()  # as by whoever cannot write the progress bar
    (left,) = unfinished.find(tmp_path)
    assert (left.settings, left.blocks_done) == (SETTINGS, 3)
    *_, last = runs.resume(tmp_path, left.run_id)
    assert isinstance(last, RunSaved)
    same(last.path, whole)


def test_a_run_that_was_resumed_can_be_discarded_at_any_moment(tmp_path: Path) -> None:
    for reached in (Progress, BlockStarted):  # while the data are read, and later
        events = runs.execute(replace(SETTINGS, model="mnist_mlp"), tmp_path)
        assert any(isinstance(event, BlockPruned) for event in events)
        events.close()
        (left,) = unfinished.find(tmp_path)
        events = runs.resume(tmp_path, left.run_id)
        assert any(isinstance(event, reached) for event in events)
        with pytest.raises(Discarded):
            events.throw(Discarded())
        assert list(tmp_path.iterdir()) == []


def test_what_is_saved_is_not_discarded_any_more(tmp_path: Path) -> None:
    events = runs.execute(replace(SETTINGS, model="mnist_mlp"), tmp_path, tmp_path / "mine")
    assert any(isinstance(event, Finished) for event in events)
    again = unfinished.begin(tmp_path, "mine", SETTINGS)  # another process takes the name
    with pytest.raises(Discarded):
        events.throw(Discarded())
    assert again.folder.is_dir() and store.list_runs(tmp_path)[0].run_id == "mine"
    again.discard()


def test_discarding_leaves_nothing_behind(tmp_path: Path) -> None:
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
    with pytest.raises(Discarded):
        events.throw(Discarded())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_what_is_cancelled_leaves_nothing_but_a_sweep_to_go_on_with(tmp_path: Path, kind: str) -> None:
    settings = replace(SETTINGS, model="mnist_mlp")
    sweep = SweepSettings(settings, (0.2, 0.3))
    reached, gate = threading.Event(), threading.Event()

    def work() -> Iterator[Any]:
        events = sweeps.execute(sweep, tmp_path) if kind == "sweep" else runs.execute(settings, tmp_path)
        while not list(tmp_path.glob(".unfinished/*/0000")):
            next(events)
        reached.set()
        assert gate.wait(30)
        yield from events

    job = Registry().submit(kind, work, "cpu")
    assert reached.wait(30)
    job.cancel()
    gate.set()
    assert job.wait(State.CANCELLED)
    assert [one.settings for one in sweeps.unfinished(tmp_path)] == [sweep] * (kind == "sweep")
    assert any(run.blocks_done for run in unfinished.find(tmp_path)) == (kind == "sweep")
    assert kind == "sweep" or list(tmp_path.iterdir()) == []


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
    with pytest.raises(RunError, match="discard it and run again: python -m ispasp resume .*one --discard$"):
        list(runs.resume(tmp_path, "one"))
    unfinished.discard(tmp_path, "one")
    assert not place.exists()

"""Fine-tunings of saved runs: what is saved, and how those go on that were cut off."""

from __future__ import annotations

import dataclasses
import io
import shutil
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

import ispasp
from ispasp import narrative, store, unfinished
from ispasp.display import watched
from ispasp.errors import CalibrationError, DeviceError, RunError, SettingError, UnderWorkError
from ispasp.records import Finished, Progress
from ispasp.result import load_record
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from ispasp.tuning import attempt, checkpoint
from ispasp.tuning import runs as tunings
from ispasp.tuning.memory import CheckpointMissed
from ispasp.tuning.records import EpochDone
from ispasp.tuning.request import TuneRequest, curve_of
from ispasp.tuning.training_set import MemorySet
from ispasp.unfinished import Discarded
from tests.small_tuned_runs import (
    begun,
    changed,
    cut_off,
    equal,
    full,
    quick,
    sample_run,
    saved,
    told,
    tuned,
    weights,
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return sample_run(tmp_path_factory.mktemp("sample"))


def test_what_is_saved_comes_back(sample: Path, tmp_path: Path) -> None:
    before = tunings.digest_of(sample)
    events = told(tunings.execute(sample, quick(), tmp_path))
    *epochs, finished, last = events
    assert all(isinstance(event, EpochDone) for event in epochs) and len(epochs) == 2
    assert isinstance(finished, Finished) and isinstance(last, RunSaved)
    assert tunings.digest_of(sample) == before and list(tmp_path.iterdir()) == [last.path]
    parent, result = ispasp.load(sample), ispasp.load(last.path)
    state = finished.result.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in result.model.state_dict().items())
    assert result.report == finished.result.report and result.settings == finished.result.settings
    tuning = result.report["tuning"]
    assert curve_of(tuning["curve"]) == tuple(epochs)
    assert tuning["accuracy_before"] == parent.report["accuracy_after"]
    assert (tuning["train_examples"], tuning["held_out_examples"], tuning["epochs_done"]) == (80, 8, 2)
    assert (tuning["stopped"], tuning["processes"], tuning["precision"]) == ("", 1, "fp32")
    assert result.report["seconds"] > tuning["seconds"] == sum(event.seconds for event in epochs)
    assert result.predictions is not None and parent.predictions is not None
    assert result.report["accuracy_after"] == result.predictions.accuracy_after
    assert torch.equal(result.predictions.dense, parent.predictions.dense)
    assert RunSettings.of(result) == RunSettings.of(parent)
    assert TuneRequest.of(result.settings["tuning"]) == quick()
    assert result.trace == parent.trace and result.blocks_pruned == parent.blocks_pruned
    (listed,) = store.list_runs(tmp_path)
    assert listed.lineage == {"tuned": sample.name} and not listed.problem


@pytest.mark.parametrize("after", [1, 2])
def test_resuming_after_any_epoch_gives_the_same(own: Path, tmp_path: Path, after: int) -> None:
    whole = tuned(own, quick(), tmp_path / "whole")
    before = begun(own, quick(), tmp_path, after)
    (left,) = tunings.find(tmp_path)
    assert (left.epochs_done, left.epochs_total, left.request) == (after, 2, quick())
    assert left.parent == str(own)
    events = told(tunings.resume(tmp_path, left.run_id, allow_code=True))
    assert events[:after] == before
    assert equal(events[-1].path, whole)
    one, other = (load_record(path).report["tuning"]["curve"] for path in (events[-1].path, whole))
    assert curve_of(one) == curve_of(other)
    assert tunings.find(tmp_path) == [] and not (tmp_path / attempt.FOLDER).exists()


def test_stop_keeps_the_best_and_saves(own: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    for event in tunings.execute(
        own,
        quick(epochs=50),
        tmp_path,
        allow_code=True,
        stop=lambda: any(isinstance(e, EpochDone) for e in seen),
    ):
        seen.append(event)
    epochs = [event for event in seen if isinstance(event, EpochDone)]
    record = load_record(seen[-1].path)
    assert len(epochs) == 1 and record.report["tuning"]["epochs_done"] == 1
    assert "Stopped in epoch 2 of 50" in record.report["tuning"]["stopped"]
    one = tuned(own, quick(epochs=50), tmp_path, stop=lambda: True)
    assert equal(one, own) and load_record(one).report["tuning"]["curve"] == []
    assert "Stopped by hand" in load_record(one).report["tuning"]["stopped"]


class Terminal(io.StringIO):
    """What is written to it is lost, once the disk is full."""

    full = False

    def write(self, text: str) -> int:
        if self.full:
            full()
        return len(text)


def test_a_progress_bar_that_cannot_be_written_costs_nothing_that_is_done(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tuned(own, quick(), tmp_path / "whole")
    terminal = Terminal()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("sys.stderr", terminal)
        for event in watched(tunings.execute(own, quick(), tmp_path, allow_code=True)):
            if isinstance(event, EpochDone):
                terminal.full = True
                time.sleep(0.2)  # it is drawn ten times a second
    (left,) = tunings.find(tmp_path)
    assert left.epochs_done == 1
    assert equal(saved(tunings.resume(tmp_path, left.run_id, allow_code=True)), whole)


def test_after_it_other_threads_can_draw_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    terminal.full = True
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("sys.stderr", terminal)
        list(watched([Progress(0.5, "half")]))
    free = threading.Event()

    def draw() -> None:
        with tqdm.get_lock():
            free.set()

    threading.Thread(target=draw, daemon=True).start()
    assert free.wait(5)


def test_one_that_was_resumed_can_be_discarded_at_any_moment(own: Path, tmp_path: Path) -> None:
    for reached in (Progress, EpochDone):  # while the data are read, and later
        events = tunings.execute(own, quick(), tmp_path, allow_code=True)
        assert any(isinstance(event, EpochDone) for event in events)
        events.close()  # type: ignore[attr-defined]
        (left,) = tunings.find(tmp_path)
        events = tunings.resume(tmp_path, left.run_id, allow_code=True)
        assert any(isinstance(event, reached) for event in events)
        with pytest.raises(Discarded):
            events.throw(Discarded())  # type: ignore[attr-defined]
        assert list(tmp_path.iterdir()) == []


def test_discarding_leaves_nothing(own: Path, tmp_path: Path) -> None:
    events = tunings.execute(own, quick(), tmp_path, allow_code=True)
    assert any(isinstance(event, EpochDone) for event in events)
    assert tunings.find(tmp_path) == []  # it is under work
    (folder,) = (path for path in (tmp_path / attempt.FOLDER).iterdir() if path.is_dir())
    for use in (tunings.discard, partial(attempt.TuneAttempt, patience=0)):
        with pytest.raises(UnderWorkError, match="being worked on"):
            use(tmp_path, folder.name)
    with pytest.raises(Discarded):
        events.throw(Discarded())  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_the_work_goes_on(own: Path, tmp_path: Path, monkeypatch: Any) -> None:
    events = tunings.execute(own, quick(epochs=3), tmp_path, allow_code=True)
    seen: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        for event in events:
            seen.append(event)
            if isinstance(event, CheckpointMissed):
                break
    assert "No space left on device" in seen[-1].problem and isinstance(seen[-2], EpochDone)
    (folder,) = (path for path in (tmp_path / attempt.FOLDER).iterdir() if path.is_dir())
    assert not (folder / "epochs-0000" / checkpoint.FILE).exists()
    for event in events:
        seen.append(event)
        if isinstance(event, EpochDone):  # there is room again
            assert (folder / "epochs-0000" / checkpoint.FILE).is_file()
    assert equal(seen[-1].path, tuned(own, quick(epochs=3), tmp_path))
    assert sum(isinstance(event, CheckpointMissed) for event in seen) == 1


def test_a_run_that_cannot_be_saved_can_be_gone_on_with(own: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("ispasp.result.save_file", full)
        with pytest.raises(RunError, match="No space left"):
            tuned(own, quick(), tmp_path)
    (left,) = tunings.find(tmp_path)
    assert left.epochs_done == 2
    assert equal(saved(tunings.resume(tmp_path, left.run_id, allow_code=True)), tuned(own, quick(), tmp_path))


def test_what_is_of_another_run_or_request_is_refused(own: Path, tmp_path: Path) -> None:
    parent = shutil.copytree(own, tmp_path / "parent")
    begun(parent, quick(), tmp_path, 1)
    (left,) = tunings.find(tmp_path)
    assert left.parent == "parent"
    with changed(tmp_path / attempt.FOLDER / left.run_id / "plan.json") as plan:
        plan["request"]["seed"] = 1
    with pytest.raises(RunError, match="other settings"):
        list(tunings.resume(tmp_path, left.run_id, allow_code=True))
    with changed(tmp_path / attempt.FOLDER / left.run_id / "plan.json") as plan:
        plan["request"]["seed"] = 0
    save_file({k: v + 1 for k, v in weights(parent).items()}, parent / "model.safetensors")
    with pytest.raises(RunError, match="is not the one that was being fine-tuned"):
        list(tunings.resume(tmp_path, left.run_id, allow_code=True))
    shutil.rmtree(parent)
    with pytest.raises(RunError, match="is not there any more"):
        list(tunings.resume(tmp_path, left.run_id, allow_code=True))
    assert [one.run_id for one in tunings.find(tmp_path)] == [left.run_id]
    tunings.discard(tmp_path, left.run_id)
    assert tunings.find(tmp_path) == [] and list(tmp_path.iterdir()) == []
    for wrong in ("gone", "../gone"):
        with pytest.raises(RunError, match=r"nothing of the run gone|not the name of a run"):
            list(tunings.resume(tmp_path, wrong))


@pytest.mark.parametrize("damage", ["{}", "[1", '{"request": 5}', "[]"])
def test_a_damaged_plan_is_refused(tmp_path: Path, damage: str) -> None:
    place = tmp_path / attempt.FOLDER / "one"
    place.mkdir(parents=True)
    (place / "plan.json").write_text(damage)
    assert tunings.find(tmp_path) == []
    with pytest.raises(RunError, match="discard it and run again: python -m ispasp resume .*one --discard$"):
        list(tunings.resume(tmp_path, "one"))


def test_random_weights_of_the_same_shape_are_the_control(sample: Path, own: Path, tmp_path: Path) -> None:
    control, other = (
        dataclasses.replace(quick(epochs=1, learning_rate=1e-9, seed=seed), start="random") for seed in (0, 1)
    )
    paths = [tuned(sample, control, tmp_path) for _ in range(2)]
    assert equal(*paths) and not equal(paths[0], sample)
    ours, theirs = weights(paths[0]), weights(sample)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    result, parent = ispasp.load(paths[0]), load_record(sample)
    assert result.report["tuning"]["accuracy_before"] < 0.5 < parent.report["accuracy_after"]
    others = weights(tuned(sample, other, tmp_path))
    assert not any(torch.allclose(value, others[name], atol=1e-3) for name, value in ours.items())
    with pytest.raises(SettingError, match="gives its model the weights itself"):
        tuned(own, control, tmp_path)
    with pytest.raises(SettingError, match="set it to 0"):
        TuneRequest.of_preset("paper", start="random")


def test_a_tuned_run_is_tuned_again_from_its_weights(own: Path, tmp_path: Path) -> None:
    once = tuned(own, quick(), tmp_path)
    twice = load_record(tuned(once, quick(seed=1), tmp_path))
    assert twice.report["tuning"]["accuracy_before"] == load_record(once).report["accuracy_after"]
    (earlier,) = twice.settings["tuning"]["earlier"]
    assert TuneRequest.of(earlier) == quick() and TuneRequest.of(twice.settings["tuning"]) == quick(seed=1)
    assert twice.settings["lineage"] == {"tuned": once.name}
    assert narrative.model_stages(twice.report) == ["dense", "fine-tuned before", "then fine-tuned"]


def test_a_device_that_is_gone_costs_nothing_that_is_done(own: Path, tmp_path: Path) -> None:
    begun(own, quick(), tmp_path, 1)
    (left,) = tunings.find(tmp_path)
    with changed(tmp_path / attempt.FOLDER / left.run_id / "plan.json") as plan:
        plan["request"]["device"] = "cuda:9"
    with pytest.raises(DeviceError, match="not here"):
        list(tunings.resume(tmp_path, left.run_id, allow_code=True))
    assert [one.run_id for one in tunings.find(tmp_path)] == [left.run_id]


def test_data_that_fail_in_a_later_epoch_cost_nothing_that_is_done(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise CalibrationError("The images are gone.")

    whole = tuned(own, quick(), tmp_path)
    with monkeypatch.context() as patch, pytest.raises(CalibrationError):
        for event in tunings.execute(own, quick(), tmp_path, allow_code=True):
            if isinstance(event, EpochDone):
                patch.setattr(MemorySet, "batches", gone)
    (left,) = tunings.find(tmp_path)
    assert left.epochs_done == 1
    assert equal(saved(tunings.resume(tmp_path, left.run_id, allow_code=True)), whole)


def test_what_was_begun_under_a_name_is_not_begun_again(own: Path, tmp_path: Path) -> None:
    cut_off(tunings.execute(own, quick(), tmp_path, path=tmp_path / "mine", allow_code=True), 1)
    with pytest.raises(RunError, match=f"resume {tmp_path}/mine$"):
        list(tunings.execute(own, quick(), tmp_path, path=tmp_path / "mine", allow_code=True))
    (left,) = tunings.find(tmp_path)
    assert (left.run_id, left.epochs_done) == ("mine", 1)


def test_a_list_that_is_made_while_a_run_is_tidied_up(own: Path, tmp_path: Path) -> None:
    begun(own, quick(), tmp_path, 1)
    (left,) = tunings.find(tmp_path)
    shutil.copytree(own, tmp_path / left.run_id)
    with unfinished.locked(tmp_path / attempt.FOLDER / left.run_id):
        assert tunings.find(tmp_path) == []
    assert tunings.find(tmp_path) == [] and not (tmp_path / attempt.FOLDER).exists()


@pytest.mark.parametrize("plan", [None, "[]", '{"parent": "x"}'])
def test_a_plan_that_another_process_cannot_read(tmp_path: Path, plan: str | None) -> None:
    if plan:
        (tmp_path / "plan.json").write_text(plan)
    with pytest.raises(RunError, match="all processes can read"):
        attempt.planned(tmp_path)


def test_odd_notes_of_a_run_do_not_cost_the_fine_tuning(own: Path, tmp_path: Path) -> None:
    parent = shutil.copytree(own, tmp_path / "parent")
    with changed(parent / "run.json") as plain:
        plain["settings"]["notes"] = [["x"], {"a": 1}]
    assert load_record(tuned(parent, quick(epochs=1))).settings["notes"] == ["['x']", "{'a': 1}"]

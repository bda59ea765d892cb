"""Sweeps: every run of one equals the same single run, and it goes on where it was cut off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ispasp import runs, store, sweeps, unfinished
from ispasp.errors import RunError, SettingError
from ispasp.graph import Traced
from ispasp.records import Progress
from ispasp.reference import Reference
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from ispasp.sweeps import RunRefused, SweepSettings, SweepStarted

BASE = RunSettings("cifar10_resnet20", samples=32, evaluation=40, device="cpu")
SWEEP = SweepSettings(BASE, (0.3, 0.6), ("ispasp", "obs"), ("none", "asymmetric"))


def saved(sweep: SweepSettings, folder: Path, **more: Any) -> dict[RunSettings, store.RunRecord]:
    """The records of a sweep's runs, those that it found finished included."""
    found = {}
    for event in sweeps.execute(sweep, folder, **more):
        if isinstance(event, SweepStarted):
            paths = [folder / run_id for run_id in event.finished if run_id]
        elif isinstance(event, RunSaved):
            paths = [event.path]
        else:
            continue
        for path in paths:
            record = store.open_run(path)
            found[key(RunSettings.of(record))] = record
    return found


def key(settings: RunSettings) -> Any:
    return settings.keep, settings.selector, settings.reconstruct


def same(one: store.RunRecord, other: store.RunRecord) -> None:
    assert [block.selected for block in one.blocks_pruned] == [
        block.selected for block in other.blocks_pruned
    ]
    for ours, theirs in zip(one.blocks_pruned, other.blocks_pruned, strict=True):
        assert ours.drift == pytest.approx(theirs.drift, rel=1e-4, abs=1e-9)
        assert (ours.error_after or 0) == pytest.approx(theirs.error_after or 0, rel=1e-4, abs=1e-9)
    assert one.report["accuracy_after"] == pytest.approx(other.report["accuracy_after"], abs=1 / 40)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """As a user sets it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, store.RunRecord]:
    return saved(SWEEP, tmp_path_factory.mktemp("sweep"))


def test_every_run_equals_the_same_single_run(swept: dict[Any, store.RunRecord], tmp_path: Path) -> None:
    assert list(map(key, SWEEP.runs())) == sorted(
        swept, key=lambda k: (k[2] != "none", k[1] != "ispasp", k[0])
    )
    for settings in SWEEP.runs():
        if settings.keep == 0.3:
            *_, last = runs.execute(settings, tmp_path)
            assert isinstance(last, RunSaved)
            same(swept[key(settings)], store.open_run(last.path))
    lineages = {record.settings["lineage"]["sweep"] for record in swept.values()}
    assert len(lineages) == 1


def test_what_is_shared_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    begin = Reference.__init__

    def counted(reference: Reference, traced: Traced, blocks: Any, asymmetric: bool, *more: Any) -> None:
        made.append(asymmetric)
        begin(reference, traced, blocks, asymmetric, *more)

    monkeypatch.setattr(Reference, "__init__", counted)
    sweep = SweepSettings(replace(BASE, model="mnist_mlp"), (0.2, 0.4), (), ("none", "asymmetric"))
    assert len(saved(sweep, tmp_path)) == 4
    assert made == [False, True]
    made.clear()
    monkeypatch.setattr(sweeps, "AT_ONCE_BYTES", 1)  # too little for two runs at once
    assert len(saved(sweep, tmp_path / "small")) == 4
    assert made == [False, False, True, True]


@pytest.mark.parametrize("threads", [1, 2])
def test_it_goes_on_where_it_was_cut_off(
    swept: dict[Any, store.RunRecord], threads: int, tmp_path: Path
) -> None:
    with torch_threads(threads):
        events = sweeps.execute(SWEEP, tmp_path)
        landed = 0
        for event in events:
            landed += isinstance(event, RunSaved)
            assert sweeps.unfinished(tmp_path) == []  # somebody works on it
            if landed == 4 and isinstance(event, Progress) and "block 5 of 9" in event.doing:
                break
        events.close()  # type: ignore[attr-defined]
        (left,) = sweeps.unfinished(tmp_path)
        assert (left.settings, sum(map(bool, left.finished))) == (SWEEP, 4)
        assert {run.blocks_done for run in unfinished.find(tmp_path)} <= {4, 5}
        with pytest.raises(SettingError, match="other settings"):
            next(sweeps.execute(replace(SWEEP, keeps=(0.9,)), tmp_path, id=left.id))
        found = saved(left.settings, tmp_path, id=left.id)
    assert found.keys() == swept.keys()
    for settings, record in found.items():
        same(record, swept[settings])
    assert len(store.list_runs(tmp_path)) == 8
    assert sweeps.unfinished(tmp_path) == [] and unfinished.find(tmp_path) == []


def test_with_as_many_threads_a_run_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    """CoSaMP is the first to show it: its sets hang on the last digits of sums."""
    base = replace(BASE, model="mnist_mlp", samples=256, selector="cosamp")
    alone = []
    for threads in (1, 2):
        with torch_threads(threads):
            *_, last = runs.execute(replace(base, keep=0.3), tmp_path)
            assert isinstance(last, RunSaved)
            alone.append(store.open_run(last.path))
    with torch_threads(2):  # two runs share two cores out
        for record in saved(SweepSettings(base, (0.3, 0.5)), tmp_path).values():
            assert record.settings["threads"] == 1
            if record.settings["keep"] == 0.3:
                assert record.trace == alone[0].trace
        ((single),) = saved(SweepSettings(base, (0.3,)), tmp_path).values()
        assert (single.settings["threads"], single.trace) == (2, alone[1].trace)


def test_heads_and_neurons_of_sentence_pairs(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    base = replace(BASE, model="nli_bert", samples=16)
    swept = saved(SweepSettings(base, (0.5, 0.7)), tmp_path)
    *_, last = runs.execute(replace(base, keep=0.7), tmp_path)
    assert isinstance(last, RunSaved)
    assert swept[0.7, "ispasp", "asymmetric"].trace == store.open_run(last.path).trace


def test_a_run_that_cannot_be_had_does_not_stop_the_others(tmp_path: Path) -> None:
    base = RunSettings(
        "torchvision:resnet18", weights="random", data="noise", samples=2, evaluation=2, device="cpu"
    )
    sweep = SweepSettings(replace(base, kinds=("channel",)), (0.5,), ("taylor", "ispasp"), ("none",))
    events = list(sweeps.execute(sweep, tmp_path))
    (refused,) = [event for event in events if isinstance(event, RunRefused)]
    assert refused.index == 0 and "labels" in refused.problem
    assert sum(isinstance(event, RunSaved) for event in events) == 1
    assert sweeps.unfinished(tmp_path) == [] and unfinished.find(tmp_path) == []
    with pytest.raises(SettingError, match="Not one run of the sweep could be had: .*labels"):
        list(sweeps.execute(replace(sweep, selectors=("taylor",)), tmp_path))


def test_a_deleted_run_does_not_make_a_complete_sweep_unfinished(tmp_path: Path) -> None:
    sweep = SweepSettings(replace(BASE, model="mnist_mlp"), (0.2, 0.4))
    saved(sweep, tmp_path)
    store.list_runs(tmp_path)[0].path.rename(tmp_path / ".gone")
    assert sweeps.unfinished(tmp_path) == []


def test_a_sweep_can_be_discarded_but_for_its_finished_runs(tmp_path: Path) -> None:
    events = sweeps.execute(SweepSettings(BASE, (0.3,), (), ("none", "asymmetric")), tmp_path)
    assert any(isinstance(event, RunSaved) for event in events)
    (plan,) = (tmp_path / sweeps.FOLDER).glob("*.json")
    with pytest.raises(RunError, match="being worked on"):
        sweeps.discard(tmp_path, plan.stem)
    events.close()  # type: ignore[attr-defined]
    sweeps.discard(tmp_path, plan.stem)
    assert sweeps.unfinished(tmp_path) == [] and unfinished.find(tmp_path) == []
    assert len(store.list_runs(tmp_path)) == 1


def test_values_are_checked_before_any_work() -> None:
    assert len(SweepSettings(BASE, (0.5, 0.5), ("l1",)).runs()) == 1
    for wrong in ({"keeps": (0.5, 2.0)}, {"selectors": ("l3",)}, {"reconstructs": ("both",)}):
        with pytest.raises(SettingError):
            SweepSettings(BASE, **{"keeps": (0.5,), **wrong})  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="201 runs; 200 are accepted"):
        SweepSettings(BASE, tuple(number / 1000 for number in range(1, 202)))


@pytest.mark.parametrize(
    "damage", ["[]", "{", '{"complete": false}', '{"complete": false, "base": {}}', "[" * 100_000]
)
def test_a_damaged_plan_is_one_sentence(damage: str, tmp_path: Path) -> None:
    place = tmp_path / sweeps.FOLDER
    place.mkdir()
    (place / "one.json").write_text(damage)
    assert sweeps.unfinished(tmp_path) == []
    with pytest.raises(RunError, match="cannot be taken up"):
        next(sweeps.execute(SWEEP, tmp_path, id="one"))
    sweeps.discard(tmp_path, "one")
    assert json.dumps([path.name for path in place.iterdir()]) == "[]"


def test_names_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    sweep = SweepSettings(replace(BASE, model="mnist_mlp"), (0.2, 0.4))
    events = sweeps.execute(sweep, tmp_path)
    next(events)
    events.close()  # type: ignore[attr-defined]
    (plan,) = (tmp_path / sweeps.FOLDER).glob("*.json")
    plain = json.loads(plan.read_text())
    for wrong in ("..", "../x", "", ".sweeps", str(tmp_path / "x")):
        plan.write_text(json.dumps(plain | {"run_ids": [wrong, "b"]}))
        with pytest.raises(RunError, match="cannot be taken up"):
            next(sweeps.execute(sweep, tmp_path, id=plan.stem))
        with pytest.raises(RunError, match="not the name of a run"):
            unfinished.discard(tmp_path, wrong)
        with pytest.raises(RunError, match="not the name of a run"):
            list(runs.resume(tmp_path, wrong))
    assert plan.is_file() and tmp_path.is_dir()

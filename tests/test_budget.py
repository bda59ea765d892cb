"""Budgets: as text, as limits, as two runs and a report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import onnx
import pytest

from ispasp import allocation, budget, budget_search, budget_tables, latency_table, store, unfinished
from ispasp.budget import Budget, BudgetDone, BudgetReport
from ispasp.budget_search import Counts, Search, Stopwatch
from ispasp.errors import ISpaSPError, RunError, SettingError
from ispasp.opened import open_all
from ispasp.records import Progress
from ispasp.runs import RunSaved
from ispasp.unfinished import Discarded
from tests.small_budgets import small_settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("macs=50%", Budget("macs", 0.5, share=True)),
        ("macs=20M", Budget("macs", 20e6)),
        ("macs = 1.5 G", Budget("macs", 1.5e9)),
        ("params=1M", Budget("params", 1e6)),
        ("params=123456", Budget("params", 123456.0)),
        ("params=33.3%", Budget("params", 0.333, share=True)),
        ("params=250k", Budget("params", 250e3)),
        ("speedup=2", Budget("speedup", 2.0)),
        ("speedup=1.5x", Budget("speedup", 1.5)),
        ("loss=2", Budget("loss", 2.0)),
        ("loss=0", Budget("loss", 0.0)),
    ],
)
def test_a_budget_reads_and_writes_itself(text: str, expected: Budget) -> None:
    found = budget.parse(text)
    assert (found.kind, found.share) == (expected.kind, expected.share)
    assert found.limit == pytest.approx(expected.limit)
    assert budget.parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flops=50%", "as a budget: give macs=50%"),
        ("macs", "as a budget"),
        ("macs=half", "as a budget"),
        ("macs=-5M", "as a budget"),
        ("macs=0.5", "per cent"),
        ("macs=0%", "above 0 % and below 100 %"),
        ("macs=120%", "below 100 %"),
        ("speedup=1", "more than 1"),
        ("speedup=50%", "takes no per cent"),
        ("speedup=2M", "speedup=2"),
        ("loss=100", "percentage points"),
        ("loss=nan", "as a budget"),
    ],
)
def test_what_is_no_budget_is_refused_in_one_sentence(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as error:
        budget.parse(text)
    assert str(error.value).count("\n") == 0


def test_one_cost_and_one_loss_at_most() -> None:
    cost, loss = budget.parse("macs=50%"), budget.parse("loss=2")
    assert budget.check([loss, cost]) == (cost, loss)
    assert budget.check([loss]) == (None, loss)
    for several in (["macs=50%", "macs=40%"], ["macs=50%", "speedup=2"], ["loss=1", "loss=2"]):
        with pytest.raises(SettingError, match=f"{several[0]} and {several[1]} stand beside each other"):
            budget.check([budget.parse(text) for text in several])
    with pytest.raises(SettingError, match="No budget"):
        budget.check([])


def met(folder: Path, *budgets: str, **settings: Any) -> BudgetReport:
    """The report of a finished budget, checked against what is on disk."""
    runs_folder = folder / "runs"
    asked = small_settings(folder, **settings)
    *events, done = budget.execute(asked, [budget.parse(b) for b in budgets], runs_folder, allow_code=True)
    assert isinstance(done, BudgetDone)
    progress = [event.done for event in events if isinstance(event, Progress)]
    assert progress == sorted(progress) and progress[-1] == 1
    report = done.report
    assert budget.load(runs_folder, report.id) == report
    saved = {event.run_id for event in events if isinstance(event, RunSaved)}
    sides = {"budget": report.budget, **({"uniform": report.uniform} if report.uniform else {})}
    assert saved == {side.run_id for side in sides.values()}
    for role, side in sides.items():
        record = store.open_run(runs_folder / side.run_id)
        assert tuple(record.started.keep_groups) == side.counts
        assert record.settings["lineage"] == {"budget": report.id, "role": role}
        assert side.measured["macs"] == record.report["macs_after"] == round(side.predicted["macs"])
        assert side.measured["params"] == record.report["params_after"] == round(side.predicted["params"])
        assert side.measured["accuracy"] == record.report["accuracy_after"]
    return report


@pytest.mark.parametrize("text", ["macs=50%", "params=6k"])
def test_a_cost_is_kept_and_the_uniform_ratio_stands_beside_it(text: str, tmp_path: Path) -> None:
    report = met(tmp_path, text)
    kind = text.partition("=")[0]
    assert report.met and report.budgets == (text,)
    assert report.limits[kind] == (6000 if kind == "params" else 0.5 * (report.dense["macs"] or 0))
    for side in filter(None, (report.budget, report.uniform)):
        assert (side.measured[kind] or 0) <= report.limits[kind]
    assert report.uniform is not None and report.uniform.counts != report.budget.counts
    assert report.budget.predicted["divergence"] < report.uniform.predicted["divergence"]
    assert all(count % 8 == 0 for count in report.budget.counts)
    table = budget_tables.budget_table(report)
    assert f"asked: at most {report.limits[kind]:,.0f}" in table and report.uniform.run_id in table
    assert "are left" in report.sentences[0]
    shares = {
        what: f"{100 * (report.uniform.measured[what] or 0) / (report.dense[what] or 1):.1f} % of the {word}"
        for what, word in (("macs", "MACs"), ("params", "parameters"))
    }
    assert f"within the budget, {report.uniform.keep:g}, costs {shares.pop(kind)}" in report.sentences[1]
    assert f"(and {shares.popitem()[1]}) and gives" in report.sentences[1]


def test_a_loss_is_met_at_the_least_macs_that_were_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_search, "HALVINGS", 4)
    report = met(tmp_path, "loss=15", multiple=2)
    lost = 100 * (1 - (report.budget.measured["accuracy"] or 0))
    assert report.met and lost <= 15
    tried = [(step["cost"], step["loss"]) for step in report.rounds]
    assert 1 < len(tried) <= budget_search.HALVINGS
    assert report.budget.measured["macs"] == min(cost for cost, loss in tried if loss <= 15)
    assert any(loss > 15 and cost < (report.budget.measured["macs"] or 0) for cost, loss in tried)
    assert "evaluation examples chose" in report.sentences[-1]
    with pytest.raises(SettingError, match="was not met by any model that was tried: with .* it loses"):
        met(tmp_path, "loss=0", multiple=8, samples=4)


def test_budgets_that_contradict_each_other_say_what_each_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_search, "HALVINGS", 3)
    report = met(tmp_path, "macs=30%", "loss=10", multiple=2)
    assert not report.met and report.limits["loss"] == 10
    assert "The two budgets contradict each other: at most 30 % of the MACs loses" in report.sentences[-1]
    assert "10 points need" in report.sentences[-1]
    agreeing = met(tmp_path, "macs=95%", "loss=90")
    assert agreeing.met and not any("contradict" in sentence for sentence in agreeing.sentences)


@pytest.mark.parametrize(
    ("budgets", "settings", "message"),
    [
        (
            ["macs=1%"],
            {},
            r"cannot be reached: with the fewest groups .* MACs are left, [\d.]+ % of the dense",
        ),
        (["params=100"], {}, "parameters are left"),
        (["params=5G"], {}, "asks for nothing: the dense model has"),
        (["macs=50%"], {"allocation": "macs"}, "clear them"),
        (["macs=50%"], {"keep_by_block": {"0": 0.5}}, "clear them"),
        (["loss=2"], {"data": "unlabelled"}, "with labels"),
    ],
)
def test_what_cannot_be_is_said_before_any_long_work(
    budgets: list[str], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if "data" in settings:
        settings = {"data": f"python:{tmp_path / 'small_budget.py'}:unlabelled"}
    asked = small_settings(tmp_path, **settings)
    events = []
    with pytest.raises(ISpaSPError, match=message) as error:
        for event in budget.execute(asked, map(budget.parse, budgets), tmp_path / "runs", allow_code=True):
            events.append(event)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()
    assert not any(isinstance(event, Progress) and "sensitive" in event.doing for event in events)


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which the table is off: every model is 0.8 times as fast as the MACs say; nothing is timed."""

    def table(self: Stopwatch, runs_folder: Path) -> Generator[Progress, None, Any]:
        yield Progress(0.5, "measuring how long layer 1 of 5 takes")
        return allocation.layers(self.search.opened.subject.traced, self.search.blocks, "macs")

    def speedup(self: Stopwatch, counts: Counts) -> Generator[Progress, None, float]:
        yield Progress(0.5, "measuring latency, round 1 of 10")
        search = self.search
        self.known[counts] = 0.8 * search.cost(search.whole) / search.cost(counts)
        return self.known[counts]

    monkeypatch.setattr(Stopwatch, "table", table)
    monkeypatch.setattr(Stopwatch, "speedup", speedup)


def test_a_table_that_is_off_is_corrected_by_what_was_measured(stopwatch: None, tmp_path: Path) -> None:
    report = met(tmp_path, "speedup=1.5", multiple=2)
    assert report.met and 1.5 <= (report.budget.measured["speedup"] or 0) <= 1.5 * 1.3
    first, *_, last = report.rounds
    assert first["speedup"] < 1.5 and last["target"] > first["target"] == 1.5
    assert report.budget.predicted["speedup"] == pytest.approx((report.budget.measured["speedup"] or 0) / 0.8)
    assert "Asked for at least 1.5× faster at batch 1 on this machine: measured" in report.sentences[0]
    assert report.uniform is not None and report.uniform.measured["speedup"] is not None


def test_a_speedup_out_of_reach_says_what_can_be_reached(stopwatch: None, tmp_path: Path) -> None:
    asked = small_settings(tmp_path)
    with pytest.raises(SettingError, match=r"cannot be reached: .* is [\d.]+× as fast, because the layers"):
        list(budget.execute(asked, [budget.parse("speedup=50")], tmp_path / "runs", allow_code=True))


def test_real_models_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "SECONDS", 0.001)
    monkeypatch.setattr(budget_search, "SECONDS", 0.05)
    settings = small_settings(tmp_path)
    search = Search(drained(open_all(settings, allow_code=True)), settings)
    watch = Stopwatch(search, tmp_path, threads=1)
    search.model = drained(watch.table(tmp_path))
    assert 0 < search.cost(search.fewest) < search.cost(search.whole) and watch.fixed >= 0
    measured = drained(watch.speedup((8, 16, 8)))
    assert 0 < measured < 100 and drained(watch.speedup((8, 16, 8))) == measured
    export, pruned = onnx.load(watch.dense).graph, onnx.load(tmp_path / "sliced.onnx").graph
    assert (16, 3, 3, 3) in shapes(export) and {(8, 3, 3, 3), (16, 8, 3, 3)} <= shapes(pruned)


def shapes(graph: onnx.GraphProto) -> set[tuple[int, ...]]:
    return {tuple(value.dims) for value in graph.initializer}


def drained(steps: Generator[Progress, None, Any]) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def test_a_budget_can_be_stopped_at_any_step(tmp_path: Path) -> None:
    asked = small_settings(tmp_path)
    for stop_at in ("tracing", "sensitive", "the budget's run: slicing"):
        steps = budget.execute(asked, [budget.parse("macs=50%")], tmp_path / "runs", allow_code=True)
        assert any(isinstance(step, Progress) and stop_at in step.doing for step in steps)
        with pytest.raises(Discarded):
            steps.throw(Discarded())
    assert store.list_runs(tmp_path / "runs") == [] and budget.list_reports(tmp_path / "runs") == []
    assert not (tmp_path / "runs" / unfinished.FOLDER).exists()


def test_reports_are_listed_and_damaged_ones_left_out(tmp_path: Path) -> None:
    side = budget.Side("a", 0.5, (8,), {"macs": 1.0}, {"macs": 1, "params": 1, "accuracy": None})
    one = BudgetReport(
        "20260101-000000-aaaa",
        "2026-01-01",
        {},
        ("macs=50%",),
        {"macs": 1.0},
        True,
        ("b",),
        (16,),
        {"macs": 2, "params": 2, "accuracy": None},
        side,
        None,
        (),
        ("x",),
    )
    two = dataclasses.replace(one, id="20260102-000000-bbbb", finished_at="2026-01-02", uniform=side)
    for report in (one, two):
        path = budget.save(report, tmp_path)
    assert budget.list_reports(tmp_path) == [two, one]
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | {"format": 99}))
    with pytest.raises(RunError, match="newer ispasp"):
        budget.load(tmp_path, two.id)
    changes: list[dict[str, Any]] = [
        {"groups": []}, {"uniform": 3}, {"budgets": ["garbage"]}, {"budgets": [1]}, {"budgets": "macs=50%"},
        {"finished_at": 5}, {"blocks": [1]}, {"groups": ["16"]}, {"groups": [4]}, {"limits": {"macs": "1"}},
        {"limits": {"params": 1.0}}, {"dense": {}}, {"sentences": [1]}, {"rounds": [1]}, {"met": "yes"},
        {"settings": {"model": 5}}, *({"uniform": plain["uniform"] | said} for said in (
            {"keep": "x"}, {"counts": [8.0]}, {"counts": [0]}, {"measured": {"macs": 1}}, {"run_id": 5})),
    ]  # fmt: skip
    for damaged in ("[", "[" * 100_000, "{}", *(json.dumps(plain | change) for change in changes)):
        path.write_text(damaged)
        with pytest.raises(RunError, match="run it again"):
            budget.load(tmp_path, two.id)
    assert budget.list_reports(tmp_path) == [one]
    with pytest.raises(RunError, match="no budget"):
        budget.load(tmp_path, "../../etc/passwd")

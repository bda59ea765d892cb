"""The Budget page without a browser: what a person reads before, while and after a budget is met."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from ispasp import budget, budget_figures
from ispasp.budget import BudgetReport, Side
from ispasp.jobs import registry
from ispasp.run_settings import RunSettings
from tests.app_page import MAIN, press, runs_folder, seen, sound, table, until, words

__all__ = ["runs_folder"]  # a fixture that every test here uses


def visit(**query: str) -> AppTest:
    """The page as a fresh browser gets it, with the small model and few samples."""
    app = AppTest.from_file(str(MAIN), default_timeout=120).run()
    app.switch_page("../pages/budget.py")
    for name, value in ({"budget_model": "mnist_mlp", "budget_samples": "64"} | query).items():
        app.query_params[name] = value
    return sound(app.run())


def number(app: AppTest, key: str, value: float | None) -> AppTest:
    return sound(app.number_input(key=key).set_value(value).run())


def hold_to(app: AppTest, kind: str) -> AppTest:
    return sound(app.segmented_control(key="budget_kind").set_value(kind).run())


def report(id: str = "20260101-000000-aaaa", **more: object) -> BudgetReport:
    """One of two blocks, as if its runs were there."""
    settings = RunSettings("mnist_mlp", samples=64).plain()
    own = Side("own", 0.5, (8, 24), {"macs": 48.0, "params": 40.0}, {"macs": 48, "params": 40, "accuracy": 0.9,
               "agreement": 0.95, "speedup": None})  # fmt: skip
    other = dataclasses.replace(
        own, run_id="other", counts=(16, 16), measured=own.measured | {"accuracy": 0.8}
    )
    made = BudgetReport(
        id, "2026-01-01T00:00:00+00:00", settings, ("macs=50%", "loss=2"), {"macs": 50.0, "loss": 2.0}, True,
        ("a", "b"), (32, 32), {"macs": 100, "params": 100, "accuracy": 0.91}, own, other, (), ("It is met.",),
    )  # fmt: skip
    return dataclasses.replace(made, **more)


def test_without_anything_measured_the_page_says_what_to_do() -> None:
    app = visit()
    assert "1. Meet the budget" in words(app)
    assert "At most 50 % of the MACs, mnist_mlp: 0.407 M of 0.813 M." in words(app)
    assert app.number_input(key="budget_samples").value == 64
    sound(app.selectbox(key="budget_model").set_value("cifar10_resnet20").run())
    assert app.number_input(key="budget_samples").value == 512


def test_the_form_begins_with_the_model_last_looked_at() -> None:
    app = AppTest.from_file(str(MAIN), default_timeout=120)
    for name, value in (("model", "mnist_mlp"), ("samples", "48"), ("selector", "l2")):
        app.query_params[name] = value
    sound(app.run())
    sound(app.switch_page("../pages/budget.py").run())
    assert app.selectbox(key="budget_model").value == "mnist_mlp"
    assert app.selectbox(key="budget_selector").value == "l2"
    assert app.number_input(key="budget_samples").value == 48


def test_the_form_says_what_is_missing_or_out_of_range() -> None:
    app = visit()
    number(app, "budget_macs", 150.0)
    assert app.button(key="budget_meet").disabled and "below 100 %" in words(app)
    number(app, "budget_macs", 30.0)
    number(app, "budget_loss", 2.0)
    assert "At most 30 % of the MACs, lose at most 2 points of accuracy, mnist_mlp" in words(app)
    sound(app.selectbox(key="budget_unit_macs").set_value("k").run())
    assert app.number_input(key="budget_macs_k_mnist_mlp").value == 407
    hold_to(app, "Speed")
    assert not app.button(key="budget_meet").disabled and "At least 2× faster at batch 1" in words(app)
    hold_to(app, "Accuracy alone")
    assert "Lose at most 2 points of accuracy, mnist_mlp." in words(app)
    number(app, "budget_loss", None)
    assert app.button(key="budget_meet").disabled and "Give how many points" in words(app)
    assert not app.button(key="budget_measure").disabled


def test_sensitivity_and_budget_are_measured_and_survive_a_refresh() -> None:
    app = visit()
    press(app, "budget_measure")
    assert "Sensitivity of mnist_mlp" in words(app) and app.button(key="budget_meet").disabled
    until(app, lambda: "fc1 is the only block" in words(app))
    assert "of 64 calibration examples" in words(app)
    sound(app.run())
    assert "measuring" not in app.query_params and len(app.get("plotly_chart")) == 1
    agreement = app.get("plotly_chart")[0].proto.spec
    sound(app.segmented_control(key="heat_own").set_value("Residual").run())
    assert app.get("plotly_chart")[0].proto.spec != agreement

    number(app, "budget_macs", 30.0)
    press(app, "budget_meet")
    until(app, lambda: ":green-badge[Met]" in words(app))
    sound(app.run())
    again = visit(budget=seen(app, "budget"))
    for page in (app, again):
        rows = table(page, "MACs").set_index("")
        assert rows.index.tolist() == ["Dense model", "Target", "Predicted", "Measured"]
        assert rows.loc["Target", "MACs"] == "≤ 0.244 M (30 %)"
        assert rows.loc["Predicted", "MACs"] == rows.loc["Measured", "MACs"]
        assert "mnist_mlp: at most 30 % of the MACs" in words(page)
        assert "keeps the same groups" in words(page) and len(page.get("plotly_chart")) == 2
    press(again, "budget_open")
    assert "i-SpaSP Explorer" in words(again) and "**Finished**" in words(again)


def test_a_budget_out_of_reach_is_said_and_nothing_is_lost(runs_folder: Path) -> None:
    budget.save(report(), runs_folder)
    app = number(visit(), "budget_macs", 0.1)
    press(app, "budget_meet")
    until(app, lambda: "cannot be reached" in words(app))
    assert "at most 0.1 % of the MACs' cannot be reached: with the fewest groups" in words(app)
    assert app.number_input(key="budget_macs").value == 0.1 and "It is met." in words(app)
    press(app, "close_measuring")
    assert "cannot be reached" not in words(app) and not app.button(key="budget_meet").disabled


def test_earlier_budgets_are_chosen_and_the_uniform_run_stands_beside(runs_folder: Path) -> None:
    budget.save(report(), runs_folder)
    budget.save(
        report("20260102-000000-bbbb", finished_at="2026-01-02", met=False, uniform=None), runs_folder
    )
    app = visit()
    assert app.selectbox(key="budget_choice").value == "20260102-000000-bbbb"  # the newest
    assert "Last result, mnist_mlp: at most 50 %" in words(app)  # the form asks for something else
    assert "Missed" in words(app) and "02 Jan 2026" in app.selectbox(key="budget_choice").options[0]
    sound(app.selectbox(key="budget_choice").set_value("20260101-000000-aaaa").run())
    assert seen(app, "budget") == "20260101-000000-aaaa"
    assert "Earlier result, mnist_mlp: at most 50 %" in words(app)
    number(app, "budget_loss", 2.0)
    assert "mnist_mlp: at most 50 %" in words(app) and "result, " not in words(app)
    sound(app.selectbox(key="budget_model").set_value("cifar10_resnet20").run())
    assert "Earlier result, mnist_mlp: at most 50 %" in words(app)
    rows = table(app, "MACs").set_index("")
    assert rows["Accuracy"].tolist()[0] == "91.0 %" and rows.loc["Target", "Accuracy"] == "≥ 89.0 % (−2.0)"
    assert rows.loc["Uniform 0.5, measured", "Accuracy"] == "80.0 % (−11.0)"
    assert app.button(key="budget_compare").disabled and "was deleted" in words(app)
    for id in ("own", "other"):
        (runs_folder / id).mkdir()
        (runs_folder / id / "run.json").write_text("{}")
    press(sound(app.run()), "budget_compare")
    assert seen(app, "runs") == "own,other"
    assert "There is no budget gone" in words(visit(budget="gone"))


def test_stop_ends_the_work_and_a_change_meanwhile_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    app = visit()
    press(app, "budget_measure")
    number(app, "budget_samples", 32)
    until(app, lambda: "were changed meanwhile" in words(app))
    press(app, "close_measuring")
    job = registry.submit("waits", lambda: iter(()), "cpu", paused=True, subject="budget")
    sound(app.run())
    assert "waits" in words(app) and app.button(key="go_on_measuring")
    press(app, "stop_measuring")
    assert job.wait()
    until(app, lambda: "**waits**: stopped" in words(app))


def test_the_figure_shows_what_both_runs_keep() -> None:
    info = budget_figures.kept_info(report())
    assert info.names == ("a", "b") and info.budget.tolist() == [8, 24] and info.keep == 0.5
    assert info.uniform is not None and info.uniform.tolist() == [16, 16]
    for dark in (False, True):
        bars, marks = budget_figures.kept_figure(report(), dark).data
        assert list(bars.x) == [0.25, 0.75] and list(marks.x) == [0.5, 0.5]
    assert budget_figures.kept_info(report(uniform=None)).uniform is None
    assert len(budget_figures.kept_figure(report(uniform=None)).data) == 1

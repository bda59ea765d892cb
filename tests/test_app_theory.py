"""The Theory page without a browser: what a person reads before, while and after an experiment."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from ispasp.jobs import registry
from tests.app_page import MAIN, press, runs_folder, sound, table, until, words

__all__ = ["runs_folder"]  # a fixture that every test here uses


def visit(**query: str) -> AppTest:
    app = AppTest.from_file(str(MAIN), default_timeout=120)
    small = {"theory_hidden": "40", "theory_trials": "1", "theory_model": "mnist_mlp"}
    for name, value in (small | query).items():
        app.query_params[name] = value
    app.switch_page("../pages/theory.py")
    return sound(app.run())


def charts(app: AppTest) -> int:
    return len(app.get("plotly_chart"))


def test_the_theorem_is_told_before_anything_is_run() -> None:
    app = visit()
    said = words(app)
    assert "What the theorem says" in said and "It assumes" in said and "Not shown here" in said
    assert "arXiv 2112.04905" in said and "Needell" in said
    assert charts(app) == 0 and "Nothing was run with these values yet" in said
    assert app.number_input(key="theory_hidden").value == 40  # of the address


def test_one_press_gives_slopes_and_they_stay(runs_folder: Path) -> None:
    app = visit()
    press(app, "theory_run")
    until(app, lambda: charts(app) == 4)
    slopes = table(app, "Fitted slope")
    assert slopes["p"].tolist() == ["0.3", "0.5", "0.7", "0.9"]
    assert slopes["Theorem"].tolist() == ["−5.67", "−3.00", "−1.86", "−1.22"]
    assert "the smaller p, the faster the residual falls, as the theorem says" in words(app)
    assert "It can hold here" in words(app)
    assert "no decay" in words(app) and not registry.jobs()[-1].snapshot().error
    (kept,) = (runs_folder / ".theory").iterdir()
    assert kept.name.startswith("synthetic-")
    assert charts(visit()) == 4  # another browser, from disk
    sound(app.number_input(key="theory_trials").set_value(3).run())
    assert charts(app) == 4 and "The last result, of 1 network of 40 rows" in words(app)
    sound(app.selectbox(key="theory_size_40").set_value(20).run())
    assert "It cannot hold here: 20 rows kept would need at least 40 outputs, and there are 20" in words(app)
    kept.write_text("{}")
    assert charts(visit()) == 0


def test_what_cannot_be_run_is_said() -> None:
    app = visit()
    sound(app.multiselect(key="theory_p").set_value([]).run())
    assert "There is no exponent; give at least one" in words(app) and app.button(key="theory_run").disabled


def test_an_experiment_is_found_again_and_stopped() -> None:
    app = visit(theory_trials="200", theory_hidden="400")
    press(app, "theory_run")
    assert app.button(key="theory_run").disabled
    again = visit(experimenting=str(app.query_params["experimenting"][0]), theory_hidden="400")
    assert "Experiment with 200 networks of 400 rows" in words(again)
    press(again, "stop_experimenting")
    until(again, lambda: "stopped" in words(again))
    press(again, "close_experimenting")
    assert "Experiment with" not in words(again) and not again.button(key="theory_run").disabled


def test_a_models_rows_are_looked_at(runs_folder: Path) -> None:
    app = visit()
    assert "were not looked at yet" in words(app)
    press(app, "rows_look")
    until(app, lambda: charts(app) == 2)
    rows = table(app, "Measured residual")
    assert rows["Block"].tolist() == ["fc1"] and rows["Kept"].tolist() == ["512"]
    assert "none has rows that follow a power law" in words(app) and "promises no decay here" in words(app)
    sound(app.segmented_control(key="rows_keep").set_value(0.25).run())
    assert table(app, "Measured residual")["Kept"].tolist() == ["256"]
    assert charts(visit()) == 2


def test_a_failure_is_said(runs_folder: Path) -> None:
    runs_folder.write_text("a file where the folder should be")
    app = visit()
    press(app, "theory_run")
    until(app, lambda: "cannot be written" in words(app), seconds=30)
    press(app, "close_experimenting")
    assert "cannot be written" not in words(app)


def test_digits_are_pruned_and_the_result_stays(runs_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.theory_digits._SECONDS", 0.05)
    app = visit()
    sound(app.multiselect(key="digits_sizes").set_value([]).run())
    assert app.button(key="digits_run").disabled and "Choose at least one number of hidden neurons" in words(
        app
    )
    sound(app.multiselect(key="digits_sizes").set_value([100]).run())
    sound(app.number_input(key="digits_tuning").set_value(0).run())
    assert "These networks were not tried yet" in words(app)
    press(app, "digits_run")
    until(app, lambda: charts(app) == 2)
    said = words(app)
    assert "100 neurons, keep 0.4: evaluated greedy selection takes" in said and "Accuracy re-fitted" in said
    assert "1,000 test digits" in said and len(list((runs_folder / ".theory").glob("digits-*.json"))) == 1
    sound(app.segmented_control(key="digits_refit").set_value("symmetric").run())
    sound(app.number_input(key="digits_networks").set_value(2).run())
    assert charts(app) == 2 and "The last result, of 1 network of 100 neurons" in words(app)

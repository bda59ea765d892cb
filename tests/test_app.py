"""The app without a browser: what a person reads after each click, on the real library with small inputs."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from ispasp.jobs import State, registry
from ispasp.run_settings import RunSettings
from tests.app_page import (
    MAIN,
    choose,
    enabled,
    few_samples,
    finish,
    press,
    runs_folder,
    seen,
    sound,
    table,
    until,
    visit,
    words,
)

__all__ = ["runs_folder"]  # a fixture that every test here uses


def test_the_first_visit_has_a_sample_chosen_and_says_what_to_do() -> None:
    app = sound(AppTest.from_file(str(MAIN), default_timeout=120).run())
    assert app.selectbox(key="model").value == "cifar10_resnet20"
    assert app.text_input(key="keep").value == "0.5" and app.slider(key="keep_slider").value == 0.5
    assert app.number_input(key="multiple").value == 8
    assert "Press Run" in words(app) and "Ready." in words(app)
    assert enabled(app) == {"run", "step"}
    assert [metric.label for metric in app.metric] == [
        "Parameters",
        "MACs per image",
        "Accuracy, 4,000 test images",
        "Agreement",
    ]


def test_run_to_the_end_shows_dense_against_pruned_and_can_be_opened_again(runs_folder: Path) -> None:
    app = few_samples(visit())
    run = finish(app)
    text = words(app)
    assert "Finished" in text and "converged" in text and "Result: dense against pruned" in text
    assert [metric.label for metric in app.metric] == [
        "Parameters",
        "MACs per image",
        "Accuracy, 1,000 shipped test images",
        "Agreement, 1,000 shipped test images",
    ]
    assert "dense" in app.metric[0].delta and app.metric[3].value.endswith("%")
    assert (runs_folder / run / "run.json").is_file()
    assert not app.button(key="export_button").disabled

    other = visit(run=run)  # another browser, or the same one after a restart: only the disk remembers
    assert "Finished" in words(other) and other.metric[0].value == app.metric[0].value

    sound(app.switch_page("../pages/runs.py").run())
    (row,) = table(app, "Run").to_dict("records")
    assert (row["Run"], row["Name"], row["Keep"]) == (run, "mnist_mlp", "0.2")


def test_step_goes_one_iteration_at_a_time() -> None:
    app = few_samples(visit())
    for t in (1, 2):
        press(app, "step_button")
        until(app, lambda: "Paused" in words(app))
        assert f"Iteration {t}:" in words(app)
        assert "the only one" not in words(app)  # another one follows
    assert " in, " in words(app) and "→" in words(app)
    assert enabled(app) == {"run", "step", "stop"}
    assert "Settings are locked" in words(app)
    assert app.text_input(key="keep").disabled and app.selectbox(key="model").disabled
    press(app, "run_button")
    until(app, lambda: "run" in app.query_params)


def test_stop_says_that_nothing_was_saved(runs_folder: Path) -> None:
    app = few_samples(visit())
    press(app, "step_button")
    until(app, lambda: "Paused" in words(app))
    press(app, "stop_button")
    until(app, lambda: "Stopped" in words(app))
    assert "nothing was saved" in words(app) and "press Run" in words(app)
    assert enabled(app) == {"run", "step"}
    assert not list(runs_folder.glob("*")) and not app.text_input(key="keep").disabled


def test_stop_while_paused_says_that_it_is_ending_until_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    fragment, looks = st.fragment, []

    def spied(*, run_every: float | None) -> Callable[[Callable[[], None]], Callable[[], None]]:
        looks.append(run_every)
        return fragment(run_every=run_every)

    monkeypatch.setattr(st, "fragment", spied)
    going, closing = threading.Event(), threading.Event()

    def slow_to_close() -> Iterator[int]:
        try:
            going.wait(60)
            yield 1
        finally:
            closing.wait(60)

    job = registry.submit("a large model", slow_to_close, "cpu")
    assert job.wait(State.RUNNING)
    job.pause()
    going.set()
    assert job.wait(State.PAUSED)
    app = visit(job=job.id)
    assert "Paused" in words(app) and looks[-1] is None
    press(app, "stop_button")
    assert "Ending" in words(app) and "Paused" not in words(app) and enabled(app) == set()
    assert looks[-1] == 0.5  # the page looks again by itself
    closing.set()
    until(app, lambda: "Stopped" in words(app))
    assert enabled(app) == {"run", "step"}


def test_a_failure_is_one_sentence_with_what_to_do(runs_folder: Path) -> None:
    runs_folder.write_text("a file where the folder should be")
    app = few_samples(visit())
    press(app, "run_button")
    until(app, lambda: "Failed" in words(app))
    (error,) = app.error
    assert str(runs_folder) in error.value and "Traceback" not in error.value
    assert enabled(app) == {"run", "step"} and not app.text_input(key="keep").disabled


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ("0", "0 was given"),
        ("1.5", "1.5 was given"),
        ("-0.1", "-0.1 was given"),
        ("nan", "nan was given"),
        ("half", "half was given"),
        ("", "the field is empty"),
    ],
)
def test_a_keep_ratio_that_cannot_be_used(keep: str, said: str) -> None:
    app = visit()
    sound(app.text_input(key="keep").set_value(keep).run())
    (error,) = app.error
    assert said in error.value and "above 0 and up to 1" in error.value
    assert enabled(app) == set()
    sound(app.text_input(key="keep").set_value("0.25").run())
    assert not app.error and enabled(app) == {"run", "step"} and app.slider(key="keep_slider").value == 0.25


def test_the_slider_moves_the_exact_field_and_follows_the_address() -> None:
    app = visit(keep="0.2")
    assert app.slider(key="keep_slider").value == 0.2 and app.text_input(key="keep").value == "0.2"
    sound(app.slider(key="keep_slider").set_value(0.37).run())
    assert app.text_input(key="keep").value == "0.37"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("samples", 513, "1 to 512"),
        ("samples", 0, "1 to 512"),
        ("multiple", 0, "1 or more"),
        ("iterations", 0, "1 or more"),
        ("seed", -1, "0 or more"),
        ("candidate_factor", 0.5, "1 or more"),
    ],
)
def test_other_settings_that_cannot_be_used(key: str, value: float, said: str) -> None:
    app = visit()
    sound(app.number_input(key=key).set_value(value).run())
    (error,) = app.error
    assert said in error.value
    assert enabled(app) == set()


def test_two_sessions_do_not_disturb_each_other() -> None:
    first, second = few_samples(visit()), few_samples(visit(keep="0.4"))
    press(first, "step_button")
    until(first, lambda: "Paused" in words(first))
    assert "Ready." in words(sound(second.run()))
    run = finish(second)
    assert "Paused" in words(sound(first.run())) and "run" not in first.query_params
    assert "keep0.4" in run
    paused = [job for job in registry.jobs() if job.state is State.PAUSED]
    assert [job.id for job in paused] == [seen(first, "job")]

    watching = visit(job=paused[0].id)  # the same job by its address, in a third browser
    assert "Paused" in words(watching) and "Iteration 1:" in words(watching)


def test_work_survives_a_change_of_page_and_is_listed() -> None:
    app = few_samples(visit())
    press(app, "step_button")
    until(app, lambda: "Paused" in words(app))
    sound(app.switch_page("../pages/runs.py").run())
    assert "Under way" in words(app) and "Paused on cpu" in words(app)
    sound(app.switch_page("../pages/explore.py").run())
    assert "Paused" in words(app) and enabled(app) == {"run", "step", "stop"}


def test_changing_settings_keeps_the_finished_result() -> None:
    app = few_samples(visit())
    finish(app)
    before = app.metric[0].value
    sound(app.text_input(key="keep").set_value("0.6").run())
    sound(app.number_input(key="seed").set_value(3).run())
    assert app.metric[0].value == before
    assert "Showing the run mnist_mlp, keep 0.2. Shown: keep 0.2 (above: 0.6), seed 0 (above: 3)." in words(
        app
    )
    press(app, "new_run")
    until(app, lambda: "keep0.6" in seen(app, "run") if "run" in app.query_params else False)
    assert "Showing the run" not in words(app)


def test_another_model_puts_the_run_away() -> None:
    app = few_samples(visit())
    finish(app)
    sound(app.selectbox(key="model").set_value("cifar10_resnet20").run())
    assert "run" not in app.query_params and "Ready." in words(app) and "Press Run" in words(app)
    assert app.number_input(key="samples").value == 512


def test_the_panel_shows_the_settings_of_what_is_on_the_screen() -> None:
    app = few_samples(visit())
    sound(app.number_input(key="multiple").set_value(1).run())
    press(app, "step_button")
    until(app, lambda: "Paused" in words(app))
    for address in ({}, {"model": "cifar10_resnet20", "keep": "0.7"}):  # whatever else the address says
        watching = visit(job=seen(app, "job"), **address)
        assert watching.selectbox(key="model").value == "mnist_mlp"
        assert watching.text_input(key="keep").value == "0.2"
        assert watching.number_input(key="samples").value == 64
        assert watching.number_input(key="multiple").value == 1
        assert watching.number_input(key="multiple").disabled
    press(app, "run_button")
    until(app, lambda: "run" in app.query_params)
    opened = visit(run=seen(app, "run"), keep="0.7")
    assert opened.text_input(key="keep").value == "0.2" and opened.slider(key="keep_slider").value == 0.2
    assert "Showing" not in words(opened)
    sound(opened.switch_page("../pages/runs.py").run())
    sound(opened.switch_page("../pages/explore.py").run())
    assert opened.number_input(key="samples").value == 64 and "Showing" not in words(opened)


def test_a_refresh_before_a_run_loses_no_setting() -> None:
    app = few_samples(visit())
    choose(app, "selector", "obs")
    choose(app, "distil", 400)
    sound(app.number_input(key="candidate_factor").set_value(2.5).run())
    sound(app.toggle(key="recalibrate").set_value(True).run())
    keys = ("samples", "selector", "distil", "candidate_factor", "recalibrate")
    other = visit(**{key: seen(app, key) for key in keys})
    assert [other.session_state[key] for key in keys] == [64, "obs", 400, 2.5, True]
    for key, usual in (("selector", "ispasp"), ("distil", 0)):
        choose(other, key, usual)
        assert key not in other.query_params
    nonsense = visit(selector="x", distil="-1", samples="9" * 30, candidate_factor="nan", recalibrate="y")
    assert [nonsense.session_state[key] for key in keys] == [512, "ispasp", 0, 2.0, False]


def test_jobs_under_way_are_offered_on_a_first_visit() -> None:
    app = few_samples(visit())
    press(app, "step_button")
    until(app, lambda: "Paused" in words(app))
    other = visit()
    assert "1 job under way:** mnist_mlp, keep 0.2, block 1 of 1" in words(other)
    press(other, f"watch_{seen(app, 'job')}")
    assert "Paused" in words(other) and "job" in other.query_params


def test_every_setting_of_a_run_has_its_place_in_the_panel() -> None:
    app = visit()
    for field in dataclasses.fields(RunSettings):
        assert field.name == "keep_by_block" or field.name in app.session_state, field.name


def test_finer_settings_can_be_read_while_they_are_folded_away() -> None:
    app = few_samples(visit())
    sound(app.toggle(key="recalibrate").set_value(True).run())
    labels = [expander.label for expander in app.expander]
    assert (
        "**Finer settings:** candidates × 2, 20 iterations, multiple of 8, 64 samples, seed 0, "
        "batch norms recalibrated"
    ) in labels


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"keep": "abc"}, "Keep ratio: abc was given"),
        ({"keep": "0,4"}, "0,4 was given; write it with a point: 0.4"),
        ({"model": "nonsense"}, "There is no sample model called “nonsense”"),
        (
            {"model": "torchvision:nonsense", "data": "noise"},
            "torchvision has no classification model “nonsense”",
        ),
        ({"model": "torchvision:resnet18", "data": "nonsense"}, "Unknown source of data 'nonsense'"),
    ],
)
def test_an_address_that_cannot_be_used_is_answered_with_a_sentence(query: dict[str, str], said: str) -> None:
    assert said in words(visit(**query))


def test_a_multiple_larger_than_any_block_says_so() -> None:
    app = visit()
    sound(app.number_input(key="multiple").set_value(4096).run())
    assert "A multiple of 4,096 is larger than any block here (at most 1,024 groups)" in words(app)


@pytest.mark.parametrize("query", [{"job": "gone"}, {"run": "gone"}, {"run": "../../etc"}])
def test_what_is_no_longer_there_is_said_in_a_sentence(query: dict[str, str]) -> None:
    app = visit(**query)
    assert ("resumed on Runs." if "job" in query else "Runs page") in words(app) and "Ready." in words(app)
    assert enabled(app) == {"run", "step"}


def test_a_damaged_run_is_listed_with_its_problem(runs_folder: Path) -> None:
    (runs_folder / "broken").mkdir(parents=True)
    (runs_folder / "broken" / "run.json").write_text("{")
    app = visit()
    sound(app.switch_page("../pages/runs.py").run())
    assert "cannot be opened" in words(app)


def test_no_runs_yet_says_what_to_do() -> None:
    app = visit()
    sound(app.switch_page("../pages/runs.py").run())
    assert "No finished run yet" in words(app) and "press Run" in words(app)


def test_a_job_behind_another_says_that_it_waits() -> None:
    free = threading.Event()

    def occupy() -> Iterator[None]:
        free.wait(60)
        yield None

    first = registry.submit("something long", occupy, "cpu")
    assert first.wait(State.RUNNING)
    app = few_samples(visit())
    press(app, "run_button")
    assert "Waiting" in words(app) and "1 job is before this one" in words(app)
    assert enabled(app) == {"pause", "stop"}
    free.set()
    until(app, lambda: "run" in app.query_params)


def test_an_export_is_a_job_of_its_own_that_can_be_stopped(runs_folder: Path) -> None:
    app = few_samples(visit())
    run = finish(app)
    press(app, "export_button")
    assert "Exporting" in words(app)
    watching = visit(run=run)  # whoever opens the run sees the export under way
    assert "Exporting" in words(watching)
    press(app, "stop_export")
    until(app, lambda: "The export was stopped; nothing of it was kept." in words(app))
    assert not (runs_folder / run / "export").exists() and not app.button(key="export_button").disabled

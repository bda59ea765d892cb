"""The Fine-tune page without a browser: what a person reads before, while and after a run is trained."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.dataframe_util import convert_arrow_bytes_to_pandas_df
from streamlit.testing.v1 import AppTest

from ispasp import runs
from ispasp.jobs import State, registry
from ispasp.records import Progress
from ispasp.run_settings import RunSettings
from ispasp.store import open_run
from ispasp.tuning import runs as tunings
from ispasp.tuning.memory import CheckpointMissed
from ispasp.tuning.records import Began, EpochDone
from ispasp.tuning.request import TuneRequest
from tests import app_page, small_tuned_runs
from tests.app_page import MAIN, press, runs_folder, seen, sound, table, until, words
from tests.small_tuned_runs import own_run, paper, quick
from ui import background, library

__all__ = ["runs_folder"]  # a fixture that every test here uses

LONG = 100_000  # epochs


def made(folder: Path, name: str, **more: Any) -> Path:
    settings = RunSettings("mnist_mlp", keep=0.1, samples=32, evaluation=60, device="cpu", **more)
    for _ in runs.execute(settings, folder, folder / name):
        pass
    return folder / name


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("made"), "small")


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on data without labels."""
    return made(tmp_path_factory.mktemp("made"), "noisy", data="noise")


@pytest.fixture(scope="module")
def tuned(pruned: Path) -> Path:
    """A fine-tuning of ``pruned`` beside it."""
    request = TuneRequest.of_preset("quick", {"epochs": 2}, train_examples=200, device="cpu")
    for _ in tunings.execute(pruned, request, pruned.parent, path=pruned.parent / "small-tuned"):
        pass
    return pruned.parent / "small-tuned"


@pytest.fixture
def run(pruned: Path, runs_folder: Path) -> Path:
    return Path(shutil.copytree(pruned, runs_folder / "small"))


@pytest.fixture
def both(run: Path, tuned: Path) -> Path:
    shutil.copytree(tuned, run.parent / "small-tuned")
    return run


def visit(page: str = "finetune", **query: str) -> AppTest:
    """The page as a fresh browser gets it."""
    app = AppTest.from_file(str(MAIN), default_timeout=120).switch_page(f"../pages/{page}.py")
    for name, value in query.items():
        app.query_params[name] = value
    return sound(app.run())


def folded(app: AppTest) -> list[str]:
    """What can be unfolded."""
    return [one.label.strip("*") for one in app.expander]


def short(app: AppTest, epochs: int = 2, examples: int = 100, preset: str = "quick") -> AppTest:
    """Few epochs over few examples."""
    app.number_input(key="tune_examples").set_value(examples)
    return sound(app.number_input(key=f"tune_epochs_{preset}").set_value(epochs).run())


def cut_off(run: Path, at_work: Callable[[], bool] = lambda: True) -> None:
    """Leave what a process leaves that is killed after one epoch of two; ``at_work`` is true while it lives."""
    folder = run.parent
    request = TuneRequest.of_preset("quick", {"epochs": 2}, train_examples=100, device="cpu")
    steps = tunings.execute(run, request, folder, path=folder / "cut")
    next(event for event in steps if isinstance(event, EpochDone))
    assert at_work()
    steps.close()


def charts(app: AppTest) -> list[str]:
    """What the live charts are drawn with."""
    return [chart.proto.spec for chart in app.get("vega_lite_chart")]


def paused_after(run: Path, *events: object) -> None:
    """A fine-tuning of ``run`` that has given these events, and is paused."""
    given, go = threading.Event(), threading.Event()

    def work() -> Iterator[object]:
        yield from events
        given.set()
        assert go.wait(30)
        while True:
            yield Progress(0.25, "training")

    (subject,) = background.tuning_of(run).subjects
    job = registry.submit("Fine-tune small", work, "cpu", subject=subject)
    assert given.wait(30)
    job.pause()
    go.set()
    assert job.wait(State.PAUSED)


def test_without_a_run_the_page_says_what_to_do() -> None:
    app = visit()
    assert "No finished run to fine-tune yet" in words(app) and not app.selectbox


def test_a_run_is_fine_tuned_and_the_result_survives_a_refresh(run: Path) -> None:
    app = visit()
    text = words(app)
    assert seen(app, "run") == "small" and "of 0.814 M parameters" in text
    assert "20 epochs over 4,000 images, 10 % held out. How long that takes" in text
    assert "1. Choose how, press Run" in text
    short(app)
    assert "2 epochs over 100 images" in words(app)
    assert "Fine-tune it again" not in folded(app)
    press(app, "tune_run")
    assert "Settings for the next one" in folded(app)  # below it the work is seen
    assert "**Fine-tune mnist\\_mlp, keep 0.1: Quick, changed**" in words(app).replace("t_m", "t\\_m")
    assert app.button(key="tune_run").disabled and seen(app, "tuning")
    until(app, lambda: "tuning" not in app.query_params)
    saved = seen(app, "result")
    assert "-tuned" in saved and (run.parent / saved / "model.safetensors").is_file()
    report = json.loads((run.parent / saved / "run.json").read_text())["report"]
    for page in (app, visit(run="small")):
        text = words(page)
        assert "Fine-tune it again" in folded(page)
        assert "What was gained" in text and "1. Choose how" not in text
        assert f"→ **{100 * report['accuracy_after']:.1f} %**, dense" in text
        assert "Fine-tuned for 2 epochs" in text and "100 training examples on CPU" in text
        assert len(page.get("plotly_chart")) == 1
        assert [one.proto.label for one in page.get("download_button")] == ["Download curve (CSV)"]
    assert "20 epochs over 4,000 images, 10 % held out. About" in text and "by the pace of" in text


def test_stopping_keeps_the_best_so_far(run: Path) -> None:
    app = press(short(visit(), LONG, 1000), "tune_run")
    until(app, lambda: not app.button(key="finish_tuning").disabled)  # there is an epoch to keep
    assert " of 100000: loss" in words(app) and len(charts(app)) == 2
    assert '"fine-tuned"' in charts(app)[0] and '"dense"' in charts(app)[0] and '"held out"' in charts(app)[1]
    press(app, "finish_tuning")
    until(app, lambda: "tuning" not in app.query_params)
    assert "Stopped in epoch" in words(app) and "are kept" in words(app)
    assert "What was gained" in words(visit(run="small"))


def test_discarding_keeps_nothing(run: Path) -> None:
    app = press(short(visit(), LONG), "tune_run")
    assert app.button(key="stop_tuning").label == "Discard"
    press(app, "stop_tuning")
    until(app, lambda: "discarded" in words(app))
    press(app, "close_tuning")
    assert "tuning" not in app.query_params and not app.button(key="tune_run").disabled
    assert [path.name for path in run.parent.iterdir() if not path.name.startswith(".")] == ["small"]
    assert not list(run.parent.glob(".tuning/*"))


def test_a_rate_that_diverges_is_said_with_what_to_do(run: Path) -> None:
    app = visit()
    sound(app.number_input(key="tune_learning_rate_quick").set_value(1e6).run())
    press(short(app, 3, 300), "tune_run")
    until(app, lambda: "tuning" not in app.query_params)
    assert app.warning[0].value.startswith("**The training diverged.** Stopped in epoch ")
    assert "try a lower rate" in app.warning[0].value
    assert "no epoch was better than before" in words(app)
    assert not app.get("plotly_chart")  # there is no epoch to draw


def test_without_labels_the_preset_that_needs_none_is_one_click_away(noisy: Path, runs_folder: Path) -> None:
    shutil.copytree(noisy, runs_folder / "noisy")
    app = visit()
    assert "have no labels that fit the model" in words(app) and "accuracy" not in app.markdown[0].value
    press(short(app, 1), "tune_run")
    until(app, lambda: bool(app.error))
    assert "has no labels" in app.error[0].value
    press(app, "tune_no_labels")
    assert app.segmented_control(key="tune_preset").value == "distil"
    assert "have no labels that fit" not in words(app)
    press(short(app, 1, preset="distil"), "tune_run")
    until(app, lambda: "tuning" not in app.query_params)
    assert "same answer as the dense model" in words(app)


def test_settings_that_cannot_be_used_say_so(run: Path) -> None:
    app = short(visit(), 0)
    assert app.button(key="tune_run").disabled and "⚠️ epochs is 0" in words(app)
    short(app, 1)
    sound(app.selectbox(key="tune_data").set_value("folder").run())
    assert app.button(key="tune_run").disabled and "give the path of a folder" in words(app)
    sound(app.text_input(key="tune_data_path").set_value(str(run)).run())
    assert not app.button(key="tune_run").disabled and "over the training data" in words(app)
    assert seen(app, "tune_train") == f"folder:{run}"
    again = visit(tune_train=f"folder:{run}", tune_device=library.devices()["cpu"])  # as after a refresh
    assert again.text_input(key="tune_data_path").value == str(run)
    assert again.selectbox(key="tune_device").value == "cpu"
    sound(again.selectbox(key="tune_data").set_value("").run())
    assert "tune_train" not in again.query_params
    assert visit(tune_train="nonsense").selectbox(key="tune_data").value == ""


def test_each_preset_has_its_own_settings_and_says_what_it_does(run: Path) -> None:
    app = visit()
    sound(app.segmented_control(key="tune_preset").set_value("paper").run())
    text = words(app)
    assert "prunes block after block" in text and "1 epoch after each of 1 block, then 90 over 4,000" in text
    sound(app.selectbox(key="tune_start").set_value("random").run())
    assert "Random weights cannot be pruned block after block" in words(app)
    sound(app.segmented_control(key="tune_preset").set_value("distil").run())
    assert "No label is looked at" in words(app) and not app.button(key="tune_run").disabled
    assert app.number_input(key="tune_distil_distil").value == 1.0
    again = visit(tune_epochs_quick="7", tune_start="random weights (control)")  # as after a refresh
    assert "7 epochs over 4,000" in words(again) and again.selectbox(key="tune_start").value == "random"


def test_what_could_not_be_written_down_is_said_until_it_can(run: Path) -> None:
    epoch = EpochDone("", 1, 4, 0.05, 0.5, 0.4, 0.91, 0.92, True, 1.0)
    paused_after(run, epoch, CheckpointMissed("The disk `is` full."))
    app = visit(run="small")
    assert "Epoch 1 of 4: loss 0.5, held out 0.4, accuracy 91.0 %; the best so far." in words(app)
    assert "The disk \\`is\\` full. The work goes on" in app.warning[0].value
    assert app.button(key="go_on_tuning") and not app.button(key="finish_tuning").disabled


def test_the_lines_are_of_the_examples_that_the_epochs_are_measured_on(run: Path) -> None:
    paused_after(run, Began(0.75, 0.25, 0.5), EpochDone("", 1, 4, 0.05, 0.5, 0.4, 0.5, 0.92, True, 1.0))
    (chart, _) = visit(run="small").get("vega_lite_chart")
    drawn = convert_arrow_bytes_to_pandas_df(chart.proto.data.data)
    levels = {what: set(lines["value"]) for what, lines in drawn.groupby("what")}
    assert levels == {"fine-tuned": {50.0}, "dense": {75.0}, "before": {25.0}}


def test_before_and_after_are_of_the_same_examples(tmp_path: Path) -> None:
    """The run was measured on 30 examples of a pool; 20 of them are not trained on."""
    parent = own_run(tmp_path, "one_pool", keep=0.5)
    after = small_tuned_runs.tuned(parent, quick(epochs=1))
    by_block = small_tuned_runs.tuned(parent, paper(epochs=1, after_block=1))
    report, was = open_run(after).report, open_run(parent).report
    began, gone = (
        f"{100 * share:.1f} %" for share in (report["tuning"]["accuracy_before"], was["accuracy_after"])
    )
    assert (report["examples"], was["examples"]) == (20, 30) and began != gone
    app = visit(run=parent.name, result=after.name)
    assert app.subheader[0].value.startswith("What was gained")
    assert app.subheader[1].value.startswith(f"{began} → **")
    rows = table(app, "Best")
    assert dict(zip(rows["Epochs"], rows["Before"].fillna(""), strict=True)) == {"1": began, "3": ""}
    app = visit(run=parent.name, result=by_block.name)
    assert app.subheader[1].value.startswith("**") and "on the same examples is not known" in words(app)


def test_the_run_before_stands_beside_one_pruned_anew_on_the_same_examples(tmp_path: Path) -> None:
    parent = own_run(tmp_path, keep=0.5)
    small_tuned_runs.tuned(parent, paper(epochs=1, after_block=1))
    app = visit(run=parent.name)
    assert app.subheader[1].value.startswith(f"{100 * open_run(parent).report['accuracy_after']:.1f} % → **")


def test_where_the_paper_s_preset_is_can_be_seen(run: Path) -> None:
    record = open_run(run)
    epoch = EpochDone("fc1", 1, 1, 0.05, 0.5, 0.4, 0.91, 0.92, True, 1.0)
    paused_after(run, record.started, *record.blocks_started, epoch)
    app = visit(run="small")
    assert "Epoch 1 of 1 after block fc1" in words(app) and not app.warning
    press(app, "go_on_tuning")
    until(app, lambda: "training · block 1 of 1" in words(app))


def test_a_run_is_fine_tuned_by_one_job_at_a_time(run: Path) -> None:
    app = visit()
    (subject,) = background.tuning_of(run).subjects
    job = registry.submit("Fine-tune small", lambda: iter(()), "cpu", paused=True, subject=subject)
    press(app, "tune_run")  # drawn before it began
    assert "is being fine-tuned already" in words(app)
    assert [one for one in registry.jobs() if not one.state.ended] == [job]
    listed = visit("runs")
    assert "Nothing of it is kept" in listed.button(key=f"stop_{job.id}").help
    press(listed, f"watch_{job.id}")
    assert (seen(listed, "run"), seen(listed, "tuning")) == ("small", job.id)
    assert "**Fine-tune small**: paused" in words(listed)


def test_results_stand_beside_each_other_and_lead_on(both: Path) -> None:
    plain = json.loads((both.parent / "small-tuned" / "run.json").read_text())
    shutil.copytree(both.parent / "small-tuned", both.parent / "control")
    plain["settings"]["tuning"]["start"] = plain["report"]["tuning"]["start"] = "random"
    plain["report"] |= {"finished_at": "2020-01-01T00:00:00+00:00", "accuracy_after": 0.5}
    (both.parent / "control" / "run.json").write_text(json.dumps(plain))
    app = visit(run="small", result="control")
    assert app.selectbox(key="tune_result").value == "control" and "**50.0 %**, dense" in words(app)
    rows = table(app, "Best")
    assert rows["Epochs"].tolist() == ["2", "2"] and rows["Accuracy"][1] == "50.0 %"
    assert rows["Fine-tuning"][1].startswith("fine-tuned from random weights, quick")
    sound(app.selectbox(key="tune_result").set_value("small-tuned").run())
    assert seen(app, "result") == "small-tuned"
    press(app, "tune_further")
    assert seen(app, "run") == "small-tuned" and "What was gained" in words(app)  # by itself
    assert not any(button.key == "tune_further" for button in app.button)
    compare = press(visit(run="small"), "tune_compare")
    assert seen(compare, "runs") == "small,small-tuned"


def test_a_damaged_result_is_left_out(both: Path) -> None:
    file = both.parent / "small-tuned" / "run.json"
    plain = json.loads(file.read_text())
    plain["report"]["tuning"]["curve"] = [{"epoch": "x"}]
    file.write_text(json.dumps(plain))
    assert "What was gained" not in words(visit(run="small"))


def test_one_that_was_cut_off_goes_on_from_its_last_epoch(run: Path) -> None:
    folder = run.parent
    cut_off(run)
    row = "**Fine-tuning of small**, Quick: 1 of 2 epochs done"
    assert row in words(visit("runs"))
    app = visit()
    assert row in words(app)
    press(app, "runs_resume_cut")
    assert "Resume" not in [button.label for button in app.button]  # it is offered once
    until(app, lambda: "tuning" not in app.query_params)
    assert seen(app, "result") == "cut" and "Fine-tuned for 2 epochs" in words(app)
    shutil.rmtree(folder / "cut")


def test_one_whose_run_is_gone_says_so(run: Path) -> None:
    folder = run.parent
    shutil.copytree(run, folder / "other")
    cut_off(run)
    shutil.rmtree(run)
    app = press(visit(), "runs_resume_cut")
    assert "The run small, which was being fine-tuned, is not there any more" in app.error[0].value
    assert seen(app, "run") == "other" and "Interrupted" in words(app)


def test_one_that_was_cut_off_can_be_discarded(run: Path) -> None:
    folder = run.parent
    cut_off(run, at_work=lambda: "Interrupted" not in words(visit()))
    press(visit(), "runs_discard_cut")
    assert "Interrupted" not in words(visit()) and not (folder / ".tuning" / "cut").exists()


def test_other_pages_lead_here(run: Path) -> None:
    app = press(visit("deploy"), "deploy_finetune")
    assert seen(app, "run") == "small" and "Train a pruned run" in words(app)
    app = visit("runs")
    assert app.button(key="runs_finetune").disabled
    app.session_state[app.dataframe[0].key] = {"selection": {"rows": [0], "columns": [], "cells": []}}
    press(sound(app.run()), "runs_finetune")
    assert seen(app, "run") == "small" and "Train a pruned run" in words(app)
    explore = app_page.visit(run="small")
    assert "Fine-tune" in [link.proto.label for link in explore.get("page_link")]
    assert "1. Files" in words(press(visit(), "tune_deploy"))

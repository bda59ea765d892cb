"""The app without a browser: what a person reads after each click, on the real library with small inputs."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from ispasp import selectors
from ispasp.jobs import State, registry
from ispasp.runs import RunSettings
from ispasp.settings import RECONSTRUCTIONS
from ispasp.vocabulary import refit_words, selector_words

MAIN = Path(__file__).resolve().parent.parent / "ui" / "main.py"


@pytest.fixture(autouse=True)
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "runs"
    monkeypatch.setenv("ISPASP_RUNS", str(folder))
    yield folder
    for job in registry.jobs():
        job.cancel()
    assert all(job.wait(timeout=60) for job in registry.jobs())


def visit(**query: str) -> AppTest:
    """A browser session of its own; the small model unless told otherwise."""
    app = AppTest.from_file(str(MAIN), default_timeout=120)
    for name, value in ({"model": "mnist_mlp", "keep": "0.2"} | query).items():
        app.query_params[name] = value
    return sound(app.run())


def sound(app: AppTest) -> AppTest:
    assert not app.exception, app.exception[0].value
    return app


def words(app: AppTest) -> str:
    """Everything a person can read on the page, roughly."""
    bars = [bar.proto.text for bar in app.get("progress")]
    kinds = (app.title, app.subheader, app.markdown, app.caption, app.error, app.info, app.warning)
    return "\n".join([*bars, *(str(element.value) for kind in kinds for element in kind)])


def until(app: AppTest, done: Callable[[], bool], seconds: float = 120) -> None:
    """Look again, as the page does by itself in a browser, until ``done``."""
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit, words(app)
        time.sleep(0.25)
        sound(app.run())


def press(app: AppTest, key: str) -> AppTest:
    return sound(app.button(key=key).click().run())


def few_samples(app: AppTest) -> AppTest:
    return sound(app.number_input(key="samples").set_value(64).run())


def finish(app: AppTest) -> str:
    """Run to the end; the run's id."""
    press(app, "run_button")
    until(app, lambda: "run" in app.query_params)
    return seen(app, "run")


def table(app: AppTest, column: str) -> pd.DataFrame:
    """The table that has this column."""
    return next(frame.value for frame in app.dataframe if column in frame.value)


def seen(app: AppTest, kind: str) -> str:
    """The id of the job or run in the address."""
    value = app.query_params[kind]
    return value if isinstance(value, str) else value[0]


def enabled(app: AppTest) -> set[str]:
    names = ("run_button", "step_button", "pause_button", "stop_button")
    return {name.removesuffix("_button") for name in names if not app.button(key=name).disabled}


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
        "Agreement",
    ]
    assert "dense" in app.metric[0].delta and app.metric[3].value.endswith("%")
    assert (runs_folder / run / "run.json").is_file()
    assert not app.button(key="export_button").disabled

    other = visit(run=run)  # another browser, or the same one after a restart: only the disk remembers
    assert "Finished" in words(other) and other.metric[0].value == app.metric[0].value

    sound(app.switch_page("../pages/runs.py").run())
    assert "mnist_mlp" in words(app) and "0.2" in words(app)
    assert f"open_{run}" in {button.key for button in app.button}


def test_step_goes_one_iteration_at_a_time() -> None:
    app = few_samples(visit())
    for t in (1, 2):
        press(app, "step_button")
        until(app, lambda: "Paused" in words(app))
        assert f"Iteration {t}:" in words(app)
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


def test_jobs_under_way_are_offered_on_a_first_visit() -> None:
    app = few_samples(visit())
    press(app, "step_button")
    until(app, lambda: "Paused" in words(app))
    other = visit()
    assert "1 job under way:** mnist_mlp, keep 0.2, block 1 of 1" in words(other)
    press(other, f"watch_{seen(app, 'job')}")
    assert "Paused" in words(other) and "job" in other.query_params


def choose(app: AppTest, key: str, value: object) -> AppTest:
    return sound(app.selectbox(key=key).set_value(value).run())


def test_every_choice_is_explained_in_a_line() -> None:
    app = visit()
    assert app.selectbox(key="selector").options[0] == "i-SpaSP, as in the paper"
    assert app.selectbox(key="reconstruct").value == "asymmetric" and app.selectbox(key="distil").value == 0
    for name in selectors.names():
        choose(app, "selector", name)
        assert selector_words(name).line in words(app)
    for name in RECONSTRUCTIONS:
        choose(app, "reconstruct", name)
        assert refit_words(name)[1] in words(app)
    assert "Nothing is trained" in words(app) and "shows the whole picture in seconds" in words(app)
    choose(app, "distil", 400)
    assert "400 gradient steps on the unlabelled images: may take minutes, can be stopped." in words(app)
    assert "then distils for 400 steps, which may take minutes" in words(app)


def test_where_one_iteration_decides_the_plan_says_so() -> None:
    app = visit(keep="0.6")
    said = "One iteration decides in every block: 2 times the kept groups"
    assert said in words(app)
    assert said not in words(choose(app, "selector", "l1"))
    assert "Ranks once" in words(app)
    assert said not in words(choose(app, "selector", "gfs"))
    choose(app, "selector", "ispasp-contribution")
    assert said in words(app)
    assert said not in words(sound(app.number_input(key="candidate_factor").set_value(1).run()))


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


def test_a_keep_ratio_shared_out_by_sensitivity() -> None:
    app = few_samples(visit())
    choose(app, "allocation", "macs")
    assert "measures how sensitive every block is" in words(app)
    assert "shared out by sensitivity, for the same MACs" in app.expander[0].label
    finish(app)
    assert "Rounding to the multiple" not in "".join(warning.value for warning in app.warning)
    assert "asked" not in table(app, "kept fraction")


def test_the_re_fit_is_shown_with_its_warnings(runs_folder: Path) -> None:
    app = few_samples(visit())
    run = finish(app)
    assert "Re-fit at the end, asymmetric: error 0." in words(
        app
    ) and "Relative residual, and the re-fit" in words(app)
    assert "Error of every block before and after the re-fit" in words(app)
    warned = [warning.value for warning in app.warning]
    assert any("64 calibration positions for 208 unknowns" in text for text in warned)
    assert list(table(app, "Model")["Model"]) == ["dense", "pruned and re-fitted"]
    assert list(table(app, "kept fraction")["target"]) == ["asymmetric"]

    file = runs_folder / run / "run.json"  # as the first version would have left it
    plain = json.loads(file.read_text())
    for settings in (plain["settings"], plain["report"]):
        settings.pop("distil", None)
        settings.pop("recalibrate", None)
    plain["settings"]["reconstruct"] = "none"
    for block in (*plain["blocks_pruned"], *plain["report"]["blocks"]):
        for key in ("target", "error_before", "error_after", "notes"):
            block.pop(key, None)
    file.write_text(json.dumps(plain))
    other = visit(run=run)
    assert "Finished" in words(other) and "Re-fit at the end" not in words(other)
    assert other.selectbox(key="reconstruct").value == "none" and "Showing" not in words(other)
    assert "Residual of every block, and drift" in words(other)


@pytest.mark.parametrize(
    ("selector", "said", "bars", "why"),
    [
        ("gfs", "channel", "Greedy gain at iteration 32", "lower the residual most"),
        ("obs", "removed", "Removal cost at iteration 32", "smaller removal cost"),
        ("l2", "It ranks the neurons once, so this is all.", "L2 weight norm at iteration 1", "By L2 weight norm"),
        ("ispasp-contribution", "residual", "Importance and contribution at", "by contribution"),
    ],
)  # fmt: skip
def test_other_selectors_speak_their_own_words(selector: str, said: str, bars: str, why: str) -> None:
    app = few_samples(visit(keep="0.9" if selector == "obs" else "0.2"))
    choose(app, "selector", selector)
    finish(app)
    text = words(app)
    assert bars in text and why in text
    if selector == "gfs":
        assert "neurons more; residual" in text and "all 208 are chosen" in text
        sound(app.slider(key="look_t_fc1").set_value(3).run())
        assert "Iteration 3:" in words(app) and "chosen so far" in words(app)
    else:
        assert said in text


def test_distillation_is_a_stage_that_can_be_seen_paused_and_stopped(runs_folder: Path) -> None:
    app = few_samples(visit())
    choose(app, "distil", 1000)
    press(app, "run_button")
    until(app, lambda: "distilling, step" in words(app))
    assert "of 1000" in words(app) and enabled(app) == {"pause", "stop"}
    press(app, "pause_button")
    until(app, lambda: "Paused" in words(app))
    assert "while distilling, step" in words(app) and "all 1 blocks" not in words(app)
    assert enabled(app) == {"run", "step", "stop"}
    press(app, "stop_button")
    until(app, lambda: "Stopped" in words(app))
    assert "while distilling, step" in words(app) and "nothing was saved" in words(app)
    assert not list(runs_folder.glob("*"))


def test_a_distilled_run_shows_accuracy_before_and_after() -> None:
    app = few_samples(visit(keep="0.1"))
    choose(app, "distil", 100)
    run = finish(app)
    assert "Distilled in 100 steps" in words(app) and "accuracy" in words(app)
    assert list(table(app, "Model")["Model"]) == ["dense", "pruned and re-fitted", "then distilled"]
    assert visit(run=run).selectbox(key="distil").value == 100


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"keep": "abc"}, "Keep ratio: abc was given"),
        ({"keep": "0,4"}, "0,4 was given; write it with a point: 0.4"),
        ({"model": "nonsense"}, "There is no sample model called “nonsense”"),
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
    assert "Runs page" in words(app) and "Ready." in words(app)
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

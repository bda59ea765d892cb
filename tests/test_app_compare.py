"""The Compare page without a browser: what a person reads with no run, some, two chosen, many, and damaged ones."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from streamlit.elements.lib import policies
from streamlit.testing.v1 import AppTest

from ispasp import sweeps
from ispasp.jobs import registry
from ispasp.run_settings import RunSettings
from ispasp.sweeps import SweepSettings
from tests.app_page import MAIN, press, runs_folder, seen, sound, table, until, words
from tests.compared_runs import copy, make
from ui.compare_details import differing

__all__ = ["runs_folder"]  # a fixture that every test here uses


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def three(made: Path, runs_folder: Path) -> Path:
    shutil.copytree(made, runs_folder)
    return runs_folder


def compare(**query: str) -> AppTest:
    """The page as a fresh browser gets it."""
    app = AppTest.from_file(str(MAIN), default_timeout=120).run()
    app.switch_page("../pages/compare.py")
    for name, value in query.items():
        app.query_params[name] = value
    return sound(app.run())


def shown(app: AppTest) -> list[str]:
    return table(app, "Efficient")["Run"].tolist()


def test_without_runs_the_page_says_what_to_do() -> None:
    app = compare()
    assert "No finished run to compare yet" in words(app)
    assert not app.button(key="sweep_start").disabled and "6 runs of cifar10_resnet20." in words(app)
    sound(app.multiselect(key="sweep_keeps").set_value([]).run())
    assert app.button(key="sweep_start").disabled and "Choose at least one keep ratio" in words(app)


def test_runs_stand_below_the_dense_model(three: Path) -> None:
    app = compare()
    assert shown(app)[:2] == ["dense model", "wide"] and set(shown(app)[2:]) == {"narrow", "norm"}
    frame = table(app, "Efficient")
    assert frame["MACs left, %"].iloc[0] == 100 and frame["MACs left, %"].iloc[1] == pytest.approx(50, abs=1)
    assert "on 200 test images, " in words(app) and seen(app, "of") == "mnist_mlp, tested on 200"
    # One such run took well under a second, which leaves out most of what a sweep takes: no estimate.
    sound(app.selectbox(key="sweep_model").set_value("mnist_mlp").run())
    assert "6 runs of mnist_mlp" in words(app) and "would take" not in words(app)
    assert "Showing 3 runs." in words(app) and "Chosen run" not in words(app)
    assert len(app.get("plotly_chart")) == 2


def test_filters_and_axes_are_taken_from_the_address(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "_shown_default_value_warning", False)
    app = compare(
        refits="none, as in the paper", y="Agreement", x="Parameters", of="mnist_mlp, tested on 200"
    )
    assert shown(app) == ["dense model", "norm"] and "Showing 1 run of 3." in words(app)
    assert app.get("plotly_chart")[0].proto.spec.count('"Agreement with dense, %"') == 1
    sound(app.slider(key="kept").set_value((0.6, 1.0)).run())
    assert "No run passes these filters" in words(app)
    clear = next(button for button in app.button if button.label == "Clear the filters")
    sound(clear.click().run())
    assert len(shown(app)) == 4
    assert not policies._shown_default_value_warning  # that a widget has a default and a value of its own


def test_one_run_is_set_against_the_dense_model(three: Path) -> None:
    app = compare(runs="narrow", flips="true")
    text = words(app)
    assert "Chosen run" in text and "Accuracy by class, dense and A" in text and "Examples, dense → A" in text
    report = json.loads((three / "narrow" / "run.json").read_text())["report"]
    assert f"{round(200 * (1 - report['agreement']))} answers of 200 changed" in text
    assert "Right before, wrong now" in [tab.label for tab in app.tabs]
    assert len(app.get("image")) > 0


def test_two_runs_differ_in_sets_and_answers(three: Path) -> None:
    app = compare(runs="narrow,norm")
    text = words(app)
    assert (
        "**A** keep 0.05, i-SpaSP, re-fit asymmetric" in text and "**B** keep 0.05, Weight norm, L2" in text
    )
    assert (
        "**B differs from A in:** selector Weight norm, L2 (A: i-SpaSP); re-fit none (A: asymmetric)." in text
    )
    assert "In the one block, " in text and "a Jaccard index of " in text
    assert "groups that at least one of them keeps are kept by both" in text and "Examples, A → B" in text
    figures = table(app, "B against A").set_index("")
    assert (
        figures.loc["MACs", "B against A"] == "the same"
        and "points" in figures.loc["Accuracy", "B against A"]
    )
    press(app, "leave_A")
    assert seen(app, "runs") == "norm" and "**A** keep 0.05, Weight norm, L2" in words(app)


def test_a_run_that_is_gone_or_damaged_is_said_in_a_sentence(three: Path) -> None:
    copy(three / "wide", three, "broken")
    (three / "broken" / "run.json").write_text("{")
    app = compare(runs="vanished,broken,narrow")
    text = words(app)
    assert "vanished: This run is not here: it was deleted, or belongs to another machine." in text
    assert str(three) not in text.split("vanished", 1)[1].split("\n", 1)[0]
    assert "broken cannot be compared" in text
    assert "Left out, as they cannot be read: `broken`" in text
    assert "Accuracy by class, dense and C" in text  # the one that is left is shown
    press(app, "leave_A")
    assert seen(app, "runs") == "broken,narrow"


def test_a_link_to_a_run_of_another_model_shows_that_model(three: Path) -> None:
    copy(three / "wide", three, "elsewhere", examples=7, finished_at="2000-01-01T00:00:00+00:00")
    app = compare(runs="elsewhere")
    assert app.selectbox(key="of").value == "mnist_mlp, tested on 7" and shown(app) == [
        "dense model",
        "elsewhere",
    ]


def test_a_link_to_a_sweep_shows_its_model_and_so_does_a_link_to_the_usual_one(three: Path) -> None:
    copy(three / "wide", three, "swept", examples=7, finished_at="2000-01-01T00:00:00+00:00")
    file = three / "swept" / "run.json"
    plain = json.loads(file.read_text())
    plain["settings"]["lineage"] = {"sweep": "20261123-150400-1f3a"}
    file.write_text(json.dumps(plain))
    app = compare(part_of="sweep 20261123-150400-1f3a")
    assert app.selectbox(key="of").value == seen(app, "of") == "mnist_mlp, tested on 7"
    assert shown(app) == ["dense model", "swept"]
    usual = compare()
    address = {name: seen(usual, name) for name in usual.query_params}
    assert address["of"] == "mnist_mlp, tested on 200"
    copy(three / "wide", three, "newest", examples=9, finished_at="2100-01-01T00:00:00+00:00")
    assert compare().selectbox(key="of").value == "mnist_mlp, tested on 9"
    assert compare(**address).selectbox(key="of").value == "mnist_mlp, tested on 200"
    app = compare(**address)
    sound(app.selectbox(key="of").set_value("mnist_mlp, tested on 9").run())
    assert seen(app, "of") == "mnist_mlp, tested on 9" and shown(app) == ["dense model", "newest"]


def test_a_chosen_run_that_is_not_shown_is_marked(three: Path) -> None:
    copy(three / "wide", three, "elsewhere", examples=7, finished_at="2000-01-01T00:00:00+00:00")
    app = compare(runs="narrow,elsewhere", of="mnist_mlp, tested on 200", refits="none, as in the paper")
    cards = [str(one.value) for one in app.markdown if str(one.value).startswith(("**A**", "**B**"))]
    assert "asymmetric – not among the runs shown above" in cards[0]
    assert (
        "of mnist\\_mlp, tested on 7 – not among" in cards[1] or "of mnist_mlp, tested on 7 – not" in cards[1]
    )
    sound(app.multiselect(key="refits").set_value([]).run())
    cards = [str(one.value) for one in app.markdown if str(one.value).startswith(("**A**", "**B**"))]
    assert "not among" not in cards[0] and "not among" in cards[1]


def test_what_a_link_asks_for_in_vain_is_said_once(three: Path) -> None:
    app = compare(
        of="vgg", part_of="sweep gone", refits="nonsense", kept="much", columns="Colour", y="Beauty"
    )
    said = next(str(one.value) for one in app.caption if "Not applied" in str(one.value))
    for words_ in ("model “vgg”", "part of “sweep gone”", "re-fits “nonsense”", "keep ratio “much”",
                   "columns “Colour”", "axis “Beauty”"):  # fmt: skip
        assert words_ in said
    assert len(shown(app)) == 4 and seen(app, "of") == "mnist_mlp, tested on 200"
    assert "Not applied" in words(sound(app.run()))
    sound(app.multiselect(key="selectors").set_value(["Weight norm, L2"]).run())
    assert "Not applied" not in words(app) and shown(app) == ["dense model", "norm"]


def test_settings_differ_in_words() -> None:
    plain = {"keep": 0.5, "keep_by_block": {}, "allocation": "uniform", "samples": 64}
    by_block = plain | {"keep_by_block": {f"layer{i}": i / 10 for i in range(1, 10)}, "allocation": "macs"}
    assert differing(plain, plain) == []
    assert differing(plain, by_block) == [
        "a keep ratio per block (A: keep 0.5)",
        "allocation by sensitivity, for the same MACs (A: the same for every block)",
    ]
    assert differing(by_block, by_block | {"keep_by_block": {"layer1": 0.2}}) == [
        "other keep ratios per block"
    ]
    assert differing(plain, plain | {"keep": 0.25}) == ["keep 0.25 (A: keep 0.5)"]


def test_a_stopped_sweep_has_one_panel() -> None:
    app = compare()
    sound(app.selectbox(key="sweep_model").set_value("mnist_mlp").run())
    press(app, "sweep_start")
    job = registry.get(seen(app, "sweeping"))
    assert job is not None
    while not job.snapshot().events:
        time.sleep(0.01)
    job.cancel()
    assert job.wait(timeout=60)
    until(app, lambda: "stopped, 0 of 6 runs finished" in words(app), 20)
    assert "was cut off" not in words(app) and "6 runs:" not in words(app)
    keys = [str(button.key) for button in app.button]
    assert "sweep_show" not in keys and sum(key.startswith(("resume_", "discard_")) for key in keys) == 2
    press(app, "close_sweeping")
    assert "was cut off**: 0 of 6 runs finished" in words(app)
    app.query_params["sweeping"] = job.id
    sound(app.run())
    press(app, next(key for key in keys if key.startswith("discard_")))
    assert "stopped" not in words(app) and "was cut off" not in words(app)


def test_three_hundred_runs_answer_at_once(three: Path) -> None:
    for number in range(297):
        source = three / ("wide", "narrow", "norm")[number % 3]
        copy(
            source,
            three,
            f"copy{number:03d}",
            macs_after=100_000 + 1_000 * number,
            accuracy_after=number / 400,
        )
    app = compare()
    started = time.perf_counter()
    sound(app.run())
    took = time.perf_counter() - started
    assert len(shown(app)) == 301
    assert took < 3, f"{took:.2f} s for a page of 300 runs"  # under a second where nothing else is at work
    app.query_params["runs"] = "copy003,copy004"
    assert "Chosen runs" in words(sound(app.run()))


def test_the_sweep_form_begins_with_the_model_last_looked_at() -> None:
    app = AppTest.from_file(str(MAIN), default_timeout=120)
    app.query_params["model"], app.query_params["samples"] = "mnist_mlp", "48"
    sound(app.run())
    sound(app.switch_page("../pages/compare.py").run())
    assert app.selectbox(key="sweep_model").value == "mnist_mlp"
    assert app.number_input(key="sweep_samples_mnist_mlp").value == 48


def test_a_sweep_runs_from_the_panel_and_its_runs_appear() -> None:
    app = compare()
    sound(app.selectbox(key="sweep_model").set_value("mnist_mlp").run())
    sound(app.multiselect(key="sweep_keeps").set_value([0.2, 0.5]).run())
    sound(app.multiselect(key="sweep_selectors").set_value(["l2"]).run())
    sound(app.number_input(key="sweep_samples_mnist_mlp").set_value(64).run())
    assert "2 runs of mnist_mlp" in words(app)
    press(app, "sweep_start")
    job = registry.get(seen(app, "sweeping"))
    assert job is not None and "Sweep of mnist_mlp, 2 runs" in words(app)
    until(app, lambda: "finished in" in words(app))
    sound(app.run())
    lines = next(frame.value for frame in app.dataframe if len(frame.value) == 2)
    assert len(shown(app)) == 3 and list(lines) == ["Keep", "Selector", "Re-fit", "Accuracy", "Agreement"]
    fresh = compare(sweeping=job.id)
    assert fresh.selectbox(key="of").value == "mnist_mlp" and "finished in" in words(fresh)
    press(app, "sweep_show")
    part = seen(app, "part_of")
    assert part == app.selectbox(key="part_of").value == f"sweep {part[6:]}" and len(shown(app)) == 3
    assert f"sweep {part[-4:]}, " in table(app, "Efficient")["Part of"].iloc[1]
    press(app, "close_sweeping")
    assert "sweeping" not in app.query_params and "finished in" not in words(app)


def test_a_sweep_that_was_cut_off_is_resumed_or_discarded(runs_folder: Path) -> None:
    base = RunSettings("mnist_mlp", samples=64, evaluation=100)
    for keep in (0.1, 0.2):
        work = sweeps.execute(SweepSettings(base, (keep,)), runs_folder)
        next(work)
        work.close()  # as when the server is stopped
    found = sweeps.unfinished(runs_folder)
    app = compare()
    assert words(app).count("0 of 1 run finished") == 2
    press(app, f"discard_{found[0].id}")
    assert words(app).count("0 of 1 run finished") == 1
    press(app, f"resume_{found[1].id}")
    until(app, lambda: "finished in" in words(app))
    assert "was cut off" not in words(sound(app.run())) and len(shown(app)) == 2

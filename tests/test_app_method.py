"""How to prune, in the app: selector, re-fit and distillation, from the choice to the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ispasp import selectors
from ispasp.settings import RECONSTRUCTIONS
from ispasp.vocabulary import refit_words, selector_words
from tests.app_page import (
    choose,
    enabled,
    few_samples,
    finish,
    press,
    runs_folder,
    sound,
    table,
    until,
    visit,
    words,
)

__all__ = ["runs_folder"]  # a fixture that every test here uses


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
    assert "400 gradient steps on the unlabelled data: may take minutes, can be stopped." in words(app)
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

"""The paper's experiment on MNIST: what it finds is what pruning finds, its figures, and its benchmark."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import ispasp
from benchmarks import mnist_two_layer
from ispasp import two_layer_figures as figures
from ispasp.errors import CalibrationError, SettingError
from ispasp.records import Progress
from ispasp.two_layer import Trial, load_digits, run
from ispasp.two_layer_records import (
    EvaluatedGreedy,
    NetworkTrained,
    TwoLayerExperiment,
    TwoLayerFindings,
    TwoLayerPoint,
)

TINY = TwoLayerExperiment(
    sizes=(24,),
    keeps=(0.25, 0.5),
    selectors=("ispasp", "gfs", "random"),
    samples=200,
    epochs=1,
    tuning_epochs=1,
    evaluated_seconds=math.nextafter(1e9, 0),
)


def drained(steps):
    """All events of a generator, and what it returns."""
    events = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as stop:
            return events, stop.value


@pytest.fixture(scope="module")
def found() -> tuple[list, TwoLayerFindings]:
    return drained(run(TINY))


# ---------------------------------------------------------------- the experiment


def test_a_record_for_every_way_and_progress_that_never_falls(found):
    events, findings = found
    told = [event for event in events if not isinstance(event, Progress)]
    assert told == [
        *findings.networks,
        *(p for p in findings.points if p.keep == 0.25), findings.evaluated[0],
        *(p for p in findings.points if p.keep == 0.5), findings.evaluated[1],
    ]  # fmt: skip
    ways = [(p.kept, p.selector, p.reconstruct, p.tuned) for p in findings.points]
    assert ways == [
        (kept, selector, reconstruct, tuned)
        for kept in (6, 12)
        for selector in TINY.selectors
        for reconstruct in ("none", "symmetric")
        for tuned in (False, True)
    ]
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done == sorted(done) and (done[0], done[-1]) == (0.0, 1.0)
    assert (findings.training_digits, findings.test_digits) == (4000, 1000)
    for point in findings.points:
        assert 0 < point.residual < 1 and point.seconds > 0 and 0.05 < point.accuracy < 1
        assert (point.refit_seconds > 0) == (point.reconstruct != "none")
        assert (point.tuning_seconds > 0) == point.tuned


def test_compensation_and_fine_tuning_help(found):
    _, findings = found
    accuracy = {(p.kept, p.selector, p.reconstruct, p.tuned): p.accuracy for p in findings.points}
    for (kept, selector, reconstruct, tuned), value in accuracy.items():
        if reconstruct == "none" and not tuned:
            assert accuracy[kept, selector, "symmetric", False] > value
            assert accuracy[kept, selector, "none", True] > value
    assert findings.networks[0].accuracy > 0.7


def test_evaluated_greedy_selection_is_whole_and_chooses_what_gfs_chooses(found):
    _, findings = found
    assert [(e.kept, e.evaluations, e.timed, e.equal) for e in findings.evaluated] == [
        (6, 129, 129, True),
        (12, 222, 222, True),
    ]
    assert not any(one.extrapolated for one in findings.evaluated)


def test_the_same_seed_gives_the_same_and_the_random_state_stays(found):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = replace(TINY, keeps=(0.25,), selectors=("random",), reconstruct=("none",))
    _, again = drained(run(one))
    assert torch.equal(torch.get_rng_state(), state)
    _, findings = found
    wanted = [p for p in findings.points if (p.kept, p.selector, p.reconstruct) == (6, "random", "none")]
    assert list(again.points) == wanted and again.networks == findings.networks


def test_points_are_what_pruning_the_network_gives():
    one = replace(
        TINY, keeps=(0.25,), selectors=("ispasp", "l1", "random"), tuning_epochs=0, evaluated_seconds=0
    )
    digits = load_digits(one)
    trial = Trial(one, digits, 24, seed=3)
    events, _ = drained(trial.steps())
    points = [event for event in events if isinstance(event, TwoLayerPoint)]
    assert len(points) == 6
    for point in points:
        result = ispasp.prune(
            trial.network,
            [digits.calibration],
            point.keep,
            selector=point.selector,
            reconstruct=point.reconstruct,
            multiple=1,
            seed=3,
            evaluation=digits.test,
            device="cpu",
        )
        assert result.report["accuracy_after"] == pytest.approx(point.accuracy, abs=0.0011)
        assert result.blocks_pruned[0].relative_residual == pytest.approx(point.residual, rel=1e-4)


def test_evaluated_selection_that_takes_too_long_is_extrapolated_by_its_exact_count():
    one = replace(TINY, sizes=(200,), keeps=(0.5,), selectors=("random",), reconstruct=("none",))
    _, findings = drained(run(replace(one, tuning_epochs=0, evaluated_seconds=0.02)))
    [greedy] = findings.evaluated
    assert greedy.extrapolated and 0 < greedy.timed < greedy.evaluations == 100 * 200 - 100 * 99 // 2
    assert greedy.seconds == pytest.approx(0.02 * greedy.evaluations / greedy.timed, rel=0.5)
    assert greedy.equal is None


def test_it_can_be_closed_between_any_two_events():
    for stops_after in (1, 3, 40):
        steps = run(TINY)
        for _ in range(stops_after):
            next(steps)
        steps.close()
        with pytest.raises(StopIteration):
            next(steps)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sizes": ()}, "sizes is empty"),
        ({"sizes": (0,)}, "size is 0; give a whole number from 1 to 20000"),
        ({"keeps": (0.1, 1.5)}, "keep is 1.5"),
        ({"selectors": ("taylor",)}, "Unknown selector 'taylor'; choose some of ispasp"),
        (
            {"reconstruct": ("asymmetric",)},
            "Unknown reconstruct 'asymmetric'; choose some of none and symmetric",
        ),
        ({"epochs": 0}, "epochs is 0"),
        ({"evaluated_seconds": math.inf}, "evaluated_seconds is inf"),
        ({"source": "digits"}, "Unknown source of data 'digits'"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(SettingError, match=message):
        replace(TINY, **change)


def test_each_value_counts_once():
    assert replace(TINY, sizes=(24, 24), seeds=(0, 0)) == TINY


def test_digits_without_labels_are_refused():
    with pytest.raises(CalibrationError, match="noise gives no labels from 0 to 9; use sample:mnist"):
        drained(run(replace(TINY, source="noise")))


# ---------------------------------------------------------------- figures and sentences


def point(selector: str, accuracy: float, kept: int = 4, seed: int = 0, **more) -> TwoLayerPoint:
    settings = {
        "neurons": 40,
        "keep": kept / 40,
        "reconstruct": "none",
        "tuned": False,
        "seconds": 0.01,
    } | more
    return TwoLayerPoint(
        kept=kept, seed=seed, selector=selector, accuracy=accuracy, residual=0.5, iterations=1,
        refit_seconds=0.0, tuning_seconds=0.0, **settings,
    )  # fmt: skip


NETWORKS = [
    NetworkTrained(40, 0, 0.9, 1.0),
    NetworkTrained(40, 1, 0.94, 1.0),
    NetworkTrained(80, 0, 0.5, 1.0),
]
POINTS = [
    point("ispasp", 0.4),
    point("ispasp", 0.6, seed=1, seconds=0.03),
    point("ispasp", 0.8, kept=8),
    point("random", 0.7),
    point("ispasp", 0.9, tuned=True),
    point("ispasp", 0.1, neurons=80, keep=0.1, seconds=0.04),
]
EVALUATED = [
    EvaluatedGreedy(40, 0.1, 4, 0, 30.0, 154, 77, None),
    EvaluatedGreedy(80, 0.1, 8, 0, 5.0, 612, 612, True),
]


def test_accuracy_is_the_mean_over_the_seeds_with_its_range():
    info = figures.accuracy_info(NETWORKS, POINTS, 40)
    assert info.kept == (4, 8) and list(info.mean) == ["ispasp", "random"]
    assert info.mean["ispasp"] == pytest.approx([50, 80])
    assert info.low["ispasp"] == pytest.approx([40, 80]) and info.high["ispasp"] == pytest.approx([60, 80])
    assert info.mean["random"][0] == pytest.approx(70) and np.isnan(info.mean["random"][1])
    assert info.dense == pytest.approx(92) and info.seeds == 2
    tuned = figures.accuracy_info(NETWORKS, POINTS, 40, tuned=True)
    assert tuned.kept == (4,) and tuned.mean["ispasp"] == pytest.approx([90])
    figure = figures.accuracy_figure(info)
    assert [line.name for line in figure.data] == ["i-SpaSP, as in the paper", "Random"]
    assert figure.data[0].error_y.visible and figure.layout.xaxis.type == "log"
    assert figure.layout.annotations[0].text == "dense: 92.0 %"
    colours = {line.line.color for dark in (False, True) for line in figures.accuracy_figure(info, dark).data}
    assert len(colours) == 4


def test_nothing_found_yet_is_an_empty_figure():
    assert figures.accuracy_figure(figures.accuracy_info([], [], 40)).data == ()
    assert figures.time_figure(figures.time_info([], [], 0.1)).data == ()


def test_times_count_once_per_selection_and_extrapolated_ones_are_hollow():
    info = figures.time_info(POINTS, EVALUATED, 0.1)
    assert info.lines["ispasp"].neurons == (40, 80)
    assert info.lines["ispasp"].seconds == pytest.approx([0.02, 0.04])
    assert info.lines[figures.EVALUATED].extrapolated.tolist() == [True, False]
    assert info.factor(40) == pytest.approx(1500) and info.factor(80) == pytest.approx(125)
    idle = figures.time_info([point("ispasp", 0.4, seconds=0.0)], EVALUATED, 0.1)
    assert idle.factor(40) is None  # a clock that counts in hundredths
    assert info.factor(10) is None and figures.time_info(POINTS, [], 0.1).factor(40) is None
    figure = figures.time_figure(info)
    greedy = figure.data[-1]
    assert greedy.name == "Greedy, evaluated as published" and greedy.marker.symbol == ("x-open", "x")
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")


def test_sentences_give_the_factor_and_say_where_random_is_better():
    told = figures.outcome(NETWORKS, POINTS, EVALUATED, 40, 0.1)
    assert told[0] == (
        "40 neurons, keep 0.1: evaluated greedy selection takes 30.00 s (extrapolated from 50.00% of its "
        "evaluations), i-SpaSP 0.0200 s; that is 1,500 times as long."
    )
    assert told[1] == (
        "Accuracy as selected: ispasp 50.0 %, random 70.0 %, dense 92.0 %; random selection is better than i-SpaSP "
        "here."
    )
    assert told[2] == "Accuracy as selected, fine-tuned: ispasp 90.0 %, dense 92.0 %."


# ---------------------------------------------------------------- benchmark


def test_the_benchmark_prints_tables_and_records(capsys: pytest.CaptureFixture[str]):
    small = ["--sizes", "20", "--keeps", "0.5", "--selectors", "ispasp", "gfs", "--samples", "100",
             "--epochs", "1", "--tuning-epochs", "0"]  # fmt: skip
    assert mnist_two_layer.main(small) == 0
    printed = capsys.readouterr()
    assert printed.out.count("| hidden neurons | kept | dense | ispasp | gfs |") == 2
    assert (
        "| hidden neurons | keep | ispasp, s | gfs, s | evaluated greedy, s | evaluated : ispasp |"
        in printed.out
    )
    assert "they chose the neurons that gfs chose" in printed.out and "times as long" in printed.out
    assert "20 neurons: training" in printed.err
    assert mnist_two_layer.main([*small, "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert len(findings["points"]) == 4 and findings["evaluated"][0]["equal"] is True
    assert mnist_two_layer.main(["--keeps", "2"]) == 2
    assert "keep is 2.0" in capsys.readouterr().err

"""The laboratory against the theorem's slopes, against a plain transcription of Algorithm 1, and on disk."""

from __future__ import annotations

import itertools
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import synthetic
from ispasp import theory, theory_commands, theory_run
from ispasp.compressibility import line
from ispasp.errors import SettingError
from ispasp.records import Progress
from ispasp.series import log_ticks
from ispasp.theory import FACTORS, Experiment, Findings
from ispasp.theory_figures import (
    convergence,
    convergence_figure,
    decay_figure,
    factor_figure,
    factor_info,
    network_figure,
    network_info,
)
from ispasp.theory_run import TheoryDone
from tests import oracle

SMALL = Experiment(hidden=40, exponents=(0.5, 0.9), trials=2, samples=30)


@pytest.fixture(scope="module")
def found() -> Findings:
    return theory.find(SMALL)


@pytest.mark.parametrize(("hidden", "spans"), [(100, ((1e-15, 1e-12), (1e-7, 1e-4))), (200, None)])
def test_slopes_are_the_theorems(hidden: int, spans: tuple[tuple[float, float], ...] | None) -> None:
    """The issue's first try gave -5.45, -2.94, -1.93, -1.44 at sizes 5 to 50 of 100."""
    decays = theory.decays(theory.find(Experiment(hidden=hidden, trials=5), whole=False))
    slopes = [decay.slope for decay in decays]
    assert slopes == sorted(slopes)  # the smaller p, the steeper
    assert [decay.rate for decay in decays] == pytest.approx([-5.67, -3.0, -1.86, -1.22], abs=0.01)
    assert slopes == pytest.approx([-5.45, -2.94, -1.93, -1.44], abs=0.15)
    for decay in decays:
        assert abs(decay.slope - decay.rate) < 0.3 and decay.spread < 0.25
        assert decay.residuals == tuple(sorted(decay.residuals, reverse=True))
        assert all(np.array(decay.low) <= decay.residuals) and all(decay.residuals <= np.array(decay.high))
    if spans:  # near full size, about 1e-13 and 1e-6 in the paper's figure
        for decay, (low, high) in zip((decays[0], decays[-1]), spans, strict=True):
            assert low < decay.residuals[-1] < high


def test_the_slopes_do_not_tell_it_from_a_ranking_by_hidden_sums() -> None:
    """As docs/reproduction.md says of what the figure does not show."""
    asked = Experiment(trials=3)
    for decay in theory.decays(theory.find(asked, whole=False)):
        slopes = []
        for trial in range(asked.trials):
            hidden, weight = theory.drawn(asked, decay.exponent, trial)
            order = hidden.sum(0).sort(descending=True).indices
            lost = [(hidden[:, order[s:]] @ weight[:, order[s:]].T).square().sum() for s in asked.fitted]
            slopes.append(line(asked.fitted, np.array(lost))[0])
        assert np.mean(slopes) == pytest.approx(decay.slope, abs=0.01)


def test_more_outputs_are_nearer_to_an_isometry() -> None:
    """With few outputs lengths are squeezed, and fewer of the largest rows are found."""

    def recovered(outputs: int) -> float:
        asked = Experiment(
            hidden=60, outputs=outputs, exponents=(0.9,), trials=6, sizes=(4, 8, 16), candidate_factor=1
        )
        return float(np.mean([trial.recovered for trial in theory.find(asked, whole=False).trials]))

    assert recovered(3) < 0.8 < 0.9 < recovered(100)


def test_rows_have_the_norms_asked_for() -> None:
    hidden, weight = theory.drawn(SMALL, 0.5, 1)
    norms = torch.linalg.vector_norm(hidden, dim=0).sort(descending=True).values
    assert torch.allclose(norms, torch.arange(1, 41, dtype=torch.float64) ** -2)
    assert hidden.min() == 0 and weight.shape == (20, 40)
    again, other = theory.drawn(SMALL, 0.5, 1), theory.drawn(SMALL, 0.5, 0)
    assert torch.equal(hidden, again[0]) and torch.equal(weight, again[1])
    assert not torch.equal(weight, other[1])
    assert torch.equal(theory.drawn(SMALL, 0.9, 1)[1], weight)  # the same networks for every p


def test_when_the_consumer_can_be_a_restricted_isometry() -> None:
    """With fewer outputs than 4 s, so many columns depend on each other, and A takes some sparse vector to nothing."""
    asked = Experiment(hidden=40, outputs=20)
    _, weight = theory.drawn(asked, 0.5, 0)
    for size in (3, 5, 6, 30):
        columns = weight[:, : min(4 * size, 40)]
        dependent = torch.linalg.matrix_rank(columns) < columns.shape[1]
        assert dependent == (asked.outputs < asked.outputs_needed(size))


def test_trials_are_algorithm_one(found: Findings) -> None:
    """The residual after every iteration is that of the plain transcription."""
    consumer = nn.Linear(40, 20, bias=False).double()
    for trial in found.trials[::5]:
        hidden, weight = theory.drawn(SMALL, trial.exponent, trial.trial)
        consumer.weight.data = weight
        expected = oracle.algorithm_one(hidden, consumer, trial.size)
        assert trial.residuals == pytest.approx([step.residual for step in expected[: len(trial.residuals)]])
        assert trial.residual == pytest.approx(expected[-1].residual)
        largest = torch.linalg.vector_norm(hidden, dim=0).sort(descending=True).indices[: trial.size].tolist()
        assert trial.ideal == pytest.approx(oracle.residual(hidden, consumer, largest))
        assert trial.recovered == len(set(largest) & set(expected[-1].selected)) / trial.size


def test_the_same_seed_gives_the_same_findings(found: Findings) -> None:
    assert theory.find(SMALL) == found
    other = theory.find(Experiment(hidden=40, exponents=(0.5,), trials=1, samples=30, seed=1), whole=False)
    assert other.trials[0].residual != found.trials[0].residual


def test_progress_rises_and_the_work_can_be_left(found: Findings) -> None:
    seen = [step.done for step in _steps(theory.run(SMALL))]
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] < 1
    work = theory.run(SMALL)
    assert all(isinstance(step, Progress) for step in itertools.islice(work, 20))
    work.close()
    assert list(work) == []


def _steps(work: Generator[Progress, None, Any]) -> list[Progress]:
    return list(work)


def test_figures_hold_what_was_found(found: Findings) -> None:
    decays = theory.decays(found)
    figure = decay_figure(decays, SMALL.fitted)
    named = [trace.name for trace in figure.data if trace.name]
    assert named[0].startswith("p = 0.5: fitted −") and "theorem −3.00" in named[0]
    straight = figure.data[2]  # the theorem's line goes through the middle of what was fitted
    steep = (np.log(straight.y[-1]) - np.log(straight.y[0])) / np.log(straight.x[-1] / straight.x[0])
    assert steep == pytest.approx(-3)
    for size in SMALL.fitted:
        info = convergence(found, size)
        assert info.values[:, 0].tolist() == [1, 1] and info.values.shape == (2, len(info.steps))
        assert (info.values[:, -1] < info.values[:, 0]).all()
    last = [t.residual / t.energy for t in found.trials if t.size == size and t.exponent == 0.9]
    assert info.values[1, -1] == pytest.approx(np.exp(np.log(last).mean()))
    assert len(convergence_figure(info, dark=True).data) == 3
    factors = factor_info(found, 0.9)
    assert factors.recovered.shape == factors.iterations.shape == (len(FACTORS), len(factors.sizes))
    assert factors.iterations[-1].sum() < factors.iterations[0].sum()  # more candidates, fewer iterations
    assert len(factor_figure(factors).data) == 2 * len(FACTORS)


def test_networks_are_trained_and_do_not_fit(found: Findings) -> None:
    random, trained = network_info(found)
    assert (random.trained, trained.trained) == (False, True)
    assert random.accuracy < 0.3 < 0.75 < trained.accuracy
    assert all(network.law is not None and not network.law.fits for network in found.networks)
    assert np.nanmax(trained.residuals) <= 1 and trained.slope > -1.5
    assert len(network_figure([random, trained]).data) == 4


def test_what_was_found_is_kept_whole(found: Findings, tmp_path: Path) -> None:
    *_, done = theory_run.execute(SMALL, tmp_path)
    assert isinstance(done, TheoryDone) and done.findings == found
    assert theory_run.load(SMALL, tmp_path) == found
    assert theory_run.load(Experiment(), tmp_path) is None
    plain = json.loads(done.path.read_text())
    huge = [10**400] * len(plain["networks"][0]["law"]["ranks"])
    for broken in (
        {**plain, "trials": plain["trials"][1:]},
        {**plain, "format": 99},
        {**plain, "trials": [{**plain["trials"][0], "residuals": []}, *plain["trials"][1:]]},
        {**plain, "networks": [{"trained": 1}]},
        {**plain, "networks": []},
        {**plain, "factors": []},
        {
            **plain,
            "networks": [{**one, "residuals": [-1.0] * len(one["sizes"])} for one in plain["networks"]],
        },
        {**plain, "networks": [{**one, "sizes": [1], "residuals": [0.5]} for one in plain["networks"]]},
        {**plain, "networks": [{**one, "law": {**one["law"], "ranks": huge}} for one in plain["networks"]]},
        [],
    ):
        done.path.write_text(json.dumps(broken))
        assert theory_run.load(SMALL, tmp_path) is None
    done.path.write_text("{")
    assert theory_run.load(SMALL, tmp_path) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"hidden": 5}, "hidden is 5; give a whole number from 20"),
        ({"trials": 0}, "trials is 0"),
        ({"exponents": ()}, "no exponent"),
        ({"exponents": (0.5, 2.0)}, "an exponent is 2.0"),
        ({"exponents": (float("nan"),)}, "an exponent is nan"),
        ({"candidate_factor": 0.5}, "candidate_factor is 0.5; give a number from 1 up"),
        ({"sizes": (100,)}, "a size is 100; give a whole number from 1 to 99"),
        ({"sizes": (1, 2, 20)}, "between 5 and 50 rows kept, and 1 of the sizes lies there"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_tried_is_said(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Experiment(**wrong)


def test_benchmark_prints_slopes_and_writes_residuals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    synthetic.main(["--hidden", "40", "--trials", "2", "--exponents", "0.5", "0.9", "--out", str(out)])
    printed = capsys.readouterr().out
    lines = [line.split(" | ") for line in printed.splitlines() if line.startswith("| 40")]
    assert [cells[1] for cells in lines] == ["0.5", "0.9"] and [cells[3] for cells in lines] == [
        "-3.00",
        "-1.22",
    ]
    (findings,) = json.loads(out.read_text())
    own = Experiment(hidden=40, trials=2, exponents=(0.5, 0.9))
    assert [
        f"{decay.slope:.2f} ± {decay.spread:.2f}" for decay in theory.decays(theory.find(own, whole=False))
    ] == [cells[2] for cells in lines]
    assert len(findings["trials"]) == 2 * 2 * len(findings["experiment"]["sizes"])
    assert theory_commands.decay_table(theory.decays(theory.find(SMALL, whole=False))).startswith(
        "p    slope"
    )


def test_log_axes_have_few_marks() -> None:
    assert log_ticks([1, 3, 99])["ticktext"] == ["1", "2", "5", "10", "20", "50", "100"]
    assert log_ticks([0.31, 0.55])["ticktext"] == ["0.3", "0.4", "0.5", "0.6"]
    assert log_ticks([1e-14, 1])["ticktext"][0] == "10<sup>−14</sup>"
    assert len(log_ticks([1e-14, 1])["tickvals"]) <= 10
    assert log_ticks([0.0, float("nan")]) == {"type": "log"}

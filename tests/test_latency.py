"""Latency: honest intervals on made-up times, and the generator on real files."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ispasp.errors import ExportError, SettingError
from ispasp.latency import Call, LatencyReport, Timing, compare_calls, compare_latency, ratio_interval
from ispasp.onnx_export import export_onnx
from ispasp.records import Progress

IMAGE = torch.randn(2, 64)


def mlp(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 4))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models that differ by two orders of magnitude in work."""
    folder = tmp_path_factory.mktemp("latency")
    dense, pruned = folder / "dense.onnx", folder / "pruned.onnx"
    export_onnx(nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 1024)), IMAGE, dense)
    export_onnx(mlp(8), IMAGE, pruned)
    return dense, pruned


def report_with(ratio: float, low: float, high: float) -> LatencyReport:
    dense, pruned = Timing(2.0, 3.0, 3.5, 500.0), Timing(1.0, 2.0, 2.5, 1000.0)
    return LatencyReport(1, 1, "CPUExecutionProvider", 10, 2, dense, pruned, ratio, low, high)


def noisy(
    generator: np.random.Generator, ratio: float = 1.0, rounds: int = 10, pairs: int = 60
) -> np.ndarray:
    """Times with a drift that both share, a bias per round and model, and spikes: (rounds, pairs, 2)."""
    drift = np.exp(0.3 * np.cumsum(generator.normal(0, 0.1, rounds * pairs))).reshape(rounds, pairs, 1)
    bias = np.exp(generator.normal(0, 0.01, (rounds, 1, 2)))
    spikes = 1 + 5 * (generator.random((rounds, pairs, 2)) < 0.03)
    return drift * bias * spikes * np.exp(generator.normal(0, 0.03, (rounds, pairs, 2))) * [ratio, 1.0]


def test_interval_holds_the_truth_under_drift_spikes_and_bias() -> None:
    for truth in (1.0, 1.5):
        intervals = [
            ratio_interval(noisy(np.random.default_rng(seed), truth), seed, resamples=300)
            for seed in range(40)
        ]
        assert sum(low <= truth <= high for low, high in intervals) >= 36
        assert np.median([high - low for low, high in intervals]) < 0.3  # and is of use


def test_interval_sees_a_clear_difference_and_repeats_itself() -> None:
    times = noisy(np.random.default_rng(5), 1.5)
    low, high = ratio_interval(times, seed=1)
    assert 1 < low < 1.5 < high
    assert (low, high) == ratio_interval(times, seed=1)
    assert (low, high) != ratio_interval(times, seed=2)


def test_interval_of_constant_times_is_a_point() -> None:
    times = np.broadcast_to(np.array([3.0, 2.0]), (4, 7, 2))
    assert ratio_interval(times) == (1.5, 1.5)


def test_rounds_that_differ_widen_the_interval() -> None:
    """Within each round every pair is the same; only between rounds is there any doubt."""
    times = np.ones((10, 50, 2))
    times[:, :, 0] = np.linspace(0.98, 1.04, 10)[:, None]
    low, high = ratio_interval(times)
    assert low < 1.0 < 1.02 < high


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ((1.62, 1.55, 1.704), "1.62x faster [1.55, 1.70]"),
        ((0.9, 0.88, 0.921), "slower: 0.90x [0.88, 0.92]"),
        ((1.01, 0.98, 1.03), "no measurable difference [0.98, 1.03]"),
        ((1.01, 1.002, 1.03), "no measurable difference [1.00, 1.03]"),
    ],
)
def test_verdict(figures: tuple[float, float, float], words: str) -> None:
    assert report_with(*figures).verdict == words


def test_report_of_real_files(files: tuple[Path, Path]) -> None:
    *steps, report = compare_latency(*files, IMAGE, seconds=0.2, pairs_at_least=25)
    assert isinstance(report, LatencyReport)
    done = [step.done for step in steps if isinstance(step, Progress)]
    assert len(done) == len(steps) and len(done) > 10
    assert done[0] == 0 and done[-1] == 1 and all(a <= b for a, b in pairwise(done))
    assert (report.batch, report.threads, report.provider) == (2, 1, "CPUExecutionProvider")
    assert report.pairs >= 30 and report.pairs % report.rounds == 0  # 25 rounded up to whole rounds
    assert report.ratio == pytest.approx(report.dense.median_ms / report.pruned.median_ms)
    assert 0 < report.pruned.median_ms <= report.pruned.p95_ms <= report.pruned.p99_ms
    assert report.pruned.examples_per_second == pytest.approx(2 / report.pruned.median_ms * 1e3)
    assert report.ratio_low > 1 and "faster" in report.verdict
    written = json.loads(json.dumps(report.as_dict()))
    assert written["dense"] == dataclasses.asdict(report.dense)
    assert written["verdict"] == report.verdict


def test_the_other_way_round_is_slower(files: tuple[Path, Path]) -> None:
    *_, report = compare_latency(files[1], files[0], IMAGE, seconds=0.1, threads=2, warm_up=0)
    assert isinstance(report, LatencyReport)
    assert report.verdict.startswith("slower") and report.threads == 2


def test_an_interval_from_few_rounds_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):  # rounds differ by more than calls within one do
        rounds = 1 + 0.02 * generator.standard_normal((10, 1, 2))
        times = rounds * (1 + 0.01 * generator.standard_normal((10, 20, 2)))
        low, high = ratio_interval(times, resamples=500)
        held += low <= 1 <= high
    assert 0.95 <= held / 400 <= 0.99  # 0.93 if not expanded


def test_calls_of_any_kind_are_opened_anew_each_round_and_made_in_turns() -> None:
    made: list[str] = []

    def opener(side: str):
        def opened() -> Call:
            made.append(f"open {side}")
            return Call(lambda: made.append(side), batch=3)

        return opened

    *_, report = compare_calls(
        (opener("d"), opener("p")), threads=1, provider="none", rounds=2, pairs_at_least=4, seconds=1e-9
    )
    assert isinstance(report, LatencyReport)
    assert (report.batch, report.provider, report.pairs) == (3, "none", 4)
    first = ["open d", "open p", *"dpdp", *"dp", *"pd"]
    assert made == [*first, "open p", "open d", *"dpdp", *"dp", *"pd"]


def test_least_pairs_are_timed_where_the_seconds_are_over(files: tuple[Path, Path]) -> None:
    *_, report = compare_latency(*files, IMAGE, seconds=1e-9, rounds=3, pairs_at_least=10)
    assert isinstance(report, LatencyReport)
    assert report.pairs == 12


def test_it_can_be_stopped_between_steps(files: tuple[Path, Path]) -> None:
    steps = compare_latency(*files, IMAGE, seconds=3600)
    assert all(isinstance(next(steps), Progress) for _ in range(8))
    steps.close()  # type: ignore[attr-defined]
    assert next(steps, None) is None


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"threads": 1.5}, "threads is 1.5"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"rounds": 1}, "rounds is 1"),
        ({"pairs_at_least": 0}, "pairs_at_least is 0"),
    ],
)
def test_settings_out_of_range(setting: dict[str, float], words: str, files: tuple[Path, Path]) -> None:
    with pytest.raises(SettingError, match=words):
        list(compare_latency(*files, IMAGE, **setting))  # type: ignore[arg-type]


def test_files_and_inputs_that_do_not_fit(files: tuple[Path, Path], tmp_path: Path) -> None:
    dense, pruned = files
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"not a model")
    for pair, inputs, words in (
        ((dense, tmp_path / "absent.onnx"), IMAGE, "no ONNX file at .*absent"),
        ((damaged, pruned), IMAGE, "damaged.onnx is not an ONNX file"),
        (files, torch.ones(2, 5), "does not run on these inputs"),
        (files, "text", "does not fit"),
    ):
        with pytest.raises(ExportError, match=words) as caught:
            list(compare_latency(*pair, inputs, seconds=0.01))
        assert len(str(caught.value).splitlines()) == 1

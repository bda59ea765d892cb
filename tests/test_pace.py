"""How long a fine-tuning is expected to take: by the pace of an earlier one, in proportion to the multiply-adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ispasp.store import RunSummary
from ispasp.tuning.pace import expected
from ispasp.tuning.request import TuneRequest

QUICK, DISTIL = (TuneRequest.of_preset("quick", {"distil": share}) for share in (0.0, 1.0))


def run(id: str = "run", macs: int = 100, model: str = "mnist_mlp", **more: Any) -> RunSummary:
    report = {"macs_before": 200, "macs_after": macs, "examples": 10, "device": "CPU (2 threads)"}
    return RunSummary(id, Path(id), "2026-11-23", {"model": model} | more.pop("settings", {}), report | more)


def tuned(seconds: float, distil: float = 0.0, processes: int = 1, **more: Any) -> RunSummary:
    """Fine-tuned on 90 examples for 2 epochs."""
    tuning = {
        "preset": "quick", "stopped": "", "precision": "fp32", "start": "pruned", "after_block": 0,
        "epochs_done": 2, "best_epoch": 2, "train_examples": 90, "held_out_examples": 9, "processes": processes,
        "seconds": seconds, "accuracy_before": None, "agreement_before": None, "curve": [],
    }  # fmt: skip
    return run("tuned", settings={"tuning": {"distil": distil}}, tuning=tuning, **more)


def seconds(request: TuneRequest, *earlier: RunSummary, epochs: int = 2, examples: int = 90) -> float | None:
    found = expected(request, epochs, examples, run(), "CPU (2 threads)", earlier)
    return None if found is None else found.seconds


def test_the_same_work_takes_the_same_time_and_more_takes_more() -> None:
    assert seconds(QUICK, tuned(10.0)) == pytest.approx(10.0)
    assert seconds(QUICK, tuned(10.0), epochs=6) == pytest.approx(30.0)
    # An epoch: examples x 3 passes of the pruned model, and 10 examples to evaluate.
    assert seconds(QUICK, tuned(10.0), examples=180) == pytest.approx(10.0 * (180 * 3 + 10) / (90 * 3 + 10))
    assert seconds(QUICK, tuned(10.0, macs=50)) == pytest.approx(20.0)


def test_towards_the_dense_model_its_pass_counts() -> None:
    alone, both = 90 * 300 + 10 * 100, 90 * (300 + 200) + 10 * 100
    assert seconds(DISTIL, tuned(10.0)) == pytest.approx(10.0 * both / alone)
    assert seconds(QUICK, tuned(10.0, distil=0.5)) == pytest.approx(10.0 * alone / both)


def test_the_newest_that_fits_tells() -> None:
    assert seconds(QUICK, run(), tuned(10.0), tuned(99.0)) == pytest.approx(10.0)
    for foreign in (
        tuned(99.0, model="other"),
        tuned(99.0, device="another"),
        tuned(99.0, processes=2),
        tuned(99.0, macs_after="x"),
        run(tuning={"seconds": 1}),
    ):
        assert seconds(QUICK, foreign) is None
        assert seconds(QUICK, foreign, tuned(10.0)) == pytest.approx(10.0)
    unknown = run(macs_after=None)
    assert expected(QUICK, 2, 90, unknown, "CPU (2 threads)", [tuned(10.0)]) is None

"""The plot of a measurement: assertions on the info and on what the figure is made of, never on pixels."""

from __future__ import annotations

from typing import Any

import pytest

from ispasp.deployment.bench_figures import Verdict, ratios_figure, ratios_info, verdict


def row(ratio: float, low: float, high: float) -> dict[str, Any]:
    return {"ratio": ratio, "ratio_low": low, "ratio_high": high}


ROWS = [row(0.9, 0.85, 0.95), row(1.6, 1.5, 1.7), {"problem": "it does not load"}, row(1.01, 0.98, 1.04)]
NAMES = ["int8", "fp32", "cuda", "fp16"]


def test_an_interval_that_holds_one_as_it_is_shown_says_nothing() -> None:
    assert verdict(1.5, 1.7) is Verdict.FASTER and verdict(0.8, 0.9) is Verdict.SLOWER
    assert verdict(0.97, 1.03) is Verdict.SAME
    assert verdict(1.004, 1.2) is Verdict.SAME and verdict(0.8, 0.996) is Verdict.SAME


def test_rows_keep_their_order_and_those_without_figures_are_counted() -> None:
    info = ratios_info(NAMES, ROWS)
    assert info.labels == ("int8", "fp32", "fp16") and info.left_out == 1
    assert info.ratio == pytest.approx([0.9, 1.6, 1.01]) and info.low == pytest.approx([0.85, 1.5, 0.98])
    assert info.verdicts == (Verdict.SLOWER, Verdict.FASTER, Verdict.SAME)
    damaged = ratios_info(["a", "b"], [row(1, 1, float("nan")), {"ratio": "1"}])
    assert damaged.labels == () and damaged.left_out == 2


@pytest.mark.parametrize("dark", [False, True])
def test_every_verdict_has_its_symbol_and_intervals_reach_where_they_were_measured(dark: bool) -> None:
    figure = ratios_figure(ratios_info(NAMES, ROWS), dark)
    faster, same, slower = figure.data
    assert [trace.name for trace in figure.data] == ["faster", "no measurable difference", "slower"]
    assert len({trace.marker.symbol for trace in figure.data}) == 3
    assert (list(faster.y), list(same.y), list(slower.y)) == (["fp32"], ["fp16"], ["int8"])
    assert faster.error_x.array == pytest.approx([0.1], abs=1e-6)
    assert slower.error_x.arrayminus == pytest.approx([0.05], abs=1e-6)
    assert list(figure.layout.yaxis.categoryarray) == ["int8", "fp32", "fp16"]
    assert figure.layout.shapes[0].x0 == 1

"""Figures of results: assertions on the info and on what the figure is made of, never on pixels."""

from __future__ import annotations

import pytest

from ispasp import figures
from ispasp.records import BlockPruned
from tests.small_records import REPORT, pruned, started


def test_blocks_figure_shows_residual_and_drift() -> None:
    block = started(6, 2).block
    pruned = [BlockPruned(block, 0, (4, 5), 3, 0.149, 0.2, 1.0)]
    bar, line = figures.blocks_figure(pruned).data
    assert bar.y[0] == pytest.approx(0.149) and line.y[0] == pytest.approx(0.2)


def test_blocks_figure_shows_the_re_fit_and_takes_a_log_scale_where_it_must() -> None:
    one, other = pruned(0.4, 0.3), pruned(0.5, 0.001)
    info = figures.blocks_info([one])
    assert info.before == pytest.approx([0.4]) and info.after == pytest.approx([0.3]) and not info.log
    assert figures.blocks_info([one, other]).log
    figure = figures.blocks_figure([one, other])
    assert [trace.name for trace in figure.data if trace.name] == [
        "error before the re-fit", "error after the re-fit", "drift from the dense network",
    ]  # fmt: skip
    assert figure.layout.yaxis.type == "log" and figure.layout.yaxis.title.text.endswith("log scale")
    assert "log" not in figures.blocks_figure([one]).layout.yaxis.title.text
    assert figures.blocks_info([pruned(None, None)]).before is None


def test_comparison_figure_is_per_cent_of_dense() -> None:
    dense, pruned = figures.comparison_figure(REPORT).data
    assert list(dense.x) == [100, 100] and list(pruned.y) == ["parameters", "MACs"]
    assert pruned.x == pytest.approx([51.85, 51.22], abs=0.01)
    for dark in (False, True):  # the bar is light on a dark page
        bar = figures.comparison_figure(REPORT, dark).data[1]
        assert (bar.insidetextfont.color < "#8") == dark


def test_latency_figure_reaches_to_the_95th_percentile() -> None:
    latency = {
        "batch": 1,
        "dense": {"median_ms": 1.9, "p95_ms": 2.1},
        "pruned": {"median_ms": 1.2, "p95_ms": 1.3},
    }
    (bar,) = figures.latency_figure(latency).data
    assert list(bar.y) == ["dense: 1.9 ms", "pruned: 1.2 ms"]
    assert bar.x == pytest.approx([1.9, 1.2]) and bar.error_x.array == pytest.approx([0.2, 0.1], abs=1e-6)

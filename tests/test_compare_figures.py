"""Figures of many runs and of two: assertions on the info and on what a figure is made of, never on pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ispasp import compare_figures, pair_figures, selectors
from ispasp.comparison import ClassChange, Dense, Family, Overlap, Row

DENSE = Dense(parameters=100, macs=1000, accuracy=0.9)


def row(run_id: str, macs: int, accuracy: float | None, **values: Any) -> Row:
    usual: dict[str, Any] = {
        "name": run_id, "family": Family("m", "", "", 100), "dense": DENSE, "keep": 0.5, "selector": "ispasp",
        "reconstruct": "asymmetric", "parameters": macs // 10, "agreement": 0.85, "speedup": None, "seconds": 1.0,
        "finished_at": "", "lineage": {}, "samples": 64, "seed": 3, "distil": 0,
    }  # fmt: skip
    return Row(run_id=run_id, macs=macs, accuracy=accuracy, **usual | values)


ROWS = [
    row("a", 800, 0.88, speedup=1.25),
    row("b", 500, 0.8, reconstruct="none"),
    row("c", 500, 0.7, selector="l1", name="<b>bold</b>"),
    row("d", 200, 0.6, speedup=4.0),
    row("e", 300, None),
]


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data if trace.name}


def test_trade_off_has_a_point_per_run_that_has_both_values() -> None:
    info = compare_figures.trade_off(ROWS)
    assert [one.run_id for one in info.rows] == ["a", "b", "c", "d"] and info.left_out == 1
    assert info.x.tolist() == [800, 500, 500, 200] and info.y == pytest.approx([88, 80, 70, 60])
    assert [info.rows[i].run_id for i in info.frontier] == ["d", "b", "a"]
    assert info.dense == (1000.0, 90.0)


def test_trade_off_against_measured_latency_leaves_out_what_was_not_measured() -> None:
    info = compare_figures.trade_off(ROWS, "latency", "agreement")
    assert [one.run_id for one in info.rows] == ["a", "d"] and info.left_out == 3
    assert info.x == pytest.approx([80, 25]) and info.dense == (100.0, 100.0)
    assert compare_figures.trade_off([row("x", 5, 0.5, dense=Dense(1, 1, None))]).dense is None
    empty = compare_figures.trade_off([])
    assert len(empty.x) == 0 and empty.dense is None and empty.frontier == ()


def test_trade_off_figure_tells_selectors_by_colour_and_re_fits_by_symbol() -> None:
    for dark in (False, True):
        drawn = traces(compare_figures.trade_off_figure(ROWS, dark=dark))
        assert list(drawn) == [
            "efficient frontier", "i-SpaSP, re-fit asymmetric", "i-SpaSP, no re-fit",
            "Weight norm, L1, re-fit asymmetric", "dense model",
        ]  # fmt: skip
        _, fit, none, norm, dense = drawn.values()
        assert fit.marker.color == none.marker.color != norm.marker.color
        assert fit.marker.symbol == norm.marker.symbol != none.marker.symbol
        assert dense.marker.symbol == "star" and (dense.x[0], dense.y[0]) == (1000, 90)
    assert list(drawn["efficient frontier"].x) == [200, 500, 800]
    colours = [compare_figures.colour(name, True) for name in selectors.names()]
    assert len(set(colours)) == len(colours)


def test_trade_off_figure_says_what_a_point_is_and_which_run() -> None:
    drawn = traces(compare_figures.trade_off_figure(ROWS))
    run_id, said = drawn["i-SpaSP, re-fit asymmetric"].customdata[0]
    assert run_id == "a"
    for words in ("keep 0.5", "88.0 %", "−2.0 points", "80 % of the MACs", "1.25 times as fast", "seed 3"):
        assert words in said
    _, named = drawn["Weight norm, L1, re-fit asymmetric"].customdata[0]
    assert named.startswith("&lt;b&gt;bold&lt;/b&gt;<br>")  # what somebody typed is no markup


def test_chosen_runs_have_a_ring_with_their_letter() -> None:
    figure = compare_figures.trade_off_figure(ROWS, chosen={"d": "A", "a": "B", "gone": "C"})
    ring = figure.data[-1]
    assert [text.strip() for text in ring.text] == ["A", "B"] and list(ring.x) == [200, 800]
    assert not any(trace.mode == "markers+text" for trace in compare_figures.trade_off_figure(ROWS).data)


def report(*blocks: tuple[str, int, float]) -> dict[str, Any]:
    return {"blocks": [{"name": n, "groups": 16, "kept": k, "relative_residual": r} for n, k, r in blocks]}


def test_residuals_are_lines_by_rising_kept_fraction() -> None:
    made, other = ("ispasp", "asymmetric"), ("l1", "none")
    info = compare_figures.residuals_by_keep([
        (row("a", 5, 0.5), report(("one", 8, 0.2), ("two", 8, 0.4))),
        (row("b", 5, 0.5), report(("one", 4, 0.5), ("two", 4, 0.6))),
        (row("c", 5, 0.5, selector="l1", reconstruct="none"), report(("one", 4, 0.7))),
    ])  # fmt: skip
    assert info.blocks == ("one", "two") and not info.log and info.hidden == 0
    first, second, third = info.lines
    assert (first.block, first.made) == ("one", made)
    assert first.kept == pytest.approx([0.25, 0.5]) and first.residual == pytest.approx([0.5, 0.2])
    assert (second.block, second.made) == ("one", other) and third.block == "two"
    figure = compare_figures.residuals_figure(info)
    assert [trace.showlegend for trace in figure.data] == [True, True, False]
    assert {tuple(axis.range) for axis in figure.select_yaxes()} == {info.range}
    assert info.range[1] > 0.7
    assert [axis.title.text for axis in figure.select_xaxes()] == ["kept of the block"] * 2
    assert [axis.title.text for axis in figure.select_yaxes()] == ["relative residual", None]  # side by side


def test_residuals_of_runs_with_other_samples_are_lines_of_their_own() -> None:
    few, many = ((("samples", count), ("seed", "0")) for count in ("64", "256"))
    info = compare_figures.residuals_by_keep([
        (row("a", 5, 0.5, conditions=few), report(("one", 8, 0.2))),
        (row("b", 5, 0.5, conditions=many), report(("one", 8, 0.3))),
        (row("c", 5, 0.5, conditions=few), report(("one", 4, 0.5))),
    ])  # fmt: skip
    by_samples = {line.also: line.residual for line in info.lines}
    assert set(by_samples) == {"samples 64", "samples 256"}  # and nothing about the seed that all share
    assert by_samples["samples 64"] == pytest.approx([0.5, 0.2])
    assert by_samples["samples 256"] == pytest.approx([0.3])
    drawn = traces(compare_figures.residuals_figure(info))
    assert set(drawn) == {f"i-SpaSP, re-fit asymmetric, samples {count}" for count in (64, 256)}
    assert len({trace.marker.symbol for trace in drawn.values()}) == 2


def test_residuals_take_a_log_scale_and_the_worst_blocks() -> None:
    many = [(f"b{i}", 8, 10.0 ** -(i % 5)) for i in range(20)]
    info = compare_figures.residuals_by_keep([(ROWS[1], report(*many, ("kept", 16, 0.0)))])
    assert len(info.blocks) == compare_figures.PANELS and info.hidden == 5 and info.log
    assert "b0" in info.blocks and "b4" not in info.blocks and "kept" not in info.blocks
    low, high = info.range
    assert low < -3 and 0 < high < 1
    whole = compare_figures.residuals_by_keep([(ROWS[1], report(("kept", 16, 0.0)))])
    assert whole.range == (0.0, 1.08) and not whole.log
    assert not compare_figures.residuals_by_keep([]).blocks


def test_overlap_bars_fill_every_block() -> None:
    found = [Overlap("one", 4, 2, 1, 9), Overlap("two", 8, 0, 0, 0)]
    figure = pair_figures.overlap_figure(found)
    assert list(traces(figure)) == ["both keep", "only A", "only B", "neither"]
    assert np.sum([trace.x for trace in figure.data], axis=0) == pytest.approx([100, 100])
    assert figure.data[0].x == pytest.approx([25, 100]) and list(figure.data[0].customdata[0]) == [4, 16]
    assert [note.text for note in figure.layout.annotations] == ["57 %", "100 %"]


def test_class_figure_names_the_classes() -> None:
    changes = [ClassChange(1, 10, 0.9, 0.4), ClassChange(7, 5, 0.2, 0.4)]
    drawn = traces(pair_figures.class_figure(changes, ["cat", "dog"], ("dense", "B")))
    assert drawn["dense"].x == pytest.approx([90, 20]) and drawn["B"].x == pytest.approx([40, 40])
    assert list(drawn["B"].y) == ["dog", "class 7"] and list(drawn["B"].customdata) == [10, 5]
    assert drawn["dense"].marker.symbol != drawn["B"].marker.symbol

"""Figures of a trace: assertions on the info and on what the figure is made of, never on pixels."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from ispasp import figures
from ispasp.figures import LOOKS, GroupState
from tests.small_records import FIRST, SECOND, THIRD, TRACE, iteration, pruned, started


def test_group_states_name_every_case() -> None:
    kept, added, dropped, candidate, out = (
        GroupState.KEPT,
        GroupState.ADDED,
        GroupState.DROPPED,
        GroupState.CANDIDATE,
        GroupState.OUT,
    )
    assert list(figures.group_states(FIRST)) == [candidate, candidate, added, added, out, out]
    assert list(figures.group_states(SECOND)) == [candidate, candidate, dropped, dropped, added, added]
    assert list(figures.group_states(THIRD)) == [candidate, candidate, out, out, kept, kept]
    assert figures.group_states(FIRST).dtype == np.uint8


def test_a_block_of_one_iteration_has_only_kept_groups() -> None:
    only = iteration(1, tuple(range(6)), (3, 4), converged=True)
    assert set(figures.group_states(only)) == {GroupState.CANDIDATE, GroupState.KEPT}
    assert LOOKS[GroupState.ADDED].title(1) == "chosen" and LOOKS[GroupState.ADDED].title(2) == "newly added"


def test_a_dropped_candidate_counts_as_dropped() -> None:
    only = iteration(2, (0, 1, 4, 5), (4, 5), before=(0, 5))
    assert figures.group_states(only)[0] == GroupState.DROPPED


def test_states_differ_in_colour_and_in_symbol() -> None:
    for what in ("light", "dark", "symbol", "pattern", "mark", "label"):
        values = [getattr(look, what) for look in LOOKS.values()]
        assert len(set(values)) == len(GroupState), what


@pytest.mark.parametrize("dark", [False, True])
def test_colours_stand_out_from_the_ground(dark: bool) -> None:
    """At least 3 to 1, as WCAG asks of graphics, but for the groups that are out: they stay back."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    ground = luminance("#10161d" if dark else "#ffffff")
    for state, look in LOOKS.items():
        bright, dim = sorted([luminance(look.colour(dark)), ground], reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= (2.4 if state is GroupState.OUT else 3), look.label


@pytest.mark.parametrize(("groups", "rows"), [(16, 1), (64, 1), (65, 2), (1024, 16)])
def test_the_map_wraps_and_stays_small(groups: int, rows: int) -> None:
    trace = [iteration(t, (0, 1), (1,), (1,) if t > 1 else (), groups) for t in range(1, 21)]
    info = figures.map_info(started(groups, 1), trace)
    assert (info.rows, info.states.shape, info.states.dtype) == (rows, (20, groups), np.uint8)
    figure = figures.map_figure(info)
    assert sum(len(trace.x) for trace in figure.data) == 20 * groups
    for drawn in figure.data:
        assert isinstance(drawn, go.Scattergl) and drawn.x.dtype == np.uint8
        assert len(drawn.x) == 0 or drawn.x.max() < figures.WRAP


def test_every_square_of_the_map_stands_where_its_group_is() -> None:
    info = figures.map_info(started(130, 1), [iteration(1, (0, 129), (129,), groups=130)])
    figure = figures.map_figure(info)
    added = next(trace for trace in figure.data if trace.name == LOOKS[GroupState.ADDED].label)
    assert (added.x[0], added.y[0], tuple(added.customdata[0])) == (1, 2, (129, 1))


def test_an_empty_trace_gives_an_empty_map() -> None:
    info = figures.map_info(started(16, 8), [])
    assert info.states.shape == (0, 16)
    assert all(len(trace.x) == 0 for trace in figures.map_figure(info).data)


def test_residual_info() -> None:
    info = figures.residual_info(TRACE)
    assert list(info.t) == [1, 2, 3] and info.converged == 3
    assert info.relative == pytest.approx([0.157, 0.149, 0.149])
    line = figures.residual_figure(info).data[0]
    assert list(line.text) == ["0.157", "0.149", "0.149"]
    assert list(line.marker.symbol) == ["circle", "circle", "diamond"]
    assert figures.residual_info([FIRST]).converged is None


def test_score_info_has_both_limits_and_orders() -> None:
    info = figures.score_info(started(6, 2), SECOND)
    assert info.titles == ("importance", "hidden sum") and info.limits == (0, 4)
    assert list(info.order) == [0, 1, 2, 3, 4, 5]
    assert list(figures.score_info(started(6, 2), SECOND, "score").order) == [5, 4, 3, 2, 1, 0]
    assert list(figures.score_info(started(6, 2), SECOND, "importance").order) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="by 'size'"):
        figures.score_info(started(6, 2), SECOND, "size")


@pytest.mark.parametrize("by", ["number", "score"])
def test_every_bar_stands_for_its_group(by: str) -> None:
    figure = figures.score_figure(figures.score_info(started(6, 2), SECOND, by), selected=4)
    bars = [trace for trace in figure.data if isinstance(trace, go.Bar)]
    heights = {
        (int(g), i % 2): float(y)
        for i, bar in enumerate(bars)
        for g, y in zip(bar.customdata, bar.y, strict=True)
    }
    assert heights == {(g, row): float(5 - g if row == 0 else g) for g in range(6) for row in (0, 1)}
    assert {bar.width for bar in bars} == {0.85}
    places = {int(g): int(x) for bar in bars for g, x in zip(bar.customdata, bar.x, strict=True)}
    assert places[5] == (5 if by == "number" else 0)


def test_a_selector_with_one_score_has_one_panel() -> None:
    norm = torch.tensor([3.0, 1.0, 2.0, 6.0, 5.0, 4.0], dtype=torch.float64)
    only = iteration(1, tuple(range(6)), (3, 4), converged=True, score=norm, importance=norm)
    info = figures.score_info(started(6, 2), only, "score", "l1")
    assert info.titles == ("L1 weight norm",) and info.limits == (5,)
    assert list(info.order) == [3, 4, 5, 0, 2, 1]
    assert set(info.states) == {GroupState.KEPT, GroupState.OUT}  # nothing is a mere candidate
    figure = figures.score_figure(info)
    assert sum(len(bar.x) for bar in figure.data) == 6
    greedy = figures.score_info(started(6, 2), iteration(1, (3,), (3,), score=norm), selector="gfs")
    assert greedy.titles == ("greedy gain",) and greedy.limits == (None,)


def test_the_residual_figure_shows_the_re_fit_beside_the_iterations() -> None:
    info = figures.residual_info(TRACE, pruned(0.412, 0.058))
    assert info.refit == (0.412, 0.058) and figures.residual_info(TRACE, pruned(None, None)).refit is None
    line, refit = figures.residual_figure(info).data
    assert list(refit.text) == ["0.412", "0.058"] and min(refit.x) > max(line.x)
    assert list(figures.residual_figure(info).layout.xaxis.ticktext) == [
        "1",
        "2",
        "3",
        "before<br>re-fit",
        "after",
    ]


def test_of_many_iterations_only_the_ends_are_written_out() -> None:
    trace = [iteration(t, (0,), (0,), (0,), relative=1 / t) for t in range(1, 33)]
    figure = figures.residual_figure(figures.residual_info(trace))
    assert [note.text for note in figure.layout.annotations] == ["1.000", "0.0312"]
    assert len(figure.layout.xaxis.tickvals) == 7

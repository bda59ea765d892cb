"""Plots as pure functions: records -> info (a NamedTuple that tests assert on) -> plotly figure.

Arrays reach plotly as uint8 or float32, never as lists: 4,096 groups x 20 iterations are 120 kB then.
Every state of a group has a colour (after Okabe and Ito, told apart with any colour vision) and a symbol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ispasp.looks import DENSE, GROUND, LOOKS, SEEN, SIZES, GroupState, Look, layout, legend
from ispasp.narrative import residual as residual_words
from ispasp.narrative import sentence
from ispasp.records import BlockPruned, BlockStarted, Iteration
from ispasp.result_figures import blocks_figure, blocks_info, comparison_figure, latency_figure
from ispasp.vocabulary import Way, panel_names, selector_words

__all__ = [
    "LOOKS",
    "WRAP",
    "GroupState",
    "Look",
    "MapInfo",
    "ScoreInfo",
    "blocks_figure",
    "blocks_info",
    "comparison_figure",
    "group_states",
    "latency_figure",
    "legend",
    "map_figure",
    "map_info",
    "residual_figure",
    "residual_info",
    "score_figure",
    "score_info",
    "sentence",
]

WRAP = 64
"""Groups per row of the map; more groups wrap onto further rows of the same iteration."""


# -- iteration x group map ------------------------------------------------------------------------------


def group_states(iteration: Iteration, selector: str = "ispasp") -> np.ndarray:
    """State of every group after an iteration, uint8 (d,); only states that this selector knows.

    A first iteration that decides everything has no "newly added": what it chose stays, so it is kept.
    """
    way = selector_words(selector).way
    seen = SEEN[way]
    states = np.full(len(iteration.importance), GroupState.OUT, dtype=np.uint8)
    if GroupState.CANDIDATE in seen:
        states[list(iteration.candidates)] = GroupState.CANDIDATE
    if way is Way.REMOVES and iteration.t == 1:
        states[:] = GroupState.DROPPED  # before it, every group was there
    if GroupState.DROPPED in seen:
        states[list(iteration.dropped)] = GroupState.DROPPED
    states[list(iteration.selected)] = GroupState.KEPT
    if GroupState.ADDED in seen and not (iteration.t == 1 and iteration.converged):
        states[list(iteration.added)] = GroupState.ADDED
    return states


class MapInfo(NamedTuple):
    """States uint8 (iterations, d); ``per_row`` groups stand in one row, ``rows`` rows make an iteration."""

    block: str
    kind: str
    groups: int
    iterations: tuple[int, ...]
    states: np.ndarray
    per_row: int
    rows: int


def map_info(started: BlockStarted, trace: Sequence[Iteration], selector: str = "ispasp") -> MapInfo:
    """The states of all groups in all iterations of one block.

    Args:
        started: the block's start; gives names and sizes also while ``trace`` is still empty.
        trace: the block's iterations, in order.
        selector: how the groups were chosen.
    """
    groups = started.block.groups
    states = (
        np.stack([group_states(i, selector) for i in trace])
        if trace
        else np.zeros((0, groups), dtype=np.uint8)
    )
    per_row = min(groups, WRAP)
    return MapInfo(
        started.block.name,
        started.block.kind,
        groups,
        tuple(i.t for i in trace),
        states,
        per_row,
        -(-groups // per_row),
    )


def map_figure(info: MapInfo, dark: bool = False) -> go.Figure:
    """One band per iteration, one square per group; trace i holds the groups of one state.

    Click data: ``customdata`` is (group, iteration).
    """
    figure = go.Figure()
    band = info.rows + 1  # an empty row between iterations
    for state, look in LOOKS.items():
        row, group = np.nonzero(info.states == state)
        t = np.asarray(info.iterations, dtype=np.uint16)[row] if len(row) else np.zeros(0, dtype=np.uint16)
        figure.add_trace(
            go.Scattergl(
                x=(group % info.per_row).astype(np.uint8),
                y=(row * band + group // info.per_row).astype(np.uint16),
                customdata=np.stack([group, t], axis=1).astype(np.uint16),
                mode="markers",
                name=look.label,
                marker={
                    "symbol": look.symbol,
                    "color": look.colour(dark),
                    "size": SIZES.get(state, 11 if info.per_row < WRAP else 9),
                },
                hovertemplate=f"{info.kind} %{{customdata[0]}}, iteration %{{customdata[1]}}: {look.label}"
                "<extra></extra>",
            )
        )
    middle = (info.rows - 1) / 2
    figure.update_yaxes(
        autorange="reversed",
        showgrid=False,
        tickvals=[i * band + middle for i in range(len(info.iterations))],
        ticktext=[f"it. {t}" for t in info.iterations],
    )
    wrapped = f", {info.per_row} per row" if info.rows > 1 else ""
    figure.update_xaxes(showgrid=False, title=f"{info.kind}{wrapped}")
    return layout(figure, 90 + max(len(info.iterations), 1) * band * 16)


# -- residual per iteration -----------------------------------------------------------------------------


class ResidualInfo(NamedTuple):
    """Relative residual after each iteration; ``converged`` is the iteration of the fixed point or None.

    ``refit``: error before and after the re-fit, relative to its target; None where there was none.
    """

    t: np.ndarray
    relative: np.ndarray
    converged: int | None
    refit: tuple[float, float] | None = None


def residual_info(trace: Sequence[Iteration], pruned: BlockPruned | None = None) -> ResidualInfo:
    """||V||_F^2 over ||A(H)||_F^2 per iteration of one block, and the re-fit's errors once it is done."""
    refit = None
    if pruned is not None and pruned.error_before is not None and pruned.error_after is not None:
        refit = (pruned.error_before, pruned.error_after)
    return ResidualInfo(
        np.array([i.t for i in trace], dtype=np.uint16),
        np.array([i.relative_residual for i in trace], dtype=np.float32),
        next((i.t for i in trace if i.converged), None),
        refit,
    )


def residual_figure(info: ResidualInfo, dark: bool = False, height: int = 260) -> go.Figure:
    """A line over the iterations, and beside it what the re-fit made of the error; values stand at the points.

    Of many iterations only the first and the last have their values written.
    """
    colour = LOOKS[GroupState.KEPT].colour(dark)
    figure = go.Figure(
        go.Scatter(
            x=info.t,
            y=info.relative,
            mode="lines+markers",
            text=[residual_words(float(v)) for v in info.relative],
            cliponaxis=False,
            line={"color": colour, "width": 2},
            marker={
                "size": 9 if len(info.t) < 12 else 5,
                "color": colour,
                "symbol": ["diamond" if t == info.converged else "circle" for t in info.t],
            },
            hovertemplate="iteration %{x}: %{y:.4g}<extra></extra>",
        )
    )
    last = int(info.t[-1]) if len(info.t) else 1
    few = last <= (5 if info.refit is None else 3)
    told = [
        (float(t), float(v), True)
        for t, v in zip(info.t, info.relative, strict=True)
        if few or t in (1, last)
    ]
    if not few and info.relative[-1] < info.relative[-2]:
        told[-1] = (*told[-1][:2], False)  # the line comes from above
    ticks: list[float] = [t for t in range(1, last + 1) if last <= 12 or t == 1 or t % 5 == 0]
    high = float(info.relative.max(initial=0))
    end = last + 0.4
    names = [str(t) for t in ticks]
    if info.refit is not None:
        gap = max(1.0, 0.22 * last)  # as wide on the screen for 2 iterations as for 32
        places = (last + 1.1 * gap, last + 2.4 * gap)
        green = LOOKS[GroupState.ADDED].colour(dark)
        figure.add_trace(
            go.Scatter(
                x=np.array(places, dtype=np.float32),
                y=np.array(info.refit, dtype=np.float32),
                mode="lines+markers",
                text=[residual_words(v) for v in info.refit],
                cliponaxis=False,
                line={"color": green, "width": 2, "dash": "dot"},
                marker={
                    "size": 11,
                    "color": green,
                    "symbol": ["circle-open", "star"],
                    "line": {"width": 2, "color": green},
                },
                customdata=["before", "after"],
                hovertemplate="error %{customdata} the re-fit: %{y:.4g}<extra></extra>",
            )
        )
        figure.add_vline(last + 0.45 * gap, line={"color": DENSE[dark], "width": 1, "dash": "dot"})
        told += [(places[0], info.refit[0], True), (places[1], info.refit[1], False)]
        high = max(high, *info.refit)
        end = places[1] + 0.6 * gap
        ticks, names = [*ticks, *places], [*names, "before<br>re-fit", "after"]
    for x, value, above in told:
        # Annotations and not the trace's own text: they have a ground, which the line cannot cross.
        figure.add_annotation(
            x=x,
            y=value,
            text=residual_words(value),
            showarrow=False,
            yshift=18 if above else -18,
            borderpad=2,
            bgcolor=GROUND[dark],
        )
    figure.update_yaxes(range=[0, 1.25 * (high or 1.0)], nticks=5, title=None)
    figure.update_xaxes(
        range=[0.6 if last < 12 else 1 - 0.15 * last, end], tickvals=ticks, ticktext=names, title="iteration"
    )
    return layout(figure, height, showlegend=False)


# -- importance and hidden sum --------------------------------------------------------------------------


def _pattern(state: GroupState, look: Look, dark: bool) -> dict[str, Any]:
    """Bars of selected groups are filled, those of others hatched."""
    if state < GroupState.ADDED:
        return {"shape": look.pattern, "size": 6, "solidity": 0.4}
    return {
        "shape": look.pattern,
        "size": 8,
        "solidity": 0.15,
        "fillmode": "overlay",
        "fgcolor": GROUND[dark],
    }


class ScoreInfo(NamedTuple):
    """What decided, for every group at one iteration: values float32 (d,), states uint8 (d,).

    ``titles``: what the values are called, one per panel: candidates by the first, the selected by the last;
    a selector with a single score has one panel. ``values``: an array per panel. ``limits``: the smallest
    value that was enough in that panel, or None where no such line says anything. ``order``: groups from
    left to right. ``names``: what the states are called.
    """

    t: int
    kind: str
    titles: tuple[str, ...]
    values: tuple[np.ndarray, ...]
    limits: tuple[float | None, ...]
    states: np.ndarray
    order: np.ndarray
    names: dict[int, str]


def score_info(
    started: BlockStarted, iteration: Iteration, by: str = "number", selector: str = "ispasp"
) -> ScoreInfo:
    """Scores of one iteration.

    Args:
        by: order of the groups: ``"number"``, ``"importance"`` or ``"score"`` (largest first).
        selector: how the groups were chosen.

    Raises:
        ValueError: ``by`` is none of these.
    """
    words = selector_words(selector)
    importance = iteration.importance.numpy().astype(np.float32)
    score = iteration.score.numpy().astype(np.float32)
    if by == "number":
        order = np.arange(len(importance), dtype=np.uint32)
    elif by in ("importance", "score"):
        order = np.argsort(-(importance if by == "importance" else score), kind="stable").astype(np.uint32)
    else:
        raise ValueError(f"Groups can be ordered by number, importance or score, not by {by!r}.")

    def smallest(values: np.ndarray, groups: Sequence[int]) -> float | None:
        if words.way in (Way.ADDS, Way.REMOVES) or len(groups) in (0, len(values)):
            return None  # nothing to be above of, or the values are of different moments
        return float(values[list(groups)].min())

    titles = panel_names(iteration, words)
    values = (importance, score)[-len(titles) :]
    limits = (smallest(importance, iteration.candidates), smallest(score, iteration.selected))[-len(titles) :]
    return ScoreInfo(
        iteration.t,
        started.block.kind,
        titles,
        values,
        limits,
        group_states(iteration, selector),
        order,
        {int(state): entry.title for state, entry in legend(selector, iteration.t).items()},
    )


def score_figure(
    info: ScoreInfo, dark: bool = False, selected: int | None = None, height: int = 330
) -> go.Figure:
    """Importance above score (or the score alone), a bar per group in the colour and pattern of its state.

    Click data: ``customdata`` is the group. ``selected`` is marked with a line through its bars.
    """
    rows = len(info.values)
    figure = make_subplots(
        rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.08, subplot_titles=info.titles
    )
    place = np.empty(len(info.order), dtype=np.uint32)
    place[info.order] = np.arange(len(info.order), dtype=np.uint32)
    thin = len(info.order) > 4 * WRAP  # patterns cannot be seen in bars of two pixels and cost much
    for state, look in LOOKS.items():
        groups = np.nonzero(info.states == state)[0].astype(np.uint32)
        name = info.names.get(state, look.label)
        for row, values in enumerate(info.values, start=1):
            figure.add_trace(
                go.Bar(
                    x=place[groups],
                    y=values[groups],
                    width=0.85,  # else a trace of two far groups gets bars as wide as their distance
                    customdata=groups,
                    name=name,
                    legendgroup=look.label,
                    showlegend=row == 1 and len(groups) > 0,
                    marker={
                        "color": look.colour(dark),
                        "line": {"width": 0},
                        "pattern": {"shape": ""} if thin else _pattern(state, look, dark),
                    },
                    hovertemplate=f"{info.kind} %{{customdata}}: %{{y:.4g}} ({name})<extra></extra>",
                ),
                row=row,
                col=1,
            )
    grey = DENSE[dark]
    for row, limit in enumerate(info.limits, start=1):
        if limit is not None:
            figure.add_hline(limit, row=row, col=1, line={"color": grey, "dash": "dot", "width": 1.5})
    if selected is not None and selected < len(place):
        for row in range(1, rows + 1):
            figure.add_vline(float(place[selected]), row=row, col=1, line={"color": grey, "width": 1.5})
    figure.update_annotations(font_size=13, x=0, xanchor="left")
    figure.update_xaxes(showgrid=False, showticklabels=False, range=[-0.7, len(info.order) - 0.3])
    figure.update_yaxes(nticks=4)
    ordered = bool((np.diff(info.order.astype(np.int64)) == 1).all())
    figure.update_xaxes(
        showticklabels=ordered,
        dtick=1 if len(info.order) <= 12 else None,  # no half groups
        title=info.kind if ordered else f"{info.kind}s, largest first",
        row=rows,
        col=1,
    )
    layout(figure, height, barmode="overlay", bargap=0.15)
    figure.update_layout(legend={"x": 1, "xanchor": "right", "y": 1.03}, margin={"t": 26})
    return figure

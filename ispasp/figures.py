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

from ispasp.looks import DENSE, GROUND, LOOKS, SIZES, GroupState, Look, layout
from ispasp.narrative import residual as residual_words
from ispasp.narrative import sentence
from ispasp.records import BlockStarted, Iteration
from ispasp.result_figures import blocks_figure, comparison_figure, latency_figure

__all__ = [
    "LOOKS",
    "WRAP",
    "GroupState",
    "Look",
    "MapInfo",
    "ScoreInfo",
    "blocks_figure",
    "comparison_figure",
    "group_states",
    "latency_figure",
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


def group_states(iteration: Iteration) -> np.ndarray:
    """State of every group after an iteration, uint8 (d,).

    A first iteration that decides everything has no "newly added": what it chose stays, so it is kept.
    """
    states = np.full(len(iteration.importance), GroupState.OUT, dtype=np.uint8)
    states[list(iteration.candidates)] = GroupState.CANDIDATE
    states[list(iteration.dropped)] = GroupState.DROPPED
    states[list(iteration.selected)] = GroupState.KEPT
    if not (iteration.t == 1 and iteration.converged):
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


def map_info(started: BlockStarted, trace: Sequence[Iteration]) -> MapInfo:
    """The states of all groups in all iterations of one block.

    Args:
        started: the block's start; gives names and sizes also while ``trace`` is still empty.
        trace: the block's iterations, in order.
    """
    groups = started.block.groups
    states = np.stack([group_states(i) for i in trace]) if trace else np.zeros((0, groups), dtype=np.uint8)
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
    """Relative residual after each iteration; ``converged`` is the iteration of the fixed point or None."""

    t: np.ndarray
    relative: np.ndarray
    converged: int | None


def residual_info(trace: Sequence[Iteration]) -> ResidualInfo:
    """||V||_F^2 over ||A(H)||_F^2 per iteration of one block."""
    return ResidualInfo(
        np.array([i.t for i in trace], dtype=np.uint16),
        np.array([i.relative_residual for i in trace], dtype=np.float32),
        next((i.t for i in trace if i.converged), None),
    )


def residual_figure(info: ResidualInfo, dark: bool = False, height: int = 260) -> go.Figure:
    """A line over the iterations, each point with its value."""
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
                "size": 9,
                "color": colour,
                "symbol": ["diamond" if t == info.converged else "circle" for t in info.t],
            },
            hovertemplate="iteration %{x}: %{y:.4g}<extra></extra>",
        )
    )
    for t, value in zip(info.t, info.relative, strict=True):
        # Annotations and not the trace's own text: they have a ground, which the line cannot cross.
        figure.add_annotation(
            x=int(t),
            y=float(value),
            text=residual_words(float(value)),
            showarrow=False,
            yshift=18,
            borderpad=2,
            bgcolor=GROUND[dark],
        )
    high = float(info.relative.max(initial=0)) or 1.0
    figure.update_yaxes(range=[0, 1.25 * high], nticks=5, title=None)
    last = int(info.t[-1]) if len(info.t) else 1
    figure.update_xaxes(range=[0.6, last + 0.4], dtick=1 if last < 12 else 5, title="iteration")
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
    """Both scores of every group at one iteration, float32 (d,), with states uint8 (d,).

    ``candidate_limit``: the smallest importance of a candidate; ``selected_limit``: the smallest hidden sum
    of a selected group. ``order``: groups from left to right.
    """

    t: int
    kind: str
    importance: np.ndarray
    hidden_sum: np.ndarray
    states: np.ndarray
    candidate_limit: float
    selected_limit: float
    order: np.ndarray


def score_info(started: BlockStarted, iteration: Iteration, by: str = "number") -> ScoreInfo:
    """Scores of one iteration.

    Args:
        by: order of the groups: ``"number"``, ``"importance"`` or ``"hidden sum"`` (largest first).

    Raises:
        ValueError: ``by`` is none of these.
    """
    importance = iteration.importance.numpy().astype(np.float32)
    hidden = iteration.hidden_sum.numpy().astype(np.float32)
    if by == "number":
        order = np.arange(len(importance), dtype=np.uint32)
    elif by in ("importance", "hidden sum"):
        order = np.argsort(-(importance if by == "importance" else hidden), kind="stable").astype(np.uint32)
    else:
        raise ValueError(f"Groups can be ordered by number, importance or hidden sum, not by {by!r}.")
    return ScoreInfo(
        iteration.t,
        started.block.kind,
        importance,
        hidden,
        group_states(iteration),
        float(importance[list(iteration.candidates)].min()),
        float(hidden[list(iteration.selected)].min()),
        order,
    )


def score_figure(
    info: ScoreInfo, dark: bool = False, selected: int | None = None, height: int = 330
) -> go.Figure:
    """Importance above hidden sum, a bar per group in the colour and pattern of its state.

    Click data: ``customdata`` is the group. ``selected`` is marked with a triangle under both bars.
    """
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08, subplot_titles=("importance", "hidden sum")
    )
    place = np.empty(len(info.order), dtype=np.uint32)
    place[info.order] = np.arange(len(info.order), dtype=np.uint32)
    thin = len(info.order) > 4 * WRAP  # patterns cannot be seen in bars of two pixels and cost much
    for state, look in LOOKS.items():
        groups = np.nonzero(info.states == state)[0].astype(np.uint32)
        for row, values in ((1, info.importance), (2, info.hidden_sum)):
            figure.add_trace(
                go.Bar(
                    x=place[groups],
                    y=values[groups],
                    width=0.85,  # else a trace of two far groups gets bars as wide as their distance
                    customdata=groups,
                    name=look.title(info.t),
                    legendgroup=look.label,
                    showlegend=row == 1 and len(groups) > 0,
                    marker={
                        "color": look.colour(dark),
                        "line": {"width": 0},
                        "pattern": {"shape": ""} if thin else _pattern(state, look, dark),
                    },
                    hovertemplate=f"{info.kind} %{{customdata}}: %{{y:.4g}} ({look.title(info.t)})<extra></extra>",
                ),
                row=row,
                col=1,
            )
    grey = DENSE[dark]
    every = bool((info.states != GroupState.OUT).all())
    if not every:
        figure.add_hline(
            info.candidate_limit, row=1, col=1, line={"color": grey, "dash": "dot", "width": 1.5}
        )
    figure.add_hline(info.selected_limit, row=2, col=1, line={"color": grey, "dash": "dot", "width": 1.5})
    if selected is not None and selected < len(place):
        for row in (1, 2):
            figure.add_vline(float(place[selected]), row=row, col=1, line={"color": grey, "width": 1.5})
    figure.update_annotations(font_size=13, x=0, xanchor="left")
    figure.update_xaxes(showgrid=False, showticklabels=False, range=[-0.7, len(info.order) - 0.3])
    figure.update_yaxes(nticks=4)
    ordered = bool((np.diff(info.order.astype(np.int64)) == 1).all())
    figure.update_xaxes(
        showticklabels=ordered, title=info.kind if ordered else f"{info.kind}s, largest first", row=2, col=1
    )
    layout(figure, height, barmode="overlay", bargap=0.15)
    figure.update_layout(legend={"x": 1, "xanchor": "right", "y": 1.03}, margin={"t": 26})
    return figure

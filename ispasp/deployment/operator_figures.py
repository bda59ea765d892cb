"""Where the time of the exported models goes, as pictures: by block, and how close operators come to the peak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from ispasp.deployment.by_block import BlockTime, Operator
from ispasp.looks import DENSE, GROUND, LOOKS, GroupState, layout
from ispasp.narrative import quantity

REST = "all other layers"
MOST_OPERATORS = 24  # in the picture: more cannot be told apart
_TOP = 44  # pixels for the legend
_BOTTOM = 56  # and for the axis below


class BlockTimesInfo(NamedTuple):
    """Milliseconds per call of every block, float64 (blocks,), in network order; the rest comes last."""

    names: tuple[str, ...]
    dense: np.ndarray
    pruned: np.ndarray


class PeakInfo(NamedTuple):
    """The operators that take longest, as they run: share in [0, 1] of the machine's peak, float64 (operators,).

    NaN where a model does not run one. ``hover``: multiply-adds, milliseconds and GFLOP/s of each, dense and pruned.
    """

    names: tuple[str, ...]
    dense: np.ndarray
    pruned: np.ndarray
    hover: tuple[tuple[str, str], ...]


def block_times_info(blocks: Sequence[BlockTime]) -> BlockTimesInfo:
    """What every block takes; ``blocks`` as ``profile.block_rows`` gives them."""
    return BlockTimesInfo(
        tuple(REST if b.block is None else b.block for b in blocks),
        np.array([b.dense_ms for b in blocks], dtype=np.float64),
        np.array([b.pruned_ms for b in blocks], dtype=np.float64),
    )


def block_times_figure(
    blocks: Sequence[BlockTime], dark: bool = False, height: int | None = None
) -> go.Figure:
    """Blocks from the top in network order, a bar for the dense model and one for the pruned."""
    info = block_times_info(blocks)
    figure = go.Figure()
    for name, values, colour in (
        ("dense", info.dense, DENSE[dark]),
        ("pruned", info.pruned, LOOKS[GroupState.KEPT].colour(dark)),
    ):
        figure.add_trace(
            go.Bar(
                x=values,
                y=info.names,
                orientation="h",
                name=name,
                marker={"color": colour},
                hovertemplate=f"%{{y}}: %{{x:.3g}} ms<extra>{name}</extra>",
            )
        )
    figure.update_xaxes(title="ms per call, by profile", rangemode="tozero")
    return _rows(figure, len(info.names), height, barmode="group", bargap=0.3, bargroupgap=0.05)


def peak_info(operators: Sequence[Operator]) -> PeakInfo:
    """The operators with a share of the peak, at most ``MOST_OPERATORS``: those that take longest in either model."""
    known = [o for o in operators if o.share_of_peak_dense is not None or o.share_of_peak_pruned is not None]
    longest = sorted(known, key=lambda o: max(o.dense_ms, o.pruned_ms), reverse=True)[:MOST_OPERATORS]
    shown = [o for o in known if o in longest]
    return PeakInfo(
        tuple(f"{o.layer} · {o.op_type}" if "of" in o.op_type.split() else o.layer for o in shown),
        _column([o.share_of_peak_dense for o in shown]),
        _column([o.share_of_peak_pruned for o in shown]),
        tuple(
            (
                _words(o.macs_dense, o.dense_ms, o.gflops_dense),
                _words(o.macs_pruned, o.pruned_ms, o.gflops_pruned),
            )
            for o in shown
        ),
    )


def peak_figure(operators: Sequence[Operator], dark: bool = False, height: int | None = None) -> go.Figure:
    """The operators that take longest, from the top as they run: a line from the share of the machine's peak that
    the dense model reaches to that of the pruned one."""
    info = peak_info(operators)
    figure = go.Figure()
    count = len(info.names)
    ends = np.full(3 * count, np.nan)  # the gaps part the lines
    ends[0::3], ends[1::3] = info.dense, info.pruned
    figure.add_trace(
        go.Scatter(
            x=ends,
            y=[name for name in info.names for _ in range(3)],
            mode="lines",
            line={"color": DENSE[dark], "width": 3},
            opacity=0.4,
            showlegend=False,
            hoverinfo="skip",
        )
    )
    for side, (name, values, colour, symbol) in enumerate(
        (
            ("dense", info.dense, DENSE[dark], "circle"),
            ("pruned", info.pruned, LOOKS[GroupState.KEPT].colour(dark), "diamond"),
        )
    ):
        figure.add_trace(
            go.Scatter(
                x=values,
                y=info.names,
                mode="markers",
                cliponaxis=False,  # one at 0 would be cut in half
                name=name,
                marker={
                    "color": colour,
                    "symbol": symbol,
                    "size": 11,
                    "line": {"width": 1, "color": GROUND[dark]},
                },
                customdata=[words[side] for words in info.hover],
                hovertemplate=f"%{{y}}: %{{x:.1%}} of the peak<br>%{{customdata}}<extra>{name}</extra>",
            )
        )
    figure.update_xaxes(title="share of the machine's peak", rangemode="tozero", tickformat=".0%")
    return _rows(figure, count, height)


def _rows(figure: go.Figure, count: int, height: int | None, **more: object) -> go.Figure:
    """A row of the same height for each name, the first at the top."""
    each = 34 if count <= 15 else 24
    layout(figure, height or _TOP + _BOTTOM + each * max(count, 2), showlegend=True, **more)
    figure.update_layout(margin_t=_TOP)
    # Every name is shown, however many there are.
    figure.update_yaxes(
        autorange="reversed", type="category", dtick=1, tickfont_size=12 if count <= 15 else 11
    )
    return figure


def _column(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _words(macs: int, milliseconds: float, rate: float | None) -> str:
    if rate is None:
        return ""
    return f"{quantity(macs)} MACs, {milliseconds:.3g} ms, {rate:.3g} GFLOP/s"

"""Plots of how compressible a model's blocks are: the rows of one, and theory beside measurement for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from ispasp.compressibility import BlockRows
from ispasp.looks import DENSE, layout
from ispasp.result_figures import LOG_FROM
from ispasp.series import log_ticks, look


def rows_figure(block: BlockRows, dark: bool = False, height: int = 340) -> go.Figure:
    """The sorted norms of one block's rows, and the power law fitted to them."""
    figure = go.Figure()
    if (law := block.law) is not None:
        ranks = np.array(law.ranks, dtype=np.float64)
        drawn = look(0, dark)
        figure.add_trace(
            go.Scatter(
                x=law.ranks,
                y=law.norms,
                mode="markers",
                name="rows of this block",
                marker={"symbol": drawn["symbol"], "size": 8, "color": drawn["color"]},
                hovertemplate=f"{block.kind} %{{x}} by size: norm %{{y:.2g}}<extra></extra>",
            )
        )
        figure.add_trace(
            go.Scatter(
                x=law.ranks,
                y=law.scale * ranks**law.slope,
                mode="lines",
                name=f"fitted, p = {law.exponent:.2f} (R² {law.goodness:.2f})",
                line={"color": DENSE[dark], "dash": "dot", "width": 2},
                hoverinfo="skip",
            )
        )
        figure.update_xaxes(**log_ticks(law.ranks))
        figure.update_yaxes(**log_ticks(law.norms))
    figure.update_xaxes(title=f"{block.kind}, largest first")
    figure.update_yaxes(title="norm over the largest")
    return layout(figure, height)


class PromiseInfo(NamedTuple):
    """Every block at the measured count next to a kept fraction, as shares of the squared size; NaN where unknown.

    ``law``: what the fitted law leaves out; ``rows``: what the real rows do; ``measured``: the residual.
    """

    names: tuple[str, ...]
    counts: tuple[str, ...]
    law: np.ndarray
    rows: np.ndarray
    measured: np.ndarray


def promise_info(blocks: Sequence[BlockRows], keep: float) -> PromiseInfo:
    """From theory to measurement, for the blocks that can be pruned so far."""
    there = [(block, nearest(block, keep)) for block in blocks if block.kept]
    return PromiseInfo(
        tuple(block.block for block, _ in there),
        tuple(f"{block.kept[at]:,} of {block.groups:,}" for block, at in there),
        np.array([b.promised[at] if b.promised else np.nan for b, at in there], dtype=np.float32),
        np.array([b.left_out[at] for b, at in there], dtype=np.float32),
        np.array([b.residual[at] for b, at in there], dtype=np.float32),
    )


def nearest(block: BlockRows, keep: float) -> int:
    """Which of the block's counts is next to a kept fraction."""
    return int(np.abs(np.array(block.kept) - keep * block.groups).argmin())


def promise_figure(info: PromiseInfo, dark: bool = False, height: int | None = None) -> go.Figure:
    """Blocks from the top in network order: what the law leaves out, what the rows do, and the residual."""
    figure = go.Figure()
    columns = (
        ("by the fitted law", info.law),
        ("by the real rows", info.rows),
        ("measured residual", info.measured),
    )
    for (name, values), number in zip(columns, (2, 3, 0), strict=True):
        drawn = look(number, dark)
        figure.add_trace(
            go.Scatter(
                x=values,
                y=info.names,
                mode="markers",
                name=name,
                customdata=info.counts,
                marker={"symbol": drawn["symbol"], "size": 10, "color": drawn["color"]},
                hovertemplate=f"%{{y}}, %{{customdata}} kept: %{{x:.3g}}<extra>{name}</extra>",
            )
        )
    everything = np.concatenate([info.law, info.rows, info.measured])
    shown = everything[np.isfinite(everything) & (everything > 0)]
    if len(shown) and shown.max() > LOG_FROM * shown.min():
        figure.update_xaxes(title="share of the squared size (log scale)", **log_ticks(shown))
    else:
        figure.update_xaxes(title="share of the squared size", rangemode="tozero", nticks=6)
    figure.update_yaxes(type="category", autorange="reversed")
    return layout(figure, height or max(340, 110 + 24 * len(info.names)))

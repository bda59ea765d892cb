"""What a budget keeps of every block, beside the largest uniform ratio within it, as a picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from ispasp.budget_report import BudgetReport
from ispasp.looks import GROUND, LOOKS, GroupState, layout

TOP = 44  # pixels for the legend; with the same above a heat map beside it, the blocks of both are level


class KeptInfo(NamedTuple):
    """Groups kept per block, in network order: ``groups``, ``budget`` and ``uniform`` int64 (blocks,).

    ``uniform`` is None where the uniform ratio ``keep`` keeps the same.
    """

    names: tuple[str, ...]
    groups: np.ndarray
    budget: np.ndarray
    uniform: np.ndarray | None
    keep: float


def kept_info(report: BudgetReport) -> KeptInfo:
    """What both runs of a budget keep."""
    other = report.uniform
    return KeptInfo(
        report.blocks,
        np.array(report.groups, dtype=np.int64),
        np.array(report.budget.counts, dtype=np.int64),
        None if other is None else np.array(other.counts, dtype=np.int64),
        (other or report.budget).keep,
    )


def kept_figure(report: BudgetReport, dark: bool = False, height: int | None = None) -> go.Figure:
    """Blocks from the top in network order: a bar for the fraction that the budget keeps, a diamond for the
    uniform ratio's."""
    info = kept_info(report)
    figure = go.Figure(
        go.Bar(
            y=info.names,
            x=info.budget / info.groups,
            orientation="h",
            name="this budget",
            marker={"color": LOOKS[GroupState.KEPT].colour(dark)},
            customdata=np.stack([info.budget, info.groups], axis=-1),
            hovertemplate="%{y}, %{customdata[0]} of %{customdata[1]} kept: %{x:.0%}"
            "<extra>this budget</extra>",
        )
    )
    if info.uniform is not None:
        title = f"uniform ratio {info.keep:g}"
        figure.add_trace(
            go.Scatter(
                y=info.names,
                x=info.uniform / info.groups,
                mode="markers",
                name=title,
                marker={
                    "symbol": "diamond",
                    "size": 12,
                    "color": LOOKS[GroupState.DROPPED].colour(dark),
                    "line": {"width": 2, "color": GROUND[dark]},
                },
                customdata=np.stack([info.uniform, info.groups], axis=-1),
                hovertemplate="%{y}, %{customdata[0]} of %{customdata[1]} kept: %{x:.0%}"
                f"<extra>{title}</extra>",
            )
        )
    layout(figure, height or 120 + 24 * len(info.names), bargap=0.35, showlegend=True)
    figure.update_layout(margin_t=TOP)
    figure.update_xaxes(title="kept fraction", range=[0, 1.03], tickformat=".0%")
    figure.update_yaxes(autorange="reversed", type="category")
    return figure

"""Plots of a finished run: what is left of the dense model, what every block lost, how fast it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ispasp.looks import DENSE, LOOKS, GroupState, layout
from ispasp.records import BlockPruned


def blocks_figure(blocks: Sequence[BlockPruned], dark: bool = False, height: int = 280) -> go.Figure:
    """Relative residual of each block alone, and drift: its error and that of every block before it."""
    names = [b.block.name for b in blocks]
    figure = go.Figure(
        [
            go.Bar(
                x=names,
                y=np.array([b.relative_residual for b in blocks], dtype=np.float32),
                name="residual of this block alone",
                width=0.3 if len(blocks) < 3 else None,  # one bar would fill the whole plot
                marker={"color": LOOKS[GroupState.KEPT].colour(dark)},
                hovertemplate="%{x}: %{y:.3g}<extra>residual</extra>",
            ),
            go.Scatter(
                x=names,
                y=np.array([b.drift for b in blocks], dtype=np.float32),
                name="drift from the dense network",
                mode="lines+markers",
                marker={"symbol": "diamond", "size": 9},
                line={"color": LOOKS[GroupState.DROPPED].colour(dark), "dash": "dash"},
                hovertemplate="%{x}: %{y:.3g}<extra>drift</extra>",
            ),
        ]
    )
    figure.update_yaxes(rangemode="tozero", nticks=5, title="relative squared error")
    return layout(figure, height)


def comparison_figure(report: Mapping[str, Any], dark: bool = False, height: int = 200) -> go.Figure:
    """What is left of the dense model, in per cent: parameters and MACs."""
    pairs = [("parameters", "params"), ("MACs", "macs")]
    known = [(label, report[f"{key}_before"], report[f"{key}_after"]) for label, key in pairs]
    rows = [(label, 100 * after / before) for label, before, after in known if before]
    values = np.array([value for _, value in rows], dtype=np.float32)
    labels = [label for label, _ in rows]
    figure = go.Figure(
        [
            go.Bar(
                x=np.full(len(rows), 100, dtype=np.float32),
                y=labels,
                orientation="h",
                name="dense",
                marker={"color": DENSE[dark], "opacity": 0.25},
                hoverinfo="skip",
            ),
            go.Bar(
                x=values,
                y=labels,
                orientation="h",
                name="pruned",
                text=[f"{value:.0f} %" for value in values],
                textposition="inside",
                insidetextanchor="end",
                marker={"color": LOOKS[GroupState.KEPT].colour(dark)},
                hovertemplate="%{y}: %{x:.1f} % of dense<extra></extra>",
            ),
        ]
    )
    figure.update_xaxes(title="per cent of the dense model", rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    return layout(figure, height, barmode="overlay")


def latency_figure(latency: Mapping[str, Any], dark: bool = False, height: int = 180) -> go.Figure:
    """Median time per batch of the dense and the pruned model; the whisker reaches to the 95th percentile."""
    names = ("dense", "pruned")
    median = np.array([latency[name]["median_ms"] for name in names], dtype=np.float32)
    slow = np.array([latency[name]["p95_ms"] for name in names], dtype=np.float32)
    figure = go.Figure(
        go.Bar(
            x=median,
            y=[f"{name}: {value:.3g} ms" for name, value in zip(names, median, strict=True)],
            orientation="h",
            marker={"color": [DENSE[dark], LOOKS[GroupState.KEPT].colour(dark)]},
            error_x={"type": "data", "array": slow - median, "symmetric": False, "color": DENSE[dark]},
            customdata=slow,
            hovertemplate="%{y}: median %{x:.3g} ms, 95th percentile %{customdata:.3g} ms<extra></extra>",
        )
    )
    figure.update_xaxes(title=f"ms per batch of {latency['batch']}", rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    return layout(figure, height, showlegend=False)

"""Plots of a finished run: what is left of the dense model, what every block lost, how fast it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from ispasp.looks import DENSE, GROUND, LOOKS, GroupState, layout
from ispasp.records import BlockPruned

LOG_FROM = 40  # largest over smallest error from which a linear scale hides the small ones


class BlocksInfo(NamedTuple):
    """Relative squared errors of every block, float32 (blocks,).

    ``residual``: of the block alone with the weights it had. ``before``, ``after``: against the re-fit's
    target, before and after it; None where no block was re-fitted, NaN where this one was not. ``drift``:
    this block's error and that of every block before it. ``log``: the errors differ too much for one scale.
    """

    names: tuple[str, ...]
    residual: np.ndarray
    drift: np.ndarray
    before: np.ndarray | None
    after: np.ndarray | None
    log: bool


def blocks_info(blocks: Sequence[BlockPruned]) -> BlocksInfo:
    """What every block lost, in network order."""

    def column(values: Iterable[float | None]) -> np.ndarray:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float32)

    residual, drift = column(b.relative_residual for b in blocks), column(b.drift for b in blocks)
    if all(b.error_after is None for b in blocks):
        return BlocksInfo(tuple(b.block.name for b in blocks), residual, drift, None, None, False)
    before, after = column(b.error_before for b in blocks), column(b.error_after for b in blocks)
    shown = np.concatenate([before, after, drift])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    log = len(shown) > 0 and bool(shown.max() > LOG_FROM * shown.min())
    return BlocksInfo(tuple(b.block.name for b in blocks), residual, drift, before, after, log)


def blocks_figure(blocks: Sequence[BlockPruned], dark: bool = False, height: int = 280) -> go.Figure:
    """What every block lost: with a re-fit the error before and after it, else the residual; and the drift."""
    info = blocks_info(blocks)
    figure = go.Figure()
    if info.before is None or info.after is None:
        figure.add_trace(
            go.Bar(
                x=info.names,
                y=info.residual,
                name="residual of this block alone",
                width=0.3 if len(blocks) < 3 else None,  # one bar would fill the whole plot
                marker={"color": LOOKS[GroupState.KEPT].colour(dark)},
                hovertemplate="%{x}: %{y:.3g}<extra>residual</extra>",
            )
        )
    else:
        _before_and_after(figure, info, info.before, info.after, dark)
    figure.add_trace(
        go.Scatter(
            x=info.names,
            y=info.drift,
            name="drift from the dense network",
            mode="lines+markers",
            marker={"symbol": "diamond", "size": 9},
            line={"color": LOOKS[GroupState.DROPPED].colour(dark), "dash": "dash"},
            hovertemplate="%{x}: %{y:.3g}<extra>drift</extra>",
        )
    )
    if info.log:
        figure.update_yaxes(type="log", dtick=1, minor={"ticks": ""}, exponentformat="power")
    else:
        figure.update_yaxes(rangemode="tozero", nticks=5)
    figure.update_yaxes(title=f"relative squared error{', log scale' if info.log else ''}")
    figure.update_xaxes(range=[-0.6, len(blocks) - 0.4])
    return layout(figure, height)


def _before_and_after(
    figure: go.Figure, info: BlocksInfo, before: np.ndarray, after: np.ndarray, dark: bool
) -> None:
    """A line per block from the error before the re-fit down to the one after it."""
    ends = np.full(3 * len(info.names), np.nan, dtype=np.float32)  # the gaps part the lines
    ends[0::3], ends[1::3] = before, after
    figure.add_trace(
        go.Scatter(
            x=[name for name in info.names for _ in range(3)],
            y=ends,
            mode="lines",
            line={"color": DENSE[dark], "width": 5},
            opacity=0.4,
            showlegend=False,
            hoverinfo="skip",
        )
    )
    for values, when, state, symbol in (
        (before, "before", GroupState.KEPT, "circle-open"),
        (after, "after", GroupState.ADDED, "star"),
    ):
        figure.add_trace(
            go.Scatter(
                x=info.names,
                y=values,
                name=f"error {when} the re-fit",
                mode="markers",
                marker={
                    "color": LOOKS[state].colour(dark),
                    "symbol": symbol,
                    "size": 11,
                    "line": {"width": 2, "color": LOOKS[state].colour(dark)},
                },
                hovertemplate=f"%{{x}}: %{{y:.3g}}<extra>{when} the re-fit</extra>",
            )
        )


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
                insidetextfont={"color": GROUND[dark]},  # the page's theme would set light on light
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

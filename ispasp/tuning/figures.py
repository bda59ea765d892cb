"""Plots of a fine-tuning, epoch by epoch: its loss, and its accuracy beside the dense model and what it was before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ispasp.looks import DENSE, LOOKS, GroupState, layout
from ispasp.narrative import percent
from ispasp.tuning.records import EpochDone
from ispasp.tuning.request import curve_of


class CurvesInfo(NamedTuple):
    """A fine-tuning so far, all stages in turn.

    Attributes:
        loss, held_out: float32 (epochs,) of the training and of the held-out examples.
        values: float32 (epochs,) per cent of what ``shows`` names: accuracy, or agreement with the dense model where no
            labels are known; NaN where neither is.
        best: place of the epoch whose weights are kept; None where it was none of the last stage.
        blocks: name and first place of each stage after a block.
        end: first place of the stage at the end.
        dense, before: per cent of the dense model, and of what the fine-tuning began with; None where unknown, and
            where it began with the dense model.
    """

    loss: np.ndarray
    held_out: np.ndarray
    values: np.ndarray
    shows: str
    best: int | None
    blocks: tuple[tuple[str, int], ...]
    end: int
    dense: float | None
    before: float | None


def curves_info(
    curve: Sequence[EpochDone],
    dense_accuracy: float | None = None,
    accuracy_before: float | None = None,
    agreement_before: float | None = None,
) -> CurvesInfo:
    """What there is to draw.

    Args:
        curve: the epochs so far.
        dense_accuracy: of the dense model, in [0, 1].
        accuracy_before, agreement_before: of what the fine-tuning began with.
    """
    labelled = dense_accuracy is not None or any(done.accuracy is not None for done in curve)
    found = [done.accuracy if labelled else done.agreement for done in curve]
    starts = [i for i, done in enumerate(curve) if i == 0 or done.stage != curve[i - 1].stage]
    end = next((i for i in starts if not curve[i].stage), len(curve))
    best = [i for i in range(end, len(curve)) if curve[i].best]
    dense = (None if dense_accuracy is None else 100 * dense_accuracy) if labelled else 100.0
    before = accuracy_before if labelled else agreement_before
    by_block = bool(curve and curve[0].stage)
    return CurvesInfo(
        np.array([done.loss for done in curve], dtype=np.float32),
        np.array([done.held_out_loss for done in curve], dtype=np.float32),
        np.array([np.nan if value is None else 100 * value for value in found], dtype=np.float32),
        "accuracy" if labelled else "agreement with the dense model",
        best[-1] if best else None,
        tuple((curve[i].stage, i) for i in starts if curve[i].stage),
        end,
        dense,
        None if before is None or by_block else 100 * before,
    )


def report_info(report: Mapping[str, Any]) -> CurvesInfo:
    """The same of the report of a saved run that was fine-tuned."""
    tuning = report["tuning"]
    return curves_info(
        curve_of(tuning["curve"]),
        report["accuracy_before"],
        tuning["accuracy_before"],
        tuning["agreement_before"],
    )


def curves_figure(info: CurvesInfo, dark: bool = False, height: int = 420) -> go.Figure:
    """Accuracy above, losses below, epoch by epoch; a star where the weights that are kept were reached."""
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.55, 0.45])
    epochs = np.arange(1, len(info.loss) + 1, dtype=np.float32)
    kept, added, candidate = (
        LOOKS[state].colour(dark) for state in (GroupState.KEPT, GroupState.ADDED, GroupState.CANDIDATE)
    )
    if not np.isnan(info.values).all():
        figure.add_trace(_line(epochs, info.values, info.shows, kept, "circle", "%{y:.1f} %"), row=1, col=1)
        if info.best is not None:
            figure.add_trace(_star(epochs, info, candidate), row=1, col=1)
    for value, name, dash in ((info.dense, "dense", "dash"), (info.before, "before", "dot")):
        if value is not None:
            figure.add_hline(
                value,
                line={"color": DENSE[dark], "dash": dash, "width": 2},
                annotation_text=f"{name} {percent(value / 100)}",
                annotation_position="top left" if name == "dense" else "top right",
                row=1,
                col=1,
            )
    held = _line(epochs, info.held_out, "loss on held-out examples", added, "diamond", "%{y:.4g}")
    train = _line(epochs, info.loss, "training loss", kept, "circle-open", "%{y:.4g}", dash="dot")
    for trace in (held, train):
        figure.add_trace(trace, row=2, col=1)
    for name, at in info.blocks:
        figure.add_vline(at + 0.5, line={"color": DENSE[dark], "width": 1}, opacity=0.5, row="all", col=1)
        figure.add_annotation(
            x=at + 0.5, y=1, xref="x2", yref="y2 domain", text=name, textangle=-90, showarrow=False,
            xanchor="left", yanchor="top", font={"size": 10}, opacity=0.8,
        )  # fmt: skip
    if info.blocks and info.end < len(epochs):
        figure.add_vline(info.end + 0.5, line={"color": DENSE[dark], "width": 2}, row="all", col=1)
    shown = [*info.values, *(value for value in (info.dense, info.before) if value is not None)]
    if known := [value for value in shown if not np.isnan(value)]:
        room = 0.12 * (max(known) - min(known)) or 1.0  # for the words above the lines
        figure.update_yaxes(range=[min(known) - room, max(known) + room], row=1, col=1)
    figure.update_yaxes(title=f"{info.shows.split()[0]}, %", nticks=6, row=1, col=1)
    figure.update_yaxes(title="loss", nticks=5, row=2, col=1)
    figure.update_xaxes(range=[0.5, len(epochs) + 0.5], nticks=12)
    figure.update_xaxes(title="epoch", row=2, col=1)
    return layout(figure, height)


def _line(
    epochs: np.ndarray,
    values: np.ndarray,
    name: str,
    colour: str,
    symbol: str,
    said: str,
    dash: str = "solid",
) -> go.Scatter:
    return go.Scatter(
        x=epochs,
        y=values,
        name=name,
        mode="lines+markers",
        line={"color": colour, "dash": dash, "width": 2},
        marker={"color": colour, "symbol": symbol, "size": 7},
        hovertemplate=f"epoch %{{x:.0f}}: {said}<extra>{name}</extra>",
    )


def _star(epochs: np.ndarray, info: CurvesInfo, colour: str) -> go.Scatter:
    assert info.best is not None
    return go.Scatter(
        x=epochs[[info.best]],
        y=info.values[[info.best]],
        name="kept: lowest held-out loss",
        mode="markers",
        marker={"symbol": "star", "size": 15, "color": colour},
        hovertemplate="epoch %{x:.0f} is kept: %{y:.1f} %<extra></extra>",
    )

"""Plot of a measurement: how many times as fast the pruned model is in every setting that was timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from ispasp.compare_figures import INK, modebar
from ispasp.looks import DENSE, LOOKS, GroupState, layout
from ispasp.plain_files import is_number


class Verdict(Enum):
    """What an interval says; the value is the word a person reads."""

    FASTER = "faster"
    SAME = "no measurable difference"
    SLOWER = "slower"


class RatiosInfo(NamedTuple):
    """One point per row with figures, in the order of the rows.

    ``labels``: what was timed. ``ratio``, ``low``, ``high``: dense over pruned time with its 95 % interval, float32
    (rows,). ``verdicts``: what each interval says. ``left_out``: how many rows have no figures.
    """

    labels: tuple[str, ...]
    ratio: np.ndarray
    low: np.ndarray
    high: np.ndarray
    verdicts: tuple[Verdict, ...]
    left_out: int


_LOOKS = {
    Verdict.FASTER: (GroupState.ADDED, "triangle-right"),
    Verdict.SAME: (None, "circle-open"),
    Verdict.SLOWER: (GroupState.DROPPED, "triangle-left"),
}


def verdict(low: float, high: float) -> Verdict:
    """What an interval says, rounded as it is shown: nothing where it holds 1."""
    low, high = round(low, 2), round(high, 2)
    return Verdict.FASTER if low > 1 else Verdict.SLOWER if high < 1 else Verdict.SAME


def ratios_info(labels: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> RatiosInfo:
    """What is drawn.

    Args:
        labels: a name for every row.
        rows: of ``bench.json``; those without a ratio and its interval are left out.
    """
    keys = ("ratio", "ratio_low", "ratio_high")
    known = [
        (label, [float(row[key]) for key in keys])
        for label, row in zip(labels, rows, strict=True)
        if all(is_number(row.get(key)) for key in keys)
    ]
    columns = np.array([values for _, values in known], dtype=np.float32).reshape(-1, 3)
    return RatiosInfo(
        tuple(label for label, _ in known),
        columns[:, 0],
        columns[:, 1],
        columns[:, 2],
        tuple(verdict(low, high) for _, (_, low, high) in known),
        len(rows) - len(known),
    )


def ratios_figure(info: RatiosInfo, dark: bool = False) -> go.Figure:
    """A dot and its interval per row, beside the line at 1, where both models are as fast."""
    figure = go.Figure()
    for said, (state, symbol) in _LOOKS.items():
        at = [i for i, one in enumerate(info.verdicts) if one is said]
        if not at:
            continue
        colour = LOOKS[state].colour(dark) if state is not None else DENSE[dark]
        figure.add_trace(
            go.Scatter(
                x=info.ratio[at],
                y=[info.labels[i] for i in at],
                mode="markers",
                name=said.value,
                marker={"color": colour, "symbol": symbol, "size": 12, "line": {"width": 2, "color": colour}},
                error_x={
                    "type": "data",
                    "array": info.high[at] - info.ratio[at],
                    "arrayminus": info.ratio[at] - info.low[at],
                    "color": colour,
                    "thickness": 2,
                    "width": 6,
                },
                customdata=np.stack([info.low[at], info.high[at]], axis=1),
                hovertemplate="%{y}: %{x:.2f} × [%{customdata[0]:.2f}, %{customdata[1]:.2f}]"
                f"<extra>{said.value}</extra>",
            )
        )
    figure.add_vline(x=1, line={"color": INK[dark], "width": 1.5, "dash": "dash"})
    figure.update_xaxes(title="times as fast as the dense model; on the dashed line, as fast", showgrid=True)
    # A row's place must not depend on which verdict is drawn first.
    figure.update_yaxes(
        categoryorder="array", categoryarray=list(info.labels), autorange="reversed", type="category"
    )
    layout(figure, 110 + 30 * len(info.labels), hovermode="closest", showlegend=True)
    return figure.update_layout(modebar=modebar(dark))

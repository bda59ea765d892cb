"""How states and models look in every plot: a colour after Okabe and Ito, and a symbol beside it."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import plotly.graph_objects as go


class GroupState(IntEnum):
    """What happened to a group in an iteration, from least to most."""

    OUT = 0
    CANDIDATE = 1
    DROPPED = 2
    ADDED = 3
    KEPT = 4


class Look(NamedTuple):
    """How a state is drawn. ``symbol`` and ``pattern`` are plotly's names; ``mark`` is for running text."""

    label: str
    meaning: str
    light: str
    dark: str
    symbol: str
    pattern: str
    mark: str

    def colour(self, dark: bool) -> str:
        return self.dark if dark else self.light

    def title(self, t: int) -> str:
        """The label at iteration ``t``: in the first, nothing was there to be added to."""
        return "chosen" if t == 1 and self.label == "newly added" else self.label


LOOKS: dict[GroupState, Look] = {
    GroupState.KEPT: Look(
        "kept", "selected before and still selected", "#0072b2", "#56b4e9", "square", "", "■"
    ),
    GroupState.ADDED: Look(
        "newly added", "selected now, not before", "#00795a", "#2fc99b", "cross", "+", "✚"
    ),
    GroupState.DROPPED: Look("dropped", "selected before, no longer", "#c8460a", "#ff8f5a", "x", "x", "✖"),
    GroupState.CANDIDATE: Look(
        "candidate only",
        "important enough to be compared, but its hidden sum was too small",
        "#a87400",
        "#f0c24b",
        "circle-open",
        "/",
        "○",
    ),
    GroupState.OUT: Look("out", "neither a candidate nor selected", "#9aa3af", "#6b7684", "circle", "-", "·"),
}
SIZES = {GroupState.OUT: 4, GroupState.CANDIDATE: 9}
GROUND = {False: "#ffffff", True: "#10161d"}
DENSE = {False: "#7a8594", True: "#98a3b3"}


def layout(figure: go.Figure, height: int, **more: Any) -> go.Figure:
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "title": None},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        **more,
    )
    figure.update_xaxes(zeroline=False, automargin=True)
    figure.update_yaxes(zeroline=False, automargin=True)
    return figure

"""How states and models look in every plot: a colour after Okabe and Ito, and a symbol beside it."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import plotly.graph_objects as go

from ispasp.vocabulary import Way, selector_words


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
        "important enough to be compared, but not among the best of those",
        "#a87400",
        "#f0c24b",
        "circle-open",
        "/",
        "○",
    ),
    GroupState.OUT: Look("out", "neither a candidate nor selected", "#9aa3af", "#6b7684", "circle", "-", "·"),
}
SEEN = {
    Way.COMPARES: tuple(LOOKS),
    Way.RANKS: (GroupState.KEPT, GroupState.OUT),
    Way.ADDS: (GroupState.KEPT, GroupState.ADDED, GroupState.OUT),
    Way.REMOVES: (GroupState.KEPT, GroupState.DROPPED, GroupState.OUT),
}
"""States that a group can have, by how the selector works."""


class Entry(NamedTuple):
    """What a state is called, and what it means."""

    title: str
    meaning: str


_ENTRIES = {
    (Way.RANKS, GroupState.KEPT): Entry("kept", "among the largest"),
    (Way.RANKS, GroupState.OUT): Entry("out", "not among the largest"),
    (Way.ADDS, GroupState.KEPT): Entry("kept", "chosen before, and stays"),
    (Way.ADDS, GroupState.ADDED): Entry("newly added", "chosen in this iteration"),
    (Way.ADDS, GroupState.OUT): Entry("out", "not chosen so far"),
    (Way.REMOVES, GroupState.KEPT): Entry("left", "not removed so far"),
    (Way.REMOVES, GroupState.DROPPED): Entry("removed now", "taken away in this iteration"),
    (Way.REMOVES, GroupState.OUT): Entry("removed before", "taken away in an earlier iteration"),
}


def legend(selector: str, t: int) -> dict[GroupState, Entry]:
    """What the marks of the map mean at iteration ``t``, for the states this selector knows."""
    way = selector_words(selector).way
    return {
        state: _ENTRIES.get((way, state), Entry(LOOKS[state].title(t), LOOKS[state].meaning))
        for state in SEEN[way]
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

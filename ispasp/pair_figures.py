"""Plots of two models side by side: the groups they keep, and their accuracy by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ispasp.compare_figures import modebar
from ispasp.comparison import ClassChange, Overlap
from ispasp.looks import DENSE, GROUND, LOOKS, GroupState, layout

_A, _B = GroupState.KEPT, GroupState.DROPPED  # whose colours the two runs have


def overlap_figure(
    found: Sequence[Overlap], dark: bool = False, names: tuple[str, str] = ("A", "B")
) -> go.Figure:
    """One bar per block, split into what both keep, only one of them, and neither; per cent of its groups."""
    groups = np.array([o.both + o.only_a + o.only_b + o.neither for o in found], dtype=np.float32)
    parts = (
        ("both keep", [o.both for o in found], LOOKS[GroupState.ADDED].colour(dark), ""),
        (f"only {names[0]}", [o.only_a for o in found], LOOKS[_A].colour(dark), "/"),
        (f"only {names[1]}", [o.only_b for o in found], LOOKS[_B].colour(dark), "\\"),
        ("neither", [o.neither for o in found], LOOKS[GroupState.OUT].colour(dark), "."),
    )
    figure = go.Figure()
    for name, counts, paint, pattern in parts:
        figure.add_trace(
            go.Bar(
                x=100 * np.array(counts, dtype=np.float32) / groups,
                y=[o.block for o in found],
                orientation="h",
                name=name,
                marker={
                    "color": paint,
                    "opacity": 0.35 if name == "neither" else 1,
                    "pattern": {
                        "shape": pattern,
                        "solidity": 0.2,
                        "fillmode": "overlay",
                        "fgcolor": GROUND[dark],
                    },
                },
                customdata=[[count, int(whole)] for count, whole in zip(counts, groups, strict=True)],
                hovertemplate=f"%{{y}}: {name}: %{{customdata[0]}} of %{{customdata[1]}}<extra></extra>",
            )
        )
    for overlap in found:
        figure.add_annotation(
            x=101, y=overlap.block, text=f"{100 * overlap.jaccard:.0f} %", showarrow=False, xanchor="left"
        )
    figure.update_xaxes(title="per cent of the block's groups; at the end: the Jaccard index", range=[0, 112])
    figure.update_yaxes(autorange="reversed", type="category")
    layout(figure, 110 + 26 * len(found), barmode="stack", bargap=0.25)
    return figure.update_layout(legend_traceorder="normal", modebar=modebar(dark))


def class_figure(
    changes: Sequence[ClassChange],
    classes: Sequence[str],
    names: tuple[str, str] = ("dense", "A"),
    dark: bool = False,
) -> go.Figure:
    """Accuracy by class under two models, a line from the one to the other; the largest change on top.

    Args:
        changes: as ``comparison.class_changes`` gives them.
        classes: names of the classes; one beyond them goes by its number.
        names: the two models: ``"dense"``, or the letter of a run.
    """
    labels = [class_name(change.label, classes) for change in changes]
    figure = go.Figure(
        go.Scatter(
            x=[value for c in changes for value in (100 * c.before, 100 * c.after, None)],
            y=[label for label in labels for _ in range(3)],
            mode="lines",
            line={"color": DENSE[dark], "width": 4},
            opacity=0.45,
            showlegend=False,
            hoverinfo="skip",
        )
    )
    first, second = (LOOKS[_A].colour(dark), "circle"), (LOOKS[_B].colour(dark), "diamond")
    dense = (LOOKS[GroupState.CANDIDATE].colour(dark), "star")
    ends = (
        (names[0], [c.before for c in changes], dense if names[0] == "dense" else first),
        (names[1], [c.after for c in changes], first if names == ("dense", "A") else second),
    )
    for name, values, (paint, symbol) in ends:
        figure.add_trace(
            go.Scatter(
                x=[100 * value for value in values],
                y=labels,
                mode="markers",
                name=name,
                marker={"size": 12, "color": paint, "symbol": symbol},
                customdata=[c.examples for c in changes],
                hovertemplate=f"%{{y}}, {name}: %{{x:.1f}} % of %{{customdata:,}}<extra></extra>",
            )
        )
    figure.update_xaxes(title="accuracy on the examples of the class, %")
    figure.update_yaxes(autorange="reversed", type="category")
    return layout(figure, 110 + 26 * len(changes), modebar=modebar(dark))


def class_name(label: int, classes: Sequence[str]) -> str:
    """The name of a class; ``"class 7"`` where it has none."""
    return str(classes[label]) if 0 <= label < len(classes) else f"class {label}"

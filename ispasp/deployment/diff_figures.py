"""The network from its input down to its output, one bar per layer: what it was, and what is left of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from ispasp.deployment.model_diff import LayerDiff, size
from ispasp.errors import SettingError, listing
from ispasp.looks import DENSE, LOOKS, GroupState, layout

_WEIGHT = 2  # dimensions from which a parameter is a layer's weight and not the scale of a norm
_LONGEST = 38  # characters of a name beside the plot
_FULL, _LEAST = 22, 11  # pixels per layer: of few, and of many
_MANY = 40  # layers

_MEASURES: dict[str, tuple[str, Callable[[LayerDiff], tuple[int, int]]]] = {
    "macs": ("MACs of one example", lambda d: (d.macs_dense, d.macs_pruned)),
    "params": ("parameters", lambda d: (d.params_dense, d.params_pruned)),
    "width": ("width (outputs of the layer)", lambda d: (_outputs(d.dense_shape), _outputs(d.pruned_shape))),
}
MEASURES = tuple(_MEASURES)


class DiffInfo(NamedTuple):
    """Layers from top to bottom; norms and embeddings are left out where they have nothing of what is shown.

    ``names``: as they stand beside the plot. ``dense``, ``pruned``: float32 (layers,). ``changed``: bool
    (layers,), whether anything of the layer became smaller. ``told``: what a layer says when it is pointed at.
    """

    measure: str
    names: tuple[str, ...]
    dense: np.ndarray
    pruned: np.ndarray
    changed: np.ndarray
    told: tuple[str, ...]


def diff_info(diffs: Sequence[LayerDiff], measure: str = "macs") -> DiffInfo:
    """The layers that a figure shows.

    Args:
        diffs: in network order.
        measure: one of ``MEASURES``, the length of the bars.

    Raises:
        SettingError: ``measure`` is none of them.
    """
    if measure not in _MEASURES:
        raise SettingError(f"measure is {measure!r}; give one of {listing(MEASURES)}.")
    of = _MEASURES[measure][1]
    shown = [d for d in diffs if of(d)[0] and (measure == "macs" or len(d.dense_shape) >= _WEIGHT)]
    values = np.array([of(d) for d in shown], dtype=np.float32).reshape(-1, 2)
    return DiffInfo(
        measure,
        _names([d.layer for d in shown]),
        values[:, 0],
        values[:, 1],
        np.array([d.changed for d in shown], dtype=bool),
        tuple(map(_told, shown)),
    )


def diff_figure(diffs: Sequence[LayerDiff], measure: str = "macs", dark: bool = False) -> go.Figure:
    """A bar per layer: its outline is the dense layer, the filled part the pruned one; untouched layers are grey."""
    info = diff_info(diffs, measure)
    kept = LOOKS[GroupState.KEPT].colour(dark)
    figure = go.Figure()
    for which, colour, name in (
        (info.changed, kept, "pruned model"),
        (~info.changed, DENSE[dark], "pruned model, layer untouched"),
    ):
        if which.any():
            figure.add_trace(
                go.Bar(
                    x=info.pruned[which],
                    y=np.flatnonzero(which).astype(np.uint16),
                    orientation="h",
                    name=name,
                    width=0.72,
                    marker={"color": colour, "line": {"width": 0}},
                    hoverinfo="skip",
                )
            )
    figure.add_trace(
        go.Bar(
            x=info.dense,
            y=np.arange(len(info.names), dtype=np.uint16),
            orientation="h",
            name="dense model",
            width=0.72,
            marker={"color": "rgba(0,0,0,0)", "line": {"width": 1.3, "color": DENSE[dark]}},
            customdata=np.array(info.told, dtype=object),
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    layers = len(info.names)
    each = _FULL if layers <= _MANY else max(_LEAST, _FULL - (layers - _MANY) // 5)
    figure.update_xaxes(title=_MEASURES[measure][0], rangemode="tozero", nticks=6)
    figure.update_yaxes(
        range=[layers - 0.4, -0.6],
        tickvals=np.arange(layers, dtype=np.uint16),
        ticktext=info.names,
        tickfont={"size": 12 if each >= 16 else 9},
        showgrid=False,
    )
    return layout(figure, 90 + each * max(layers, 1), barmode="overlay")


def _outputs(shape: Sequence[int]) -> int:
    return shape[0] if len(shape) >= _WEIGHT else 0


def _told(diff: LayerDiff) -> str:
    lines = [f"{diff.layer}, {diff.kind}"]
    if diff.block is not None:
        lines.append(f"{'within' if diff.role == 'other' else diff.role + ' of'} block {diff.block}")
    lines += [
        f"weight {size(diff.dense_shape)} → {size(diff.pruned_shape)}",
        f"MACs {diff.macs_dense:,} → {diff.macs_pruned:,}",
        f"parameters {diff.params_dense:,} → {diff.params_pruned:,}",
    ]
    return "<br>".join(_harmless(line) for line in lines)


def _names(layers: Sequence[str]) -> tuple[str, ...]:
    """Names short enough to stand beside a plot: of a long one its end, which tells layers apart."""
    return tuple(_harmless(n if len(n) <= _LONGEST else f"…{n[1 - _LONGEST :]}") for n in layers)


def _harmless(text: str) -> str:
    """Text that plotly shows as it is: it reads tags such as links in labels."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

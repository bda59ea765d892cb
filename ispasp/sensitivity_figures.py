"""Sensitivities as a picture and a sentence: which blocks to keep most of, and which can give most."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from ispasp.errors import listing
from ispasp.looks import GROUND, LOOKS, GroupState, layout
from ispasp.narrative import percent, plural
from ispasp.narrative import residual as three_digits
from ispasp.sensitivity import FINE, Curve

QUANTITIES = {
    "agreement": "same answer as dense",
    "residual": "residual of the block",
    "divergence": "divergence of the output",
}
CELLS_WITH_TEXT = 240  # more would not be readable
ROOM = 3  # cells side by side that hold the kept count as well
HALF = 0.5
ALIKE = 0.5  # of the largest divergence: what comes so near is spared as well


class HeatInfo(NamedTuple):
    """What pruning each block alone does, at kept fractions.

    ``values`` (blocks, fractions) float32, of the measured count next to the fraction, which is ``kept`` (blocks,
    fractions); ``groups`` (blocks,). ``quantity``: a key of ``QUANTITIES``.
    """

    names: tuple[str, ...]
    fractions: tuple[float, ...]
    values: np.ndarray
    kept: np.ndarray
    groups: np.ndarray
    quantity: str


def heat_info(
    curves: Sequence[Curve], quantity: str = "agreement", fractions: Sequence[float] = FINE
) -> HeatInfo:
    """The values of a heat map; the residual where there are no classes that could agree."""
    if quantity == "agreement" and any(curve.agreement is None for curve in curves):
        quantity = "residual"
    near = np.array(
        [
            [np.abs(np.array(curve.kept) - fraction * curve.block.groups).argmin() for fraction in fractions]
            for curve in curves
        ],
        dtype=np.int64,
    ).reshape(len(curves), len(fractions))
    columns = [np.array(getattr(curve, quantity)) for curve in curves]
    return HeatInfo(
        tuple(curve.block.name for curve in curves),
        tuple(fractions),
        np.array([column[at] for column, at in zip(columns, near, strict=True)], dtype=np.float32),
        np.array([np.array(curve.kept)[at] for curve, at in zip(curves, near, strict=True)]),
        np.array([curve.block.groups for curve in curves]),
        quantity,
    )


def heat_figure(info: HeatInfo, dark: bool = False, height: int | None = None) -> go.Figure:
    """Blocks from the top in network order, kept fractions from left to right; the stronger the colour, the
    more is lost.

    Neighbours of one kept count are one measurement: no line parts them, and the value stands in them once.
    """
    title = QUANTITIES[info.quantity]
    share = info.quantity == "agreement"
    form = ".0%" if share else ".2g"
    ends = [GROUND[dark], LOOKS[GroupState.DROPPED].colour(dark)]
    told = np.stack([info.kept, np.broadcast_to(info.groups[:, None], info.kept.shape)], axis=-1)
    text = _texts(info, form) if info.values.size <= CELLS_WITH_TEXT else None
    figure = go.Figure(
        go.Heatmap(
            x=[f"{fraction:.3g}" for fraction in info.fractions],
            y=info.names,
            z=info.values,
            customdata=told,
            colorscale=[[0.0, ends[share]], [1.0, ends[not share]]],
            zmax=1 if share else None,
            zmin=min(HALF, float(info.values.min())) if share else 0,
            ygap=2,
            text=text,
            texttemplate="%{text}" if text else None,
            textfont={"size": 11},
            hovertemplate=f"%{{y}}, %{{customdata[0]}} of %{{customdata[1]}} kept: %{{z:{form}}}"
            f"<extra>{title}</extra>",
            colorbar={"tickformat": form, "thickness": 12, "nticks": 4},
        )
    )
    figure.update_xaxes(title=f"kept fraction of this block alone; colour: {title}", type="category")
    figure.update_yaxes(autorange="reversed", type="category")
    # On an axis of categories, numbers count them from 0.
    for row, column in zip(*np.nonzero(info.kept[:, 1:] != info.kept[:, :-1]), strict=True):
        figure.add_shape(
            type="line",
            x0=column + 0.5,
            x1=column + 0.5,
            y0=row - 0.5,
            y1=row + 0.5,
            line={"color": GROUND[dark], "width": 2},
        )
    return layout(figure, height or 120 + 24 * len(info.names))


def repeats(info: HeatInfo) -> bool:
    """Whether some count stands under more than one fraction, as where rounding leaves few counts."""
    return bool((info.kept[:, 1:] == info.kept[:, :-1]).any())


def _texts(info: HeatInfo, form: str) -> list[list[str]]:
    """What stands in the cells: the value, once for neighbours of one count, with the count where there is room."""
    rows = []
    for values, kept, groups in zip(info.values, info.kept, info.groups, strict=True):
        texts = [""] * len(kept)
        edges = [0, *(np.flatnonzero(np.diff(kept)) + 1).tolist(), len(kept)]
        for start, end in pairwise(edges):
            said = f"{float(values[start]):{form}}".replace("%", " %")
            room = end - start >= ROOM
            texts[(start + end - 1) // 2] = f"{said}, {kept[start]:,} of {groups:,}" if room else said
        rows.append(texts)
    return rows


def advice(curves: Sequence[Curve], samples: int | None = None) -> str:
    """Which blocks to keep most of and which can give most, in a sentence.

    Args:
        curves: of all blocks, in network order.
        samples: how many calibration examples they were measured on; said where it is known.

    Spared are those whose divergence at half of the groups is at least half of the largest one (three at most); of
    the others, the one gives most that can be pruned farthest and still diverges less than that.
    """
    over = "" if samples is None else f", of {plural(samples, 'calibration example')}"
    if len(curves) == 1:
        return f"{curves[0].block.name} is the only block: {_at(curves[0], HALF)}{over}."
    half = {curve.block.name: curve.at(max(1, round(HALF * curve.block.groups))) for curve in curves}
    ranked = sorted(curves, key=lambda curve: -half[curve.block.name])
    worst = half[ranked[0].block.name]
    spared = [curve for curve in ranked[:3] if half[curve.block.name] >= ALIKE * worst]
    left = [curve for curve in ranked if curve not in spared]
    if worst == 0 or not left:
        return "All blocks are about as sensitive as one another, so none needs to be spared more than the others."
    reach = {curve.block.name: _reach(curve, ALIKE * worst) for curve in left}
    gives = min(left, key=lambda curve: reach[curve.block.name])
    names = listing(curve.block.name for curve in spared)
    first = f"Keep most of {names}: {_at(spared[0], HALF, named=len(spared) > 1)}{over}"
    return f"{first}; {gives.block.name} can give most: {_at(gives, reach[gives.block.name][0])}."


def _reach(curve: Curve, most: float) -> tuple[float, float]:
    """The smallest measured fraction whose divergence is below ``most``, and that divergence."""
    at = next(i for i, divergence in enumerate(curve.divergence) if divergence < most)
    return curve.kept[at] / curve.block.groups, curve.divergence[at]


def _at(curve: Curve, fraction: float, named: bool = False) -> str:
    """What is left at the measured count next to ``fraction``."""
    index = int(np.abs(np.array(curve.kept) - fraction * curve.block.groups).argmin())
    kept = f"with {curve.kept[index]:,} of {plural(curve.block.groups, curve.block.kind)}"
    kept += f" of {curve.block.name}," if named else ""
    if curve.agreement is not None:
        return f"{kept} {percent(curve.agreement[index])} of the answers stay the same"
    return f"{kept} the output moves by {three_digits(curve.divergence[index])} of its energy"

"""Plots and sentences of the experiment with two-layer networks: what is left of the accuracy, and what choosing costs.

They take the records found so far, so that they can be drawn while the experiment runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from ispasp.compare_figures import INK, colour
from ispasp.looks import DENSE, layout
from ispasp.series import log_ticks
from ispasp.two_layer_records import EvaluatedGreedy, NetworkTrained, TwoLayerPoint
from ispasp.vocabulary import selector_words

EVALUATED = "evaluated"
EVALUATED_TITLE = "Greedy, evaluated as published"
_SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "triangle-down",
    "pentagon",
    "hexagon",
    "star",
    "cross",
)


def title_of(selector: str) -> str:
    """What a selector, or evaluated greedy selection, is called in a plot."""
    return EVALUATED_TITLE if selector == EVALUATED else selector_words(selector).title


# -- accuracy -------------------------------------------------------------------------------------------


class AccuracyInfo(NamedTuple):
    """Accuracy on the test digits, per cent, against the neurons kept of networks of one size.

    ``kept`` rising; ``mean``, ``low``, ``high``: per selector one value per kept count over the seeds, NaN where there
    is none yet; ``dense``: mean of the dense networks; ``seeds``: how many there are.
    """

    neurons: int
    reconstruct: str
    tuned: bool
    kept: tuple[int, ...]
    mean: dict[str, np.ndarray]
    low: dict[str, np.ndarray]
    high: dict[str, np.ndarray]
    dense: float
    seeds: int


def accuracy_info(
    networks: Iterable[NetworkTrained],
    points: Iterable[TwoLayerPoint],
    neurons: int,
    reconstruct: str = "none",
    tuned: bool = False,
) -> AccuracyInfo:
    """What is left of the accuracy of networks with so many neurons.

    Args:
        networks, points: of the experiment; others than asked for are passed over.
        neurons: d.
        reconstruct: ``"none"`` or ``"symmetric"``.
        tuned: with or without fine-tuning.
    """
    taken = [
        point
        for point in points
        if (point.neurons, point.reconstruct, point.tuned) == (neurons, reconstruct, tuned)
    ]
    kept = tuple(sorted({point.kept for point in taken}))
    names = tuple(dict.fromkeys(point.selector for point in taken))
    values = {
        name: [[100 * p.accuracy for p in taken if (p.selector, p.kept) == (name, count)] for count in kept]
        for name in names
    }
    dense = [100 * network.accuracy for network in networks if network.neurons == neurons]

    def over_seeds(of: Callable[[list[float]], Any]) -> dict[str, np.ndarray]:
        return {name: np.array([of(row) if row else np.nan for row in rows]) for name, rows in values.items()}

    return AccuracyInfo(
        neurons,
        reconstruct,
        tuned,
        kept,
        mean=over_seeds(np.mean),
        low=over_seeds(min),
        high=over_seeds(max),
        dense=float(np.mean(dense)) if dense else np.nan,
        seeds=len(dense),
    )


def accuracy_figure(info: AccuracyInfo, dark: bool = False, height: int = 360) -> go.Figure:
    """A line per selector, whiskers over the seeds, and the dense networks' accuracy as a line across."""
    figure = go.Figure()
    for number, (name, values) in enumerate(info.mean.items()):
        paint = colour(name, dark)
        figure.add_trace(
            go.Scatter(
                x=info.kept,
                y=values,
                mode="lines+markers",
                name=title_of(name),
                line={"color": paint, "width": 2},
                marker={"symbol": _SYMBOLS[number % len(_SYMBOLS)], "size": 9},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": info.high[name] - values,
                    "arrayminus": values - info.low[name],
                    "visible": info.seeds > 1,
                    "thickness": 1,
                },
                hovertemplate=f"%{{x:,}} of {info.neurons:,}: %{{y:.1f}} %<extra>{title_of(name)}</extra>",
            )
        )
    if np.isfinite(info.dense):
        figure.add_hline(
            y=info.dense,
            line={"color": DENSE[dark], "dash": "dash"},
            annotation_text=f"dense: {info.dense:.1f} %",
            annotation_position="top left",
            annotation_font_color=DENSE[dark],
        )
    figure.update_xaxes(
        title=f"neurons kept of {info.neurons:,} (log scale)",
        type="log",
        tickvals=info.kept,
        ticktext=[f"{count:,}" for count in info.kept],
    )
    figure.update_yaxes(title="accuracy, %")
    return layout(figure, height)


# -- time -----------------------------------------------------------------------------------------------


class TimeLine(NamedTuple):
    """Mean processor seconds of one way to choose: ``neurons`` rising, and which of them were ``extrapolated``."""

    neurons: tuple[int, ...]
    seconds: np.ndarray
    extrapolated: np.ndarray


class TimeInfo(NamedTuple):
    """What choosing costs at one kept fraction: a line per selector, and ``EVALUATED``."""

    keep: float
    lines: dict[str, TimeLine]

    def seconds(self, name: str, neurons: int) -> float | None:
        """Of one way at one size; None where it is not there."""
        line = self.lines.get(name)
        if line is None or neurons not in line.neurons:
            return None
        return float(line.seconds[line.neurons.index(neurons)])

    def factor(self, neurons: int) -> float | None:
        """How many times as long evaluated greedy selection takes as i-SpaSP; None where one is not there, or took
        less than the clock counts."""
        slow, fast = self.seconds(EVALUATED, neurons), self.seconds("ispasp", neurons)
        return slow / fast if slow and fast else None


def time_info(points: Iterable[TwoLayerPoint], evaluated: Iterable[EvaluatedGreedy], keep: float) -> TimeInfo:
    """What choosing the neurons costs, without re-fit and fine-tuning."""
    # The same selection was re-fitted and fine-tuned; its time counts once.
    once = {(p.selector, p.neurons, p.seed): p.seconds for p in points if p.keep == keep}
    greedy = {(EVALUATED, g.neurons, g.seed): g for g in evaluated if g.keep == keep}
    times = once | {key: one.seconds for key, one in greedy.items()}
    lines = {}
    for name in dict.fromkeys(key[0] for key in times):
        sizes = tuple(sorted({key[1] for key in times if key[0] == name}))
        lines[name] = TimeLine(
            sizes,
            np.array([np.mean([t for key, t in times.items() if key[:2] == (name, d)]) for d in sizes]),
            np.array([any(g.extrapolated for k, g in greedy.items() if k[:2] == (name, d)) for d in sizes]),
        )
    return TimeInfo(keep, lines)


def time_figure(info: TimeInfo, dark: bool = False, height: int = 360) -> go.Figure:
    """Seconds against hidden neurons, both on log scales; hollow where they are extrapolated."""
    figure = go.Figure()
    for number, (name, line) in enumerate(info.lines.items()):
        paint = INK[dark] if name == EVALUATED else colour(name, dark)
        symbol = "x" if name == EVALUATED else _SYMBOLS[number % len(_SYMBOLS)]
        told = ["extrapolated" if one else "measured" for one in line.extrapolated]
        figure.add_trace(
            go.Scatter(
                x=line.neurons,
                y=line.seconds,
                mode="lines+markers",
                name=title_of(name),
                line={"color": paint, "width": 2},
                marker={
                    "symbol": [symbol + ("-open" if one else "") for one in line.extrapolated],
                    "size": 9,
                },
                customdata=told,
                hovertemplate="%{x:,} neurons: %{y:.3g} s, %{customdata}"
                f"<extra>{title_of(name)}</extra>",
            )
        )
    sizes = sorted({size for line in info.lines.values() for size in line.neurons})
    figure.update_xaxes(
        title="hidden neurons (log scale)",
        type="log",
        tickvals=sizes,
        ticktext=[f"{size:,}" for size in sizes],
    )
    seconds = np.concatenate([line.seconds for line in info.lines.values()]) if info.lines else np.array([])
    figure.update_yaxes(title="processor seconds (log scale)", **log_ticks(seconds))
    return layout(figure, height)


# -- in words -------------------------------------------------------------------------------------------


def outcome(
    networks: Sequence[NetworkTrained],
    points: Sequence[TwoLayerPoint],
    evaluated: Sequence[EvaluatedGreedy],
    neurons: int,
    keep: float,
) -> list[str]:
    """What came out at one size and kept fraction, in sentences: times, and accuracies as they are."""
    told = []
    times = time_info(points, evaluated, keep)
    factor, slow, fast = (
        times.factor(neurons),
        times.seconds(EVALUATED, neurons),
        times.seconds("ispasp", neurons),
    )
    if factor is not None:
        mine = [one for one in evaluated if (one.neurons, one.keep) == (neurons, keep)]
        share = sum(one.timed for one in mine) / sum(one.evaluations for one in mine)
        how = "" if share == 1 else f" (extrapolated from {share:.2%} of its evaluations)"
        told.append(
            f"{neurons:,} neurons, keep {keep:g}: evaluated greedy selection takes {slow:,.2f} s{how}, i-SpaSP "
            f"{fast:.4f} s; that is {factor:,.0f} times as long."
        )
    for reconstruct, tuned in dict.fromkeys((p.reconstruct, p.tuned) for p in points):
        info = accuracy_info(networks, [p for p in points if p.keep == keep], neurons, reconstruct, tuned)
        if not info.mean:
            continue
        way = "re-fitted" if reconstruct != "none" else "as selected"
        values = {name: float(mean[-1]) for name, mean in info.mean.items()}
        listed = ", ".join(f"{name} {value:.1f} %" for name, value in values.items())
        note = ""
        if values.get("random", 0) > values.get("ispasp", 100):
            note = "; random selection is better than i-SpaSP here"
        told.append(
            f"Accuracy {way}{', fine-tuned' if tuned else ''}: {listed}, dense {info.dense:.1f} %{note}."
        )
    return told

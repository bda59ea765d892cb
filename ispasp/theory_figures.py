"""Plots of the laboratory: the decay of the residual, its iterations, the candidate factor, and networks on digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ispasp.compressibility import line
from ispasp.looks import DENSE, layout
from ispasp.series import DASHES, faint, log_ticks, look, signed
from ispasp.theory import FACTORS, Decay, Findings, Network

HALVING = 0.25  # of ||V||_F^2: CoSaMP's error halves in every iteration (Needell & Tropp 2009)
NEAR_FLOOR = 1.05  # of the last residual: what is below counts as arrived


# -- residual against size ------------------------------------------------------------------------------


def decay_figure(
    found: Sequence[Decay], fitted: Sequence[int], dark: bool = False, height: int = 460
) -> go.Figure:
    """||V||_F^2 against the rows kept, a line per p, its range over the trials, and the theorem's slope beside it.

    Args:
        found: one per p.
        fitted: the sizes between which the slope was taken; the theorem's line is drawn there, through the middle.
    """
    figure = go.Figure()
    for number, decay in enumerate(found):
        shown = look(number, dark)
        sizes, values = np.array(decay.sizes), np.array(decay.residuals)
        figure.add_trace(
            go.Scatter(
                x=np.concatenate([sizes, sizes[::-1]]),
                y=np.concatenate([decay.high, decay.low[::-1]]),
                fill="toself",
                fillcolor=faint(shown["color"], 0.15),
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            )
        )
        figure.add_trace(
            go.Scatter(
                x=sizes,
                y=values,
                mode="lines+markers",
                name=f"p = {decay.exponent:g}: fitted {signed(decay.slope)}, theorem {signed(decay.rate)}",
                line={"color": shown["color"], "width": 2},
                marker={"symbol": shown["symbol"], "size": 8, "color": shown["color"]},
                hovertemplate=f"p = {decay.exponent:g}, %{{x}} rows kept: %{{y:.2e}}<extra></extra>",
            )
        )
        at = np.array(fitted, dtype=np.float64)
        inside = np.log(values[np.isin(sizes, fitted)]).mean()
        figure.add_trace(
            go.Scatter(
                x=at,
                y=np.exp(inside + decay.rate * (np.log(at) - np.log(at).mean())),
                mode="lines",
                line={"color": DENSE[dark], "dash": "dot", "width": 2},
                name="the theorem's slope",
                legendgroup="theorem",
                showlegend=number == len(found) - 1,
                hoverinfo="skip",
            )
        )
    figure.update_xaxes(title="rows kept, s (log scale)", **log_ticks(found[0].sizes if found else ()))
    figure.update_yaxes(title="‖V‖²", **log_ticks([value for decay in found for value in decay.residuals]))
    return layout(figure, height)


# -- residual against iteration -------------------------------------------------------------------------


class Convergence(NamedTuple):
    """How ||V||_F^2 falls from iteration to iteration, at one size.

    ``steps``: iterations from 0, before which nothing is kept. ``values`` (exponents, steps): the geometric mean over
    the trials, over ||A(H)||_F^2; a network that has converged keeps its last value. ``arrived``: for each exponent,
    the first iteration from which that mean no longer changes.
    """

    size: int
    exponents: tuple[float, ...]
    steps: np.ndarray
    values: np.ndarray
    arrived: tuple[int, ...]


def convergence(findings: Findings, size: int) -> Convergence:
    """The iterations of all networks that were pruned to ``size`` rows."""
    exponents = findings.experiment.exponents
    at = [[t for t in findings.trials if t.size == size and t.exponent == p] for p in exponents]
    longest = max(len(trial.residuals) for trials in at for trial in trials)
    values = np.ones((len(exponents), longest + 1))
    for row, trials in enumerate(at):
        paths = [
            np.pad(np.array(one.residuals) / one.energy, (0, longest - len(one.residuals)), mode="edge")
            for one in trials
        ]
        values[row, 1:] = np.exp(np.log(paths).mean(0))
    arrived = tuple(int(np.argmax(row <= NEAR_FLOOR * row[-1])) for row in values)
    return Convergence(size, exponents, np.arange(longest + 1), values, arrived)


def convergence_figure(info: Convergence, dark: bool = False, height: int = 340) -> go.Figure:
    """The residual along the iterations, and the linear rate that the theory of CoSaMP promises at least."""
    figure = go.Figure()
    for number, (exponent, values) in enumerate(zip(info.exponents, info.values, strict=True)):
        shown = look(number, dark)
        figure.add_trace(
            go.Scatter(
                x=info.steps,
                y=values,
                mode="lines+markers",
                name=f"p = {exponent:g}",
                line={"color": shown["color"], "width": 2},
                marker={"symbol": shown["symbol"], "size": 8},
                hovertemplate=f"p = {exponent:g}, after iteration %{{x}}: %{{y:.2e}}<extra></extra>",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=info.steps,
            y=HALVING**info.steps,
            mode="lines",
            name="error halves each time",
            line={"color": DENSE[dark], "dash": "dot", "width": 2},
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(title="iteration", dtick=1 if len(info.steps) < 16 else None)
    figure.update_yaxes(title="‖V‖² over ‖A(H)‖²", **log_ticks(info.values))
    return layout(figure, height)


# -- candidate factor -----------------------------------------------------------------------------------


class FactorInfo(NamedTuple):
    """What the candidate factor does at one p: (factors, sizes) each, means over the trials.

    ``recovered``: share of the s largest rows that are kept. ``iterations``: until nothing changes.
    """

    exponent: float
    factors: tuple[float, ...]
    sizes: tuple[int, ...]
    recovered: np.ndarray
    iterations: np.ndarray


def factor_info(findings: Findings, exponent: float) -> FactorInfo:
    """The networks with this p."""
    own = [trial for trial in findings.factors if trial.exponent == exponent]
    sizes = tuple(sorted({trial.size for trial in own}))
    cells = [[[t for t in own if (t.candidate_factor, t.size) == (c, s)] for s in sizes] for c in FACTORS]
    return FactorInfo(
        exponent,
        FACTORS,
        sizes,
        np.array([[np.mean([t.recovered for t in cell]) for cell in row] for row in cells]),
        np.array([[np.mean([len(t.residuals) for t in cell]) for cell in row] for row in cells]),
    )


def factor_figure(info: FactorInfo, dark: bool = False, height: int = 340) -> go.Figure:
    """Left how many of the largest rows are found, right how many iterations that takes; a line per factor."""
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    for number, factor in enumerate(info.factors):
        shown = look(number, dark)
        for column, values, form in ((1, 100 * info.recovered, ".0f"), (2, info.iterations, ".1f")):
            figure.add_trace(
                go.Scatter(
                    x=info.sizes,
                    y=values[number],
                    mode="lines+markers",
                    name=f"{factor:g} × s",
                    legendgroup=f"{factor:g}",
                    showlegend=column == 1,
                    line={"color": shown["color"], "dash": DASHES[number % 4], "width": 2},
                    marker={"symbol": shown["symbol"], "size": 8},
                    hovertemplate=f"%{{x}} rows kept, {factor:g} × s candidates: %{{y:{form}}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title="rows kept, s", **log_ticks(info.sizes))
    figure.update_yaxes(title="largest rows found, %", col=1, nticks=6)
    figure.update_yaxes(title="iterations", col=2, rangemode="tozero", nticks=6)
    return layout(figure, height)


# -- networks that nobody arranged ----------------------------------------------------------------------


class NetworkInfo(NamedTuple):
    """Networks as they are drawn, or trained. ``ranks``, ``norms``: sorted row norms over the largest, of the first of
    them. ``sizes``, ``residuals``: the relative residual, geometric mean over the networks; NaN where it is 0.
    ``slope``: of its logarithm against log s where the experiment takes it. ``exponent``, ``goodness``: of the fitted
    power law, means over the networks; ``accuracy`` likewise.
    """

    trained: bool
    ranks: tuple[int, ...]
    norms: tuple[float, ...]
    sizes: tuple[int, ...]
    residuals: np.ndarray
    slope: float
    exponent: float
    goodness: float
    accuracy: float


def network_info(findings: Findings) -> list[NetworkInfo]:
    """Those as drawn first, then the trained ones."""
    return [
        _info([n for n in findings.networks if n.trained == trained], findings) for trained in (False, True)
    ]


def _info(networks: Sequence[Network], findings: Findings) -> NetworkInfo:
    laws = [network.law for network in networks if network.law is not None]
    values = np.array([network.residuals for network in networks])
    with np.errstate(divide="ignore"):
        mean = np.exp(np.log(values).mean(0))
    mean[mean <= 0] = np.nan
    inside = np.isin(networks[0].sizes, findings.experiment.fitted) & np.isfinite(mean)
    return NetworkInfo(
        networks[0].trained,
        laws[0].ranks if laws else (),
        laws[0].norms if laws else (),
        networks[0].sizes,
        mean,
        line(np.array(networks[0].sizes)[inside], mean[inside])[0] if inside.sum() > 1 else float("nan"),
        float(np.mean([law.exponent for law in laws])) if laws else float("nan"),
        float(np.mean([law.goodness for law in laws])) if laws else float("nan"),
        float(np.mean([network.accuracy for network in networks])),
    )


def network_figure(infos: Sequence[NetworkInfo], dark: bool = False, height: int = 340) -> go.Figure:
    """Left the sorted norms of the hidden rows, right the relative residual against the rows kept."""
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    for number, info in enumerate(infos):
        shown = look(number, dark)
        name = "trained" if info.trained else "random weights"
        for column, x, y, words in (
            (1, info.ranks, info.norms, "row %{x}: norm %{y:.2g}"),
            (2, info.sizes, info.residuals, "%{x} rows kept: residual %{y:.2g}"),
        ):
            figure.add_trace(
                go.Scatter(
                    x=x,
                    y=y,
                    mode="lines+markers",
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    line={"color": shown["color"], "dash": DASHES[number], "width": 2},
                    marker={"symbol": shown["symbol"], "size": 7},
                    hovertemplate=f"{words}<extra>{name}</extra>",
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title="row, largest first", col=1, **log_ticks(infos[0].ranks))
    figure.update_xaxes(title="rows kept, s", col=2, **log_ticks(infos[0].sizes))
    figure.update_yaxes(
        title="norm over the largest", col=1, **log_ticks([n for i in infos for n in i.norms])
    )
    figure.update_yaxes(
        title="relative residual", col=2, **log_ticks([r for i in infos for r in i.residuals])
    )
    return layout(figure, height)

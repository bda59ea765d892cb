"""Plots of many runs side by side: what they cost and are good for, and what every block lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ispasp.comparison import Row, efficient_frontier, made_words
from ispasp.looks import DENSE, LOOKS, GroupState, layout
from ispasp.narrative import percent, plural
from ispasp.result_figures import LOG_FROM

COSTS = {
    "macs": "MACs per example",
    "parameters": "Parameters",
    "latency": "Measured latency, % of dense",
}
"""What a run costs, and the title of its axis."""

GAINS = {"accuracy": "Accuracy, %", "agreement": "Agreement with dense, %"}
"""What a run is good for, and the title of its axis."""

INK = {False: "#1f2a37", True: "#e6ebf0"}

PANELS = 16  # blocks drawn at once
_COLUMNS = 5  # panels side by side at most

# After Okabe and Ito, light and dark; the first three differ most. Symbols and dashes tell apart what colours do not.
_COLOURS = {
    "ispasp": ("#0072b2", "#56b4e9"),
    "ispasp-contribution": ("#c8460a", "#ff8f5a"),
    "cosamp": ("#00795a", "#2fc99b"),
    "gfs": ("#a83279", "#e48fc0"),
    "obs": ("#8a6d00", "#f0c24b"),
    "l1": ("#3c4a5a", "#c3ccd6"),
    "l2": ("#6a51a3", "#b9a5ec"),
    "activation": ("#7a3b1d", "#d9a07c"),
    "taylor": ("#1b9aaa", "#8ee3ef"),
    "random": ("#7a8594", "#98a3b3"),
}
_SYMBOLS = {"none": "circle-open", "symmetric": "diamond", "asymmetric": "circle"}
_DASHES = {"none": "dot", "symmetric": "dash", "asymmetric": "solid"}


def colour(selector: str, dark: bool) -> str:
    """The colour of a selector in every plot; a foreign one is grey."""
    return _COLOURS.get(selector, _COLOURS["random"])[dark]


class TradeOff(NamedTuple):
    """One point per run that has both values, in the order of the rows.

    ``x``: cost (MACs, parameters, or per cent of the dense latency); ``y``: per cent. ``frontier``: indices of the
    points that no other beats, by rising cost. ``dense``: the baseline's point; None where it has no such value.
    ``left_out``: how many runs lack one of the values.
    """

    rows: tuple[Row, ...]
    x: np.ndarray
    y: np.ndarray
    frontier: tuple[int, ...]
    dense: tuple[float, float] | None
    left_out: int


def _cost(row: Row, cost: str) -> float | None:
    if cost == "latency":
        return None if row.speedup is None else 100 / row.speedup
    return float(row.macs if cost == "macs" else row.parameters)


def trade_off(rows: Sequence[Row], cost: str = "macs", gain: str = "accuracy") -> TradeOff:
    """What every run costs and what it is good for.

    Args:
        rows: of one family.
        cost: one of ``COSTS``.
        gain: one of ``GAINS``.
    """
    points = [(row, _cost(row, cost), row.accuracy if gain == "accuracy" else row.agreement) for row in rows]
    known = [(row, x, 100 * y) for row, x, y in points if x is not None and y is not None]
    x = np.array([x for _, x, _ in known], dtype=np.float64)
    y = np.array([y for _, _, y in known], dtype=np.float64)
    dense = None
    if rows:
        base = rows[0].dense
        best = base.accuracy if gain == "accuracy" else 1.0
        at = {"macs": float(base.macs), "parameters": float(base.parameters), "latency": 100.0}[cost]
        dense = None if best is None else (at, 100 * best)
    frontier = tuple(efficient_frontier(x.tolist(), y.tolist()))
    return TradeOff(tuple(row for row, _, _ in known), x, y, frontier, dense, len(rows) - len(known))


def trade_off_figure(
    rows: Sequence[Row],
    cost: str = "macs",
    gain: str = "accuracy",
    chosen: Mapping[str, str] | None = None,
    dark: bool = False,
    height: int = 420,
) -> go.Figure:
    """Accuracy or agreement against cost: a point per run, its frontier, and the dense model as a star.

    Args:
        rows, cost, gain: as in :func:`trade_off`.
        chosen: letter of the runs that are marked, by their id.
    """
    info = trade_off(rows, cost, gain)
    figure = go.Figure()
    if len(info.frontier) > 1:
        at = list(info.frontier)
        figure.add_trace(
            go.Scatter(
                x=info.x[at],
                y=info.y[at],
                mode="lines",
                name="efficient frontier",
                line={"color": DENSE[dark], "width": 1.5, "shape": "hv"},
                hoverinfo="skip",
            )
        )
    for made, tuned in sorted(
        {(row.made, row.tuned) for row in info.rows}, key=lambda way: (_order(way[0]), way[1])
    ):
        _points(figure, info, made, tuned, dark)
    if info.dense:
        figure.add_trace(
            go.Scatter(
                x=[info.dense[0]],
                y=[info.dense[1]],
                mode="markers",
                name="dense model",
                marker={"symbol": "star", "size": 16, "color": LOOKS[GroupState.CANDIDATE].colour(dark)},
                hovertemplate="dense model: %{y:.1f} %<extra></extra>",
            )
        )
    _rings(figure, info, chosen or {}, dark)
    figure.update_xaxes(title=COSTS[cost], rangemode="tozero", exponentformat="SI", showgrid=True)
    figure.update_yaxes(title=GAINS[gain], showgrid=True)
    layout(figure, height, hovermode="closest", clickmode="event+select", dragmode="zoom")
    # Beside the picture, as there may be many entries; and room above it for the buttons of the mode bar.
    figure.update_layout(legend={"orientation": "v", "x": 1.01, "xanchor": "left", "y": 1, "yanchor": "top"})
    return figure.update_layout(margin_t=34, modebar=modebar(dark))


def modebar(dark: bool) -> dict[str, str]:
    """Buttons that cover nothing."""
    return {"bgcolor": "rgba(0,0,0,0)", "color": DENSE[dark], "activecolor": INK[dark]}


def _order(made: tuple[str, str]) -> tuple[int, str, str]:
    known = list(_COLOURS)
    return (known.index(made[0]) if made[0] in known else len(known), *made)


def _points(figure: go.Figure, info: TradeOff, made: tuple[str, str], tuned: str, dark: bool) -> None:
    """The runs of one way to prune; those that were fine-tuned have a dot within or around their symbol."""
    at = [i for i, row in enumerate(info.rows) if (row.made, row.tuned) == (made, tuned)]
    paint = colour(made[0], dark)
    figure.add_trace(
        go.Scatter(
            x=info.x[at],
            y=info.y[at],
            mode="markers",
            name=", ".join(filter(None, (made_words(made), tuned))),
            marker={
                "symbol": _SYMBOLS.get(made[1], "x") + ("-dot" if tuned else ""),
                "size": 11,
                "color": paint,
                "line": {"width": 2 if made[1] == "none" or tuned else 0, "color": paint},
            },
            # Every run stays as visible as it is when one is clicked.
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 1}},
            customdata=[[info.rows[i].run_id, _hover(info.rows[i])] for i in at],
            hovertemplate="%{customdata[1]}<extra></extra>",
        )
    )


def _hover(row: Row) -> str:
    """What a point is, line by line."""
    lines = [f"<b>{row.title}</b>"]
    if row.name != row.run_id:
        lines.insert(0, _plain(row.name))
    if row.accuracy is not None:
        change = "" if row.change is None else f", {100 * row.change:+.1f} points".replace("-", "−")
        lines.append(f"accuracy {percent(row.accuracy)}{change}")
    if row.agreement is not None:
        lines.append(f"agreement {percent(row.agreement)}")
    of = [
        f"{100 * part / whole:.0f} % of the {what}"
        for what, part, whole in (
            ("MACs", row.macs, row.dense.macs),
            ("parameters", row.parameters, row.dense.parameters),
        )
        if whole
    ]
    lines.append(", ".join(of))
    if row.speedup is not None:
        lines.append(f"{row.speedup:.2f} times as fast")
    details = [
        *([f"distilled {plural(row.distil, 'step')}"] if row.distil else []),
        *([f"{row.samples:,} samples"] if row.samples else []),
        *([f"seed {row.seed}"] if row.seed is not None else []),
    ]
    return "<br>".join([*lines, ", ".join(details)]).removesuffix("<br>")


def _plain(text: str) -> str:
    """A name that somebody typed, with nothing in it that plotly would take for markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _rings(figure: go.Figure, info: TradeOff, chosen: Mapping[str, str], dark: bool) -> None:
    at = sorted(
        (i for i, row in enumerate(info.rows) if row.run_id in chosen),
        key=lambda i: chosen[info.rows[i].run_id],
    )
    if not at:
        return
    ink = INK[dark]
    figure.add_trace(
        go.Scatter(
            x=info.x[at],
            y=info.y[at],
            mode="markers+text",
            text=[f" {chosen[info.rows[i].run_id]} " for i in at],
            # To different sides, as the two may lie close together.
            textposition=["middle right" if n % 2 else "middle left" for n in range(len(at))],
            textfont={"color": ink, "size": 14},
            marker={"symbol": "circle-open", "size": 20, "color": ink, "line": {"width": 2}},
            showlegend=False,
            hoverinfo="skip",
        )
    )


_OTHER_SYMBOLS = ("square", "triangle-up", "x", "star", "triangle-down", "cross")


def _marker(reconstruct: str, number: int) -> str:
    """The re-fit's symbol for the first of several conditions, others for the rest."""
    if number == 0:
        return _SYMBOLS.get(reconstruct, "x")
    return _OTHER_SYMBOLS[(number - 1) % len(_OTHER_SYMBOLS)]


class ResidualLine(NamedTuple):
    """One block under one selector and re-fit: kept fraction (effective) and relative residual, by rising fraction.

    ``also``: the other settings of its runs, where not all runs have the same: ``"samples 64, seed 1"``.
    """

    block: str
    made: tuple[str, str]
    also: str
    kept: np.ndarray
    residual: np.ndarray


class ResidualsByKeep(NamedTuple):
    """Lines of the blocks that are drawn, in network order; ``hidden`` counts blocks beyond ``PANELS``.

    ``log``: the residuals differ too much for a linear scale; a residual of 0 is not on it.
    """

    blocks: tuple[str, ...]
    lines: tuple[ResidualLine, ...]
    log: bool
    hidden: int

    @property
    def range(self) -> tuple[float, float]:
        """Of all residuals with some room, as plotly takes it: exponents of 10 on a log scale."""
        shown = np.concatenate([line.residual for line in self.lines])
        if self.log:
            return float(np.log10(shown[shown > 0].min())) - 0.2, float(np.log10(shown.max())) + 0.2
        return 0.0, 1.08 * (float(shown.max()) or 1.0)


def residuals_by_keep(runs: Sequence[tuple[Row, Mapping[str, Any]]]) -> ResidualsByKeep:
    """Residual of every block against the fraction kept of it. Only runs that differ in nothing else make a line.

    Args:
        runs: every run and its report; one that was fine-tuned without being pruned again has the residuals of the
            run it was made from, and is left out where that is there. Where there are more than ``PANELS`` blocks,
            those with the largest residuals stay.
    """
    values: dict[str, dict[tuple[tuple[str, str], str], list[tuple[float, float]]]] = {}
    there = {row.run_id for row, _ in runs}
    runs = [
        (row, report) for row, report in runs if row.lineage.get("tuned") not in there or _by_block(report)
    ]
    also = _what_differs([row for row, _ in runs])
    for row, report in runs:
        for block in report["blocks"]:
            point = block["kept"] / block["groups"], float(block["relative_residual"])
            values.setdefault(block["name"], {}).setdefault((row.made, also[row.run_id]), []).append(point)
    worst = {name: max(r for points in of.values() for _, r in points) for name, of in values.items()}
    kept = set(sorted(worst, key=lambda name: worst[name], reverse=True)[:PANELS])
    names = tuple(name for name in values if name in kept)
    lines = []
    for name in names:
        for (made, said), points in sorted(
            values[name].items(), key=lambda item: (_order(item[0][0]), item[0][1])
        ):
            pairs = np.array(sorted(points), dtype=np.float32)
            lines.append(ResidualLine(name, made, said, pairs[:, 0], pairs[:, 1]))
    shown = np.concatenate([line.residual for line in lines]) if lines else np.zeros(0)
    shown = shown[shown > 0]
    log = len(shown) > 0 and bool(shown.max() > LOG_FROM * shown.min())
    return ResidualsByKeep(names, tuple(lines), log, len(values) - len(names))


def _by_block(report: Mapping[str, Any]) -> bool:
    """Whether a run was pruned again while it was fine-tuned."""
    tuning = report.get("tuning")
    return isinstance(tuning, Mapping) and bool(tuning.get("after_block"))


def _what_differs(rows: Sequence[Row]) -> dict[str, str]:
    """By run: its conditions that not all rows share, in words."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row.conditions:
            values.setdefault(key, set()).add(value)
    return {
        row.run_id: ", ".join(
            f"{key.replace('_', ' ')} {value}" for key, value in row.conditions if len(values[key]) > 1
        )
        for row in rows
    }


def residuals_figure(info: ResidualsByKeep, dark: bool = False) -> go.Figure:
    """A small panel per block, a line per selector and re-fit (and what else differs), all on the same axes."""
    count = max(-(-len(info.blocks) // _COLUMNS), 1)
    columns = max(-(-len(info.blocks) // count), 1)
    figure = make_subplots(
        count,
        columns,
        subplot_titles=info.blocks,
        horizontal_spacing=0.02,
        vertical_spacing=0.22 / count,
    )
    named: set[tuple[tuple[str, str], str]] = set()
    others = sorted({line.also for line in info.lines})
    for line in info.lines:
        at = info.blocks.index(line.block)
        paint = colour(line.made[0], dark)
        figure.add_trace(
            go.Scatter(
                x=line.kept,
                y=np.where(line.residual > 0, line.residual, np.nan) if info.log else line.residual,
                mode="lines+markers",
                name=", ".join(filter(None, (made_words(line.made), line.also))),
                legendgroup=" ".join((*line.made, line.also)),
                showlegend=(line.made, line.also) not in named,
                line={"color": paint, "dash": _DASHES.get(line.made[1], "longdash"), "width": 2},
                marker={"symbol": _marker(line.made[1], others.index(line.also)), "size": 7},
                hovertemplate=f"{line.block}<br>kept %{{x:.0%}}: residual %{{y:.3g}}<extra></extra>",
            ),
            row=at // columns + 1,
            col=at % columns + 1,
        )
        named.add((line.made, line.also))
    figure.update_annotations(font_size=12)
    figure.update_xaxes(title_font_size=12)
    figure.update_yaxes(title_font_size=12)
    # One range for all panels, said outright: shared axes are shared by row only.
    figure.update_xaxes(range=[0, 1.05], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%")
    figure.update_yaxes(range=info.range, nticks=5)
    if info.log:
        figure.update_yaxes(type="log", dtick=1, exponentformat="power", minor={"ticks": ""})
    for at in range(len(info.blocks)):
        row, column = at // columns + 1, at % columns + 1
        if column == 1:
            figure.update_yaxes(title="relative residual", title_standoff=8, row=row, col=column)
        figure.update_yaxes(showticklabels=column == 1, row=row, col=column)
        lowest = at + columns >= len(info.blocks)
        if lowest:
            figure.update_xaxes(title="kept of the block", title_standoff=6, row=row, col=column)
        figure.update_xaxes(showticklabels=lowest, row=row, col=column)
    layout(figure, 130 + 150 * count)
    figure.update_layout(margin_t=24, legend_y=1 + 40 / (150 * count), modebar=modebar(dark))
    return figure

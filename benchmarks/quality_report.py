"""Tables and a picture of what ``benchmarks/quality.py`` measured."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pictures import write_png
from ispasp import selectors
from ispasp.settings import ALLOCATIONS, RECONSTRUCTIONS

Row = dict[str, Any]
# Rows that differ in one of these do not belong in one table.
DATA_KEYS = ("model", "samples", "images", "test_images", "multiple")
SYMBOLS = [
    "circle",
    "square",
    "diamond",
    "cross",
    "x",
    "triangle-up",
    "triangle-down",
    "star",
    "hexagram",
    "pentagon",
]
COLOURS = [
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7a5195",
    "#a05a2c",
    "#222222",
    "#8a939e",
]
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def variant(row: Row) -> str:
    """The selector, and what else is not as usual."""
    shared = "" if row["allocation"] == "uniform" else f", shared out by {row['allocation']}"
    distilled = f", {row['distil']} steps of distillation" if row["distil"] else ""
    return f"{row['selector']}{shared}{distilled}"


def spread(values: Sequence[float | None], form: Callable[[float], str], seeds: int) -> str:
    """Mean, in brackets the lowest and the highest, and how many there are where they are not ``seeds``."""
    found = [value for value in values if value is not None]
    if not found:
        return "-"
    ends = form(min(found)), form(max(found))
    text = form(statistics.fmean(found)) + (f" ({ends[0]}-{ends[1]})" if ends[0] != ends[1] else "")
    return text if len(found) == seeds else f"{text}, {len(found)} of {seeds} seeds"


def grouped(rows: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows with the same values of ``keys`` together, in the order of their first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return groups


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Rows by model, keep, allocation, distillation, and the order in which selectors and re-fits are listed."""
    names = selectors.names()

    def place(row: Row) -> tuple[Any, ...]:
        listed = names.index(row["selector"]), RECONSTRUCTIONS.index(row["reconstruct"])
        return row["model"], -row["keep"], row["distil"], ALLOCATIONS.index(row["allocation"]), *listed

    return sorted(rows, key=place)


def markdown(rows: Sequence[Row], full: bool) -> str:
    """Accuracy of every selector beside every re-fit; with ``full`` every figure of every combination."""
    lines: list[str] = []
    for (name, samples, images, tested, multiple), of_data in grouped(ordered(rows), *DATA_KEYS).items():
        seeds = len({row["seed"] for row in of_data})
        lines += [
            f"### {name}",
            "",
            f"{samples} {images} images calibrate, {tested:,} test; kept counts "
            + ("exact" if multiple == 1 else f"in multiples of {multiple}")
            + f"; dense {of_data[0]['accuracy_dense']:.1%}, {of_data[0]['macs_dense'] / 1e6:.2f} M MACs. "
            f"Mean of {seeds} seeds (lowest-highest).",
            "",
            *(full_table if full else accuracy_table)(of_data, seeds),
            "",
        ]
    return "\n".join(lines).rstrip()


def accuracy_table(rows: Sequence[Row], seeds: int) -> list[str]:
    """One line per keep ratio and selector, one column per re-fit; seconds are those of the last one."""
    refits = [refit for refit in RECONSTRUCTIONS if any(row["reconstruct"] == refit for row in rows)]
    titles = " | ".join(f"accuracy in %, re-fit {refit}" for refit in refits)
    lines = [
        f"| keep | selector | {titles} | CPU s, {refits[-1]} | M MACs |",
        "|---:|---|" + "---:|" * (len(refits) + 2),
    ]
    for group in grouped(rows, "keep", "distil", "allocation", "selector").values():
        by_refit = {refit: [row for row in group if row["reconstruct"] == refit] for refit in refits}
        cells = [spread([row["accuracy"] for row in found], percent, seeds) for found in by_refit.values()]
        seconds = [row["cpu_seconds"] for row in by_refit[refits[-1]]]
        lines.append(
            f"| {group[0]['keep']} | {variant(group[0])} | {' | '.join(cells)} "
            f"| {f'{statistics.fmean(seconds):.1f}' if seconds else '-'} "
            f"| {statistics.fmean(row['macs'] for row in group) / 1e6:.2f} |"
        )
    return lines


def full_table(rows: Sequence[Row], seeds: int) -> list[str]:
    """One line per combination, every figure."""
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "accuracy": ("accuracy in %", percent),
        "agreement": ("same answer as dense, in %", percent),
        "relative_residual": ("relative residual", "{:.3f}".format),
        "error_before": ("error before re-fit", "{:.3f}".format),
        "error_after": ("error after re-fit", "{:.3f}".format),
        "cpu_seconds": ("CPU s", "{:.1f}".format),
        "seconds": ("wall s", "{:.1f}".format),
        "macs": ("M MACs", lambda macs: f"{macs / 1e6:.2f}"),
    }
    titles = " | ".join(title for title, _ in columns.values())
    lines = [f"| keep | selector | re-fit | {titles} |", "|---:|---|---|" + "---:|" * len(columns)]
    for group in grouped(rows, "keep", "distil", "allocation", "selector", "reconstruct").values():
        cells = [spread([row[key] for row in group], form, seeds) for key, (_, form) in columns.items()]
        first = group[0]
        lines.append(f"| {first['keep']} | {variant(first)} | {first['reconstruct']} | {' | '.join(cells)} |")
    return lines


def percent(share: float) -> str:
    """A share in [0, 1] as a number of percent."""
    return f"{100 * share:.1f}"


def figure_of(rows: Sequence[Row]) -> Any:
    """Accuracy against the keep ratio: a row of panels per model, a panel per re-fit, a line per selector.

    Points are means over the seeds, bars reach to the lowest and the highest.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    rows = ordered(rows)
    models = list(dict.fromkeys(row["model"] for row in rows))
    if len(grouped(rows, *DATA_KEYS)) > len(models):
        raise SystemExit("The rows differ in images or multiple; draw files with one of each per model.")
    refits = [refit for refit in RECONSTRUCTIONS if any(row["reconstruct"] == refit for row in rows)]
    titles = [f"{model}, re-fit: {refit}" for model in models for refit in refits]
    figure = make_subplots(
        rows=len(models),
        cols=len(refits),
        subplot_titles=titles,
        shared_yaxes=True,
        horizontal_spacing=0.02,
        vertical_spacing=0.1,
    )
    # First the plain selectors, then the same with what else was asked for, each with lines of its own.
    extras = sorted({(row["distil"], ALLOCATIONS.index(row["allocation"])) for row in rows})
    shown: set[str] = set()
    for line in grouped(rows, "model", "reconstruct", "selector", "allocation", "distil").values():
        first, label = line[0], variant(line[0])
        number = selectors.names().index(first["selector"])
        extra = extras.index((first["distil"], ALLOCATIONS.index(first["allocation"])))
        points = [[row["accuracy"] for row in group] for group in grouped(line, "keep").values()]
        means = [statistics.fmean(values) for values in points]
        above = [max(values) - middle for values, middle in zip(points, means, strict=True)]
        below = [middle - min(values) for values, middle in zip(points, means, strict=True)]
        figure.add_trace(
            go.Scatter(
                x=list(dict.fromkeys(row["keep"] for row in line)),
                y=means,
                error_y={"symmetric": False, "array": above, "arrayminus": below, "thickness": 1, "width": 3},
                name=label,
                legendgroup=label,
                legendrank=1000 + 100 * extra + number,
                showlegend=label not in shown,
                mode="lines+markers",
                line={"color": COLOURS[number % 10], "dash": DASHES[extra % 5], "width": 1.5},
                marker={"symbol": SYMBOLS[number % 10], "size": 8},
            ),
            row=models.index(first["model"]) + 1,
            col=refits.index(first["reconstruct"]) + 1,
        )
        shown.add(label)
    for place, model in enumerate(models, start=1):
        dense = next(row["accuracy_dense"] for row in rows if row["model"] == model)
        for column in range(1, len(refits) + 1):
            figure.add_hline(dense, line_dash="dot", line_color="#555555", row=place, col=column)
    keeps = sorted({row["keep"] for row in rows})
    figure.update_xaxes(range=[keeps[-1] + 0.03, keeps[0] - 0.03], tickvals=keeps)
    figure.update_xaxes(title_text="kept fraction of the groups", row=len(models))
    figure.update_yaxes(tickformat=".0%")
    figure.update_yaxes(title_text="accuracy (dotted: dense)", col=1)
    figure.update_layout(template="plotly_white", margin={"t": 40, "b": 10, "l": 10, "r": 10})
    return figure.update_layout(width=1300, height=400 * len(models))


def plot(rows: Sequence[Row], path: Path) -> None:
    """Write ``figure_of`` as a PNG."""
    write_png(figure_of(rows), path)

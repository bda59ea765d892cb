"""Budgets and sensitivities as plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from ispasp.budget_report import BudgetReport, Side
from ispasp.narrative import residual
from ispasp.sensitivity import Curve
from ispasp.sensitivity_figures import QUANTITIES, advice, heat_info


def budget_table(report: BudgetReport) -> str:
    """Target against predicted against measured, the counts of both runs, and what came of it."""
    runs = {"budget": report.budget, "uniform": report.uniform or report.budget}
    wide = max(len("accuracy"), *(len(name) for name in report.blocks))
    lines = [f"{'':{wide}} {'dense':>11} " + " ".join(f"{role:>11}" for role in runs)]
    for at, (name, groups) in enumerate(zip(report.blocks, report.groups, strict=True)):
        counts = " ".join(f"{side.counts[at]:>11,}" for side in runs.values())
        lines.append(f"{name:{wide}} {groups:>11,} {counts}")
    lines.append("")
    for what in ("macs", "params", "accuracy", "speedup"):
        if report.budget.measured.get(what) is not None:
            dense = 1.0 if what == "speedup" else report.dense[what]
            values = " ".join(f"{_number(what, side.measured[what]):>11}" for side in runs.values())
            lines.append(f"{what:{wide}} {_number(what, dense):>11} {values}{_aim(report, what)}")
    lines += ["", *report.sentences, "", *(f"{role}: {_saved(side)}" for role, side in runs.items())]
    return "\n".join(lines if report.uniform else lines[:-1])


def _aim(report: BudgetReport, what: str) -> str:
    if what not in report.limits:
        return ""
    bound = "at least" if what == "speedup" else "at most"
    predicted = _number(what, report.budget.predicted[what])
    return f"   asked: {bound} {_number(what, report.limits[what])}; predicted: {predicted}"


def _number(what: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if what == "accuracy" else f"{value:.2f}x" if what == "speedup" else f"{value:,.0f}"


def _saved(side: Side) -> str:
    return f"keep {side.keep:g}, saved as {side.run_id}"


def sensitivity_table(
    curves: Sequence[Curve], quantity: str = "agreement", samples: int | None = None
) -> str:
    """One line per block, one column per kept fraction, and ``advice``."""
    info = heat_info(curves, quantity)
    wide = max(len("kept fraction"), *(len(name) for name in info.names))
    form = "{:.1%}".format if info.quantity == "agreement" else residual
    lines = [f"{'kept fraction':{wide}} " + " ".join(f"{f'{fraction:g}':>8}" for fraction in info.fractions)]
    for name, values in zip(info.names, info.values, strict=True):
        lines.append(f"{name:{wide}} " + " ".join(f"{form(float(value)):>8}" for value in values))
    return "\n".join([*lines, f"({QUANTITIES[info.quantity]})", "", advice(curves, samples)])

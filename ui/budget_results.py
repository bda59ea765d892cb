"""What came of a budget, and how sensitive the blocks are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import streamlit as st

from ispasp import budget, sensitivity_run
from ispasp.budget import BudgetReport, Side
from ispasp.budget_figures import TOP, kept_figure
from ispasp.errors import ISpaSPError
from ispasp.narrative import percent, quantity
from ispasp.run_settings import RunSettings
from ispasp.sensitivity import Curve
from ispasp.sensitivity_figures import QUANTITIES, advice, heat_figure, heat_info, repeats
from ispasp.vocabulary import refit_words, selector_words
from ui import style
from ui.budget_form import Asked, described
from ui.runs_actions import COMPARE, open_in_explore
from ui.words import HELP, escaped, moment, source_words

_HELP = {
    "heat": "One row per block, one column per kept fraction: this block alone is pruned so far, everything else stays "
    "dense. Agreement: for how many calibration examples the network's answer stays the same. Residual: how far the "
    "block's own output moves, as squared error over squared size. Cells with no line between them are one "
    "measurement: kept counts are rounded to the multiple, so several fractions can mean the same count.",
    "uniform": "The same keep ratio for every block: the largest one within the budget. Kept counts go in steps, so it "
    "may cost less than the budget allows.",
    "kept": "Groups kept of every block. Where the network is sensitive, the budget keeps more than the uniform ratio.",
    "speed": "How many times faster than the dense model, in onnxruntime at batch 1 on this machine. Predicted: by "
    "the table of single layers.",
    "open": "Look at every step of the run that was made to fit.",
    "open_uniform": "Look at every step of the run with the same ratio everywhere.",
    "compare": "See both runs side by side: what they keep, and which answers changed.",
    "advice": "By the divergence of the network's output, which also sees changes that flip no answer yet.",
}
_MEASURES = {"Agreement": "agreement", "Residual": "residual"}


def title(report: BudgetReport) -> str:
    """``"mnist_mlp: at most 50 % of the MACs"``."""
    words = described(tuple(budget.parse(text) for text in report.budgets))
    return f"{source_words(report.settings.get('model', 'unknown model'))}: {words[:1].lower()}{words[1:]}"


def line(report: BudgetReport) -> str:
    """When it was, the same, and what came of it."""
    return f"{moment(report.finished_at)}, {title(report)} ({'met' if report.met else 'missed'})"


def settings_of(report: BudgetReport) -> RunSettings | None:
    """What both runs were made with but for what they keep; None where that is unknown here."""
    try:
        return RunSettings(**report.settings)
    except (TypeError, AttributeError, ISpaSPError):
        return None


def answers(report: BudgetReport, asked: Asked) -> bool:
    """Whether the report is of just these settings and budgets; what they say to keep does not matter."""
    settings, wanted = settings_of(report), asked.settings
    if settings is None or wanted is None or report.budgets != tuple(str(one) for one in asked.budgets):
        return False
    return replace(settings, keep=1.0) == replace(wanted, keep=1.0)


def draw_report(report: BudgetReport, folder: Path) -> None:
    """Target against predicted and measured, beside the uniform ratio; what every block keeps; where to go on."""
    mark = ":green-badge[Met]" if report.met else ":orange-badge[Missed]"
    st.markdown(f"{mark} {escaped(' '.join(report.sentences))}")
    _table(report)
    settings = settings_of(report)
    about = ""
    if settings is not None:
        about = (
            f"Selector {selector_words(settings.selector).title}, re-fit {refit_words(settings.reconstruct)[0]}, "
            f"{settings.samples:,} samples. "
        )
    timed = ", the speed from the times of single layers" if "speedup" in report.limits else ""
    st.caption(
        f"{about}Predicted: before the run, by formula{timed}. Uniform: the largest keep ratio that costs no more, the "
        "same for every block."
    )
    _buttons(report, folder)
    curves = sensitivity_run.load(settings, folder) if settings else None
    left, right = st.columns(2, gap="medium") if curves else (st.container(), st.container())
    with left:
        with st.container(horizontal=True, vertical_alignment="center", height=52, border=False):
            st.markdown("**What every block keeps**", help=_HELP["kept"], width="content")
        st.plotly_chart(kept_figure(report, style.dark()), key="budget_kept", config={"displaylogo": False})
    if curves:
        with right:
            _heat(curves, "report")
        _advice(curves, settings)


def draw_sensitivity(settings: RunSettings, curves: Sequence[Curve]) -> None:
    """How sensitive the blocks of a model are, where no report shows it already."""
    st.subheader(f"Sensitivity of {escaped(source_words(settings.model))}", anchor=False)
    _advice(curves, settings)
    _heat(curves, "own")


def _advice(curves: Sequence[Curve], settings: RunSettings | None) -> None:
    st.markdown(escaped(advice(curves, None if settings is None else settings.samples)), help=_HELP["advice"])


def _heat(curves: Sequence[Curve], place: str) -> None:
    with st.container(
        horizontal=True, vertical_alignment="center", horizontal_alignment="distribute", height=52, border=False
    ):  # fmt: skip
        st.markdown("**When one block alone is pruned**", help=_HELP["heat"], width="content")
        shown = "Residual"
        if curves[0].agreement is not None:
            shown = st.segmented_control(
                "Show", list(_MEASURES), default="Agreement", required=True, key=f"heat_{place}",
                persist_state="session", label_visibility="collapsed",
            ) or "Agreement"  # fmt: skip
    info = heat_info(curves, _MEASURES[shown])
    figure = heat_figure(info, style.dark()).update_layout(margin_t=TOP)
    st.plotly_chart(figure, key=f"budget_heat_{place}", config={"displaylogo": False})
    if repeats(info):
        st.caption(
            "Cells with no line between them are one measured count, as counts are rounded to the multiple; "
            "hover for it."
        )
    if curves[0].agreement is None:
        st.caption(
            f"The network gives no classes that could agree, so the {QUANTITIES['residual']} is shown."
        )


def _table(report: BudgetReport) -> None:
    fast = report.budget.measured.get("speedup") is not None
    rows = {
        "Dense model": _cells(report.dense | {"speedup": 1.0, "agreement": 1.0}, report),
        "Target": _target(report),
        "Predicted": _cells(report.budget.predicted, report),
        "Measured": _cells(report.budget.measured, report),
    }
    if report.uniform is not None:
        rows[f"Uniform {report.uniform.keep:g}, measured"] = _cells(report.uniform.measured, report)
    frame = pd.DataFrame(
        [{"": name, **cells} for name, cells in rows.items()],
        columns=["", "MACs", "Parameters", "Accuracy", "Agreement", *(["Speed"] if fast else [])],
    )
    st.dataframe(
        frame,
        hide_index=True,
        column_config={
            "": st.column_config.TextColumn(width="medium", help=_HELP["uniform"]),
            "MACs": st.column_config.TextColumn(help=HELP["macs"]),
            "Parameters": st.column_config.TextColumn(help=HELP["parameters"]),
            "Accuracy": st.column_config.TextColumn(
                help=f"{HELP['accuracy']} In brackets: points against dense."
            ),
            "Agreement": st.column_config.TextColumn(help=HELP["agreement"]),
            "Speed": st.column_config.TextColumn(help=_HELP["speed"]),
        },
        placeholder="–",
        alt="Target, predicted and measured, beside the uniform ratio",
    )


def _cells(values: dict[str, float | None] | dict[str, float], report: BudgetReport) -> dict[str, str | None]:
    """One row: sizes with their share of the dense model's, and accuracy with what it lost."""
    cells: dict[str, str | None] = {}
    for title, what in (("MACs", "macs"), ("Parameters", "params")):
        value, dense = values.get(what), report.dense.get(what)
        cells[title] = None if value is None or not dense else _sized(value, dense)
    accuracy, before = values.get("accuracy"), report.dense.get("accuracy")
    if accuracy is not None and before is not None:
        lost = 100 * (accuracy - before)
        cells["Accuracy"] = percent(accuracy) + (
            f" ({_signed(lost)})" if values is not report.dense and lost else ""
        )
    agreement, speed = values.get("agreement"), values.get("speedup")
    cells["Agreement"] = None if agreement is None else percent(agreement)
    cells["Speed"] = None if speed is None else f"{speed:.2f}×"
    return cells


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")


def _sized(value: float, dense: float) -> str:
    return quantity(value, dense) + (f" ({100 * value / dense:.3g} %)" if value != dense else "")


def _target(report: BudgetReport) -> dict[str, str | None]:
    cells: dict[str, str | None] = {}
    for title, what in (("MACs", "macs"), ("Parameters", "params")):
        if what in report.limits:
            cells[title] = f"≤ {_sized(report.limits[what], report.dense[what] or 1.0)}"
    if "loss" in report.limits:
        least = (report.dense.get("accuracy") or 0.0) - report.limits["loss"] / 100
        cells["Accuracy"] = f"≥ {percent(max(least, 0.0))} ({_signed(-report.limits['loss'])})"
    if "speedup" in report.limits:
        cells["Speed"] = f"≥ {report.limits['speedup']:.2f}×"
    return cells


def _buttons(report: BudgetReport, folder: Path) -> None:
    own, other = report.budget, report.uniform
    gone = [side for side in (own, other) if side is not None and not _there(side, folder)]
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Open in Explore", key="budget_open", type="primary", disabled=own in gone, help=_HELP["open"]
        ):
            open_in_explore("run", own.run_id)
        if other is not None:
            if st.button(
                "Open the uniform run", key="budget_open_uniform", disabled=other in gone,
                help=_HELP["open_uniform"],
            ):  # fmt: skip
                open_in_explore("run", other.run_id)
            if st.button("Compare both", key="budget_compare", disabled=bool(gone), help=_HELP["compare"]):
                st.switch_page(COMPARE, query_params={"runs": f"{own.run_id},{other.run_id}"})
        if gone:
            st.caption("A run of this budget was deleted; its figures stay.", width="content")


def _there(side: Side, folder: Path) -> bool:
    return (folder / side.run_id / "run.json").is_file()

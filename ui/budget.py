"""The Budget page: how sensitive every block is, and pruning to what a model may cost or lose."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from ispasp import budget, sensitivity_run, store
from ispasp.budget import BudgetDone, BudgetReport
from ispasp.budget_report import FOLDER
from ispasp.errors import ISpaSPError
from ispasp.jobs import Job, Snapshot, State
from ispasp.run_settings import RunSettings
from ispasp.sensitivity_run import SensitivityDone
from ui import budget_form, budget_results, models
from ui.background import BUDGET, BUDGETS, SENSITIVITY
from ui.budget_form import Asked
from ui.words import escaped, source_words

_QUERY = "budget"
_HELP = {
    "meet": "Measures the sensitivities where that was not done yet, shares the groups out, prunes and measures; then "
    "the uniform keep ratio of the same cost, to compare with. Both runs are kept.",
    "measure": "Prunes every block alone at seven kept fractions and looks at what the network's answer does. It is "
    "kept on disk, and a budget uses it.",
    "earlier": "Every budget whose report is in the runs folder, newest first.",
}


def draw() -> None:
    """Draw the page."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="title"):
        st.title("Budget", anchor=False, width="content")
        st.caption(
            "Say what the pruned model may cost or lose: every block then keeps as much as it is worth, and what was "
            "reached is measured.",
            width="content",
        )
    folder = store.default_folder()
    job = BUDGETS.job()
    going = job is not None and not job.state.ended
    with st.container(border=True, key="budget_form"):
        asked = budget_form.draw()
        _start(asked, folder, going)
    if job is not None and job.state is State.FINISHED and _landed(job, asked, folder):
        BUDGETS.follow(None)
        job = None
    BUDGETS.watch(job, _ended)
    reports = _reports(folder)
    report = _chosen(reports, folder)
    settings, measured = asked.settings, None
    if report is not None:
        _earlier(reports, report, current=not going and budget_results.answers(report, asked))
        budget_results.draw_report(report, folder)
        measured = _place(budget_results.settings_of(report), folder)
    apart = settings is not None and _place(settings, folder) != measured
    if settings and apart and (curves := sensitivity_run.load(settings, folder)):
        budget_results.draw_sensitivity(settings, curves)
    elif report is None and not going:
        _empty()


def _start(asked: Asked, folder: Path, going: bool) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Meet the budget", key="budget_meet", type="primary", disabled=not asked.budgets or going,
            on_click=_meet, args=(asked, folder), help=_HELP["meet"],
        )  # fmt: skip
        st.button(
            "Measure sensitivity", key="budget_measure", disabled=asked.settings is None or going,
            on_click=_measure, args=(asked, folder), help=_HELP["measure"],
        )  # fmt: skip
        st.caption(f"⚠️ {escaped(asked.problem)}" if asked.problem else asked.words, width="stretch")


def _meet(asked: Asked, folder: Path) -> None:
    settings, allow = asked.settings, models.allow_code()
    assert settings is not None
    title = f"{budget_form.described(asked.budgets)}, {source_words(settings.model)}"
    BUDGETS.submit(
        title,
        lambda: budget.execute(settings, asked.budgets, folder, allow_code=allow),
        settings.device,
        BUDGET,
    )


def _measure(asked: Asked, folder: Path) -> None:
    settings, allow = asked.settings, models.allow_code()
    assert settings is not None
    BUDGETS.submit(
        f"Sensitivity of {source_words(settings.model)}",
        lambda: sensitivity_run.execute(settings, folder, allow_code=allow),
        settings.device,
        SENSITIVITY,
    )


def _landed(job: Job, asked: Asked, folder: Path) -> bool:
    """Show what a finished job has found; False where the form says something else by now."""
    last = job.snapshot().events[-1]
    if isinstance(last, BudgetDone):
        _choose(last.report.id)
        return True
    return isinstance(last, SensitivityDone) and last.path == _place(asked.settings, folder)


def _ended(snapshot: Snapshot) -> None:
    if snapshot.state is State.FINISHED:
        st.caption("The settings above were changed meanwhile. Set them back to see the heat map.")


# -- reports --------------------------------------------------------------------------------------------


def _reports(folder: Path) -> list[BudgetReport]:
    place = folder / FOLDER
    return _read(folder, place.stat().st_mtime_ns) if place.is_dir() else []


@st.cache_data(show_spinner=False, max_entries=4)
def _read(folder: Path, changed: int) -> list[BudgetReport]:
    """The reports, read anew where one has come or gone since."""
    return budget.list_reports(folder)


def _chosen(reports: list[BudgetReport], folder: Path) -> BudgetReport | None:
    """The report that the address names, else the session, else the newest."""
    id = st.query_params.get(_QUERY) or st.session_state.get("seen_budget")
    found = next((report for report in reports if report.id == id), None)
    if id and found is None:
        try:
            found = budget.load(folder, id)
        except ISpaSPError as problem:
            st.error(escaped(str(problem)))
    if found is None:
        return reports[0] if reports else None
    _choose(found.id)
    return found


def _choose(id: str) -> None:
    st.session_state.seen_budget = id
    if st.query_params.get(_QUERY) != id:
        st.query_params[_QUERY] = id


def _earlier(reports: list[BudgetReport], report: BudgetReport, current: bool) -> None:
    """What is shown, and the list of budgets so far.

    Args:
        current: whether it is the answer to what the form asks; if not, the title says which one it is.
    """
    which = "" if current else "Last result, " if report.id == reports[0].id else "Earlier result, "
    titles = {one.id: budget_results.line(one) for one in reports}
    heading, choice = st.columns([1.2, 1], vertical_alignment="bottom")
    heading.subheader(escaped(which + budget_results.title(report)), anchor=False)
    st.session_state.budget_choice = report.id
    choice.selectbox(
        f"Budgets so far ({len(titles)})", list(titles), key="budget_choice", format_func=titles.__getitem__,
        on_change=lambda: _choose(st.session_state.budget_choice), help=_HELP["earlier"],
    )  # fmt: skip


def _place(settings: RunSettings | None, folder: Path) -> Path | None:
    """Where the sensitivities of such settings lie."""
    return None if settings is None else sensitivity_run.path_of(settings, folder)


def _empty() -> None:
    with st.container(border=True):
        for place, (title, text) in zip(
            st.columns(3, gap="large"),
            (
                ("1. Meet the budget", "Say above what the pruned model may cost or lose, and press. Every block is "
                 "measured and then keeps as much as it is worth."),
                ("2. Read target against measured", "MACs, parameters, accuracy and speed of what was made, beside "
                 "the largest uniform keep ratio within the same budget."),
                ("3. See what is sensitive", "The heat map shows what the network does when one block alone is "
                 "pruned. Measure sensitivity draws it without a budget."),
            ),
            strict=True,
        ):  # fmt: skip
            place.markdown(f"**{title}**")
            place.markdown(text)

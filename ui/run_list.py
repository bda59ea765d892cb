"""The Runs page: what goes on, and the table of finished runs; and on Explore, the runs under way."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import streamlit as st

from ispasp import store
from ispasp.errors import ISpaSPError
from ispasp.jobs import Job, registry
from ispasp.narrative import plural
from ispasp.store import RunSummary
from ui import controls, runs_actions, runs_folder, runs_interrupted, runs_table, session
from ui import view as views
from ui.background import follower
from ui.runs_actions import COMPARE, EXPLORE, open_in_explore
from ui.words import HELP, escaped, moment, source_words

ROWS = 14  # of the table; more scroll inside it


def draw() -> None:
    """Draw the page."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="title"):
        st.title("Runs", anchor=False, width="content")
        st.caption(
            "Everything that was pruned here: open it, compare it, name it, or take it elsewhere.",
            width="content",
        )
    _jobs()
    runs_interrupted.ended()
    runs_interrupted.draw(moment)
    try:
        found = store.list_runs(store.default_folder())
    except ISpaSPError as problem:
        st.error(escaped(str(problem)))
        return
    st.subheader("Finished runs", anchor=False)
    runs_actions.notice()
    sound = [run for run in found if not run.problem]
    if sound:
        _finished(sound)
    else:
        with st.container(border=True):
            st.markdown(
                "**No finished run yet.** Every run that comes to its end is kept here and can be opened again, "
                "also after a restart. Go to Explore and press Run, start a sweep on Compare, or import runs from "
                "elsewhere below."
            )
            with st.container(horizontal=True):
                st.page_link(EXPLORE, label="Go to Explore")
                st.page_link(COMPARE, label="Go to Compare")
    runs_folder.damaged([run for run in found if run.problem])
    runs_folder.bring()


def _finished(runs: Sequence[RunSummary]) -> None:
    """Search, filters, the actions, and the table, whose rows are picked for the actions."""
    shown, columns = _filters(runs)
    if not shown:
        with st.container(border=True):
            st.markdown(f"**None of the {plural(len(runs), 'run')} matches** the search and the filters.")
            st.button("Clear them", key="runs_clear", on_click=_clear)
        return
    actions = st.container()
    picked = _table(shown, columns, len(runs))
    with actions:
        runs_actions.bar(picked)


def _filters(runs: Sequence[RunSummary]) -> tuple[list[RunSummary], list[str]]:
    """The runs that are wanted, and the columns to show. All of it is in the address."""
    models = sorted({runs_table.model_of(run) for run in runs})
    selectors = sorted({runs_table.selector_of(run) for run in runs} - {""})
    find, model, selector, choice = st.columns([2.2, 2, 2, 0.9], vertical_alignment="bottom")
    text = find.text_input(
        "Search", key="runs_find", type="search", placeholder="name, note, model, selector, sweep …",
        bind="query-params",
        help="Every word has to be in a run's name, note, model, selector, sweep, budget or folder.",
    )  # fmt: skip
    with model:
        of_model = st.multiselect("Model", models, key="runs_model", placeholder="all", bind="query-params")
    with selector:
        of_selector = st.multiselect(
            "Selector", selectors, key="runs_selector", placeholder="all", bind="query-params"
        )
    with choice, st.popover("Columns", width="stretch"):
        chosen = st.pills(
            "Columns to show", runs_table.choices(), selection_mode="multi", key="runs_columns",
            default=runs_table.USUAL_COLUMNS, bind="query-params",
        )  # fmt: skip
    return runs_table.wanted(runs, text or "", of_model, of_selector), chosen


def _clear() -> None:
    st.session_state.runs_find = ""
    st.session_state.runs_model = st.session_state.runs_selector = []


def _table(runs: Sequence[RunSummary], columns: Sequence[str], total: int) -> list[RunSummary]:
    """Draw the table; the runs that are picked in it, of ``total`` in all.

    The browser knows rows by their number: another list of runs is another table, or a click on one run could
    delete another. What was picked is carried over by id.
    """
    ids = [run.run_id for run in runs]
    before = set(st.session_state.get("runs_picked", ()))
    order = [title for title in runs_table.choices() if title in columns]
    state: Any = st.dataframe(
        runs_table.frame(runs),
        key=f"runs_table_{hashlib.sha256(chr(0).join(ids).encode()).hexdigest()[:16]}",
        height="content" if len(runs) <= ROWS else 36 + 35 * ROWS,
        hide_index=True,
        column_order=["Name", *order],
        column_config=runs_table.configuration(),
        on_select="rerun",
        selection_mode="multi-row",
        selection_default={"selection": {"rows": [i for i, id in enumerate(ids) if id in before]}},
        placeholder="–",
        alt="Finished runs",
    )
    picked = [runs[row] for row in state.selection.rows if 0 <= row < len(runs)]
    st.session_state.runs_picked = [run.run_id for run in picked]
    size = runs_actions.megabytes(sum(run.size for run in runs))
    count = plural(total, "run") if len(runs) == total else f"{len(runs):,} of {plural(total, 'run')}"
    st.caption(f"{count}, {size} on disk. Click a column's title to sort by it.")
    return picked


def _jobs() -> None:
    open_jobs = [job for job in registry.jobs() if not job.state.ended]
    if not open_jobs:
        return
    st.subheader("Under way", anchor=False)

    @st.fragment(run_every=1.0)
    def live() -> None:
        if any(job.state.ended for job in open_jobs):
            st.rerun(scope="app")
        for job in open_jobs:
            _job_row(job)

    live()


def under_way() -> None:
    """On Explore: the runs that go on, each with a way to look at it; nothing where there is none."""
    open_jobs = [job for job in registry.jobs() if not job.state.ended and not job.subject]
    if not open_jobs:
        return

    @st.fragment(run_every=2.0)
    def live() -> None:
        going = [job for job in open_jobs if not job.state.ended]
        count = "1 job" if len(going) == 1 else f"{len(going)} jobs"
        for place, job in enumerate(going[-3:]):
            snapshot = job.snapshot()
            where = controls.where(views.from_events(snapshot.events)) or snapshot.state.value
            with st.container(horizontal=True, vertical_alignment="center", key=f"under_way_{job.id}"):
                what = "and" if place else f"**{count} under way:**"
                st.markdown(f"{what} {_job_words(job)}, {where}", width="content")
                if st.button("Watch", key=f"watch_{job.id}"):
                    session.forget_view()
                    session.look_at("job", job.id)
                    st.rerun(scope="app")

    live()


def _job_words(job: Job) -> str:
    """``"cifar10_resnet20, keep 0.5"``; the title of a job that is no run."""
    settings = session.settings_of(job)
    return f"{escaped(source_words(settings.model))}, keep {settings.keep:g}" if settings else job.title


def _job_row(job: Job) -> None:
    view = job.snapshot()
    title, bar, stop, watch = st.columns([2.5, 3, 0.8, 0.8], vertical_alignment="center")
    settings = session.settings_of(job)
    begun = moment(datetime.fromtimestamp(view.started or view.submitted, UTC).isoformat())
    title.markdown(escaped(view.title))
    title.caption(f"{f'seed {settings.seed}, ' if settings else ''}since {begun}")
    bar.progress(view.done, text=f"{view.state.value.capitalize()} on {view.device}")
    page = follower(view.subject)
    help = page.stop if page else HELP["stop"]
    if stop.button("Stop", key=f"stop_{job.id}", width="stretch", help=help):
        job.cancel()
    if (page or not view.subject) and watch.button("Watch", key=f"watch_{job.id}", width="stretch"):
        if page:
            st.switch_page(page.page, query_params=page.address(job))
        open_in_explore("job", job.id)

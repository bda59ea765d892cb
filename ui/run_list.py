"""The lists of the Runs page."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import streamlit as st

from ispasp import runs
from ispasp.jobs import Job, registry
from ispasp.narrative import percent, quantity
from ispasp.runs import RunSummary
from ui import session
from ui.words import HELP

EXPLORE = Path(__file__).resolve().parent.parent / "pages" / "explore.py"
PAGE = 15
_WIDTHS = [2.6, 0.7, 1.5, 1, 1.3, 1.5, 0.8, 1]


def draw() -> None:
    """Draw the page."""
    st.title("Runs", anchor=False)
    _jobs()
    found = runs.list_runs(runs.default_folder())
    st.subheader("Finished runs", anchor=False)
    if not found:
        with st.container(border=True):
            st.markdown(
                "**No finished run yet.** Every run that comes to its end is kept here and can be opened again, "
                "also after a restart. Go to Explore and press Run."
            )
            st.page_link(EXPLORE, label="Go to Explore")
        return
    _header()
    shown = st.session_state.get("runs_shown", PAGE)
    for run in found[:shown]:
        _row(run)
    if len(found) > shown:
        st.button(f"Show more ({len(found) - shown} left)", on_click=_more, args=(shown,))


def _more(shown: int) -> None:
    st.session_state.runs_shown = shown + PAGE


def _open(kind: str, id: str) -> None:
    session.forget_view()
    session.look_at(kind, id)
    st.switch_page(EXPLORE, query_params={kind: id})


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


def _job_row(job: Job) -> None:
    view = job.snapshot()
    title, bar, stop, watch = st.columns([2.5, 3, 0.8, 0.8], vertical_alignment="center")
    title.markdown(view.title)
    bar.progress(view.done, text=f"{view.state.value.capitalize()} on {view.device}")
    if stop.button("Stop", key=f"stop_{job.id}", width="stretch", help=HELP["stop"]):
        job.cancel()
    if not view.subject and watch.button("Watch", key=f"watch_{job.id}", width="stretch"):
        _open("job", job.id)


def _header() -> None:
    titles = ("Model", "Keep", "Parameters", "Accuracy", "Accuracy change", "Finished", "ONNX", "")
    for column, title in zip(st.columns(_WIDTHS, vertical_alignment="center"), titles, strict=True):
        column.markdown(f"**{title}**" if title else "")


def _row(run: RunSummary) -> None:
    columns = st.columns(_WIDTHS, vertical_alignment="center")
    if run.problem:
        columns[0].markdown(f"`{run.run_id}`")
        columns[1].markdown("⚠️", help=run.problem)
        columns[2].caption("cannot be opened")
        return
    report, settings = run.report, run.settings
    before, after = report.get("accuracy_before"), report.get("accuracy_after")
    model = settings.get("model")
    columns[0].markdown(str(model) if model else "a model from Python")
    keep = settings.get("keep")
    columns[1].markdown(f"{keep:g}" if isinstance(keep, (int, float)) else "per block")
    columns[2].markdown(
        f"{quantity(report['params_before'])} → {quantity(report['params_after'], report['params_before'])}"
    )
    columns[3].markdown(percent(after) if after is not None else "–")
    points = (
        "–" if before is None or after is None else f"{100 * (after - before):+.1f} points".replace("-", "−")
    )
    columns[4].markdown(points)
    columns[5].markdown(_when(run.finished_at))
    columns[6].markdown("yes" if run.exported else "no")
    if columns[7].button("Open", key=f"open_{run.run_id}", width="stretch", disabled=model is None):
        _open("run", run.run_id)


def _when(text: str) -> str:
    """A moment in the time zone of the person's browser."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return "–"
    zone = st.context.timezone
    if zone and moment.tzinfo:
        from zoneinfo import ZoneInfo

        moment = moment.astimezone(ZoneInfo(zone))
    return moment.strftime("%d %b %Y, %H:%M")

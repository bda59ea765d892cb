"""The lists of the Runs page."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import streamlit as st

from ispasp import runs
from ispasp.jobs import Job, registry
from ispasp.narrative import percent, quantity
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSummary
from ui import controls, library, session
from ui import view as views
from ui.words import HELP, escaped, source_words, unusual_words

EXPLORE = Path(__file__).resolve().parent.parent / "pages" / "explore.py"
PAGE = 15
_WIDTHS = [1.6, 0.5, 2.6, 1.6, 0.9, 1.1, 1.5, 0.6, 0.8]
_USUAL = asdict(RunSettings(library.FIRST_MODEL))


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
    begun = _when(datetime.fromtimestamp(view.started or view.submitted, UTC).isoformat())
    title.markdown(escaped(view.title))
    title.caption(f"{f'seed {settings.seed}, ' if settings else ''}since {begun}")
    bar.progress(view.done, text=f"{view.state.value.capitalize()} on {view.device}")
    help = HELP["stop_export"] if view.subject else HELP["stop"]
    if stop.button("Stop", key=f"stop_{job.id}", width="stretch", help=help):
        job.cancel()
    if not view.subject and watch.button("Watch", key=f"watch_{job.id}", width="stretch"):
        _open("job", job.id)


def _header() -> None:
    titles = ("Model", "Keep", "Settings", "Parameters", "Accuracy", "Change", "Finished", "ONNX", "")
    for column, title in zip(st.columns(_WIDTHS, vertical_alignment="center"), titles, strict=True):
        column.markdown(f"**{title}**" if title else "")


def _row(run: RunSummary) -> None:
    if run.problem:
        name, said, _ = st.columns([2.5, 7, 0.9], vertical_alignment="center")
        name.markdown(f"`{run.run_id}`")
        said.markdown(f"⚠️ It cannot be opened. {escaped(run.problem)}")
        return
    columns = st.columns(_WIDTHS, vertical_alignment="center")
    report, settings = run.report, run.settings
    before, after = report.get("accuracy_before"), report.get("accuracy_after")
    model = settings.get("model")
    kind, _, short = source_words(model).partition(":") if model else ("a model from Python", "", "")
    with columns[0].container(gap=None):
        st.markdown(escaped(short or kind))
        if short:
            st.caption(kind)
    keep = settings.get("keep")
    columns[1].markdown(f"{keep:g}" if isinstance(keep, (int, float)) else "per block")
    columns[2].caption(_settings(settings))
    columns[3].markdown(
        f"{quantity(report['params_before'])} → {quantity(report['params_after'], report['params_before'])}"
    )
    columns[4].markdown(percent(after) if after is not None else "unknown")
    points = (
        "–" if before is None or after is None else f"{100 * (after - before):+.1f} points".replace("-", "−")
    )
    columns[5].markdown(points)
    columns[6].markdown(_when(run.finished_at))
    columns[7].markdown("yes" if run.exported else "no")
    if columns[8].button("Open", key=f"open_{run.run_id}", width="stretch", disabled=model is None):
        _open("run", run.run_id)


def _settings(settings: dict[str, Any]) -> str:
    """Samples and seed, and whatever is not as usual."""
    shown = {key: settings[key] for key in ("samples", "seed") if key in settings}
    rest = {k: v for k, v in settings.items() if k not in ("model", "keep", "device", *shown)}
    words = [f"{key} {value}" for key, value in shown.items()] + unusual_words(rest, _USUAL)
    return ", ".join(words) or "–"


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

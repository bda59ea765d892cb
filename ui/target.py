"""What this session looks at, resolved: a job under way, a run from disk, or nothing yet."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from ispasp.errors import ISpaSPError
from ispasp.jobs import Job, State
from ispasp.result import RunRecord
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from ui import library, models, session, sources
from ui import view as views
from ui.runs_actions import PAGES
from ui.settings import Draft
from ui.view import View

_GONE = "seen_gone"  # in the session: the address named a job that the server has forgotten


@dataclass(frozen=True)
class Target:
    """At most one of ``job`` and ``record`` is given; ``settings`` are the ones it was made with.

    ``state`` is the job's at the beginning of this page run: one for all widgets, though the job goes on. ``live``:
    whether it may change by itself. ``ending``: it stands still, or waits, and is about to stop for good.
    """

    job: Job | None = None
    state: State | None = None
    run_id: str = ""
    record: RunRecord | None = None
    settings: RunSettings | None = None
    live: bool = False
    ending: bool = False

    @property
    def id(self) -> str:
        """Of what is seen; empty where that is nothing."""
        return self.job.id if self.job else self.run_id

    @property
    def locked(self) -> bool:
        """Whether settings must stand still."""
        return self.state is not None and not self.state.ended

    def view(self, draft: Draft) -> View:
        """What there is to see; before any work, the plan that the draft (or what it last was) amounts to."""
        if self.record is not None:
            return views.from_saved(self.record)
        if self.job is not None:
            seen = views.from_events(self.job.snapshot().events)
            if seen.blocks:
                return seen
        settings = self.settings or draft.plan
        if settings is None or not _may_read(settings):
            return View()
        if self.locked and models.known(settings.model_source()) is None:
            return View()  # the job reads it already
        try:
            with st.spinner("Reading the model …"):
                return views.from_plan(*library.planned(settings))
        except ISpaSPError:
            return View()  # the panel says why


def _may_read(settings: RunSettings) -> bool:
    """Whether the model is read to show its blocks: it takes no download and runs nobody's code, or was asked for."""
    source = settings.model_source()
    return sources.asked(source) or models.at_once(source)


def _say_gone() -> None:
    """Say that a job is not known any more; again at every rerun, which the page needs some of to be whole."""
    if not st.session_state.get(_GONE):
        return
    with st.container(border=True, horizontal=True, vertical_alignment="center", key="gone"):
        st.markdown(
            "That job is not known any more: the server was restarted. What was cut off can be resumed on Runs.",
            width="content",
        )
        st.page_link(PAGES / "runs.py", label="Go to Runs", width="content")
        st.button(
            "Dismiss", key="gone_dismiss", type="tertiary", on_click=st.session_state.pop, args=(_GONE,)
        )


def resolve() -> Target:
    """Find it; what cannot be found is said in a sentence and then forgotten."""
    seen, job = session.seen(), session.job()
    if seen is None:
        _say_gone()
        return Target()
    kind, id = seen
    if kind == "job" and job is None:
        session.look_at("job", None)
        st.session_state[_GONE] = True
        _say_gone()
        return Target()
    st.session_state.pop(_GONE, None)
    if job is not None:
        snapshot = job.snapshot()
        events = snapshot.events
        saved = next((event for event in reversed(events) if isinstance(event, RunSaved)), None)
        if snapshot.state is not State.FINISHED or saved is None:
            ending = snapshot.stopping and snapshot.state is not State.RUNNING
            return Target(
                job, snapshot.state, settings=session.settings_of(job), live=snapshot.live, ending=ending
            )
        # From here on the run on disk is what is looked at; it also survives a restart.
        session.look_at("run", saved.run_id)
        id = saved.run_id
    try:
        record = library.open_run(id)
        return Target(run_id=id, record=record, settings=RunSettings.of(record))
    except ISpaSPError as problem:
        session.look_at("run", None)
        there = (library.run_path(id) / "run.json").is_file()
        # The library's sentence names a place on the server, which means nothing in a browser.
        st.error(
            f"{problem} The Runs page lists what can be opened."
            if there
            else f"There is no run called “{id[:60]}” here: it was removed, or its address is not complete. "
            "The Runs page lists what can be opened."
        )
        return Target()

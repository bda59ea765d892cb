"""Step, Run, Pause, Stop, and the line that says where the work is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import streamlit as st

from ispasp import runs
from ispasp.errors import ISpaSPError
from ispasp.jobs import Job, Snapshot, State, registry
from ispasp.narrative import duration
from ispasp.runs import RunSettings
from ui import library, session
from ui.settings import Draft
from ui.view import View
from ui.words import HELP


def _work(settings: RunSettings) -> Iterator[Any]:
    """The run with its settings as the first event, so that whoever watches the job knows them."""
    yield settings
    yield from runs.execute(settings, runs.default_folder())


def submit(settings: RunSettings, step: bool) -> None:
    """Begin a run and look at it."""
    title = f"Prune {settings.model}, keep {settings.keep:g}"
    slot = library.slot(settings.device)
    try:
        job = registry.submit(title, lambda: _work(settings), slot, paused=step)
    except ISpaSPError as problem:
        st.session_state.refused = str(problem)
        return
    if step:
        job.step()
    session.forget_view()
    session.look_at("job", job.id)


def _go(job: Job | None, draft: Draft, step: bool) -> None:
    if job is not None and not job.state.ended:
        job.step() if step else job.run()
    elif draft.settings is not None:
        submit(draft.settings, step)


def buttons(job: Job | None, state: State | None, draft: Draft) -> None:
    """The four controls; a button that would do nothing cannot be pressed.

    Args:
        state: the job's state at the beginning of this page run.
    """
    state = None if state is None or state.ended else state
    ready = state is State.PAUSED or (state is None and draft.settings is not None)
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.button(
            "Run", key="run_button", type="primary", shortcut="Ctrl+Enter", help=HELP["run"],
            disabled=not ready, on_click=_go, args=(job, draft, False),
        )  # fmt: skip
        st.button(
            "Step", key="step_button", help=HELP["step"], disabled=not ready, on_click=_go,
            args=(job, draft, True),
        )  # fmt: skip
        st.button(
            "Pause", key="pause_button", help=HELP["pause"],
            disabled=state not in (State.RUNNING, State.QUEUED), on_click=job.pause if job else None,
        )  # fmt: skip
        st.button(
            "Stop", key="stop_button", help=HELP["stop"], disabled=state is None,
            on_click=job.cancel if job else None,
        )  # fmt: skip
        if state is not None:
            st.caption(
                "Settings are locked while a job is under way. Let it finish, or press Stop, to change them."
            )
    if refused := st.session_state.pop("refused", None):
        st.error(refused)


def where(view: View) -> str:
    """``"block 4 of 9, iteration 2"``; empty before the first block."""
    if view.current is None:
        return ""
    block = view.blocks[view.current]
    iteration = f", iteration {block.trace[-1].t}" if block.trace else ""
    return f"block {view.current + 1} of {len(view.blocks)} ({block.block.name}){iteration}"


def status(snapshot: Snapshot | None, view: View, opened: str = "", ready: bool = True) -> None:
    """One line and one bar of always the same height: where the work is and what can be done now.

    Args:
        opened: what to say about a run opened from disk, where there is no job.
        ready: whether the settings can be run.
    """
    place = where(view)
    done = 0.0 if snapshot is None else snapshot.done
    match snapshot.state if snapshot else None:
        case None:
            done = 1.0 if opened else 0.0
            text = opened or (
                "**Ready.** Run prunes every block and shows the whole picture in seconds; "
                "Step goes one iteration at a time."
                if ready
                else "**Not ready.** A setting above cannot be used; mend it and press Run."
            )
        case State.QUEUED:
            assert snapshot is not None
            others = "1 job is" if snapshot.ahead == 1 else f"{snapshot.ahead} jobs are"
            text = (
                f"**Waiting** for the device: {others} before this one. It starts by itself; "
                "Stop takes it off the queue."
                if snapshot.ahead
                else "**Starting.**"
            )
        case State.RUNNING:
            assert snapshot is not None
            left = (
                f" · about {duration(snapshot.seconds_left)} left"
                if snapshot.seconds_left is not None
                else ""
            )
            over = bool(view.blocks) and all(block.pruned for block in view.blocks)
            doing = snapshot.doing if over else place or snapshot.doing or "starting"
            text = f"**{'Ending this step' if snapshot.stopping else 'Running'}:** {doing}{left}"
        case State.PAUSED:
            text = (
                f"**Paused** at {place}. Step or Run goes on."
                if place
                else "**Paused.** Step or Run goes on."
            )
        case State.CANCELLED:
            text = (
                f"**Stopped**{f' at {place}' if place else ''}; nothing was saved. "
                "Change a setting if you like, then press Run to start again."
            )
        case State.FAILED:
            text = "**Failed**, nothing was saved. What to do stands below."
        case State.FINISHED:
            assert snapshot is not None
            text = f"**Finished** in {duration(snapshot.seconds)}."
    with st.container(height=52, border=False, key="status"):
        st.progress(done, text=text)

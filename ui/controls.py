"""Step, Run, Pause, Stop, and the line that says where the work is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import streamlit as st

from ispasp import runs, store
from ispasp.errors import ISpaSPError
from ispasp.jobs import Job, Snapshot, State, registry
from ispasp.narrative import duration
from ispasp.run_settings import RunSettings
from ui import library, models, session
from ui.settings import Draft
from ui.view import View
from ui.words import HELP, escaped, setting_words, source_words


def submit(settings: RunSettings, step: bool) -> None:
    """Begin a run and look at it."""
    title = f"Prune {source_words(settings.model)}, keep {settings.keep:g}"
    allow = models.allow_code()
    slot = library.slot(settings.device)
    try:
        job = registry.submit(
            title, lambda: runs.execute(settings, store.default_folder(), allow_code=allow), slot, paused=step
        )
    except ISpaSPError as problem:
        st.session_state.refused = str(problem)
        return
    session.remember(job, settings)
    if step:
        job.step()
    session.forget_view()
    session.look_at("job", job.id)


def _go(job: Job | None, draft: Draft, step: bool) -> None:
    if job is not None and not job.state.ended:
        if step:
            session.follow_work()  # a step is pressed to see what it does
            job.step()
        else:
            job.run()
    elif draft.settings is not None:
        submit(draft.settings, step)


def buttons(
    job: Job | None, state: State | None, draft: Draft, used: RunSettings | None = None, ending: bool = False
) -> None:
    """The four controls; a button that would do nothing cannot be pressed.

    Args:
        state: the job's state at the beginning of this page run.
        used: the settings of what is on the screen.
        ending: Stop was pressed already.
    """
    ended = state
    state = None if state is None or state.ended else state
    ready = (state is State.PAUSED and not ending) or (state is None and draft.settings is not None)
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
            disabled=ending or state not in (State.RUNNING, State.QUEUED), on_click=job.pause if job else None,
        )  # fmt: skip
        st.button(
            "Stop", key="stop_button", help=HELP["stop"], disabled=ending or state is None,
            on_click=job.cancel if job else None,
        )  # fmt: skip
        if state is not None:
            st.caption(
                "Settings are locked while a job is under way. Let it finish, or press Stop, to change them."
            )
        elif used is not None and (apart := _apart(used, draft)):
            what = "run" if ended is None else f"{ended.value} run"
            st.caption(
                f"Showing the {what} {escaped(source_words(used.model))}, keep {used.keep:g}. Shown: {apart}.",
                width="content",
            )
            st.button(
                "New run with the settings above", key="new_run", disabled=draft.settings is None,
                on_click=_go, args=(None, draft, False),
            )  # fmt: skip
    if refused := st.session_state.pop("refused", None):
        st.error(refused)


def _apart(used: RunSettings, draft: Draft) -> str:
    """``"multiple 1 (above: 8)"``: what was different in the run on the screen; empty where nothing was."""
    if draft.settings is None:
        return "the last settings that could be used" if draft.last not in (None, used) else ""
    shown, above = asdict(used), asdict(draft.settings)
    if used.device not in library.devices():
        shown["device"] = above["device"]  # made on another machine; nothing to choose here
    parts = setting_words(shown, above)
    return ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")


def where(view: View) -> str:
    """``"block 4 of 9, iteration 2"``; empty before the first block."""
    if view.current is None:
        return ""
    block = view.blocks[view.current]
    iteration = f", iteration {block.trace[-1].t}" if block.trace else ""
    return f"block {view.current + 1} of {len(view.blocks)} ({block.block.name}){iteration}"


def _doing(snapshot: Snapshot, view: View) -> str:
    """What a running job does, as a person would say it."""
    place = where(view)
    if view.chosen or not place:
        return snapshot.doing or "starting"
    return f"{place}, re-fitting" if snapshot.doing.startswith("re-fitting") else place


def _stands(snapshot: Snapshot, view: View) -> str:
    """Where a job stands still: ``" at block 4 of 9 …"``, or ``" while measuring accuracy"``."""
    place = where(view)
    if view.chosen or not place:
        return f" while {snapshot.doing}" if snapshot.doing else ""
    return f" at {place}"


def only_asks(problems: Sequence[str]) -> bool:
    """Whether nothing is wrong, and only something is left to choose."""
    return all(problem.startswith("Choose ") for problem in problems)


def status(
    snapshot: Snapshot | None,
    view: View,
    opened: str = "",
    problems: Sequence[str] = (),
    steps: int = 0,
    own: bool = False,
) -> None:
    """One line and one bar of always the same height: where the work is and what can be done now.

    Args:
        opened: what to say about a run opened from disk, where there is no job.
        steps: of distillation that a run with these settings would make.
        problems: why the settings cannot be run.
        own: the model is none of the samples, which are pruned in seconds.
    """
    wrong = [problem for problem in problems if not only_asks([problem])]
    said = escaped(" ".join(wrong or problems)) if snapshot is None or snapshot.state.ended else ""
    if said and not opened:
        with st.container(height="content", border=False, key="status"):
            (st.error if wrong else st.info)(said)
        return
    done = 0.0 if snapshot is None else snapshot.done
    match snapshot.state if snapshot else None:
        case None:
            done = 1.0 if opened else 0.0
            picture = (
                f"then distils for {steps:,} steps, which may take minutes"
                if steps
                else "shows the whole picture, which may take minutes for a large model"
                if own
                else "shows the whole picture in seconds"
            )
            text = opened or (
                f"**Ready.** Run prunes every block and {picture}; Step goes one iteration at a time."
            )
        case State.QUEUED | State.PAUSED if snapshot and snapshot.stopping:
            text = f"**Ending**{_stands(snapshot, view)}; nothing will be saved."
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
            doing = _doing(snapshot, view)
            text = f"**{'Ending this step' if snapshot.stopping else 'Running'}:** {doing}{left}"
        case State.PAUSED:
            assert snapshot is not None
            blocks = "; every block is pruned" if view.chosen else ""
            over = f"{blocks}. {'Run' if view.chosen else 'Step or Run'}"
            text = f"**Paused**{_stands(snapshot, view)}{over} goes on."
        case State.CANCELLED:
            assert snapshot is not None
            text = (
                f"**Stopped**{_stands(snapshot, view)}; nothing was saved. "
                "Change a setting if you like, then press Run to start again."
            )
        case State.FAILED:
            text = "**Failed**, nothing was saved. What to do is said below."
        case State.FINISHED:
            assert snapshot is not None
            text = f"**Finished** in {duration(snapshot.seconds)}."
    with st.container(height="content" if said else 52, border=False, key="status"):
        st.progress(done, text=text)
        if said:  # about the next run; what was opened is finished
            (st.error if wrong else st.info)(said)

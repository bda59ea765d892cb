"""Runs and sweeps that were cut off, by a killed server say: go on with them, or discard them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from ispasp import store, sweeps, unfinished
from ispasp.errors import ISpaSPError
from ispasp.jobs import Job
from ispasp.narrative import plural
from ispasp.runs import RunSaved
from ispasp.sweeps import Sweep
from ispasp.tuning.runs import CutOff
from ispasp.unfinished import Unfinished
from ui import background, runs_actions, runs_resumed
from ui.finetune_words import HELP, PRESETS
from ui.words import escaped, source_words

_FOLLOWED = "runs_followed"  # jobs that this session resumed, by id
_HELP = {
    "resume": "Go on from the last finished block. The result is that of a run without a break.",
    "resume_sweep": "Go on with the runs that are not finished; the finished ones are kept as they are.",
    "discard": "Remove what there is of this run.",
    "discard_sweep": "Forget that this sweep is not finished. Its finished runs stay.",
}


def draw(when: Callable[[str], str]) -> None:
    """The section; nothing where nothing was cut off.

    Args:
        when: a moment in words.
    """
    folder = store.default_folder()
    try:
        found_sweeps, found = runs_resumed.sweeps_cut_off(folder), runs_resumed.runs_cut_off(folder)
        found_tunings = runs_resumed.tunings_cut_off(folder)
    except ISpaSPError as problem:
        st.error(escaped(str(problem)))
        return
    if not (found or found_sweeps or found_tunings):
        return
    st.subheader("Interrupted", anchor=False)
    for sweep in found_sweeps:
        _sweep_row(sweep, when)
    for run in found:
        _run_row(run, when)
    for tuning in found_tunings:
        tuning_row(tuning, when)


def tuning_row(
    tuning: CutOff,
    when: Callable[[str], str],
    resume: Callable[[CutOff], object] = runs_resumed.resume_tuning,
    discard: Callable[[CutOff], object] = runs_resumed.discard_tuning,
) -> None:
    """A fine-tuning that was cut off; ``when`` as of ``draw``, and what the buttons do."""
    _row(
        tuning.run_id,
        f"**Fine-tuning of {escaped(tuning.parent)}**, {PRESETS[tuning.request.preset]}: {tuning.epochs_done} of "
        f"{plural(tuning.epochs_total, 'epoch')} done, begun {when(tuning.begun_at)}",
        (resume, (tuning,), HELP["resume"]),
        (discard, (tuning,), HELP["discard"]),
    )


def _run_row(run: Unfinished, when: Callable[[str], str]) -> None:
    of = f"{run.blocks_done} of " if run.blocks_total else ""
    _row(
        run.run_id,
        f"**{escaped(source_words(run.settings.model))}, keep {run.settings.keep:g}**: "
        f"{of}{plural(run.blocks_total or run.blocks_done, 'block')} done, begun {when(run.begun_at)}",
        (runs_resumed.resume_run, (run,), _HELP["resume"]),
        (runs_resumed.discard, (unfinished.discard, run.run_id), _HELP["discard"]),
    )


def _sweep_row(sweep: Sweep, when: Callable[[str], str]) -> None:
    finished = sum(one is not None for one in sweep.finished)
    _row(
        sweep.id,
        f"**Sweep of {escaped(source_words(sweep.settings.base.model))}**: {finished} of "
        f"{plural(len(sweep.finished), 'run')} finished, begun {when(sweep.begun_at)}",
        (runs_resumed.start_sweep, (sweep.settings, sweep.id), _HELP["resume_sweep"]),
        (runs_resumed.discard, (sweeps.discard, sweep.id), _HELP["discard_sweep"]),
    )


Press = tuple[Callable[..., object], tuple[Any, ...], str]


def _row(id: str, text: str, resume: Press, discard: Press) -> None:
    with st.container(horizontal=True, vertical_alignment="center", key=f"runs_cut_{id}"):
        for label, key, (action, args, help) in (
            ("Resume", "resume", resume),
            ("Discard", "discard", discard),
        ):
            st.button(label, key=f"runs_{key}_{id}", on_click=_try, args=(action, *args), help=help)
        st.markdown(text, width="content")


def ended() -> None:
    """What was resumed here and has ended since: a line with a way to look at it, until it is dismissed."""
    followed: dict[str, Job] = st.session_state.get(_FOLLOWED, {})
    for id, job in list(followed.items()):
        snapshot = job.snapshot()
        if not snapshot.state.ended:
            continue
        with st.container(horizontal=True, vertical_alignment="center", key=f"runs_ended_{id}"):
            st.markdown(f"**{escaped(snapshot.title)}**: {snapshot.state.value}", width="content")
            if snapshot.error:
                st.error(escaped(snapshot.error))
            saved = next((event for event in reversed(snapshot.events) if isinstance(event, RunSaved)), None)
            if saved and st.button("Open", key=f"runs_open_{id}"):
                followed.pop(id)
                if job.subject == background.SWEEP:
                    st.switch_page(runs_actions.COMPARE)
                runs_actions.open_in_explore("run", saved.run_id)
            st.button("Dismiss", key=f"runs_forget_{id}", type="tertiary", on_click=_forget, args=(id,))


def _forget(id: str) -> None:
    st.session_state.get(_FOLLOWED, {}).pop(id, None)


def _try(action: Callable[..., object], *args: Any) -> None:
    try:
        job = action(*args)
        if isinstance(job, Job):
            st.session_state.setdefault(_FOLLOWED, {})[job.id] = job
    except ISpaSPError as problem:
        runs_actions.say(problems=[str(problem)])

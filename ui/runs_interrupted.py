"""Runs and sweeps that were cut off, by a killed server say: go on with them, or discard them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from ispasp import runs, store, sweeps, unfinished
from ispasp.errors import ISpaSPError
from ispasp.jobs import Job, registry
from ispasp.narrative import plural
from ispasp.sweeps import Sweep
from ispasp.unfinished import Unfinished
from ui import library, models, runs_actions, session
from ui.words import escaped, source_words

SWEEP = "sweep"  # the subject of a sweep's job
_RESUMED: dict[str, Job] = {}
"""The jobs that go on with a run or a sweep, by its id: one that waits for its device has locked nothing yet."""
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
        cut = sweeps.unfinished(folder)
        ids = {one.id for one in cut}
        # A run of such a sweep goes on with the sweep.
        found = [
            one
            for one in unfinished.find(folder)
            if not _works(one.run_id) and one.lineage.get(SWEEP) not in ids
        ]
    except ISpaSPError as problem:
        st.error(escaped(str(problem)))
        return
    found_sweeps = [one for one in cut if not _works(one.id)]
    if not found and not found_sweeps:
        return
    st.subheader("Interrupted", anchor=False)
    for sweep in found_sweeps:
        _sweep_row(sweep, when)
    for run in found:
        _run_row(run, when)


def _works(id: str) -> bool:
    job = _RESUMED.get(id)
    if job is not None and job.state.ended:
        _RESUMED.pop(id, None)
        return False
    return job is not None


def _run_row(run: Unfinished, when: Callable[[str], str]) -> None:
    of = f"{run.blocks_done} of " if run.blocks_total else ""
    _row(
        run.run_id,
        f"**{escaped(source_words(run.settings.model))}, keep {run.settings.keep:g}**: "
        f"{of}{plural(run.blocks_total or run.blocks_done, 'block')} done, begun {when(run.begun_at)}",
        (_resume_run, (run,), _HELP["resume"]),
        (_discard, (unfinished.discard, run.run_id), _HELP["discard"]),
    )


def _sweep_row(sweep: Sweep, when: Callable[[str], str]) -> None:
    finished = sum(one is not None for one in sweep.finished)
    _row(
        sweep.id,
        f"**Sweep of {escaped(source_words(sweep.settings.base.model))}**: {finished} of "
        f"{plural(len(sweep.finished), 'run')} finished, begun {when(sweep.begun_at)}",
        (_resume_sweep, (sweep,), _HELP["resume_sweep"]),
        (_discard, (sweeps.discard, sweep.id), _HELP["discard_sweep"]),
    )


Press = tuple[Callable[..., None], tuple[Any, ...], str]


def _row(id: str, text: str, resume: Press, discard: Press) -> None:
    with st.container(horizontal=True, vertical_alignment="center", key=f"runs_cut_{id}"):
        for label, key, (action, args, help) in (
            ("Resume", "resume", resume),
            ("Discard", "discard", discard),
        ):
            st.button(label, key=f"runs_{key}_{id}", on_click=action, args=args, help=help)
        st.markdown(text, width="content")


def _resume_run(run: Unfinished) -> None:
    allow, folder, settings = models.allow_code(), store.default_folder(), run.settings
    title = f"Prune {source_words(settings.model)}, keep {settings.keep:g}"
    try:
        job = registry.submit(
            title,
            lambda: runs.resume(folder, run.run_id, allow_code=allow),
            library.slot(settings.device),
        )
    except ISpaSPError as problem:
        runs_actions.say(problems=[str(problem)])
        return
    session.remember(job, settings)
    _RESUMED[run.run_id] = job


def _resume_sweep(sweep: Sweep) -> None:
    allow, folder = models.allow_code(), store.default_folder()
    base = sweep.settings.base
    try:
        _RESUMED[sweep.id] = registry.submit(
            f"Sweep of {source_words(base.model)}, {plural(len(sweep.finished), 'run')}",
            lambda: sweeps.execute(sweep.settings, folder, id=sweep.id, allow_code=allow),
            library.slot(base.device),
            subject=SWEEP,
        )
    except ISpaSPError as problem:
        runs_actions.say(problems=[str(problem)])


def _discard(remove: Callable[..., None], id: str) -> None:
    try:
        remove(store.default_folder(), id)
    except ISpaSPError as problem:
        runs_actions.say(problems=[str(problem)])

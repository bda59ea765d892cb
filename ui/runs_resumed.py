"""What was cut off, and the jobs that go on with it: whichever page asks, nothing is offered or taken up twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from ispasp import runs, store, sweeps, unfinished
from ispasp.errors import RunError
from ispasp.jobs import Job, registry
from ispasp.narrative import plural
from ispasp.sweeps import Sweep, SweepSettings
from ispasp.tuning import runs as tunings
from ispasp.tuning.runs import CutOff
from ispasp.unfinished import Unfinished
from ui import library, models, session
from ui.background import SWEEP, tuning_of
from ui.words import source_words

_JOBS: dict[str, Job] = {}
"""The jobs that go on with a run or a sweep, by its id: one that waits for its device has locked nothing yet."""


def _under_way() -> dict[str, Job]:
    for id, job in list(_JOBS.items()):
        if job.state.ended:
            _JOBS.pop(id, None)
    return dict(_JOBS)


def sweeps_cut_off(folder: Path) -> list[Sweep]:
    """As ``sweeps.unfinished``, without those that a job here goes on with."""
    going = _under_way()
    return [sweep for sweep in sweeps.unfinished(folder) if sweep.id not in going]


def runs_cut_off(folder: Path) -> list[Unfinished]:
    """As ``unfinished.find``, without those that a job here goes on with, and those that go on with their sweep."""
    going = {*_under_way(), *(sweep.id for sweep in sweeps.unfinished(folder))}
    return [
        run
        for run in unfinished.find(folder)
        if run.run_id not in going and run.lineage.get("sweep") not in going
    ]


def tunings_cut_off(folder: Path) -> list[CutOff]:
    """As ``tunings.find``, without those that a job here goes on with."""
    going = _under_way()
    return [one for one in tunings.find(folder) if one.run_id not in going]


def start_sweep(sweep: SweepSettings, id: str | None = None) -> Job:
    """Begin a sweep, or go on with one.

    Args:
        id: of a sweep that was cut off; where a job goes on with it already, that one is returned.

    Raises:
        SettingError: too many jobs are open.
    """
    if id and (job := _under_way().get(id)):
        return job
    allow, folder = models.allow_code(), store.default_folder()
    job = registry.submit(
        f"Sweep of {source_words(sweep.base.model)}, {plural(len(sweep.runs()), 'run')}",
        lambda: sweeps.execute(sweep, folder, id=id, allow_code=allow),
        library.slot(sweep.base.device),
        subject=SWEEP,
    )
    if id:
        _JOBS[id] = job
    return job


def resume_run(run: Unfinished) -> Job:
    """Go on with a run; where a job does so already, that one is returned. Raises as ``start_sweep``."""
    if job := _under_way().get(run.run_id):
        return job
    allow, folder, settings = models.allow_code(), store.default_folder(), run.settings
    job = registry.submit(
        f"Prune {source_words(settings.model)}, keep {settings.keep:g}",
        lambda: runs.resume(folder, run.run_id, allow_code=allow),
        library.slot(settings.device),
    )
    session.remember(job, settings)
    _JOBS[run.run_id] = job
    return job


def resume_tuning(tuning: CutOff) -> Job:
    """Go on with a fine-tuning; where a job does so already, that one is returned. Raises as ``start_sweep``."""
    if job := _under_way().get(tuning.run_id):
        return job
    allow, folder, stop = models.allow_code(), store.default_folder(), threading.Event()
    job = registry.submit(
        f"Fine-tune {Path(tuning.parent).name}, from epoch {tuning.epochs_done + 1}",
        lambda: tunings.resume(folder, tuning.run_id, stop=stop.is_set, allow_code=allow),
        library.slot(tuning.request.device),
        subject=tuning_of(folder / tuning.parent).subjects[0],
        finish=stop.set,
    )
    _JOBS[tuning.run_id] = job
    return job


def discard(remove: Callable[[Path, str], None], id: str) -> None:
    """Forget a run, a sweep or a fine-tuning by the ``discard`` of its module. Raises RunError: it is worked on."""
    if id in _under_way():
        raise RunError(f"{id} has been resumed meanwhile; stop that job on the Runs page, then discard it.")
    remove(store.default_folder(), id)


def discard_tuning(tuning: CutOff) -> None:
    """As ``discard``."""
    discard(tunings.discard, tuning.run_id)

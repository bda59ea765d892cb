"""Fine-tunings from a saved run to a new one on disk, and those that were cut off on the way."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ispasp import cores, processes, unfinished
from ispasp import device as devices
from ispasp.datasets import Training
from ispasp.deployment.opened_run import OpenedRun, open_run
from ispasp.errors import ISpaSPError, RunError
from ispasp.paths import inside
from ispasp.records import Event, Finished, Progress
from ispasp.result import RunRecord, check_new_folder, load_record
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved, new_run_id
from ispasp.tuning.attempt import FOLDER, Files, Plan, TuneAttempt, planned
from ispasp.tuning.data import measured_apart, open_training
from ispasp.tuning.memory import CheckpointMissed, Forgetful, Memory
from ispasp.tuning.records import Began, EpochDone
from ispasp.tuning.request import TuneRequest
from ispasp.tuning.schedule import steps


@dataclass(frozen=True)
class CutOff:
    """A fine-tuning that nobody works on any more.

    Attributes:
        run_id: the name its folder will have.
        parent: the run that is fine-tuned: its name in the runs folder, or its folder elsewhere.
        request: what was to be done.
        epochs_done, epochs_total: of all stages together.
        begun_at: ISO 8601, with its time zone.
    """

    run_id: str
    parent: str
    request: TuneRequest
    epochs_done: int
    epochs_total: int
    begun_at: str


def execute(
    parent: Path,
    request: TuneRequest,
    runs_folder: Path,
    *,
    path: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    allow_code: bool = False,
) -> Iterator[Event | Began | EpochDone | CheckpointMissed | RunSaved]:
    """Fine-tune a saved run and save the result as a new run; the last event is ``RunSaved``.

    The run's folder is written when all is done, and then all of it or nothing. Until then every epoch, and every block
    that is pruned, is kept, so that ``resume`` can go on where the process was killed or the events were closed.
    ``unfinished.Discarded``, thrown into them, leaves nothing. Of several processes that were launched together the
    first writes, and says that it is saved.

    Args:
        parent: the run's folder; it stays as it is.
        request: what to do.
        runs_folder: where the new run's folder is made.
        path: the folder itself, where the caller wants to name it.
        stop: looked at between steps; once true, the best weights so far are saved.
        allow_code: whether a Python file that the run names may be run.

    Raises:
        ISpaSPError: what was given cannot be used, or the folder cannot be written.
    """
    devices.pick(request.device)
    settings = RunSettings.of(load_record(parent))
    path = runs_folder / new_run_id(settings, "tuned") if path is None else path
    check_new_folder(path)
    run, training = yield from _opened(parent, request, allow_code)
    plan = Plan(
        parent=parent.name if _same_folder(parent.parent, path.parent) else str(parent.absolute()),
        digest=digest_of(parent),
        request=request,
        threads=cores.usual(),
        epochs_done=0,
        epochs_total=epochs_of(run.result, request),
        begun_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with contextlib.ExitStack() as held:
        attempt = None
        if processes.here().leads:
            unfinished.begin_at(inside(path.parent / FOLDER, path.name), plan.plain())
            attempt = held.enter_context(TuneAttempt(path.parent, path.name))
        yield from _attempted(run, training, plan, attempt, path, stop, allow_code)


def resume(
    runs_folder: Path,
    run_id: str,
    *,
    stop: Callable[[], bool] = lambda: False,
    allow_code: bool = False,
) -> Iterator[Event | Began | EpochDone | CheckpointMissed | RunSaved]:
    """Go on with a fine-tuning that was cut off, from its last epoch; events as of ``execute``.

    Raises:
        RunError: somebody else works on it, it cannot be taken up, or the run that is fine-tuned is not there any more
            or was changed.
        ISpaSPError: as ``execute``.
    """
    path = inside(runs_folder, run_id)
    with contextlib.ExitStack() as held:
        attempt = None
        if processes.here().leads:
            attempt = held.enter_context(TuneAttempt(runs_folder, run_id))
            plan = attempt.asked
        else:
            plan = planned(inside(runs_folder / FOLDER, run_id))
        parent = runs_folder / plan.parent  # which is that folder itself, where it lies elsewhere
        if not (parent / "run.json").is_file():
            raise gone(plan.parent)
        if digest_of(parent) != plan.digest:
            raise RunError(
                f"The run {plan.parent} is not the one that was being fine-tuned: bring that one back, or discard the "
                "fine-tuning and begin again."
            )
        devices.pick(plan.request.device)
        check_new_folder(path)
        run, training = yield from _opened(parent, plan.request, allow_code)
        yield from _attempted(run, training, plan, attempt, path, stop, allow_code)


def _opened(
    parent: Path, request: TuneRequest, allow_code: bool
) -> Generator[Progress, None, tuple[OpenedRun, Training]]:
    run = yield from open_run(parent, allow_code=allow_code)
    yield Progress(0.0, "reading the training data")
    training = open_training(run.settings, run.dense, request, allow_code=allow_code)
    return measured_apart(run, training, request), training


def _attempted(
    run: OpenedRun,
    training: Training,
    plan: Plan,
    attempt: TuneAttempt | None,
    path: Path,
    stop: Callable[[], bool],
    allow_code: bool,
) -> Iterator[Event | Began | EpochDone | CheckpointMissed | RunSaved]:
    """Do what is planned. Of several processes the first has the attempt, writes it down and saves the run."""
    folder = path.parent / FOLDER / path.name
    memory: Memory = Files(folder, writes=attempt is not None) if folder.is_dir() else Forgetful()
    epochs = 0
    try:
        with cores.threads(plan.threads):
            for event in steps(
                run,
                training.set,
                plan.request,
                notes=training.said,
                lineage={"tuned": run.path.name},
                memory=memory,
                stop=stop,
                allow_code=allow_code,
            ):
                if attempt and isinstance(event, EpochDone):
                    epochs += 1
                    with contextlib.suppress(RunError):  # who writes the epoch says that the disk is full
                        attempt.settle(epochs_done=epochs)
                if attempt and isinstance(event, Finished):
                    event.result.save(path)
                    attempt.discard()
                yield event
    except RunError:  # the disk is full, say: there is something to go on with once there is room
        raise
    except ISpaSPError:
        if attempt and attempt.empty:
            attempt.discard()
        raise
    if attempt:
        yield RunSaved(path.name, path)


def find(runs_folder: Path) -> list[CutOff]:
    """The fine-tunings that were cut off, newest first; those that a live process works on are left out."""
    found = []
    for name in unfinished.begun(runs_folder, FOLDER):
        with contextlib.suppress(RunError, OSError), TuneAttempt(runs_folder, name, 0) as attempt:
            asked = attempt.asked
            found.append(
                CutOff(
                    name, asked.parent, asked.request, asked.epochs_done, asked.epochs_total, asked.begun_at
                )
            )
    return sorted(found, key=lambda one: (one.begun_at, one.run_id), reverse=True)


def gone(parent: str) -> RunError:
    """What to say where the run is missing that was being fine-tuned."""
    return RunError(
        f"The run {parent}, which was being fine-tuned, is not there any more: bring it back, or discard the "
        "fine-tuning."
    )


def discard(runs_folder: Path, run_id: str) -> None:
    """Remove what a fine-tuning has left; nothing happens where there is nothing.

    Raises:
        UnderWorkError: a process works on it.
        RunError: it is no run's name.
    """
    unfinished.discard(runs_folder, run_id, FOLDER)


def epochs_of(run: RunRecord, request: TuneRequest) -> int:
    """How many epochs a fine-tuning of ``run`` makes, all stages together; none after a block that is kept whole."""
    trained = sum(not event.whole for event in run.blocks_pruned)
    return trained * request.settings.after_block + request.settings.epochs


def digest_of(run: Path) -> str:
    """SHA-256, hexadecimal, of a saved run: of its record and its weights.

    Raises:
        RunError: it cannot be read.
    """
    sha = hashlib.sha256()
    try:
        for name in ("run.json", "model.safetensors"):
            with (run / name).open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise RunError(f"The run {run} cannot be read ({error.strerror or error}): run it again.") from error
    return sha.hexdigest()


def _same_folder(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()

"""Many runs on one model: every keep ratio with every selector and every re-fit, in step.

What they share is done once: model, data and graph; the dense network's predictions; and, for asymmetric re-fits,
the dense network's values, on which all runs wait for each other block by block. Their own statistics cannot be
shared behind the first block: each run sees the inputs that its own pruned network gives. So every run of a sweep
has the result it would have alone. On a CPU, several of them are worked on at once, a core each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ispasp import device as devices
from ispasp import unfinished as unfinished_runs
from ispasp.errors import ISpaSPError, RunError, SettingError
from ispasp.opened import Opened, open_all
from ispasp.records import Event, Finished, Progress
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved, kept_on_disk, new_run_id
from ispasp.together import side_by_side, together
from ispasp.unfinished import PATIENCE, Attempt

FOLDER = ".sweeps"
MOST_RUNS = 200
AT_ONCE_BYTES = 4 * 2**30  # of live values; more runs than fit are taken one group after the other


@dataclass(frozen=True)
class SweepSettings:
    """What is varied, and what is not.

    Attributes:
        base: everything else.
        keeps, selectors, reconstructs: see ``RunSettings``; every combination is a run.

    Raises:
        SettingError: nothing is varied, a value is unknown, or there are too many runs.
    """

    base: RunSettings
    keeps: tuple[float, ...]
    selectors: tuple[str, ...] = ()
    reconstructs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("keeps", "selectors", "reconstructs"):
            given = tuple(dict.fromkeys(getattr(self, name)))
            object.__setattr__(self, name, given or (getattr(self.base, name.removesuffix("s")),))
        count = len(self.keeps) * len(self.selectors) * len(self.reconstructs)
        if count > MOST_RUNS:
            raise SettingError(f"The sweep has {count:,} runs; {MOST_RUNS} are accepted. Take fewer values.")
        self.runs()

    def runs(self) -> tuple[RunSettings, ...]:
        """The settings of every run, in order."""
        return tuple(
            dataclasses.replace(self.base, keep=keep, selector=selector, reconstruct=reconstruct)
            for reconstruct in self.reconstructs
            for selector in self.selectors
            for keep in self.keeps
        )


@dataclass(frozen=True)
class SweepStarted:
    """A sweep begins, or goes on.

    Attributes:
        id: its name.
        settings: of its runs, in order.
        finished: for each, the run's id where it is on disk already, else None.
    """

    id: str
    settings: tuple[RunSettings, ...]
    finished: tuple[str | None, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep that nobody works on any more and that is not complete.

    Attributes:
        id, finished: as in ``SweepStarted``.
        settings: what is varied.
        begun_at: ISO 8601, with its time zone.
    """

    id: str
    settings: SweepSettings
    finished: tuple[str | None, ...]
    begun_at: str


def execute(
    sweep: SweepSettings, runs_folder: Path, *, id: str | None = None, allow_code: bool = False
) -> Iterator[Progress | SweepStarted | RunSaved]:
    """Execute all runs of a sweep that are not finished yet; each is saved like a single one.

    Args:
        sweep: what to do.
        runs_folder: where the runs' folders are made.
        id: of a sweep that was cut off, to go on with it.
        allow_code: whether a Python file that the settings name may be run.

    Raises:
        ISpaSPError: what was given cannot be used, or the folder cannot be written. Finished runs stay, and the
            sweep can be gone on with.
    """
    devices.pick(sweep.base.device)
    with _Plan(runs_folder, id) if id else _begun(runs_folder, sweep) as plan:
        if plan.sweep != sweep:
            raise SettingError(f"The sweep {id} was begun with other settings; go on with its own.")
        settings, ids, finished = plan.sweep.runs(), plan.run_ids, plan.finished()
        yield SweepStarted(plan.id, settings, finished)
        opened = yield from open_all(sweep.base, allow_code=allow_code)
        left = [(ids[number], settings[number]) for number, run in enumerate(finished) if run is None]
        with contextlib.ExitStack() as attempts:
            members = [
                _Member(opened, attempts.enter_context(plan.attempt(run_id, one))) for run_id, one in left
            ]
            for group in _groups(members, opened):
                yield from _in_step(group, members, opened, runs_folder)
        plan.complete()


class _Member:
    """One run of a sweep under way."""

    def __init__(self, opened: Opened, attempt: Attempt) -> None:
        self.attempt = attempt
        self.variant = opened.variant(attempt.settings, attempt.counts, attempt.known())

    def events(self, steps: Iterator[Event]) -> Iterator[Event]:
        return kept_on_disk(self.variant.timed(steps), self.variant, self.attempt)


def _groups(members: Sequence[_Member], opened: Opened) -> Iterator[list[_Member]]:
    """Runs that can wait for each other: one kind of dense network beside them, and all within the memory."""
    subject = opened.subject
    most = max(1, int(AT_ONCE_BYTES // max(1, 2 * subject.traced.live_bytes() * subject.examples)))
    for asymmetric in (False, True):
        alike = [member for member in members if member.variant.asymmetric == asymmetric]
        groups = math.ceil(len(alike) / most)
        for number in range(groups):  # of about the same size
            yield alike[number::groups]


def _in_step(
    group: Sequence[_Member], members: Sequence[_Member], opened: Opened, folder: Path
) -> Iterator[Progress | RunSaved]:
    def progress(doing: str) -> Progress:
        total = sum(member.variant.total for member in members)
        return Progress(min(1.0, sum(member.variant.done for member in members) / total), doing)

    variants = [member.variant for member in group]
    several = f", {len(group)} runs" if len(group) > 1 else ""
    with side_by_side(opened.subject.device, len(group)) as workers:
        steps = [member.events(member.variant.prepare()) for member in group]
        for _ in together(steps, workers):
            yield progress(f"settling what is kept{several}")
        reference = variants[0].reference()
        for variant in variants:
            variant.join(reference)
        blocks = [block for block, _ in variants[0].plan]
        for number, index in enumerate(reference.order, start=1):
            doing = f"block {number} of {len(blocks)} ({blocks[index].name}){several}"
            for work in reference.advance(blocks[index]):
                for variant in variants:
                    variant.done += work  # each would have to do it alone
                yield progress(doing)
            steps = [member.events(member.variant.prune_block(index)) for member in group]
            for _ in together(steps, workers):
                yield progress(doing)
        for _ in opened.subject.predict():
            yield progress("measuring the dense model")
        steps = [member.events(member.variant.finish()) for member in group]
        for number, event in together(steps, workers):
            if isinstance(event, Finished):
                yield _saved(group[number].attempt, event, opened, folder)
            else:
                yield progress(f"slicing, measuring and saving{several}")


def _saved(attempt: Attempt, event: Finished, opened: Opened, folder: Path) -> RunSaved:
    path = folder / attempt.run_id
    opened.described(event.result, attempt.settings, attempt.lineage).save(path)
    attempt.discard()
    return RunSaved(path.name, path)


class _UnderWorkError(RunError):
    """A sweep that a process works on."""


class _Plan:
    """A sweep on disk, locked until it is left."""

    def __init__(self, runs_folder: Path, id: str, patience: float = PATIENCE) -> None:
        self.id, self._folder = id, runs_folder
        self._file = runs_folder / FOLDER / f"{id}.json"
        self._lock = FileLock(self._file.with_suffix(".lock"), thread_local=False)
        try:
            self._plain: dict[str, Any] = json.loads(self._file.read_text())
            self._lock.acquire(patience)
            varied = {name: tuple(self._plain[name]) for name in ("keeps", "selectors", "reconstructs")}
            self.sweep = SweepSettings(RunSettings(**self._plain["base"]), **varied)
            self.run_ids: list[str] = [str(run_id) for run_id in self._plain["run_ids"]]
            if len(self.run_ids) != len(self.sweep.runs()):
                raise ValueError("it has not as many runs as values")
            self.begun_at, self.is_complete = str(self._plain["begun_at"]), bool(self._plain["complete"])
        except Timeout:
            raise _UnderWorkError(f"The sweep {id} is being worked on already.") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ISpaSPError) as error:
            self._lock.release()
            raise RunError(
                f"The sweep {id} cannot be taken up ({error}); discard it and begin another."
            ) from error

    def __enter__(self) -> _Plan:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def finished(self) -> tuple[str | None, ...]:
        """For each run its id where it is on disk."""
        there = [(self._folder / run_id / "run.json").is_file() for run_id in self.run_ids]
        return tuple(
            run_id if is_there else None for run_id, is_there in zip(self.run_ids, there, strict=True)
        )

    def attempt(self, run_id: str, settings: RunSettings) -> Attempt:
        """What there is of a run already, or a new beginning."""
        if (self._folder / unfinished_runs.FOLDER / run_id).is_dir():
            return Attempt(self._folder, run_id)
        return unfinished_runs.begin(self._folder, run_id, settings, {"sweep": self.id})

    def complete(self) -> None:
        """Write down that all runs were saved, so that one that is deleted later is not missed."""
        _write(self._file, self._plain | {"complete": True})


def _begun(runs_folder: Path, sweep: SweepSettings) -> _Plan:
    id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    plain = {
        "base": sweep.base.plain(),
        **{name: getattr(sweep, name) for name in ("keeps", "selectors", "reconstructs")},
        "run_ids": [new_run_id(settings) for settings in sweep.runs()],
        "begun_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "complete": False,
    }
    _write(runs_folder / FOLDER / f"{id}.json", plain)
    return _Plan(runs_folder, id)


def _write(file: Path, plain: dict[str, Any]) -> None:
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(plain, indent=1) + "\n")
        partial.replace(file)
    except OSError as error:
        raise RunError(f"The sweep cannot be written to {file.parent}: {error}. Make room there.") from error
    finally:
        partial.unlink(missing_ok=True)


def unfinished(runs_folder: Path) -> list[Sweep]:
    """The sweeps that were cut off, newest first; those that a live process works on are left out."""
    found = []
    for file in (runs_folder / FOLDER).glob("*.json"):
        with contextlib.suppress(RunError), _Plan(runs_folder, file.stem, 0) as plan:
            if not plan.is_complete:
                found.append(Sweep(plan.id, plan.sweep, plan.finished(), plan.begun_at))
    return sorted(found, key=lambda sweep: (sweep.begun_at, sweep.id), reverse=True)


def discard(runs_folder: Path, id: str) -> None:
    """Forget a sweep that was cut off, and what there is of its unfinished runs; finished runs stay.

    Raises:
        RunError: a process works on it.
    """
    file = runs_folder / FOLDER / f"{Path(id).name}.json"
    try:
        with _Plan(runs_folder, file.stem) as plan:
            for run_id in plan.run_ids:
                unfinished_runs.discard(runs_folder, run_id)
    except _UnderWorkError:
        raise
    except RunError:  # it is damaged: nothing says what its runs are
        pass
    file.unlink(missing_ok=True)
    file.with_suffix(".lock").unlink(missing_ok=True)

"""Many runs on one model: every keep ratio with every selector and every re-fit, in step.

What they share is done once: model, data and graph; the dense network's predictions; and, for asymmetric re-fits,
the dense network's values, on which all runs wait for each other block by block. Their own statistics cannot be
shared behind the first block: each run sees the inputs that its own pruned network gives. So every run of a sweep
has the result it would have alone, with as many threads to the last bit. On a CPU several of them are worked on at
once, which share out the cores; how, is settled once for a sweep, also for when it is gone on with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ispasp import cores
from ispasp import device as devices
from ispasp import unfinished as unfinished_runs
from ispasp.errors import ISpaSPError, RunError, SettingError, UnderWorkError
from ispasp.opened import Opened, open_all
from ispasp.paths import inside
from ispasp.plain_files import write_json
from ispasp.records import Event, Finished, Progress
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved, kept_on_disk, new_run_id
from ispasp.together import together
from ispasp.unfinished import PATIENCE, UNREADABLE, Attempt

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
class RunRefused:
    """A run of a sweep cannot be had; the others go on.

    Attributes:
        index: its place among the sweep's runs.
        problem: why, in one sentence.
    """

    index: int
    problem: str


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
) -> Iterator[Progress | SweepStarted | RunSaved | RunRefused]:
    """Execute all runs of a sweep that are not finished yet; each is saved like a single one.

    Args:
        sweep: what to do.
        runs_folder: where the runs' folders are made.
        id: of a sweep that was cut off, to go on with it.
        allow_code: whether a Python file that the settings name may be run.

    Raises:
        RunError: the disk is full, or somebody else works on the sweep; finished runs stay, and it can be gone on
            with.
        ISpaSPError: what was given cannot be used, or not one run could be had.
    """
    devices.pick(sweep.base.device)
    with _Plan(runs_folder, id) if id else _begun(runs_folder, sweep) as plan:
        if plan.sweep != sweep:
            raise SettingError(f"The sweep {id} was begun with other settings; go on with its own.")
        settings, finished = plan.sweep.runs(), plan.finished()
        yield SweepStarted(plan.id, settings, finished)
        opened = yield from open_all(sweep.base, allow_code=allow_code)
        at_once = _at_once(opened)
        workers = _workers(opened, min(at_once, len(settings)))
        plan.settle(max(1, cores.usual() // workers))
        refused: list[str] = []
        with contextlib.ExitStack() as attempts:
            members = []
            for index, run in enumerate(finished):
                if run is None and index not in plan.refused:
                    attempt = plan.attempt(index)
                    attempts.callback(attempt.let_go)  # even if nobody wants it now: the sweep can be resumed
                    members.append(_Member(index, opened, attempt))
            work = _Work(opened, members, runs_folder, plan.threads, workers)
            for group in _groups(members, at_once):
                for event in work.in_step(group):
                    if isinstance(event, RunRefused):
                        plan.refuse(event.index)
                        refused.append(event.problem)
                    yield event
        plan.complete()
    if refused and len(refused) == len(settings):
        raise SettingError(f"Not one run of the sweep could be had: {refused[0]}")


def _prune_block(member: _Member, index: int) -> Iterator[Event]:
    return member.variant.prune_block(index)


class _Member:
    """One run of a sweep under way; ``problem`` says why it cannot be had, if so."""

    def __init__(self, index: int, opened: Opened, attempt: Attempt) -> None:
        self.index, self.attempt, self.problem = index, attempt, ""
        self.variant = opened.variant(attempt.settings, attempt.counts)

    def events(self, steps: Iterator[Event]) -> Iterator[Event]:
        """Go through a part; what is wrong with this run alone ends it alone."""
        try:
            yield from kept_on_disk(self.variant.timed(steps), self.variant, self.attempt)
        except RunError:
            raise
        except ISpaSPError as error:
            self.problem = str(error)
            self.attempt.discard()


def _at_once(opened: Opened) -> int:
    """How many runs fit into the memory: their live values, and weights sliced, re-fitted and to be written."""
    subject = opened.subject
    weights = 4 * sum(p.numel() * p.element_size() for p in subject.dense.parameters())
    return max(1, int(AT_ONCE_BYTES // (2 * subject.traced.live_bytes() * subject.examples + weights)))


def _workers(opened: Opened, most: int) -> int:
    """How many runs are worked on at once. Small layers do not keep several cores busy; several runs do. A GPU is
    best used by one."""
    return max(1, min(most, cores.usual())) if opened.subject.device.type == "cpu" else 1


def _groups(members: Sequence[_Member], most: int) -> Iterator[list[_Member]]:
    """Runs that can wait for each other: one kind of dense network beside them, and all within the memory."""
    for asymmetric in (False, True):
        alike = [member for member in members if member.variant.asymmetric == asymmetric]
        groups = math.ceil(len(alike) / most)
        for number in range(groups):  # of about the same size
            yield alike[number::groups]


@dataclass
class _Work:
    """What is left of a sweep.

    Attributes:
        members: the runs.
        threads: of torch for each.
        workers: how many are worked on at once.
    """

    opened: Opened
    members: Sequence[_Member]
    folder: Path
    threads: int
    workers: int

    def in_step(self, group: Sequence[_Member]) -> Iterator[Progress | RunSaved | RunRefused]:
        """Take some runs from beginning to end, block by block together."""
        several = f" of {len(group)} runs" if len(group) > 1 else ""
        yield from self._part(group, f"settling what is kept{several}", lambda m: m.variant.prepare())
        left = [member for member in group if not member.problem]
        if not left:
            return
        reference = left[0].variant.reference()
        for member in left:
            member.variant.known = member.attempt.known()
            member.variant.join(reference)
        blocks = [block for block, _ in left[0].variant.plan]
        for number, index in enumerate(reference.order, start=1):
            doing = f"block {number} of {len(blocks)} ({blocks[index].name}){several}"
            with cores.threads(self.threads):  # as alone: sums depend on it in their last digits
                for work in reference.advance(blocks[index]):
                    for member in left:
                        member.variant.done += work  # each would have to do it alone
                    yield self._progress(doing)
            yield from self._part(left, doing, partial(_prune_block, index=index))
        for _ in self.opened.subject.predict():
            yield self._progress("measuring the dense model")
        yield from self._part(left, f"slicing, measuring and saving{several}", lambda m: m.variant.finish())

    def _part(
        self, group: Sequence[_Member], doing: str, steps: Callable[[_Member], Iterator[Event]]
    ) -> Iterator[Progress | RunSaved | RunRefused]:
        going = [member for member in group if not member.problem]
        with cores.threads(self.threads):
            parts = [member.events(steps(member)) for member in going]
            for number, event in together(parts, self.workers):
                if isinstance(event, Finished):
                    yield self._saved(going[number].attempt, event)
                else:
                    yield self._progress(doing)
        for member in going:
            if member.problem:
                yield RunRefused(member.index, member.problem)

    def _progress(self, doing: str) -> Progress:
        total = sum(member.variant.total for member in self.members)
        return Progress(min(1.0, sum(member.variant.done for member in self.members) / total), doing)

    def _saved(self, attempt: Attempt, event: Finished) -> RunSaved:
        path = inside(self.folder, attempt.run_id)
        result = self.opened.described(event.result, attempt.settings, attempt.lineage, attempt.threads)
        result.save(path)
        attempt.discard()
        return RunSaved(path.name, path)


class _Plan:
    """A sweep on disk, locked until it is left."""

    def __init__(self, runs_folder: Path, id: str, patience: float = PATIENCE) -> None:
        self.id, self._folder = id, runs_folder
        self._file = inside(runs_folder / FOLDER, f"{id}.json")
        self._lock = FileLock(self._file.with_suffix(".lock"), thread_local=False)
        try:
            self._plain: dict[str, Any] = json.loads(self._file.read_text())
            self._lock.acquire(patience)
            varied = {name: tuple(self._plain[name]) for name in ("keeps", "selectors", "reconstructs")}
            self.sweep = SweepSettings(RunSettings(**self._plain["base"]), **varied)
            self.run_ids = [inside(runs_folder, run_id).name for run_id in self._plain["run_ids"]]
            self.threads, self.refused = int(self._plain["threads"]), list(map(int, self._plain["refused"]))
            if len(set(self.run_ids)) != len(self.sweep.runs()):
                raise ValueError("it has not as many runs as values")
            self.begun_at, self.is_complete = str(self._plain["begun_at"]), bool(self._plain["complete"])
        except Timeout:
            raise UnderWorkError(f"The sweep {id} is being worked on: stop it first, or wait.") from None
        except UNREADABLE as error:
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

    def attempt(self, index: int) -> Attempt:
        """What there is of a run already, or a new beginning."""
        run_id = self.run_ids[index]
        if (self._folder / unfinished_runs.FOLDER / run_id).is_dir():
            return Attempt(self._folder, run_id)
        lineage = {"sweep": self.id}
        return unfinished_runs.begin(self._folder, run_id, self.sweep.runs()[index], lineage, self.threads)

    def settle(self, threads: int) -> None:
        """Write down how many threads each run has, unless that is settled: they decide the last digits."""
        if not self.threads:
            self.threads = threads
            self._write(threads=threads)

    def refuse(self, index: int) -> None:
        """Write down that a run cannot be had, so that it is not tried again."""
        self.refused.append(index)
        self._write(refused=self.refused)

    def complete(self) -> None:
        """Write down that all runs were saved, so that one that is deleted later is not missed."""
        self._write(complete=True)

    def _write(self, **changed: Any) -> None:
        self._plain |= changed
        write_json(self._file, self._plain)


def _begun(runs_folder: Path, sweep: SweepSettings) -> _Plan:
    id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    plain = {
        "base": sweep.base.plain(),
        **{name: getattr(sweep, name) for name in ("keeps", "selectors", "reconstructs")},
        "run_ids": [new_run_id(settings) for settings in sweep.runs()],
        "begun_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": 0,
        "refused": [],
        "complete": False,
    }
    write_json(runs_folder / FOLDER / f"{id}.json", plain)
    return _Plan(runs_folder, id)


def unfinished(runs_folder: Path) -> list[Sweep]:
    """The sweeps that were cut off, newest first; those that a live process works on are left out."""
    found = []
    for file in (runs_folder / FOLDER).glob("*.json"):
        with contextlib.suppress(RunError), _Plan(runs_folder, file.stem, 0) as plan:
            if not plan.is_complete:
                found.append(Sweep(plan.id, plan.sweep, plan.finished(), plan.begun_at))
    return sorted(found, key=lambda sweep: (sweep.begun_at, sweep.id), reverse=True)


def is_begun(runs_folder: Path, id: str) -> bool:
    """Whether there is a sweep of this name that is not complete, or whose plan nobody can read."""
    file = inside(runs_folder / FOLDER, f"{id}.json")
    try:
        return file.is_file() and not json.loads(file.read_text())["complete"]
    except UNREADABLE:
        return True


def discard(runs_folder: Path, id: str) -> None:
    """Forget a sweep that was cut off, and what there is of its unfinished runs; finished runs stay.

    Raises:
        UnderWorkError: a process works on it, or on one of its runs.
    """
    file = inside(runs_folder / FOLDER, f"{id}.json")
    run_ids: list[str] = []
    try:
        with _Plan(runs_folder, id, 0) as plan:
            run_ids = plan.run_ids
    except UnderWorkError:
        raise
    except RunError:  # it is damaged: nothing says what its runs are
        pass
    for run_id in run_ids:
        unfinished_runs.discard(runs_folder, run_id)
    file.unlink(missing_ok=True)
    file.with_suffix(".lock").unlink(missing_ok=True)

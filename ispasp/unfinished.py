"""Runs that were cut off: what every finished block leaves on disk, so that a run can go on from there.

Each lies in ``.unfinished/<run id>`` of the runs folder until its run is saved, and is locked by the process that
works on it. Work that is closed, interrupted or killed leaves it there; whoever wants nothing of it kept throws
``Discarded`` into the work, or calls ``discard`` afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ispasp import cores, plain_files, store
from ispasp.errors import ISpaSPError, RunError, UnderWorkError
from ispasp.onepass import BlockDone
from ispasp.paths import inside
from ispasp.reconstruct import Refit
from ispasp.records import Started
from ispasp.result import RunRecord, load_record, write_record
from ispasp.run_settings import RunSettings

FOLDER = ".unfinished"
UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ISpaSPError,
)  # fmt: skip
PLAN = "plan.json"
PATIENCE = 1.0  # seconds to wait for a lock: whoever lists what is there holds it for a moment


class Discarded(BaseException):
    """Thrown into work by whoever wants nothing of it kept. Closing does not say so: what fails elsewhere closes it."""


@dataclass(frozen=True)
class Unfinished:
    """A run that nobody works on any more.

    Attributes:
        run_id: the name its folder will have.
        settings: what it was asked to do.
        blocks_done: how many blocks need not be done again.
        blocks_total: of how many; 0 where it did not come so far.
        begun_at: ISO 8601, with its time zone.
        lineage: as in ``RunSummary``.
    """

    run_id: str
    settings: RunSettings
    blocks_done: int
    blocks_total: int
    begun_at: str
    lineage: dict[str, str] = field(default_factory=dict)


class Claim:
    """Work that was begun, and what there is of it on disk; locked until it is finished, discarded or let go.

    Attributes:
        folder: where it lies.
        run_id: that folder's name.
        plan: what was to be done, as plain values.
    """

    def __init__(self, folder: Path, patience: float = PATIENCE) -> None:
        """Take a folder that is there.

        Raises:
            RunError: another process works on it, or it cannot be read.
        """
        self.folder, self.run_id = folder, folder.name
        self._lock = locked(folder, patience)
        try:
            self.plan: dict[str, Any] = json.loads((folder / PLAN).read_text())
            self.read_plan()
        except UNREADABLE as error:
            self._lock.release()
            resume = command_of(folder.parent.parent / folder.name)
            raise RunError(
                f"The interrupted run {self.run_id} cannot be taken up ({error}); discard it and run again: {resume} "
                "--discard"
            ) from error

    def read_plan(self) -> None:
        """Take what is needed from ``plan``. Raises any of ``UNREADABLE`` where it is not there."""

    def settle(self, **changed: Any) -> None:
        """Write down another part of the plan. Raises RunError where the disk is full, or cannot be written."""
        self.plan |= changed
        plain_files.write_json(self.folder / PLAN, self.plan)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, why: type[BaseException] | None, *_: object) -> None:
        if why is not None and issubclass(why, Discarded) and self._lock.is_locked:
            self.discard()
        else:
            self.let_go()

    def let_go(self) -> None:
        """Leave it as it is, for whoever takes it up."""
        self._lock.release()

    def discard(self) -> None:
        """Remove it: the run is saved, or nobody wants it."""
        remove(self.folder)
        self._lock.release()


class Attempt(Claim):
    """A run under way, and what there is of it on disk; locked until it is finished, discarded or let go.

    Attributes:
        settings, lineage: of the run.
        begun_at: when it was begun first.
        threads: of torch on the CPU; with as many it gives the same result to the last bit.
        counts: how many groups each block keeps; None until that is settled.
    """

    def __init__(self, runs_folder: Path, run_id: str, patience: float = PATIENCE) -> None:
        """As ``Claim``; ``run_id`` is the name of what was begun in ``runs_folder``."""
        super().__init__(inside(runs_folder / FOLDER, run_id), patience)

    def read_plan(self) -> None:
        self.settings = RunSettings(**self.plan["settings"])
        self.lineage: dict[str, str] = dict(self.plan["lineage"])
        self.counts: list[int] | None = self.plan["counts"]
        if self.counts is not None and not all(type(count) is int for count in self.counts):
            raise ValueError("the kept groups are no numbers")
        self.begun_at, self.threads = str(self.plan["begun_at"]), int(self.plan["threads"])

    @property
    def blocks_done(self) -> int:
        """How many blocks were finished."""
        return len(self._names())

    def known(self) -> dict[int, BlockDone]:
        """The finished blocks by their place in the plan. Raises RunError where they are damaged."""
        return {int(name): _read(self.folder / name) for name in self._names()}

    def _names(self) -> list[str]:
        """The folders of the finished blocks."""
        names = {f"{index:04d}" for index in range(len(self.counts or ()))}
        return sorted(path.name for path in self.folder.iterdir() if path.name in names)

    def settle_counts(self, counts: Sequence[int]) -> None:
        """Write down how many groups each block keeps. Raises RunError as ``keep`` does."""
        self.counts = list(counts)
        self.settle(counts=self.counts)

    def keep(self, index: int, block: BlockDone) -> None:
        """Write down a finished block, unless it is there.

        Raises:
            RunError: the disk is full, or cannot be written.
        """
        place = self.folder / f"{index:04d}"
        if place.exists():
            return
        partial = self.folder / f".{place.name}.{secrets.token_hex(4)}.partial"

        def write() -> None:
            try:
                _write(block, partial)
                partial.rename(place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

        written(self.folder, write)


def begin(
    runs_folder: Path,
    run_id: str,
    settings: RunSettings,
    lineage: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> Attempt:
    """A new attempt; ``threads`` of torch as usual by default.

    Raises:
        RunError: the folder cannot be written.
    """
    plan = {
        "settings": settings.plain(),
        "lineage": dict(lineage or {}),
        "begun_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": cores.usual() if threads is None else threads,
        "counts": None,
    }
    begin_at(inside(runs_folder / FOLDER, run_id), plan)
    return Attempt(runs_folder, run_id)


def begin_at(folder: Path, plan: Mapping[str, Any]) -> None:
    """Make the folder of new work, with its plan.

    Raises:
        RunError: there is work of that name, or it cannot be written.
    """
    if folder.is_dir():
        resume = command_of(folder.parent.parent / folder.name)
        raise RunError(
            f"{folder.name} was begun already and is not finished; choose another name, go on with it, or discard it "
            f"(--discard behind the same command): {resume}"
        )
    written(folder, lambda: folder.mkdir(parents=True))
    try:
        plain_files.write_json(folder / PLAN, plan)
    except RunError:
        remove(folder)
        raise


def command_of(path: Path) -> str:
    """The command that goes on with the run that is to lie at ``path``: its name will do in the runs folder."""
    name = path.name
    if path.parent.resolve() != store.default_folder().resolve():
        name = str(path) if path.parent != Path() else os.path.join(os.curdir, path)  # noqa: PTH118
    quoted = subprocess.list2cmdline([name]) if os.name == "nt" else shlex.quote(name)
    return f"python -m ispasp resume {quoted}"


def find(runs_folder: Path) -> list[Unfinished]:
    """The runs that were cut off, newest first; those that a live process works on are left out."""
    found = []
    for name in begun(runs_folder, FOLDER):
        with contextlib.suppress(RunError, OSError), Attempt(runs_folder, name, 0) as attempt:
            total = len(attempt.counts or ())
            found.append(
                Unfinished(
                    name, attempt.settings, attempt.blocks_done, total, attempt.begun_at, attempt.lineage
                )
            )
    return sorted(found, key=lambda run: (run.begun_at, run.run_id), reverse=True)


def begun(runs_folder: Path, kind: str) -> list[str]:
    """Names of the work in the folder ``kind`` whose run is not saved."""
    names = []
    for name in _named(runs_folder / kind):
        if (runs_folder / name / "run.json").is_file():
            with contextlib.suppress(
                UnderWorkError
            ):  # it is saved now, else the process was killed just behind that
                discard(runs_folder, name, kind)
        else:
            names.append(name)
    return names


def _named(place: Path) -> list[str]:
    try:
        found = [path for path in place.iterdir() if path.name[0] != "."]
        return [path.name for path in found if (path / PLAN).is_file()]
    except OSError:
        return []


def discard(runs_folder: Path, run_id: str, kind: str = FOLDER) -> None:
    """Remove what a run has left in the folder ``kind``; nothing happens where there is nothing.

    Raises:
        UnderWorkError: a process works on it.
        RunError: it is no run's name.
    """
    folder = inside(runs_folder / kind, run_id)
    if folder.is_dir():
        lock = locked(folder, 0)
        remove(folder)
        lock.release()


def locked(folder: Path, patience: float = PATIENCE) -> FileLock:
    """A lock that is held. It lies beside the folder, so that taking it never makes one.

    Raises:
        UnderWorkError: a process holds it for longer than ``patience``, seconds.
        RunError: there is no such folder.
    """
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), thread_local=False)
    try:
        if not folder.is_dir():
            raise FileNotFoundError(folder)
        lock.acquire(patience)
    except Timeout:
        raise UnderWorkError(f"The run {folder.name} is being worked on: stop it first, or wait.") from None
    except OSError as error:
        raise RunError(f"There is nothing of the run {folder.name} that could be gone on with.") from error
    return lock


def remove(folder: Path) -> None:
    """Remove a folder that is locked, and its lock; gone at once for whoever lists what is there."""
    gone = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.gone")
    with contextlib.suppress(OSError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    folder.with_name(f".{folder.name}.lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others are under way
        folder.parent.rmdir()


def written(folder: Path, write: Callable[[], object]) -> None:
    """Call ``write``, which writes to ``folder``. Raises RunError where the disk is full, or cannot be written."""
    try:
        write()
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise RunError(
            f"What is done of the run cannot be written to {folder}: {error}. Make room there, or choose another "
            "runs folder (environment variable ISPASP_RUNS)."
        ) from error


def _write(block: BlockDone, folder: Path) -> None:
    started = Started((block.started.block,), (block.started.keep_groups,))
    report = {"finished_at": ""}
    write_record(RunRecord({}, report, list(block.trace), started, [block.started], [block.pruned]), folder)
    save_file(dict(_tensors(block.refits)), folder / "refits.safetensors")
    plain = [
        {"energy": r.energy, "before": r.before, "after": r.after, "notes": r.notes} for r in block.refits
    ]
    (folder / "refits.json").write_text(json.dumps(plain) + "\n")


def _tensors(refits: Sequence[Refit]) -> Iterable[tuple[str, Tensor]]:
    for number, refit in enumerate(refits):
        for name in ("weight", "intercept", "change"):
            if (value := getattr(refit, name)) is not None:
                yield f"{name}.{number}", value.detach().cpu().clone().contiguous()


def _read(folder: Path) -> BlockDone:
    record = load_record(folder, finished=False)
    try:
        tensors = load_file(folder / "refits.safetensors")
        plain = plain_files.parse((folder / "refits.json").read_text())
        refits = tuple(
            Refit(
                weight=tensors[f"weight.{number}"],
                intercept=tensors.get(f"intercept.{number}"),
                change=tensors.get(f"change.{number}"),
                energy=values["energy"],
                before=values["before"],
                after=values["after"],
                notes=tuple(values["notes"]),
            )
            for number, values in enumerate(plain)
        )
        return BlockDone(record.blocks_started[0], tuple(record.trace), record.blocks_pruned[0], refits)
    except (OSError, SafetensorError, IndexError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder} is damaged ({error})") from error

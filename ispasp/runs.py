"""Runs from start to disk: what the command line and the app both do."""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ispasp import cores, processes, unfinished
from ispasp import device as devices
from ispasp.errors import ISpaSPError, RunError
from ispasp.opened import Opened, open_all
from ispasp.paths import inside
from ispasp.records import BlockPruned, Event, Finished, Started
from ispasp.result import check_new_folder
from ispasp.run_settings import RunSettings
from ispasp.unfinished import Attempt
from ispasp.variant import Variant


@dataclass(frozen=True)
class RunSaved:
    """The run lies in the folder ``path``; ``run_id`` is that folder's name."""

    run_id: str
    path: Path


def new_run_id(settings: RunSettings, more: str = "") -> str:
    """A folder name that says what the run is and sorts by time; ``more`` is another word about it."""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    model = re.sub(r"[^A-Za-z0-9_]+", "-", settings.model).strip("-")[-40:]
    words = f"keep{settings.keep:g}{f'-{more}' if more else ''}"
    return f"{now}-{model}-{words}-{secrets.token_hex(4)}"


def execute(
    settings: RunSettings,
    runs_folder: Path,
    path: Path | None = None,
    *,
    allow_code: bool = False,
    lineage: Mapping[str, str] | None = None,
    opened: Opened | None = None,
) -> Generator[Event | RunSaved, None, None]:
    """Prune a model and save the run; the last event is ``RunSaved``.

    The run's folder is written when the run is finished, and then all of it or nothing. Until then every
    finished block is kept (``ispasp.unfinished``), so that ``resume`` can go on where the process was killed or the
    events were closed. ``unfinished.Discarded``, thrown into them, leaves nothing.

    Of several processes (``ispasp.processes``) each streams a share of the calibration data, and the first alone
    writes; the others' last event is ``Finished``.

    Args:
        settings: what to do.
        runs_folder: where the run's new folder is made.
        path: the folder itself, where the caller wants to name it.
        allow_code: whether a Python file that the settings name may be run.
        lineage: what the run belongs to, such as ``{"sweep": ID}``; kept in its settings.
        opened: the model and the data that the settings name, where they are open already.

    Raises:
        ISpaSPError: what was given cannot be used, or the folder cannot be written.
    """
    devices.pick(settings.device)
    path = runs_folder / new_run_id(settings) if path is None else path
    with processes.shared() as group:
        if group.leads:
            check_new_folder(path)
        if opened is None:
            opened = yield from open_all(settings, allow_code=allow_code)
        if not group.leads:
            yield from opened.variant(settings).events()
            return
        with unfinished.begin(path.parent, path.name, settings, lineage) as attempt:
            yield from _attempted(opened, attempt, path)
    yield RunSaved(path.name, path)


def resume(
    runs_folder: Path, run_id: str, *, allow_code: bool = False
) -> Generator[Event | RunSaved, None, None]:
    """Go on with a run that was cut off, from its last finished block; events as of ``execute``.

    Raises:
        RunError: somebody else works on it, or it cannot be taken up.
        ISpaSPError: as ``execute``.
    """
    path = inside(runs_folder, run_id)
    with Attempt(runs_folder, run_id) as attempt:
        opened = yield from open_all(attempt.settings, allow_code=allow_code)
        yield from _attempted(opened, attempt, path)
    yield RunSaved(path.name, path)


def _attempted(opened: Opened, attempt: Attempt, path: Path) -> Iterator[Event]:
    settings = attempt.settings
    try:
        with cores.threads(attempt.threads):
            variant = opened.variant(settings, attempt.counts)
            variant.known = attempt.known()
            for event in kept_on_disk(variant.events(), variant, attempt):
                if isinstance(event, Finished):
                    event = Finished(
                        opened.described(event.result, settings, attempt.lineage, attempt.threads)
                    )
                    event.result.save(path)
                    attempt.discard()
                yield event
    except RunError:  # the disk is full, say: there is something to go on with once there is room
        raise
    except ISpaSPError:
        attempt.discard()
        raise


def kept_on_disk(events: Iterator[Event], variant: Variant, attempt: Attempt) -> Iterator[Event]:
    """Pass events on, writing down what they have settled for whoever must go on with the run."""
    for event in events:
        if isinstance(event, Started) and attempt.counts is None:
            attempt.settle_counts(event.keep_groups)
        elif isinstance(event, BlockPruned):
            attempt.keep(event.index, variant.blocks_done[event.index])
            variant.written(event.index)
        yield event

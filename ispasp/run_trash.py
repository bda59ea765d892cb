"""Runs that were deleted: moved aside, brought back on demand, and removed for good after a week."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ispasp.errors import RunError
from ispasp.paths import inside
from ispasp.store import read_about

FOLDER = ".trash"
KEPT = timedelta(days=7)
_STAMP = "%Y%m%d-%H%M%S"


@dataclass(frozen=True)
class Deleted:
    """A run in the trash: ``key`` brings it back, ``deleted_at`` is in UTC, ``name`` is what a person called it."""

    run_id: str
    key: str
    deleted_at: datetime
    name: str = ""


def delete(folder: Path, run_id: str) -> Deleted:
    """Move a run, also a damaged one, into the trash, and remove for good what has lain there for a week.

    Raises:
        RunError: it is not there, or cannot be moved.
    """
    path = inside(folder, run_id)
    now = datetime.now(UTC).replace(microsecond=0)
    key = f"{run_id}.{now.strftime(_STAMP)}-{secrets.token_hex(2)}"
    try:
        if not path.is_dir():
            raise FileNotFoundError
        (folder / FOLDER).mkdir(exist_ok=True)
        path.rename(folder / FOLDER / key)
    except FileNotFoundError:
        raise RunError(
            f"The run {run_id} is not there any more: it was deleted or moved meanwhile, perhaps in another window."
        ) from None
    except OSError as error:
        raise RunError(
            f"The run {run_id} cannot be deleted ({error.strerror or error}): check the permissions of {folder}."
        ) from error
    for old in in_trash(folder):
        if now - old.deleted_at > KEPT:
            shutil.rmtree(folder / FOLDER / old.key, ignore_errors=True)
    return Deleted(run_id, key, now)


def restore(folder: Path, key: str) -> str:
    """Bring a deleted run back; its id.

    Args:
        folder: where runs are kept.
        key: of ``Deleted``.

    Raises:
        RunError: it is not in the trash any more, a run of its name is there, or it cannot be moved.
    """
    path = inside(folder / FOLDER, key)
    run_id = key.rpartition(".")[0]
    place = inside(folder, run_id)
    try:
        if not path.is_dir():
            raise FileNotFoundError
        if place.exists():
            raise FileExistsError
        path.rename(place)
    except FileNotFoundError:
        raise RunError(
            f"The run {run_id} is not in the trash any more: it was restored meanwhile, or removed for good after "
            f"{KEPT.days} days."
        ) from None
    except OSError as error:
        if place.exists():
            raise RunError(
                f"The run {run_id} cannot be restored, as a run of that name is there again: delete that one first."
            ) from None
        raise RunError(
            f"The run {run_id} cannot be restored ({error.strerror or error}): check the permissions of {folder}."
        ) from error
    return run_id


def in_trash(folder: Path) -> list[Deleted]:
    """The runs that can be brought back, the latest first; what was not put there by ``delete`` is left out."""
    found = []
    try:
        names = [path.name for path in (folder / FOLDER).iterdir()]
    except OSError:
        return []
    for name in names:
        run_id, _, stamp = name.rpartition(".")
        try:
            moment = datetime.strptime(stamp.rpartition("-")[0], _STAMP).replace(tzinfo=UTC)
        except ValueError:
            continue
        found.append(Deleted(run_id, name, moment, read_about(folder / FOLDER / name)["name"]))
    return sorted(found, key=lambda one: (one.deleted_at, one.key), reverse=True)

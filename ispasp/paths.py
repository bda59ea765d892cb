"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

from ispasp.errors import ISpaSPError, RunError


def expanded(given: str | Path, error: type[ISpaSPError]) -> Path:
    """The path with a leading ``~`` replaced by the home folder; it need not exist.

    Raises:
        error: there is no such user, or the system cannot look such a path up.
    """
    try:
        path = Path(given).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    # RuntimeError: no such user; ValueError: a character that no path holds.
    except (OSError, RuntimeError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(
            f"{str(given)!r} cannot be used as a path ({str(reason).rstrip('.')}): check it."
        ) from problem
    return path


def inside(folder: Path, name: str) -> Path:
    """The path of a run's or a sweep's name in a folder; never outside of it, and never hidden.

    Raises:
        RunError: it is no such name.
    """
    if (
        not isinstance(name, str)
        or not name
        or name != Path(name).name
        or name.startswith(".")
        or "\0" in name
    ):
        raise RunError(f"{str(name)[:60]!r} is not the name of a run: give the name of a folder in {folder}.")
    return folder / name

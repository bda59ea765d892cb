"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

from ispasp.errors import ISpaSPError


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

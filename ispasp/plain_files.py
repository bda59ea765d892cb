"""Small JSON files beside the runs, written whole or not at all."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from ispasp.errors import RunError


def write_json(path: Path, plain: Any) -> None:
    """Write plain values to ``path``; its folder is made, and what was there stays until the new file is whole.

    Raises:
        RunError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n")
        partial.replace(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be written: {error}. Choose a folder you can write to.") from error
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The values in ``path``; None where there is no such file, or no JSON in it."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None

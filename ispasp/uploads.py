"""Files that a person uploads: kept under the runs folder by their content, never by their own name."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ispasp.errors import RunError, SettingError

FOLDER = ".uploads"
CHECKPOINTS = ("safetensors", "pt", "pth", "bin")
ARCHIVES = ("zip",)
PAIRS = ("tsv", "jsonl")
MAX_BYTES = 2 * 2**30
_PIECE = 2**20


def keep(
    content: BinaryIO, name: str, accepted: Sequence[str], runs_folder: Path, max_bytes: int = MAX_BYTES
) -> Path:
    """Write an uploaded file to ``runs_folder/.uploads/<sha256>.<suffix>``; the same content only once.

    The path is what settings name, so that a run can be repeated after a refresh and after a restart. What is
    in the file is for its reader to judge.

    Args:
        content: open for reading, from its beginning.
        name: what the person calls it; only its suffix is used.
        accepted: suffixes without the point, of ``CHECKPOINTS``, ``ARCHIVES`` and ``PAIRS``.
        runs_folder: where runs are kept.
        max_bytes: refuse what is larger.

    Returns:
        The file's absolute path.

    Raises:
        SettingError: the suffix is none of these, or the file is empty or too large.
        RunError: it cannot be written.
    """
    _, _, suffix = name.lower().rpartition(".")
    if suffix not in accepted or "." not in name:
        forms = " or ".join(f".{one}" for one in accepted)
        raise SettingError(f"The file {name[-60:]!r} cannot be used here: upload a {forms} file.")
    folder = (runs_folder / FOLDER).absolute()
    partial = folder / f"{secrets.token_hex(8)}.partial"
    digest, size = hashlib.sha256(), 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            while piece := content.read(_PIECE):
                size += len(piece)
                if size > max_bytes:
                    raise SettingError(
                        f"The uploaded file is larger than {_megabytes(max_bytes)}: put it on this machine and "
                        "give its path instead."
                    )
                digest.update(piece)
                file.write(piece)
        if not size:
            raise SettingError("The uploaded file is empty: choose another.")
        path = folder / f"{digest.hexdigest()}.{suffix}"
        partial.replace(path)
    except OSError as error:
        raise RunError(
            f"The uploaded file cannot be written to {folder} ({error.strerror or error}): free some room there, "
            "or give the path of a file on this machine."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"

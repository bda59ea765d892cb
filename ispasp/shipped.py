"""Files that ship in ``sample_models``: reading one, and the error when it is missing or damaged."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable

from ispasp.errors import ModelError


def read_shipped(file: str, folder: Traversable | None = None) -> bytes:
    """Content of a shipped file, from a clone as from an installed package.

    Args:
        file: its name below ``sample_models``, with forward slashes.
        folder: where to look instead of the package ``sample_models``.

    Raises:
        ModelError: the file is missing or cannot be read.
    """
    try:
        return (folder or files("sample_models")).joinpath(*file.split("/")).read_bytes()
    except OSError as error:
        raise ModelError(
            f"The sample file {file} cannot be read ({error.strerror or error}): it comes with ispasp in "
            "sample_models, so fetch it from the repository or install ispasp again."
        ) from error


def damaged(file: str, cause: Exception) -> ModelError:
    """The error for a file that was read but does not hold what it should."""
    # load_state_dict lists every tensor over many lines; one sentence needs its first words only.
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    reason = " ".join(lines[:2]).rstrip(".") or type(cause).__name__
    return ModelError(
        f"The sample file {file} is damaged or belongs to another version ({reason}): "
        "fetch it from the repository or install ispasp again."
    )

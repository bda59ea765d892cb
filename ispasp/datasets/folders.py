"""Image files in a folder on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ispasp.datasets.decoding import MAX_IMAGE_BYTES, Undecodable, is_image
from ispasp.errors import CalibrationError


class FolderFiles:
    """All image files below a folder; hidden ones and links are left out.

    Args:
        path: the folder.
        only: names of the folders directly in it to look into; all by default.

    Raises:
        CalibrationError: it is no folder, or a part of it cannot be read.
    """

    def __init__(self, path: Path, only: Sequence[str] = ()) -> None:
        self.place = f"The folder {path}"
        self._path = path
        if not path.is_dir():
            raise CalibrationError(f"{self.place} does not exist or is no folder: check the path.")
        self.names: list[str] = []
        links = 0
        pending = list(only) or [""]
        try:
            while pending:
                below = pending.pop()
                with os.scandir(path / below) as entries:
                    for entry in entries:
                        name = f"{below}/{entry.name}" if below else entry.name
                        if entry.name.startswith("."):
                            continue
                        if entry.is_symlink():
                            links += 1
                        elif entry.is_dir(follow_symlinks=False):
                            pending.append(name)
                        elif is_image(name) and entry.is_file(follow_symlinks=False):
                            self.names.append(name)
        except OSError as error:
            raise CalibrationError(
                f"{self.place} cannot be read ({error.strerror or error}): check its permissions."
            ) from error
        self.notes = (
            [f"{links:,} symbolic links were not followed: put the files themselves there."] if links else []
        )

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            Undecodable: it cannot be read, or is too large.
        """
        try:
            with (self._path / name).open("rb") as file:
                content = file.read(MAX_IMAGE_BYTES + 1)
        except OSError as error:
            raise Undecodable(error.strerror or "cannot be read") from error
        return content

"""Image files in a zip archive: checked before anything is unpacked, and never written to disk."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ispasp import zip_files
from ispasp.datasets.decoding import MAX_IMAGE_BYTES, Undecodable, is_image
from ispasp.errors import CalibrationError
from ispasp.paths import expanded
from ispasp.zip_files import Limits

MAX_ARCHIVE_BYTES = 2 * 2**30
MAX_MEMBERS = 200_000
MAX_UNPACKED_BYTES = 16 * 2**30  # of all members together; at most MAX_IMAGE_BYTES of them in memory at once
MAX_RATIO = zip_files.RATIO
RATIO_FROM_BYTES = zip_files.RATIO_FROM_BYTES
MAX_DIRECTORY_BYTES = zip_files.DIRECTORY_BYTES
NESTED = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst")


class ZipFiles:
    """The image files of an archive, read from it one by one on demand.

    Args:
        file: the archive, open for reading at any place.
        shown: its name in messages.

    Raises:
        CalibrationError: it is no archive, or holds what it should not; the message says what.
    """

    def __init__(self, file: BinaryIO, shown: str) -> None:
        self.place = f"The archive {shown}"
        self._shown = shown
        limits = Limits(
            MAX_ARCHIVE_BYTES,
            MAX_MEMBERS,
            MAX_UNPACKED_BYTES,
            MAX_RATIO,
            RATIO_FROM_BYTES,
            MAX_DIRECTORY_BYTES,
        )
        self._archive = zip_files.opened(file, limits, "images", self._refusal)
        members = self._archive.infolist()
        self.names: list[str] = []
        for member in members:
            self._check_member(member, limits)
            parts = member.filename.split("/")
            hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
            if not hidden and not member.is_dir() and is_image(member.filename):
                self.names.append(member.filename)
        if len(set(self.names)) < len(self.names):
            raise self._refusal("holds several files of one name", "pack the images once more")
        self.notes: list[str] = []

    def read(self, name: str) -> bytes:
        """A member's content, unpacked in memory.

        Raises:
            Undecodable: it is damaged, or larger than an image may be.
        """
        try:
            with self._archive.open(name) as member:
                # One byte past the limit, whatever the header says: the decoder refuses that.
                return member.read(MAX_IMAGE_BYTES + 1)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
            raise Undecodable("damaged in the archive") from error

    def close(self) -> None:
        self._archive.close()

    def _check_member(self, member: zipfile.ZipInfo, limits: Limits) -> None:
        name = member.orig_filename
        zip_files.check_name(member, "images", self._refusal)
        if member.is_dir() or "__MACOSX" in name.split("/"):
            return
        if name.lower().endswith(NESTED):
            raise self._refusal(f"holds {name!r}, an archive of its own", "pack the images themselves")
        zip_files.check_packing(member, limits, "images", self._refusal)
        if is_image(name) and member.file_size > MAX_IMAGE_BYTES:
            raise self._refusal(
                f"holds {name!r} of {member.file_size / 2**20:,.0f} MiB, and the limit for an image is "
                f"{MAX_IMAGE_BYTES // 2**20} MiB",
                "leave it out",
            )

    def _refusal(self, found: str, remedy: str) -> CalibrationError:
        return CalibrationError(f"{self.place} {found}: {remedy}.")


@contextmanager
def zip_images(name: str) -> Iterator[ZipFiles]:
    """The images of the archive at the path ``name``, open as long as the context.

    Raises:
        CalibrationError: it cannot be read, or as ``ZipFiles``.
    """
    try:
        with expanded(name, CalibrationError).open("rb") as file:
            yield ZipFiles(file, name)
    except OSError as error:
        raise CalibrationError(
            f"The archive {name} cannot be read ({error.strerror or error}): check the path."
        ) from error

"""Image files in a zip archive: checked before anything is unpacked, and never written to disk."""

from __future__ import annotations

import io
import re
import stat
import zipfile
import zlib
from typing import BinaryIO

from ispasp.datasets.decoding import MAX_IMAGE_BYTES, Undecodable, is_image
from ispasp.errors import CalibrationError

MAX_ARCHIVE_BYTES = 2 * 2**30
MAX_MEMBERS = 200_000
MAX_UNPACKED_BYTES = 16 * 2**30  # of all members together; at most MAX_IMAGE_BYTES of them in memory at once
MAX_RATIO = 200  # unpacked size over packed size, of each member and of the whole
RATIO_FROM_BYTES = 2**20  # below this a high ratio does no harm
MAX_DIRECTORY_BYTES = 32 * 2**20  # the archive's list of members
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
        try:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            if size > MAX_ARCHIVE_BYTES:
                raise self._refusal(
                    f"is {size / 2**30:.1f} GiB, and the limit is {MAX_ARCHIVE_BYTES // 2**30} GiB",
                    "give a smaller one, or the unpacked folder",
                )
            bounded = _Bounded(file)
            self._archive = zipfile.ZipFile(bounded)
            bounded.limit = None
        except _TooMuchError:
            raise self._refusal(
                f"lists more than {MAX_DIRECTORY_BYTES // 2**20} MiB of file names",
                f"give one of at most {MAX_MEMBERS:,} files",
            ) from None
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
            raise self._refusal(
                f"cannot be read as a zip file ({str(error).rstrip('.') or type(error).__name__})",
                "pack the images once more",
            ) from error
        members = self._archive.infolist()
        self._check_sizes(members, size)
        self.names: list[str] = []
        for member in members:
            self._check_member(member)
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

    def _check_sizes(self, members: list[zipfile.ZipInfo], size: int) -> None:
        if len(members) > MAX_MEMBERS:
            raise self._refusal(
                f"holds {len(members):,} files, and the limit is {MAX_MEMBERS:,}", "give a smaller one"
            )
        total = sum(member.file_size for member in members)
        if total > MAX_UNPACKED_BYTES:
            raise self._refusal(
                f"unpacks to {total / 2**30:,.1f} GiB, and the limit is {MAX_UNPACKED_BYTES // 2**30} GiB",
                "give a smaller one",
            )
        if total > RATIO_FROM_BYTES and total > MAX_RATIO * size:
            raise self._refusal(
                f"unpacks to {total // max(size, 1):,} times its size, and the limit is {MAX_RATIO}",
                "images hardly shrink in a zip file, so this one is taken for a bomb",
            )

    def _check_member(self, member: zipfile.ZipInfo) -> None:
        name = member.orig_filename
        parts = name.split("/")
        if (
            name.startswith("/")
            or "\\" in name
            or "\0" in name
            or ".." in parts
            or re.match(r"[A-Za-z]:", name)
        ):
            raise self._refusal(
                f"holds {name!r}, a path that leads out of it", "pack the images with plain relative names"
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise self._refusal(f"holds {name!r}, a symbolic link", "pack the images themselves")
        if member.is_dir() or "__MACOSX" in parts:
            return
        if name.lower().endswith(NESTED):
            raise self._refusal(f"holds {name!r}, an archive of its own", "pack the images themselves")
        if member.flag_bits & 0x1:
            raise self._refusal(f"holds {name!r}, which needs a password", "pack the images without one")
        # The other methods of zipfile unpack without a bound, however little of it is asked for.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._refusal(
                f"holds {name!r}, packed by method {member.compress_type}",
                "pack with the usual method, deflate",
            )
        if is_image(name) and member.file_size > MAX_IMAGE_BYTES:
            raise self._refusal(
                f"holds {name!r} of {member.file_size / 2**20:,.0f} MiB, and the limit for an image is "
                f"{MAX_IMAGE_BYTES // 2**20} MiB",
                "leave it out",
            )
        if member.file_size > RATIO_FROM_BYTES and member.file_size > MAX_RATIO * member.compress_size:
            raise self._refusal(
                f"holds {name!r}, which unpacks to more than {MAX_RATIO} times its size",
                "images hardly shrink in a zip file, so this one is taken for a bomb",
            )

    def _refusal(self, found: str, remedy: str) -> CalibrationError:
        return CalibrationError(f"{self.place} {found}: {remedy}.")


class _TooMuchError(Exception):
    """More would be read at once than an honest archive needs."""


class _Bounded:
    """A file that refuses to read too much at once: zipfile reads an archive's list of members whole.

    Attributes:
        limit: bytes; None from when the list is read, as members have a limit of their own.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.limit: int | None = MAX_DIRECTORY_BYTES
        self.seek = file.seek
        self.tell = file.tell

    def seekable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        if self.limit is None:
            return self._file.read(count)
        # A count of -1 is all that is left: zipfile asks for that near the end only.
        content = self._file.read(self.limit + 1 if count < 0 else min(count, self.limit + 1))
        if len(content) > self.limit:
            raise _TooMuchError
        return content

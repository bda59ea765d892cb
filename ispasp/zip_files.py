"""Zip archives from strangers: what every reader of one checks before it unpacks anything."""

from __future__ import annotations

import io
import re
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

RATIO = 200  # unpacked size over packed size, of each member and of the whole
RATIO_FROM_BYTES = 2**20  # below this a high ratio does no harm
DIRECTORY_BYTES = 32 * 2**20  # the archive's list of members

Refuse = Callable[[str, str], Exception]
"""Makes the error: what was found, and what to do."""


@dataclass(frozen=True)
class Limits:
    """What an archive may amount to.

    Attributes:
        archive: its size, in bytes.
        members: files and folders in it.
        unpacked: size of all members together, in bytes.
        ratio: unpacked over packed size, of each member and of the whole; looked at from ``ratio_from`` bytes on.
        directory: size of its list of members, in bytes.
    """

    archive: int
    members: int
    unpacked: int
    ratio: int = RATIO
    ratio_from: int = RATIO_FROM_BYTES
    directory: int = DIRECTORY_BYTES


def opened(file: BinaryIO, limits: Limits, what: str, refuse: Refuse) -> zipfile.ZipFile:
    """An archive whose sizes were checked; its members still have to be, by ``check_name`` and ``check_packing``.

    Args:
        file: the archive, open for reading at any place.
        limits: what it may amount to.
        what: it should hold, for messages: ``"images"``.
        refuse: makes the error.

    Raises:
        what ``refuse`` makes: it is no archive, or larger than the limits.
    """
    try:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if size > limits.archive:
            raise refuse(
                f"is {size / 2**30:.1f} GiB, and the limit is {limits.archive // 2**30} GiB",
                "give a smaller one, or the unpacked folder",
            )
        bounded = _Bounded(file, limits.directory)
        archive = zipfile.ZipFile(bounded)
        bounded.limit = None
    except _TooMuchError:
        raise refuse(
            f"lists more than {limits.directory // 2**20} MiB of file names",
            f"give one of at most {limits.members:,} files",
        ) from None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        more = "" if reason == "File is not a zip file" else f" ({reason})"
        raise refuse(
            f"cannot be read as a zip file{more}",
            f"pack the {what} once more",
        ) from error
    members = archive.infolist()
    if len(members) > limits.members:
        raise refuse(
            f"holds {len(members):,} files, and the limit is {limits.members:,}", "give a smaller one"
        )
    total = sum(member.file_size for member in members)
    if total > limits.unpacked:
        raise refuse(
            f"unpacks to {total / 2**30:,.1f} GiB, and the limit is {limits.unpacked // 2**30} GiB",
            "give a smaller one",
        )
    if total > limits.ratio_from and total > limits.ratio * size:
        raise refuse(
            f"unpacks to {total // max(size, 1):,} times its size, and the limit is {limits.ratio}",
            f"{what} shrink far less than that in a zip file, so this one is taken for a bomb",
        )
    return archive


def check_name(member: zipfile.ZipInfo, what: str, refuse: Refuse) -> None:
    """Make sure that a member is a file or folder inside the archive.

    Raises:
        what ``refuse`` makes: its path leads out, or it is a link.
    """
    name = member.orig_filename
    if (
        name.startswith("/")
        or "\\" in name
        or "\0" in name
        or ".." in name.split("/")
        or re.match(r"[A-Za-z]:", name)
    ):
        raise refuse(
            f"holds {name!r}, a path that leads out of it", f"pack the {what} with plain relative names"
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise refuse(f"holds {name!r}, a symbolic link", f"pack the {what} themselves")


def check_packing(member: zipfile.ZipInfo, limits: Limits, what: str, refuse: Refuse) -> None:
    """Make sure that a file can be unpacked, and to no more than it says.

    Raises:
        what ``refuse`` makes: it needs a password, is packed in an unusual way, or shrank beyond reason.
    """
    name = member.orig_filename
    if member.flag_bits & 0x1:
        raise refuse(f"holds {name!r}, which needs a password", f"pack the {what} without one")
    # The other methods of zipfile unpack without a bound, however little of it is asked for.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise refuse(
            f"holds {name!r}, packed by method {member.compress_type}", "pack with the usual method, deflate"
        )
    if member.file_size > limits.ratio_from and member.file_size > limits.ratio * member.compress_size:
        raise refuse(
            f"holds {name!r}, which unpacks to more than {limits.ratio} times its size",
            f"{what} shrink far less than that in a zip file, so this one is taken for a bomb",
        )


class _TooMuchError(Exception):
    """More would be read at once than an honest archive needs."""


class _Bounded:
    """A file that refuses to read too much at once: zipfile reads an archive's list of members whole.

    Attributes:
        limit: bytes; None from when the list is read, as members have a limit of their own.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self.limit: int | None = limit
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

"""Runs from an archive that someone made elsewhere: checked in full before one of them is listed."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import itertools
import re
import secrets
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from safetensors import SafetensorError, safe_open

from ispasp import zip_files
from ispasp.deployment import bench, model_diff, profile
from ispasp.deployment.precisions import PRECISIONS, SIDES, file_name
from ispasp.errors import RunError, listing
from ispasp.narrative import plural
from ispasp.result import load_record
from ispasp.store import ABOUT, EXPORT, export_report
from ispasp.zip_files import Limits

STAGING = ".import-"
LIMITS = Limits(archive=2 * 2**30, members=20_000, unpacked=8 * 2**30)
MAX_RUNS = 1000
MAX_JSON_BYTES = 64 * 2**20  # of one file: it is read whole
_FILES = ("run.json", "trace.safetensors", "model.safetensors", ABOUT)
_MEASURED: dict[str, Callable[[Path], object]] = {
    bench.FILE: bench.bench_report,
    profile.FILE: profile.profile_report,
    model_diff.FILE: model_diff.read_diff,
}
"""What is found out about exported files, and how it is read; None where it is damaged."""
_EXPORTED = (
    "export.json",
    *_MEASURED,
    *(file_name(*which) for which in itertools.product(SIDES, PRECISIONS)),
)
_ABANDONED_SECONDS = 86_400.0
_PIECE = 2**20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,119}")


@dataclass(frozen=True)
class Imported:
    """What came of an archive.

    Attributes:
        run_ids: of the runs that were taken in.
        notes: a sentence for each thing that is not as in the archive.
        known: ids of the runs that were here already.
    """

    run_ids: tuple[str, ...]
    notes: tuple[str, ...]
    known: tuple[str, ...] = ()


Members = dict[str, zipfile.ZipInfo]
"""What is taken of a run, by its path in the run's folder."""


def import_archive(file: BinaryIO, folder: Path, shown: str = "archive.zip") -> Imported:
    """Take in all runs of a zip archive such as ``store.archive`` makes; all of them or none.

    Only the files that ispasp writes are taken, each run is read as if it were opened, and nothing is unpickled
    or run. A run whose name is taken gets another; one that is here already, with the same run.json and weights, is
    left out.

    Args:
        file: the archive, open for reading at any place.
        folder: where runs are kept.
        shown: the archive's name, for messages, and for the run where it holds a single one without a folder.

    Raises:
        RunError: it is no archive, holds what it should not or no run, a run in it is damaged or from a newer
            version, or the folder cannot be written.
    """

    def refuse(found: str, remedy: str) -> RunError:
        return RunError(f"The archive {shown[-60:]} {found}: {remedy}.")

    staging = folder / f"{STAGING}{secrets.token_hex(4)}"
    placed: list[Path] = []
    known: list[str] = []
    with zip_files.opened(file, LIMITS, "runs", refuse) as archive:
        found, left_out = _runs_in(archive, refuse)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(folder)
            notes = [_left_out_note(left_out)] if left_out else []
            for place, (root, members) in enumerate(found.items()):
                name = root.name or Path(shown).stem
                notes += _take(archive, members, staging / str(place), name, shown, refuse)
            here = {place: _twin(staging / str(place), folder) for place in range(len(found))}
            for place, root in enumerate(found):
                name = root.name or Path(shown).stem
                if twin := here[place]:
                    known.append(twin)
                    notes.append(f"{name} is already here{f', as {twin}' if twin != name else ''}.")
                    continue
                placed.append(_put(staging / str(place), folder, name))
                if placed[-1].name != name:
                    notes.append(f"{name} is called {placed[-1].name} here: {_why(name)}.")
        except BaseException as error:
            for path in placed:
                shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, OSError):
                reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
                raise RunError(
                    f"The runs cannot be written to {folder} ({reason}), and nothing of them was kept: free some "
                    "room or check the folder's permissions, and import again."
                ) from error
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return Imported(tuple(path.name for path in placed), tuple(notes), tuple(known))


def _runs_in(
    archive: zipfile.ZipFile, refuse: zip_files.Refuse
) -> tuple[dict[PurePosixPath, Members], list[str]]:
    """The members of each run by its folder in the archive, and the names of the files that are none of these."""
    files = []
    for member in archive.infolist():
        zip_files.check_name(member, "runs", refuse)
        if not member.is_dir():
            files.append((PurePosixPath(member.filename), member))
    folders = {path.parent for path, _ in files if path.name == "run.json"}
    # A run.json further down, in the folder of a run, is a file like any other.
    found: dict[PurePosixPath, Members] = {
        root: {} for root in sorted(folders) if not folders & set(root.parents)
    }
    if not found:
        raise refuse(
            "holds no run: there is no run.json in it", "give an archive that was downloaded from a runs list"
        )
    if len(found) > MAX_RUNS:
        raise refuse(f"holds {len(found):,} runs, and the limit is {MAX_RUNS:,}", "give a smaller one")
    left_out = []
    for path, member in files:
        root = next((one for one in path.parents if one in found), None)
        inside = "" if root is None else str(path.relative_to(root))
        if root is None or not _is_taken(inside):
            left_out.append(str(path))
            continue
        if inside in found[root]:
            raise refuse(f"holds {str(path)!r} twice", "pack the runs once more")
        zip_files.check_packing(member, LIMITS, "runs", refuse)
        if inside.endswith(".json") and member.file_size > MAX_JSON_BYTES:
            raise refuse(
                f"holds {str(path)!r} of {member.file_size / 2**20:,.0f} MiB, and the limit for it is "
                f"{MAX_JSON_BYTES // 2**20} MiB",
                "give one that was downloaded from a runs list",
            )
        found[root][inside] = member
    return found, left_out


def _is_taken(inside: str) -> bool:
    return inside in _FILES or inside in {f"{EXPORT}/{name}" for name in _EXPORTED}


def _left_out_note(names: list[str]) -> str:
    shown = [repr(name[-60:]) for name in names[:3]]
    more = [f"{len(names) - 3:,} more"] if len(names) > 3 else []
    return f"{plural(len(names), 'file')} that ispasp does not write left out: {listing([*shown, *more])}."


def _take(
    archive: zipfile.ZipFile,
    members: Members,
    place: Path,
    name: str,
    shown: str,
    refuse: zip_files.Refuse,
) -> list[str]:
    """Unpack one run to ``place`` and read it as if it were opened; what to say about it."""
    for inside, member in members.items():
        target = place / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # No more is unpacked than the member's header says, and that was checked.
            with archive.open(member) as source, target.open("xb") as file:
                while piece := source.read(_PIECE):
                    file.write(piece)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
            raise refuse(
                f"is damaged: {member.filename!r} cannot be unpacked", "fetch it once more"
            ) from error
    try:
        load_record(place)
        try:
            with safe_open(place / "model.safetensors", framework="pt") as weights:
                weights.keys()
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"The saved run {place} is damaged: model.safetensors cannot be read ({error}). Run it again."
            ) from error
    except RunError as error:
        said = str(error).replace(str(place), name)
        raise RunError(
            f"The archive {shown[-60:]} cannot be imported, and nothing of it was kept. {said}"
        ) from error
    return _check_export(place, name)


def _check_export(place: Path, name: str) -> list[str]:
    """Leave an export out that is not whole: its report names the files that are offered for download. Of a whole
    one, leave out what was measured where that cannot be read."""
    if not (place / EXPORT).exists():
        return []
    if export_report(place) is None:
        shutil.rmtree(place / EXPORT)
        return [f"The ONNX files of {name} were left out, as their report is damaged: export it again."]
    damaged = []
    for file, read in _MEASURED.items():
        with contextlib.suppress(RunError):
            if read(place) is not None:
                continue
        if (place / EXPORT / file).exists():
            (place / EXPORT / file).unlink()
            damaged.append(f"{file} of {name} was left out, as it is damaged: measure the run again.")
    return damaged


def _twin(source: Path, folder: Path) -> str:
    """The id of a run that is here with the same run.json and weights, byte by byte; empty where there is none."""
    for path in sorted(folder.iterdir()):
        try:
            if not path.name.startswith(".") and all(
                filecmp.cmp(source / name, path / name, shallow=False)
                for name in ("run.json", "model.safetensors")
            ):
                return path.name
        except OSError:
            continue  # no run, or it vanished
    return ""


def _put(source: Path, folder: Path, name: str) -> Path:
    """Move an unpacked run into the runs folder, under its name or one like it that is free."""
    own = name if _NAME.fullmatch(name) else re.sub(r"[^A-Za-z0-9_.+-]+", "-", name)[-100:].strip("-.")
    wanted = own or "imported"
    for _ in range(20):
        place = folder / wanted
        if not place.exists():
            try:
                source.rename(place)
            except OSError as error:
                # Another process took the name meanwhile.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                return place
        wanted = f"{own or 'imported'}-{secrets.token_hex(2)}"
    raise FileExistsError(errno.EEXIST, f"no name like {own} is free")


def _why(name: str) -> str:
    if _NAME.fullmatch(name):
        return "a run of that name is there already"
    return "that name cannot be used as a folder's"


def _remove_abandoned(folder: Path) -> None:
    """What a process left that was killed while it imported."""
    for path in folder.glob(f"{STAGING}*"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue

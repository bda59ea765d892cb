"""The folder that runs are kept in: what lies there, what a person calls it, and how to take it away."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import unicodedata
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ispasp import plain_files
from ispasp.deployment.agreement import ParityReport
from ispasp.deployment.precisions import Variant, file_name
from ispasp.errors import RunError, SettingError
from ispasp.plain_files import is_number
from ispasp.result import RunRecord, load_record, read_json

EXPORT = "export"  # the folder in a run's folder that holds its ONNX files and their figures
ABOUT = "about.json"  # what a person calls a run, in its folder
MAX_NAME, MAX_NOTE = 80, 2000  # characters
_MAX_ABOUT_BYTES = 64 * 2**10

Stamp = tuple[tuple[int, int, int] | None, ...]
"""Inode, time and size of the files that a summary is made from; None for one that is not there."""


@dataclass(frozen=True)
class RunSummary:
    """What a list says about a run on disk. It is shared by all who ask: change nothing in it.

    Attributes:
        run_id: the name of the run's folder.
        path: that folder.
        finished_at: ISO 8601, with its time zone.
        settings: as in ``RunRecord``.
        report: as in ``RunRecord``, but for the selected groups of each block.
        exported: whether ONNX files are there.
        problem: why the run cannot be opened; empty where it can.
        name, note: what a person calls it and says about it; empty where nothing was said.
        size: bytes on disk.
        lineage: what the run belongs to, such as ``{"sweep": ID}``; empty for a single run.
    """

    run_id: str
    path: Path
    finished_at: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    exported: bool = False
    problem: str = ""
    name: str = ""
    note: str = ""
    size: int = 0
    lineage: dict[str, str] = field(default_factory=dict)


_KNOWN: dict[Path, tuple[Stamp, RunSummary]] = {}
"""Summaries read before. They are few and small, and all pages of a process list the same folder."""


def default_folder() -> Path:
    """Where runs are kept: the environment variable ISPASP_RUNS, else ``runs`` in the current folder."""
    return Path(os.environ.get("ISPASP_RUNS", "runs"))


def list_runs(folder: Path) -> list[RunSummary]:
    """All runs in ``folder``, newest first; damaged ones are listed with their problem.

    A run is read once, and again only when its files change. One that vanishes meanwhile is left out.

    Raises:
        RunError: the folder cannot be looked into.
    """
    try:
        paths = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        paths = []
    except OSError as error:
        raise RunError(
            f"The runs folder {folder} cannot be read ({error.strerror or error}): check its permissions."
        ) from error
    runs = [run for path in paths if not path.name.startswith(".") and (run := _summary(path))]
    for gone in {path for path in list(_KNOWN) if path.parent == folder} - set(paths):
        _KNOWN.pop(gone, None)
    return sorted(runs, key=lambda run: (run.finished_at, run.run_id), reverse=True)


def _summary(path: Path) -> RunSummary | None:
    """One line about the run in ``path``; None where no folder is."""
    stamp = tuple(_stamp(path / name) for name in ("run.json", ABOUT, f"{EXPORT}/export.json"))
    known = _KNOWN.get(path)
    if known and known[0] == stamp:
        return known[1]
    try:
        plain = read_json(path)
    except RunError as error:
        # Not remembered: what is wrong may be mended without a change to the file.
        return RunSummary(path.name, path, problem=str(error), size=_size(path)) if path.is_dir() else None
    settings, report = plain["settings"], dict(plain["report"])
    if isinstance(blocks := report.get("blocks"), list):
        report["blocks"] = [_without_groups(block) for block in blocks]
    lineage = settings.get("lineage")
    about = read_about(path)
    summary = RunSummary(
        path.name,
        path,
        report["finished_at"],
        settings,
        report,
        exported=stamp[-1] is not None,
        name=about["name"],
        note=about["note"],
        size=_size(path),
        lineage={str(k): str(v) for k, v in lineage.items()} if isinstance(lineage, dict) else {},
    )
    _KNOWN[path] = stamp, summary
    return summary


def _without_groups(block: Any) -> Any:
    return {k: v for k, v in block.items() if k != "selected"} if isinstance(block, dict) else block


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _size(path: Path) -> int:
    """Bytes of all files in a folder; what vanishes meanwhile does not count."""
    size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                size += Path(folder, name).lstat().st_size
    return size


def read_about(path: Path) -> dict[str, str]:
    """The ``name`` and ``note`` of a run; empty where nothing was said, or where it cannot be read."""
    try:
        with (path / ABOUT).open("rb") as file:
            said = json.loads(file.read(_MAX_ABOUT_BYTES))
    except (OSError, ValueError, RecursionError):
        said = None
    said = said if isinstance(said, dict) else {}
    text = {key: said[key] if isinstance(said.get(key), str) else "" for key in ("name", "note")}
    return {"name": _one_line(text["name"])[:MAX_NAME], "note": _printable(text["note"])[:MAX_NOTE]}


def rename(path: Path, name: str) -> None:
    """Call a run something; its folder, and so its address, stays. An empty name takes the name away.

    Raises:
        SettingError: the name is too long.
        RunError: the run is gone, or its folder cannot be written.
    """
    name = _one_line(name)
    if len(name) > MAX_NAME:
        raise SettingError(
            f"The name has {len(name):,} characters: give one of at most {MAX_NAME}, and put the rest into the note."
        )
    _write_about(path, name=name)


def set_note(path: Path, note: str) -> None:
    """Say something about a run; an empty note takes the note away.

    Raises:
        SettingError: the note is too long.
        RunError: the run is gone, or its folder cannot be written.
    """
    note = _printable(note).strip()
    if len(note) > MAX_NOTE:
        raise SettingError(f"The note has {len(note):,} characters: shorten it to at most {MAX_NOTE:,}.")
    _write_about(path, note=note)


def _write_about(path: Path, **said: str) -> None:
    partial = path / f".{ABOUT}.{secrets.token_hex(4)}.partial"
    text = json.dumps(read_about(path) | said, ensure_ascii=False, indent=1) + "\n"
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path / ABOUT)
    except FileNotFoundError:
        raise RunError(f"The run {path.name} is not there any more: look at the list again.") from None
    except OSError as error:
        raise RunError(
            f"The name and note of {path.name} cannot be written ({error.strerror or error}): free some room, or "
            "check the permissions of the runs folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _printable(text: str) -> str:
    """Without control characters and halves of characters, which no file and no page can show."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))


def _one_line(text: str) -> str:
    return " ".join(_printable(text).split())


def open_run(path: Path) -> RunRecord:
    """A saved run without its model. Raises RunError when it is missing, damaged or foreign."""
    return load_record(path)


def export_report(path: Path) -> dict[str, Any] | None:
    """The report of ``exporting.export_run`` for a run that was exported; one of an earlier version has no variants.

    None for a run that was not, and where the report is damaged, foreign, or names files that are not there: what it
    names is offered for download.
    """
    report = plain_files.read_json(path / EXPORT / "export.json")
    try:
        report = {"variants": [], "machine": {}, "notes": []} | report
        for key, side in (("dense_onnx", "dense"), ("onnx", "pruned")):
            said = report[key]
            numbers = [said[k] for k in ("bytes", "opset", "max_abs_diff", "max_rel_diff", "examples")]
            numbers.append(0 if said["top1_agreement"] is None else said["top1_agreement"])
            if not _is_file(path, said["path"], side, "fp32") or not all(map(is_number, numbers)):
                return None
        latency = report["latency"]
        numbers = [latency[model][k] for model in ("dense", "pruned") for k in ("median_ms", "p95_ms")]
        numbers += [latency[k] for k in ("batch", "threads", "pairs", "ratio", "ratio_low", "ratio_high")]
        variants = [plain_files.check_fields(Variant(**said)) for said in report["variants"]]
        whole = all(_is_whole(path, variant) for variant in variants)
        notes, machine = report["notes"], report["machine"]
        texts = isinstance(notes, list) and all(isinstance(note, str) for note in notes)
        return (
            report if whole and texts and isinstance(machine, dict) and all(map(is_number, numbers)) else None
        )
    except (KeyError, TypeError, ValueError, OSError, SettingError):
        return None


def _is_whole(path: Path, variant: Variant) -> bool:
    """Whether a variant has its file, or says why not; and what it was found to be worth, if it was compared."""
    if variant.parity is not None:
        plain_files.check_fields(ParityReport(**variant.parity))
    if variant.problem and not variant.path:
        return variant.parity is None
    return _is_file(path, variant.path, variant.side, variant.precision)


def _is_file(path: Path, said: object, side: str, precision: str) -> bool:
    """Whether a report says of one of its files where it is, and it is there."""
    name = file_name(side, precision)
    return said == f"{EXPORT}/{name}" and (path / EXPORT / name).is_file()


def archive(*paths: Path) -> bytes:
    """The folders of one or more runs as a zip file, which ``run_import.import_archive`` reads.

    Raises:
        RunError: there is no such run, or it vanishes meanwhile.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for path in paths:
            load_record(path)
            try:
                _pack(path, bundle)
            except OSError as error:
                raise RunError(
                    f"The run {path.name} cannot be packed ({error.strerror or error}): look at the list again."
                ) from error
    return buffer.getvalue()


def _pack(path: Path, bundle: zipfile.ZipFile) -> None:
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        # A link could bring any file of this machine along.
        if (
            file.is_file()
            and not file.is_symlink()
            and not any(part.startswith(".") for part in relative.parts)
        ):
            bundle.write(file, Path(path.name) / relative)

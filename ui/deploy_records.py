"""What the export of a run left on record, read without trust in who wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ispasp import store
from ispasp.deployment.agreement import ParityReport
from ispasp.deployment.precisions import PRECISIONS, SIDES, Variant
from ispasp.errors import RunError
from ispasp.plain_files import check_fields

FILE = "export.json"


class File(NamedTuple):
    """One exported file, or an attempt at one, and how it compares with torch."""

    made: Variant
    parity: ParityReport | None

    @property
    def passed(self) -> bool:
        """Whether it is there and passed its check; never by default."""
        return bool(self.made.path) and self.parity is not None and self.parity.passed


class Exported(NamedTuple):
    """The files of a run, by precision and then by side, and what else there is to say about them."""

    files: tuple[File, ...]
    notes: tuple[str, ...]

    def of(self, side: str, precision: str) -> File | None:
        """The file of a model in a precision; None where it was not asked for."""
        return next(
            (one for one in self.files if (one.made.side, one.made.precision) == (side, precision)), None
        )

    @property
    def precisions(self) -> list[str]:
        """Those of which both files are there."""
        return [
            precision
            for precision in PRECISIONS
            if all((one := self.of(side, precision)) and one.made.path for side in SIDES)
        ]


def exported(path: Path) -> Exported | None:
    """What the export of the run in the folder ``path`` has on record; None where it was not exported.

    Raises:
        RunError: the record is damaged, or from an older version.
    """
    report = store.export_report(path)
    if report is None:
        if (path / store.EXPORT / FILE).is_file():
            raise RunError("What the last export of this run has on record cannot be read: export it again.")
        return None
    if not report["variants"]:
        raise RunError(
            "This run was exported by an older version, which left too little on record: export it again."
        )
    try:
        found = [_file(each) for each in report["variants"]]
    except (TypeError, ValueError) as error:
        raise RunError(f"The record of the last export is damaged ({error}): export it again.") from error
    order = {name: place for place, name in enumerate((*PRECISIONS, *SIDES))}
    found.sort(key=lambda file: (order[file.made.precision], order[file.made.side]))
    return Exported(tuple(found), tuple(report["notes"]))


def _file(plain: Mapping[str, Any]) -> File:
    made = Variant(**plain)
    return File(made, None if made.parity is None else check_fields(ParityReport(**made.parity)))

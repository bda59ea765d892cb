"""A saved run with all that exporting and measuring need: both models, and the data."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ispasp import plain_files
from ispasp.calibration import Batch, read
from ispasp.errors import ExportError
from ispasp.models import LoadedModel, build
from ispasp.opened import open_data, open_model
from ispasp.records import Progress
from ispasp.result import PruneResult, load, load_record
from ispasp.run_settings import RunSettings
from ispasp.store import EXPORT


@dataclass(frozen=True)
class OpenedRun:
    """A run, opened.

    Attributes:
        path: its folder.
        settings: what it was asked to do.
        dense: the model before it, with the preparation of its inputs and the names of its classes.
        result: its record, and the pruned model.
        calibration: the batches it was pruned with.
        evaluation: the batches it was measured on, with labels where they are known; not empty.
    """

    path: Path
    settings: RunSettings
    dense: LoadedModel
    result: PruneResult
    calibration: list[Batch]
    evaluation: list[Batch]


def open_run(path: Path, *, allow_code: bool = False) -> Generator[Progress, None, OpenedRun]:
    """Open a saved run, saying what is being done; to be used with ``yield from``.

    Args:
        path: the run's folder.
        allow_code: whether a Python file that the run names may be run.

    Raises:
        RunError, ModelError, CalibrationError: the run, its dense model or its data cannot be opened.
    """
    yield Progress(0.0, "reading the run")
    settings = RunSettings.of(load_record(path))
    dense = open_model(settings, allow_code=allow_code)
    yield Progress(0.0, "reading the data")
    data = open_data(settings, dense, allow_code=allow_code)
    result = load(path, build(dense.record, allow_code=allow_code))
    evaluation = read(data.evaluation, "evaluation")
    return OpenedRun(path, settings, dense, result, read(data.calibration), evaluation)


class Measured:
    """The export that is being measured: what is found out about it must not be put beside the files of a later one."""

    def __init__(self, path: Path) -> None:
        """``path`` is the run's folder, which was exported."""
        self._folder = path / EXPORT
        self._inode = self._folder.stat().st_ino

    def write(self, name: str, report: Mapping[str, Any]) -> None:
        """Write a report beside the files, all of it or nothing.

        Raises:
            ExportError: the run was exported anew meanwhile.
            RunError: it cannot be written.
        """
        if not self._folder.is_dir() or self._folder.stat().st_ino != self._inode:
            raise ExportError(
                "The run was exported anew while the older files were measured; measure the new ones."
            )
        plain_files.write_json(self._folder / name, report)


def inputs(batch: Batch) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """A batch's inputs as a forward call takes them."""
    return batch.keywords or batch.inputs

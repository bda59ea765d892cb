"""A saved run with all that exporting and measuring need: both models, and the data."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ispasp.calibration import Batch, read
from ispasp.models import LoadedModel, build
from ispasp.opened import open_data, open_model
from ispasp.records import Progress
from ispasp.result import PruneResult, load, load_record
from ispasp.run_settings import RunSettings


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


def inputs(batch: Batch) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """A batch's inputs as a forward call takes them."""
    return batch.keywords or batch.inputs

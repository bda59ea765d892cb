"""The training data of a fine-tuning, and what its result is measured on."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from ispasp import datasets
from ispasp.calibration import copies, read
from ispasp.datasets import DataSource, Training
from ispasp.deployment.opened_run import OpenedRun
from ispasp.models import LoadedModel
from ispasp.opened import outputs_of
from ispasp.run_settings import RunSettings
from ispasp.tuning.request import TuneRequest
from ispasp.tuning.training_set import MemorySet

CHUNK = 256  # training examples that are looked at together


def source_of(settings: RunSettings, request: TuneRequest) -> DataSource:
    """Where the training data come from."""
    return datasets.parse(request.train) if request.train else settings.data_source()


def open_training(
    settings: RunSettings, loaded: LoadedModel, request: TuneRequest, *, allow_code: bool = False
) -> Training:
    """The training data that a fine-tuning asks for, as the model of a run reads them.

    Args:
        settings: of the run; the examples that it was measured on are never among those of the same source.
        loaded: its dense model.
        request: what is asked for.
        allow_code: whether a Python file that is named as a source may be run.

    Raises:
        CalibrationError, SettingError: they cannot be had, or do not fit the model.
    """
    return datasets.load_training(
        source_of(settings, request),
        loaded.preparation,
        loaded.classes,
        outputs=outputs_of(loaded),
        examples=request.train_examples,
        seed=settings.seed,
        evaluation=settings.evaluation,
        calibration=settings.samples,
        allow_code=allow_code,
    )


def measured_apart(run: OpenedRun, training: Training, request: TuneRequest) -> OpenedRun:
    """The run with evaluation examples that are not trained on.

    Where a source has one pool for both, these can be others than the run was measured on. Another source is taken at
    its word: where examples that lie in memory are in both, the run's notes say so.
    """
    settings = run.result.settings
    if _place(source_of(run.settings, request)) == _place(run.settings.data_source()):
        apart = read(training.evaluation, "evaluation")
        count = sum(map(len, apart))
        if count == sum(map(len, run.evaluation)):
            return dataclasses.replace(run, evaluation=apart)
        return dataclasses.replace(
            run,
            settings=dataclasses.replace(run.settings, evaluation=count),
            result=dataclasses.replace(run.result, settings=settings | {"evaluation": count}),
            evaluation=apart,
        )
    if not isinstance(training.set, MemorySet):
        return run
    parts = [range(at, min(at + CHUNK, len(training.set))) for at in range(0, len(training.set), CHUNK)]
    if not (copied := copies(run.evaluation, training.set.batches(parts))):
        return run
    note = (
        f"{copied:,} of the {sum(map(len, run.evaluation)):,} examples that it is measured on are training examples "
        "too, so its accuracy is partly of training data: give others to train on."
    )
    noted = settings | {"notes": [*settings.get("notes", ()), note]}
    return dataclasses.replace(run, result=dataclasses.replace(run.result, settings=noted))


def _place(source: DataSource) -> tuple[str, ...]:
    """The same for a source however its path is spelled."""
    path, more = source.name, ""
    if source.kind in ("sample", "noise"):
        return source.kind, path
    if source.kind == "python":
        path, _, more = path.rpartition(":")
    elif source.kind == "torchvision":
        more, _, path = path.rpartition("@")
    return source.kind, os.path.normcase(os.path.realpath(Path(path).expanduser())), more

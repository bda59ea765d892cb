"""Fine-tuning of a pruned model in one call: with labels, towards the dense model, or both."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ispasp import calibration as calibration_data
from ispasp import device as devices
from ispasp import evaluate, processes
from ispasp.errors import RunError, SettingError, listing
from ispasp.tuning import checkpoint as checkpoints
from ispasp.tuning.alike import check_alike
from ispasp.tuning.checkpoint import TuneState
from ispasp.tuning.copies import check_modules
from ispasp.tuning.loop import tune_steps
from ispasp.tuning.settings import PRESETS, TuneSettings
from ispasp.tuning.training_set import MemorySet, TrainingSet


def finetune(
    pruned: nn.Module,
    training: Iterable[Any] | TrainingSet,
    *,
    dense: nn.Module | None = None,
    evaluation: Iterable[Any] | None = None,
    settings: TuneSettings | None = None,
    preset: str = "quick",
    device: str | torch.device = "auto",
    checkpoint: str | Path | None = None,
) -> nn.Module:
    """Fine-tune a copy of ``pruned`` and return it; neither model is changed.

    A tenth of the training data is held out, and the weights of the epoch with the lowest loss on it are returned, or
    those given where none was lower. Several processes of one launch (``torchrun``) that call it with the same
    arguments share every step, and all return the same. ``ispasp.tuning.loop.tune_steps`` is the same step by step,
    with the curve.

    Args:
        pruned: the sliced model, e.g. ``ispasp.prune(...).model``. Its parameters without ``requires_grad`` stay.
        training: batches as in ``ispasp.prune``, with labels, or without any where the settings' ``distil`` is 1; or a
            set that loads them when needed (``ispasp.tuning.training_set``).
        dense: the model it was pruned from; needed where ``distil`` is above 0, as in the presets quick and distil.
        evaluation: labelled batches on which the accuracy after each epoch is measured for the checkpoint's curve.
        settings: how to fine-tune; those of ``preset`` by default.
        preset: ``"quick"``, ``"paper"`` or ``"distil"``; epochs after each block are not made here, since the blocks
            are pruned already.
        device: where the work is done: ``"auto"`` (CUDA, then MPS, then CPU), or a device's name.
        checkpoint: a folder that every epoch is written to, and from which the work goes on where it was cut off.
            Where it cannot be written, there is a warning, and the work goes on.

    Returns:
        A new module in eval mode, on the device of ``pruned``.

    Raises:
        SettingError: the preset is unknown, there are no epochs at the end, or as ``tune_steps``.
        RunError: the checkpoint is damaged, or of another model, other data or other settings; or the processes were
            not given the same.
        CalibrationError, ModelError, DeviceError, ProcessError: as ``tune_steps``.
    """
    if preset not in PRESETS:
        raise SettingError(f"Unknown preset {preset!r}; choose one of {listing(PRESETS)}.")
    chosen = PRESETS[preset] if settings is None else settings
    if not chosen.epochs:
        raise SettingError(
            "epochs is 0, and here no epochs are made after blocks, since these are pruned already; give 1 or more."
        )
    check_modules([pruned] if dense is None else [pruned, dense])
    with contextlib.ExitStack() as stack:
        if processes.here() is processes.ALONE:
            stack.enter_context(processes.joined(str(device)))
        where = devices.pick(device)
        examples = _as_set(training)
        batches = [] if evaluation is None else calibration_data.read(evaluation, "evaluation")
        folder = None if checkpoint is None else Path(checkpoint)
        state = None
        if folder is not None:
            made_of = checkpoints.fingerprint(pruned, dense, examples, chosen)
            # Where all have been here, the first has written all of an earlier call.
            for _ in check_alike([pruned, dense], examples, batches, dataclasses.asdict(chosen)):
                pass
            state = checkpoints.read(folder, made_of)
        work = tune_steps(
            pruned,
            dense,
            examples,
            batches,
            chosen,
            device=where,
            state=state,
            keep=None if folder is None else lambda state: _write(state, folder),
        )
        while True:
            try:
                next(work)
            except StopIteration as end:
                tuned: nn.Module = end.value.model
                return tuned.to(evaluate.device_of(pruned))


def _as_set(training: Iterable[Any] | TrainingSet) -> TrainingSet:
    if hasattr(training, "batches") and hasattr(training, "labelled"):
        return cast(TrainingSet, training)
    return MemorySet(training)


def _write(state: TuneState, folder: Path) -> None:
    try:
        checkpoints.write(state, folder)
    except RunError as error:
        warnings.warn(str(error), RuntimeWarning, stacklevel=2)

"""What a fine-tuning refuses before it begins, and how it says so."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn

from ispasp import processes
from ispasp.errors import CalibrationError, ModelError, NoLabelsError, RunError, SettingError
from ispasp.tuning import checkpoint
from ispasp.tuning.alike import same
from ispasp.tuning.checkpoint import TuneState
from ispasp.tuning.settings import TuneSettings
from ispasp.tuning.training_set import TrainingSet


def check_trainable(
    training: TrainingSet, dense: nn.Module | None, settings: TuneSettings, held: int, trained: int
) -> None:
    """Refuse what cannot be trained.

    Args:
        held, trained: how many examples are held out, and how many are trained on.

    Raises:
        SettingError: the dense model is missing, or there are fewer examples in a batch than processes.
        CalibrationError: labels are missing, or there are fewer than two examples.
    """
    share, size = settings.distil, processes.here().size
    if share > 0 and dense is None:
        raise SettingError(
            f"distil is {share:g}, but there is no dense model; give it, or set distil to 0 to train with labels."
        )
    if share < 1 and not training.labelled:
        raise NoLabelsError(
            'The training data has no labels; give data that has them, or use the preset "distil" (distil = 1), '
            "which needs none."
        )
    if not held or not trained:
        raise CalibrationError(
            f"The training data has {len(training)} example; give at least two, for one is held out."
        )
    steps = math.ceil(trained / settings.batch_size)
    if min(trained // steps, held) < size:
        raise SettingError(
            f"batch_size is {settings.batch_size} for {trained} training and {held} held-out examples, too few for "
            f"{size} processes; give larger batches or more data, or start fewer."
        )


def check_state(state: TuneState | None, fingerprint: str) -> None:
    """Refuse to go on from what is not of this fine-tuning, or not the same for all processes.

    Raises:
        RunError: it is so.
        ProcessError: another process has ended.
    """
    if state is not None and state.fingerprint != fingerprint:
        raise checkpoint.foreign(f"epoch {state.epoch}")
    if not same(str(0 if state is None else state.epoch)):
        raise RunError(
            f"The {processes.here().size} processes do not go on from the same epoch; keep the checkpoint where all of "
            "them can read it, or remove it."
        )


def not_finite(models: Iterable[nn.Module], precision: str) -> ModelError:
    """What to say where the loss of the weights given is NaN or infinite.

    Args:
        models: those that were measured.
        precision: in which they were, a key of ``ispasp.tuning.loss.TYPES``.
    """
    values = (value for model in models for value in model.state_dict().values())
    if precision == "fp16" and all(bool(value.isfinite().all()) for value in values):
        return ModelError(
            "The dense or the pruned model gives values on the training data that exceed the range of fp16 (65,504); "
            "set precision to bf16 or fp32."
        )
    return ModelError(
        "The dense or the pruned model gives values that are NaN or infinite on the training data; repair its weights "
        "before fine-tuning."
    )

"""Prune a whole model: one pass over its graph, block after block, each step an event.

Every block sees the inputs that the already pruned network gives it, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ispasp import calibration as calibration_data
from ispasp import device as devices
from ispasp.calibration import Batch
from ispasp.display import watched
from ispasp.errors import ModelError, SettingError
from ispasp.records import Event, Finished, Progress
from ispasp.result import PruneResult
from ispasp.settings import PruneSettings, check_keep
from ispasp.subject import Subject
from ispasp.variant import Variant


def prune(
    model: nn.Module,
    calibration: Iterable[Any],
    keep: float | Mapping[str, float] = 0.5,
    *,
    progress: bool = False,
    **options: Any,
) -> PruneResult:
    """Prune ``model`` and return the smaller model with a record of how it came about.

    ``selector="ispasp", reconstruct="none", multiple=1`` is Algorithm 1 of Wolfe & Kyrillidis (2022).

    Args:
        model: any module that torch.export can trace; it is not changed.
        calibration: batches (see ``ispasp.calibration``); a few hundred unlabelled examples do.
        keep: kept fraction in (0, 1], or a fraction per block name (other blocks are left alone).
        progress: show a progress bar, in a notebook or on standard error.
        **options: as in ``iterate``.

    Raises:
        SettingError, CalibrationError, ModelError, DeviceError: what was given cannot be used.
        SurgeryError: the sliced model does not compute what the masked one does.
    """
    events = iterate(model, calibration, keep, **options)
    for event in watched(events) if progress else events:
        if isinstance(event, Finished):
            return event.result
    raise AssertionError("iterate ends with Finished")


def iterate(
    model: nn.Module,
    calibration: Iterable[Any],
    keep: float | Mapping[str, float] = 0.5,
    *,
    selector: str = "ispasp",
    reconstruct: str = "none",
    multiple: int = 8,
    candidate_factor: float = 2.0,
    iterations: int = 20,
    blocks: Iterable[str] | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    recalibrate: bool = False,
    distil: int = 0,
    allocation: str = "uniform",
    hidden_sum: str = "absolute",
    evaluation: Iterable[Any] | None = None,
    source: str = "",
) -> Iterator[Event]:
    """The same as ``prune``, step by step: yields events and can be stopped between any two.

    Settings and data are checked at the call, block names after tracing. The events are one
    ``Started``; for each block ``BlockStarted``, its ``Iteration`` records and ``BlockPruned``;
    ``Progress`` in between; ``Finished`` with the result at the end.

    Args:
        model, calibration, keep: as in ``prune``.
        selector: which way to choose groups; see ``ispasp.selectors.names()``.
        reconstruct: what the consumer's weights are re-fitted to afterwards, by least squares:
            ``"symmetric"``, what the dense layer gives on the pruned network's inputs; ``"asymmetric"``,
            what it gives in the dense network (``ispasp.targets``); ``"none"`` leaves them.
        multiple: kept groups are rounded to multiples of this; 1 for the paper's exact counts.
        candidate_factor: c, candidates per kept group (2 in the paper).
        iterations: most iterations per block (20 in the paper); it stops earlier at the fixed point.
        blocks: names of the blocks to prune; all prunable ones by default.
        device: ``"auto"`` (CUDA, then MPS, then CPU), or a device's name.
        seed: for selectors and distillation, where they draw at random.
        recalibrate: measure the statistics of every batch norm that pruning reaches anew, those behind a
            re-fitted consumer excepted.
        distil: gradient steps of ``ispasp.distil`` on the calibration data after slicing; 0 for none.
        allocation: how a single ``keep`` is shared out: ``"uniform"``, the same for every block, or
            ``"macs"`` or ``"params"``, what costs as much, by sensitivity (``ispasp.allocation``).
        hidden_sum: what Algorithm 1 ranks by where a hidden representation may be negative, as behind GELU:
            ``"absolute"``, the sum of its absolute values, or ``"signed"``, the paper's plain sum. Behind a
            ReLU, as in the paper, both are the same.
        evaluation: batches on which the report's accuracy and agreement are measured; without them
            both are None, because measuring costs more forward passes than pruning.
        source: where the model came from, as ``ispasp.models.parse`` reads it, so that ``ispasp.load`` can rebuild it.

    Raises:
        SettingError, CalibrationError, ModelError, DeviceError, SurgeryError: as ``prune``.
    """
    settings = PruneSettings(
        selector,
        reconstruct,
        multiple,
        candidate_factor,
        iterations,
        seed,
        recalibrate,
        distil,
        allocation,
        hidden_sum,
    )
    fractions: float | dict[str, float]
    if isinstance(keep, Mapping):
        fractions = {str(name): check_keep(value, f"keep of block {name}") for name, value in keep.items()}
    else:
        fractions = check_keep(keep)
    if isinstance(fractions, dict) and allocation != "uniform":
        raise SettingError(
            f"keep is given per block, so there is nothing to share out by {allocation}; give one fraction, "
            'or allocation="uniform".'
        )
    if not isinstance(model, nn.Module):
        raise ModelError(f"The model is a {type(model).__name__}; give a torch.nn.Module.")
    if fractions == {}:
        raise SettingError("keep names no block; give a fraction, or a dict of block name to fraction.")
    names = None if blocks is None else [blocks] if isinstance(blocks, str) else [str(b) for b in blocks]
    return _events(
        model,
        calibration_data.read(calibration),
        [] if evaluation is None else calibration_data.read(evaluation, "evaluation"),
        devices.pick(device),
        fractions,
        settings,
        names,
        str(source),
    )


def _events(
    model: nn.Module,
    calibration: Sequence[Batch],
    evaluation: Sequence[Batch],
    device: torch.device,
    keep: float | dict[str, float],
    settings: PruneSettings,
    names: Sequence[str] | None,
    source: str,
) -> Iterator[Event]:
    yield Progress(0.0, "tracing the model")
    yield from Variant(
        Subject(model, calibration, evaluation, device), keep, settings, names, source
    ).events()

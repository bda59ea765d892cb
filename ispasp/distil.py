"""Label-free recovery: train the sliced model towards the dense one on the calibration data alone.

The objective is that of ``ispasp.tuning.objective``. Images are mirrored and shifted, where the dense model is
used to that, and until the last fifth of the steps blended with one another; batch norms normalise by the
batch. docs/experiments.md tells what else was tried.

Half precision could not hold the steps: such models are trained in single precision, and what is measured
and returned are the weights cast back.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ispasp import calibration as calibration_data
from ispasp import device as devices
from ispasp import evaluate
from ispasp.augmentation import Variation, changed, familiar, mixed
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError, ModelError, SettingError
from ispasp.records import Progress
from ispasp.settings import check_whole_number
from ispasp.tuning.copies import (
    images_last,
    is_narrow,
    set_batch_norms,
    single,
    snapshot,
    to_channels_last,
    types_of,
    working,
)
from ispasp.tuning.objective import Distance, Sums

BATCH_SIZE = 64  # examples of a step
MIXED_SHARE = 0.8  # of the steps, from the first, in which images are blended
RATE_WITH_BATCH_NORM = 4e-3
RATE = 1e-3
MEASUREMENTS = 4  # how often the objective is measured on the way; the best weights seen are kept


@dataclass(frozen=True)
class Recovery:
    """What a distillation came to.

    Attributes:
        model: the recovered module, in eval mode; the weights that were given where none were better.
        objective_before: the objective of the model that was given, over the calibration data.
        objective_after: the same of ``model``, never larger.
        steps: gradient steps made; fewer than asked for where the loss was no longer finite.
        seconds: wall time.
    """

    model: nn.Module
    objective_before: float
    objective_after: float
    steps: int
    seconds: float


def distil(
    pruned: nn.Module,
    dense: nn.Module,
    calibration: Iterable[Any],
    steps: int = 400,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    learning_rate: float | None = None,
    batch_size: int = BATCH_SIZE,
) -> nn.Module:
    """Train a copy of ``pruned`` towards ``dense`` and return it; neither argument is changed.

    The objective on the calibration data is never worse than that of ``pruned``: it is measured before,
    on the way and after, without augmentation, and the best weights are returned.

    Args:
        pruned: the sliced model, e.g. ``ispasp.prune(...).model``.
        dense: the model it was pruned from.
        calibration: batches as in ``ispasp.prune``; labels are not looked at.
        steps: gradient steps.
        seed: of the order of the examples and of their augmentation; the caller's random state is left alone.
        device: where the work is done: ``"auto"`` (CUDA, then MPS, then CPU), or a device's name.
        learning_rate: of Adam at the start; it falls to zero as a cosine. By default 0.004 for models with
            batch norms, which bear it, and 0.001 for others.
        batch_size: examples per step.

    Returns:
        A new module in eval mode, on the device of ``pruned``.

    Raises:
        SettingError: ``steps``, ``seed``, ``learning_rate`` or ``batch_size`` is out of its range.
        CalibrationError: there is no usable data, or one of the models does not run on it.
        ModelError: the models do not belong together, or there is nothing to train.
        DeviceError: no such device is here.
    """
    where = devices.pick(device)
    batches = [batch.to(where) for batch in calibration_data.read(calibration)]
    work = distil_steps(
        pruned, dense, batches, steps, seed=seed, learning_rate=learning_rate, batch_size=batch_size
    )
    while True:
        try:
            next(work)
        except StopIteration as stop:
            recovery: Recovery = stop.value
            return recovery.model.to(evaluate.device_of(pruned))


def distil_steps(
    pruned: nn.Module,
    dense: nn.Module,
    batches: Sequence[Batch],
    steps: int = 400,
    *,
    seed: int = 0,
    learning_rate: float | None = None,
    batch_size: int = BATCH_SIZE,
) -> Generator[Progress, None, Recovery]:
    """The same as ``distil``, step by step: can be stopped between any two, and then changes nothing.

    The settings are checked at the call, models and data at the first step.

    Args:
        batches: calibration data on the device where the work is to be done.
        pruned, dense, steps, seed, learning_rate, batch_size: as in ``distil``.

    Yields:
        The share of the work that is done.

    Returns:
        The recovered model, on the device of ``batches``, and its figures.

    Raises:
        SettingError, CalibrationError, ModelError: as ``distil``.
    """
    check_whole_number("steps", steps, at_least=1)
    check_whole_number("seed", seed, at_least=0, at_most=2**63 - 1)
    check_whole_number("batch_size", batch_size, at_least=1)
    number = isinstance(learning_rate, (int, float)) and not isinstance(learning_rate, bool)
    if learning_rate is not None and not (number and 0 < learning_rate < math.inf):
        raise SettingError(f"learning_rate is {learning_rate!r}; give a number above 0, such as 0.001.")
    if not batches:
        raise CalibrationError("The calibration data is empty; give at least one batch of one example.")
    return _Distillation(pruned, dense, batches, seed, batch_size).run(steps, learning_rate)


class _Distillation:
    """One distillation on copies of both models."""

    def __init__(
        self, pruned: nn.Module, dense: nn.Module, batches: Sequence[Batch], seed: int, batch_size: int
    ) -> None:
        self.widened = is_narrow((pruned, dense))
        self.given, self.dense_given = pruned, dense
        self.types = types_of(pruned)
        self.batches = [changed(batch, single) for batch in batches] if self.widened else batches
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.examples = sum(len(batch) for batch in batches)
        self.rows = [(batch, row) for batch in self.batches for row in range(len(batch))]
        self.order: list[int] = []
        self.variations: list[Variation] = []
        # Masks or second views would have to move along, so only a model of a single input gets varied images.
        first = batches[0].tensors
        self.images = len(first) == 1 and first[0].ndim == 4 and first[0].is_floating_point()
        self.channels_last = False

    def run(self, steps: int, learning_rate: float | None) -> Generator[Progress, None, Recovery]:
        began = time.perf_counter()
        yield Progress(0.0, "comparing with the dense model")
        device = self.batches[0].tensors[0].device
        dense, pruned = (
            working(model, device, self.batches[0], self.widened, "calibration")
            for model in (self.dense_given, self.given)
        )
        self.channels_last = self.images and to_channels_last((pruned, dense), self.batches[0].first(2))
        self.distance = Distance(pruned, dense)
        try:
            before, after, weights, done = yield from self._trained(pruned, dense, steps, learning_rate)
        finally:
            self.distance.close()
        model = evaluate.copy_to(self.given, device)
        if weights is not None:
            model.load_state_dict(weights)
        return Recovery(model, before, after, done, time.perf_counter() - began)

    def _trained(
        self, pruned: nn.Module, dense: nn.Module, steps: int, learning_rate: float | None
    ) -> Generator[Progress, None, tuple[float, float, dict[str, Tensor] | None, int]]:
        """All steps: the objective before and at its best, the weights then (None: those given), the steps made."""
        parameters = [p.requires_grad_() for p in pruned.parameters() if p.is_floating_point()]
        if not parameters:
            raise ModelError(f"{type(pruned).__name__} has no parameters, so there is nothing to distil.")
        dense.requires_grad_(False)
        if self.images:
            self.variations = yield from familiar(dense, self.batches)
        before = best = yield from self._objective(0.0)
        if not math.isfinite(before):
            raise ModelError(
                "The dense or the pruned model gives values that are NaN or infinite on the calibration data; "
                "repair its weights before distilling."
            )
        weights: dict[str, Tensor] | None = None
        if learning_rate is None:
            normed = any(isinstance(module, _BatchNorm) for module in pruned.modules())
            learning_rate = RATE_WITH_BATCH_NORM if normed else RATE
        optimiser = torch.optim.Adam(parameters, lr=learning_rate)
        measured_at = {math.ceil(steps * part / MEASUREMENTS) for part in range(1, MEASUREMENTS + 1)}
        done = 0
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            if not self._step(optimiser, blend=step < MIXED_SHARE * steps):
                break
            done = step + 1
            if done in measured_at:
                trained = snapshot(pruned)
                cast = {name: value.to(self.types[name]) for name, value in trained.items()}
                pruned.load_state_dict(cast)
                objective = yield from self._objective(done / steps)
                pruned.load_state_dict(trained)
                if objective < best:  # never true of NaN
                    best, weights = objective, cast
            yield Progress(done / steps, f"distilling, step {done} of {steps}")
        if done < steps:
            yield Progress(1.0, f"distilling stopped at step {done} of {steps}: the loss is not finite")
        return before, best, weights, done

    def _step(self, optimiser: torch.optim.Optimizer, blend: bool) -> bool:
        """One gradient step; False, and no step, where the loss is not finite."""
        with torch.enable_grad():
            batch = self._draw(blend)
            pruned = self.distance.pruned
            set_batch_norms(pruned.model, training=len(batch) > 1)
            loss = self.distance.loss(batch, pruned(batch)) / len(batch)
            if not math.isfinite(loss.item()):
                return False
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
        return True

    def _objective(self, done: float) -> Generator[Progress, None, float]:
        """The objective over all calibration data, in eval mode and without augmentation."""
        pruned, sums = self.distance.pruned, Sums()
        pruned.model.eval()
        for batch in self.batches:
            with torch.no_grad():
                self.distance.measure(batch, pruned(batch), sums)
            yield Progress(done, "comparing with the dense model")
        return self.distance.settle(sums)

    def _draw(self, blend: bool) -> Batch:
        """The next examples in random order, every one as often as the others; images varied."""
        while len(self.order) < self.batch_size:
            self.order += torch.randperm(self.examples, generator=self.generator).tolist()
        picked, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        rows = [self.rows[index] for index in picked]
        inputs = [
            torch.stack([batch.inputs[i][row] for batch, row in rows]) for i in range(len(rows[0][0].inputs))
        ]
        keywords = {
            name: torch.stack([batch.keywords[name][row] for batch, row in rows])
            for name in rows[0][0].keywords
        }
        drawn = Batch(tuple(inputs), keywords)
        if self.images:
            for vary in [*self.variations, mixed] if blend else self.variations:
                drawn = changed(drawn, functools.partial(vary, generator=self.generator))
        return changed(drawn, images_last) if self.channels_last else drawn

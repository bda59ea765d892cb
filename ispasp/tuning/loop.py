"""Fine-tuning, step by step: labels, the dense model, or both; one process or several.

A share of the training data is held out. Its loss, in eval mode and not augmented, chooses the best epoch; accuracy
and agreement on the evaluation data are measured for the curve and decide nothing. The weights given count as epoch 0,
so that what comes back is never worse by that loss.

Several processes (``ispasp.processes``) take a slice of every batch each. Their gradients and the statistics of their
batch norms are summed, so they make the steps that one process would make, but for rounding and for dropout, which
each draws for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from ispasp import evaluate, processes
from ispasp.augmentation import Variation, changed, familiar
from ispasp.calibration import Batch
from ispasp.clock import Clock
from ispasp.device import widest_float
from ispasp.errors import RunError
from ispasp.narrative import plural
from ispasp.records import Progress
from ispasp.tuning import checkpoint, optimiser
from ispasp.tuning.alike import check_alike
from ispasp.tuning.checkpoint import TuneState
from ispasp.tuning.checks import check_state, check_trainable, not_finite
from ispasp.tuning.copies import (
    images_last,
    is_narrow,
    set_batch_norms,
    single,
    snapshot,
    to_channels_last,
    types_of,
    working,
)  # fmt: skip
from ispasp.tuning.drawing import generator_of, held_out, repeatable, seed_of, slice_of, steps_of
from ispasp.tuning.evaluation import Evaluation
from ispasp.tuning.loss import Loss, precision_on
from ispasp.tuning.norms import share_statistics
from ispasp.tuning.records import DIVERGED, EpochDone, Tuned
from ispasp.tuning.settings import TuneSettings
from ispasp.tuning.training_set import TrainingSet

FAMILIAR_EXAMPLES = 256  # on which it is asked which variations the dense model is used to
LOOK_EVERY = 8  # steps on a device that works on while the next ones are prepared: a look has it wait
FAR = 3.0  # times the loss of guessing, or of the weights given: an epoch above that has diverged

Value = TypeVar("Value")


def tune_steps(
    pruned: nn.Module,
    dense: nn.Module | None,
    training: TrainingSet,
    evaluation: Sequence[Batch],
    settings: TuneSettings,
    *,
    device: torch.device,
    stage: str = "",
    epochs: int | None = None,
    state: TuneState | None = None,
    keep: Callable[[TuneState], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[Progress | EpochDone, None, Tuned]:
    """Fine-tune a copy of ``pruned``; no argument is changed.

    Can be closed between any two events. The random state is the caller's at each of them.

    Args:
        pruned: the sliced model. Its parameters without ``requires_grad`` stay as they are; batch norms still follow
            the data.
        dense: the model it was pruned from; needed for ``settings.distil`` above 0, else only for the agreement and
            for which augmentation it is used to. May be None.
        training: what to train on; a share of it is held out.
        evaluation: batches for the curve, anywhere; may be empty.
        device: where the work is done.
        stage: the block after which this is, for the records and the draws; after a block the learning rate does not
            fall (``optimiser.rate``).
        epochs: ``settings.epochs`` by default.
        state: what ``keep`` was given after an epoch, to go on from there. On the same kind of device, with as many
            processes and threads, the result is the same to the last bit.
        keep: called after every epoch, in the first of several processes, before its ``EpochDone``.
        stop: asked at every step; True ends it with the best weights so far.

    Yields:
        ``Progress`` of this stage, and an ``EpochDone`` per epoch.

    Raises:
        SettingError: ``settings.distil`` is above 0 without a dense model, or there are fewer examples in a batch than
            processes.
        CalibrationError: there are too few examples, labels are missing or wrong, or a model does not run on them.
        ModelError: the models do not belong together, all parameters are frozen, or the weights are not finite.
        RunError: ``state`` is of another model, other data or other settings; or other processes were given others, or
            another state.
        ProcessError: another process has ended.
    """
    yield Progress(0.0, "opening models and data")
    tuning = _Tuning(pruned, dense, training, evaluation, settings, device, stage, epochs)
    given = [asdict(settings), stage, tuning.epochs]
    yield from check_alike([pruned, dense], training, evaluation, given)
    tuned: Tuned = yield from tuning.clock.timed(tuning.run(dense, state, keep, stop))
    return tuned


class _Tuning:
    """One fine-tuning on copies of the models."""

    def __init__(
        self,
        pruned: nn.Module,
        dense: nn.Module | None,
        training: TrainingSet,
        evaluation: Sequence[Batch],
        settings: TuneSettings,
        device: torch.device,
        stage: str,
        epochs: int | None,
    ) -> None:
        self.narrow = is_narrow([pruned] if dense is None else [pruned, dense])
        self.given, self.types = pruned, types_of(pruned)
        self.settings, self.device, self.stage = settings.resolved(pruned), device, stage
        self.epochs = settings.epochs if epochs is None else epochs
        self.group = processes.here()
        self.held, self.trained = held_out(len(training), settings.held_out, settings.seed)
        check_trainable(training, dense, settings, len(self.held), len(self.trained))
        self.fingerprint = checkpoint.fingerprint(pruned, dense, training, settings, stage, epochs)
        self.training = training.to(device)
        self.precision = precision_on(device, settings.precision)
        self.evaluation = Evaluation([self._prepared(batch) for batch in evaluation])
        self.clock = Clock()
        self.first = math.nan  # the held-out loss of the weights given
        self.curve: list[EpochDone] = []
        self.best: dict[str, Tensor] = {}  # empty while those given are the best
        self.variations: list[Variation] = []
        self.channels_last = False

    def _open(self, dense_given: nn.Module | None) -> nn.Module | None:
        """Make the copies that are trained and compared with, and hook onto them; the dense one."""
        few = self._prepared(next(iter(self.training.batches([self.held[:2]]))))
        made = [
            working(model, self.device, few, self.narrow, "training")
            for model in (dense_given, self.given)
            if model is not None
        ]
        self.channels_last = self.training.images and to_channels_last(made, few)
        dense, self.model = made[0].requires_grad_(False) if dense_given is not None else None, made[-1]
        if self.group.size > 1:
            share_statistics(self.model)
        self.optimiser = optimiser.make(self.model, self.settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.loss = Loss(
            self.model, dense, self.settings.distil, self.settings.label_smoothing, self.precision
        )
        return dense

    def _begin(self, dense: nn.Module | None) -> Generator[Progress, None, None]:
        """Ask the dense model what it knows, and measure the weights given."""
        yield Progress(0.0, "opening models and data")
        if self.settings.augment and self.training.images:
            asked = [self.held[i : i + 64] for i in range(0, min(len(self.held), FAMILIAR_EXAMPLES), 64)]
            batches = (self._laid_out(self._prepared(batch)) for batch in self.training.batches(asked))
            self.variations = yield from familiar(self.model if dense is None else dense, batches)
        if dense is not None:
            yield from _seen(self.evaluation.compare_with(dense), 0.0, "the dense model")
        self.first = yield from self._held_out_loss(0.0)
        if not math.isfinite(self.first):
            raise not_finite([self.model] if dense is None else [self.model, dense], self.precision)

    def run(
        self,
        dense: nn.Module | None,
        state: TuneState | None,
        keep: Callable[[TuneState], None] | None,
        stop: Callable[[], bool],
    ) -> Generator[Progress | EpochDone, None, Tuned]:
        check_state(state, self.fingerprint)
        dense = self._open(dense)
        try:
            yield from self._begin(dense)
            del dense  # whose memory is free from here on, where no loss looks at it
            if state is not None:
                self._restore(state)
            stopped = yield from self._epochs(keep, stop)
            yield Progress(1.0, stopped or "fine-tuned")
        finally:
            self.loss.close()
        model = evaluate.copy_to(self.given, self.device)
        if self.best:
            model.load_state_dict(self.best)
        return Tuned(
            model=model,
            curve=tuple(self.curve),
            best_epoch=self._best_epoch(),
            stopped=stopped,
            seconds=sum(done.seconds for done in self.curve),
            held_out=len(self.held),
            held_out_loss_before=self.first,
            precision=self.precision,
        )

    def _epochs(
        self, keep: Callable[[TuneState], None] | None, stop: Callable[[], bool]
    ) -> Generator[Progress | EpochDone, None, str]:
        """All epochs; the sentence of what ended them before their time, else empty."""
        while len(self.curve) < self.epochs:
            if stopped := self._out_of_patience() or (yield from self._epoch(len(self.curve) + 1, stop)):
                return stopped
            if keep and self.group.leads:
                keep(self._state())
            yield self.curve[-1]
        return ""

    def _epoch(self, epoch: int, stop: Callable[[], bool]) -> Generator[Progress, None, str]:
        """Train, measure, and write down; a sentence, and nothing written down, where the fine-tuning ends here."""
        began, at = self.clock(), f"Stopped in epoch {epoch} of {self.epochs}"
        loss, rate, halted = yield from self._trained_on_all(epoch, stop)
        if halted:
            return f"{at}; {self._kept()}."
        limit = FAR * max(self.first, self.loss.guessing)
        trained = self._cast()
        held = (yield from self._held_out_loss(epoch / self.epochs)) if loss <= limit else math.nan
        if not math.isfinite(held):
            grown = f"grew to {loss:.3g}" if limit < loss < math.inf else "was no longer finite"
            return (
                f"{at}, {DIVERGED} {grown} at a learning rate of up to {self.settings.learning_rate:g}; "
                f"{self._kept()}: try a lower rate."
            )
        measured = self.evaluation.measured(self.model)
        accuracy, agreement = yield from _seen(measured, epoch / self.epochs, "the accuracy")
        lowest = held < min([self.first, *(done.held_out_loss for done in self.curve)])
        if lowest:
            self.best = {name: value.to(self.types[name]) for name, value in snapshot(self.model).items()}
        if trained:
            self.model.load_state_dict(trained)
        spent = self.clock() - began
        self.curve.append(
            EpochDone(self.stage, epoch, self.epochs, rate, loss, held, accuracy, agreement, lowest, spent)
        )
        return ""

    def _trained_on_all(
        self, epoch: int, stop: Callable[[], bool]
    ) -> Generator[Progress, None, tuple[float, float, bool]]:
        """One pass over the training data: its mean loss, the last learning rate, and whether it was told to stop."""
        seed = (self.settings.seed, self.stage, epoch)
        steps = steps_of(self.trained, self.settings.batch_size, generator_of(*seed, "order"))
        own = [slice_of(len(step), self.group) for step in steps]
        every = 1 if self.device.type == "cpu" else LOOK_EVERY
        total = torch.zeros((), dtype=widest_float(self.device), device=self.device)
        rate = 0.0
        # The dense model's outputs are wanted as they are, which dropout would only blur.
        self.model.train(self.settings.distil == 0)
        batches = self.training.batches([step[part] for step, part in zip(steps, own, strict=True)])
        for number, batch in enumerate(batches):
            done = (epoch - 1) * len(steps) + number
            rate = optimiser.rate(self.settings, self.stage, done, self.epochs * len(steps))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            of = len(steps[number])
            batch = self._varied(batch, generator_of(*seed, number, "images"), own[number].start, of)
            set_batch_norms(self.model, training=of > 1)
            with repeatable(self.device, seed_of(*seed, number, self.group.rank)):
                total += self._step(batch, of, check=epoch == 1 or every == 1)
            if number % every == 0 or number == len(steps) - 1:
                if not math.isfinite(total.item()):
                    return math.nan, rate, False
                if processes.agreed(stop()):
                    return total.item(), rate, True
            yield Progress(
                (done + 1) / (self.epochs * len(steps)),
                f"epoch {epoch} of {self.epochs}, step {number + 1} of {len(steps)}",
            )
        return total.item() / len(self.trained), rate, False

    @torch.enable_grad()
    def _step(self, batch: Batch, of: int, check: bool) -> Tensor:
        """One step on a batch of ``of`` examples, a slice of which this process has; the loss summed over all."""
        self.optimiser.zero_grad()
        loss = self.loss.of(batch, check) / of
        self.scaler.scale(loss).backward()
        total = optimiser.summed_gradients(self.optimiser, loss.detach())
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return total * of

    def _held_out_loss(self, done: float) -> Generator[Progress, None, float]:
        """The loss on the held-out examples, in eval mode and not augmented."""
        self.model.eval()
        own = self.held[slice_of(len(self.held), self.group)]
        size = math.ceil(self.settings.batch_size / self.group.size)
        numbers = [own[start : start + size] for start in range(0, len(own), size)]
        batches = (self._laid_out(self._prepared(batch)) for batch in self.training.batches(numbers))
        return (yield from _seen(self.loss.measured(batches), done, "the held-out loss"))

    def _prepared(self, batch: Batch) -> Batch:
        """As the working copies take it."""
        return replace(changed(batch, single), labels=batch.labels) if self.narrow else batch

    def _laid_out(self, batch: Batch) -> Batch:
        return replace(changed(batch, images_last), labels=batch.labels) if self.channels_last else batch

    def _varied(self, batch: Batch, generator: torch.Generator, first: int, of: int) -> Batch:
        """A slice of a training batch of ``of`` examples, its images mirrored and shifted."""
        batch = self._prepared(batch)
        for vary in self.variations:
            change = partial(vary, generator=generator, first=first, of=of)
            batch = replace(changed(batch, change), labels=batch.labels)
        return self._laid_out(batch)

    def _cast(self) -> dict[str, Tensor]:
        """Have the model compute with what its weights are in its own types; what they were before."""
        trained = snapshot(self.model) if self.narrow else {}
        if self.narrow:
            self.model.load_state_dict({name: v.to(self.types[name]) for name, v in trained.items()})
        return trained

    def _out_of_patience(self) -> str:
        """The sentence that ends it where the held-out loss has not fallen for too long; else empty."""
        patience = self.settings.patience
        if not patience or len(self.curve) - self._best_epoch() < patience:
            return ""
        return (
            f"Stopped after epoch {len(self.curve)} of {self.epochs}, because the held-out loss has not fallen for "
            f"{plural(patience, 'epoch')}; {self._kept()}."
        )

    def _best_epoch(self) -> int:
        """The epoch with the lowest held-out loss; 0 where that of the weights given is lower than all."""
        return max((done.epoch for done in self.curve if done.best), default=0)

    def _kept(self) -> str:
        best = self._best_epoch()
        return f"the weights of epoch {best} are kept" if best else "the weights it began with are kept"

    def _state(self) -> TuneState:
        def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}

        return TuneState(
            fingerprint=self.fingerprint,
            stage=self.stage,
            epoch=len(self.curve),
            curve=tuple(self.curve),
            weights=on_cpu(self.model.state_dict()),
            best=on_cpu(self.best),
            optimiser=optimiser.state_of(self.optimiser, self.model),
            scaler=self.scaler.state_dict(),
        )

    def _restore(self, state: TuneState) -> None:
        self.curve, self.best = list(state.curve), state.best
        try:
            if state.best:
                self.model.load_state_dict(state.best)  # for it is not needed before the end
            self.model.load_state_dict(state.weights)
            optimiser.restore(self.optimiser, self.model, state.optimiser)
            optimiser.restore_scale(self.scaler, state.scaler)
        except (KeyError, RuntimeError) as error:
            raise RunError(
                f"The checkpoint of epoch {state.epoch} is damaged ({str(error).splitlines()[-1].strip()}); remove it "
                "to begin anew."
            ) from error


def _seen(work: Generator[None, None, Value], done: float, what: str) -> Generator[Progress, None, Value]:
    """What ``work`` comes to; a ``Progress`` for each of its steps."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            value: Value = end.value
            return value
        yield Progress(done, f"measuring {what}")

"""The whole fine-tuning of a run: once at the end, or, as in the paper, after each block that is pruned as well.

Wolfe & Kyrillidis (2022) prune block after block in network order, train one epoch after each, and train on at the end.
Each block sees the network as it then is, pruned and trained so far, and its re-fit, where the run has one, aims at
what that network's next layer gave before. A block that the run keeps whole is measured for the record; nothing is
changed or trained for it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ispasp import device as devices
from ispasp import evaluate, models, processes, surgery
from ispasp.clock import Clock
from ispasp.deployment.opened_run import OpenedRun
from ispasp.errors import RunError, SettingError
from ispasp.narrative import plural
from ispasp.records import (
    Block,
    BlockPruned,
    BlockStarted,
    Event,
    Finished,
    Iteration,
    Progress,
    Started,
)
from ispasp.result import RunRecord
from ispasp.subject import Subject
from ispasp.tuning import checkpoint
from ispasp.tuning.loop import tune_steps
from ispasp.tuning.memory import CheckpointMissed, Forgetful, Memory, Weights
from ispasp.tuning.outcome import BlockByBlock, Outcome, beginning, result
from ispasp.tuning.records import Began, EpochDone, Tuned
from ispasp.tuning.request import TuneRequest, curve_of
from ispasp.tuning.training_set import TrainingSet
from ispasp.variant import Variant

# For the progress, in examples passed forward: forth and back is three of them, and to prune a block takes the
# calibration data through the dense and through the pruned network.
TRAINING, PRUNING = 3, 2


def steps(
    run: OpenedRun,
    training: TrainingSet,
    request: TuneRequest,
    *,
    notes: Sequence[str] = (),
    lineage: Mapping[str, str] | None = None,
    memory: Memory | None = None,
    stop: Callable[[], bool] = lambda: False,
    allow_code: bool = False,
) -> Iterator[Event | Began | EpochDone | CheckpointMissed]:
    """Fine-tune a run; the last event is ``Finished`` with the result, whose settings and report tell of it.

    Args:
        run: the run, opened; nothing of it is changed.
        training: examples as its model reads them.
        request: what to do.
        notes: sentences about the training data.
        lineage: what the result belongs to, such as ``{"tuned": ID}``.
        memory: where every epoch and every block is written down; nowhere by default.
        stop: looked at between steps. Once true, the best weights so far are the result, and blocks that are not pruned
            yet are pruned without training.
        allow_code: whether a Python file that the run names may be run.

    Raises:
        SettingError: the start is random, and the model's own Python function gives it its weights.
        CalibrationError: there are no labels and they are asked for, or a model does not run on the data.
        RunError: what was written down is of another fine-tuning.
        DeviceError: no such device is here.
    """
    schedule = _Schedule(run, training, request, memory or Forgetful(), stop, allow_code)
    return schedule.clock.timed(schedule.run(notes, lineage or {}))


class _Schedule:
    def __init__(
        self,
        run: OpenedRun,
        training: TrainingSet,
        request: TuneRequest,
        memory: Memory,
        stop: Callable[[], bool],
        allow_code: bool,
    ) -> None:
        self.given, self.training, self.request, self.memory, self.stop = (
            run, training, request, memory, stop,
        )  # fmt: skip
        self.device = devices.pick(request.device)
        self.allow_code = allow_code
        self.dense = evaluate.copy_to(run.dense.model, self.device)
        self.blocks = run.result.blocks_pruned if request.by_block else []
        self.so_far = BlockByBlock()
        self.missed: list[CheckpointMissed] = []
        self.stopped = False
        self.examples = sum(map(len, run.calibration))
        self._epoch = TRAINING * len(training)
        self.total = max(1, self._work(len(self.blocks)) + request.settings.epochs * self._epoch)
        self.done = 0.0
        self.working = False  # on what no earlier attempt has done
        self.clock = Clock()
        self.earlier = 0.0  # seconds of what an earlier attempt has done

    def run(
        self, notes: Sequence[str], lineage: Mapping[str, str]
    ) -> Iterator[Event | Began | EpochDone | CheckpointMissed]:
        run, request = self.given, self.request
        dense = yield from self._predicted(self.dense, "measuring the dense model")
        if request.by_block:
            before = dense
        else:
            model = self._start()
            before = yield from self._predicted(model, "measuring the model before")
        yield beginning(run.result, request, evaluate.compare(dense, before, run.evaluation))
        if request.by_block:
            yield run.result.started
            model = yield from self._by_block()
        last: Tuned | None = None
        if request.settings.epochs and (last := (yield from self._tuned(model, "", request.settings.epochs))):
            model = last.model
        self.working = True
        after = yield from self._predicted(model, "measuring accuracy")
        measured = [evaluate.compare(dense, found, run.evaluation) for found in (before, after)]
        yield Progress(1.0, "finished")
        outcome = Outcome(
            model,
            self.so_far,
            last,
            before=measured[0],
            after=measured[1],
            examples=len(self.training),
            device=self.device,
            threads=torch.get_num_threads(),
            seconds=self.clock() + self.earlier,
        )
        told = (*notes, *self.training.notes)
        yield Finished(result(run.result, request, outcome, told, lineage))

    def _work(self, stages: int) -> float:
        """Of the first ``stages`` blocks, in examples passed forward."""
        trained = sum(not event.whole for event in self.blocks[:stages])
        after = trained * self.request.settings.after_block * self._epoch
        return stages * PRUNING * self.examples + after

    def _stopping(self) -> bool:
        """Whether it was told to stop, by now or in an earlier attempt."""
        if not self.stopped and processes.agreed(self.stop()):
            self.stopped = True
            left = sum(not event.whole for event in self.blocks[len(self.so_far.pruned) :])
            rest = f"{plural(left, 'block')} pruned without training" if left else "no more epochs"
            self.so_far.stops.append(f"Stopped by hand: {rest}.")
        return self.stopped

    def _predicted(self, model: nn.Module, doing: str) -> Generator[Progress, None, list[Tensor]]:
        """What a model predicts for the evaluation data."""
        found = []
        for classes in evaluate.predictions(evaluate.copy_to(model, self.device), self.given.evaluation):
            found.append(classes)
            yield self._progress(doing)
        return found

    def _progress(self, doing: str) -> Progress:
        """How far it is; 0 before the work goes on, for what is gone over takes no time and would pass for its pace."""
        return Progress(min(1.0, self.done / self.total) if self.working else 0.0, doing)

    def _start(self) -> nn.Module:
        """The pruned model that is trained."""
        run = self.given
        if self.request.start == "pruned":
            return run.result.model
        if run.dense.source.kind == "python":
            raise SettingError(
                f"{run.dense.source} gives its model the weights itself, so there are no random ones to start from: "
                "start from the pruned weights."
            )
        model = self._architecture(self.request.settings.seed)
        for event in run.result.blocks_pruned:
            surgery.slice_block(model, event.block, event.selected)
        return model

    def _architecture(self, seed: int = 0) -> nn.Module:
        """The dense model with random weights, which the seed decides."""
        return models.build(self.given.dense.record, allow_code=self.allow_code, seed=seed)

    def _by_block(self) -> Generator[Event | EpochDone | CheckpointMissed, None, nn.Module]:
        """Prune block after block and train after each."""
        model = self.given.dense.model
        empty = self._architecture()
        first = 0
        if known := self.memory.pruned():
            record, weights = known
            self._take_up(record)
            first = len(self.so_far.pruned) - 1  # its training may be unfinished
            model = self._rebuilt(empty, weights)
            yield from record.blocks_started
            yield from record.trace
            yield from record.blocks_pruned
            yield from self.so_far.curve
            self.done = self._work(first) + PRUNING * self.examples
        for stage in range(first, len(self.blocks)):
            if stage >= len(self.so_far.pruned):
                model = yield from self._prune(model, stage)
                weights = _weights(model)
                # From here as after a break: how a tensor lies in memory decides the last digits.
                model = self._rebuilt(empty, weights)
                self._written(partial(self.memory.keep_pruned, self._record(), weights))
                yield from self._missed()
            if not self.blocks[stage].whole:
                name = self.blocks[stage].block.name
                tuned = yield from self._tuned(model, name, self.request.settings.after_block, stage)
                if tuned:
                    self.so_far.curve += tuned.curve
                    if tuned.stopped and not self._stopping():
                        self.so_far.stops.append(f"After block {name}: {tuned.stopped}")
                    model = self._rebuilt(empty, _weights(tuned.model))
            self.done = self._work(stage + 1)
        return model

    def _prune(self, model: nn.Module, stage: int) -> Generator[Event, None, nn.Module]:
        """Prune the block of a stage alone, as the run's settings say, to as many groups as the run has kept."""
        wanted = self.blocks[stage]
        block = wanted.block
        settings = dataclasses.replace(self.given.settings.prune_settings(), distil=0, allocation="uniform")
        if wanted.whole:
            settings = dataclasses.replace(settings, reconstruct="none", recalibrate=False)
        began, self.working = self.done, True
        with processes.shared():
            subject = Subject(model, self.given.calibration, [], self.device)
            variant = Variant(subject, 1.0, settings, [block.name], counts=[len(wanted.selected)])
            _check_same(variant.plan[0][0], block)
            for event in variant.events():
                if isinstance(event, Progress):
                    self.done = began + event.done * PRUNING * self.examples
                    yield self._progress(f"pruning {block.name}")
                elif isinstance(event, BlockStarted):
                    event = dataclasses.replace(
                        event, block=block, index=wanted.index, total=len(self.blocks)
                    )
                    self.so_far.started.append(event)
                    yield event
                elif isinstance(event, Iteration):
                    self.so_far.trace.append(event)
                    yield event
                elif isinstance(event, BlockPruned):
                    event = dataclasses.replace(event, block=block, index=wanted.index)
                    self.so_far.pruned.append(event)
                    yield event
                elif isinstance(event, Finished) and not wanted.whole:
                    model = event.result.model
        self.done = began + PRUNING * self.examples
        return model

    def _tuned(
        self, model: nn.Module, name: str, epochs: int, stage: int | None = None
    ) -> Generator[Progress | EpochDone | CheckpointMissed, None, Tuned | None]:
        """Train for the epochs of one stage; None where it was told to stop before the first of them."""
        number = len(self.blocks) if stage is None else stage
        began, work, settings = self.done, epochs * self._epoch, self.request.settings
        mark = checkpoint.fingerprint(model, self.dense, self.training, settings, name, epochs)
        state = self.memory.state(number, mark)
        # Epochs of an earlier attempt are taken up before a stop counts, else they would be lost.
        if not processes.agreed(state is not None) and self._stopping():
            return None
        restored = 0.0
        if state:
            restored = state.epoch / epochs
            self.earlier += sum(done.seconds for done in state.curve)
            yield from state.curve
        training = tune_steps(
            model,
            self.dense,
            self.training,
            self.given.evaluation,
            settings,
            device=self.device,
            stage=name,
            epochs=epochs,
            state=state,
            keep=lambda state: self._written(partial(self.memory.keep_state, number, state)),
            stop=self.stop,
        )
        try:
            while True:
                event = next(training)
                if isinstance(event, Progress):
                    # At 1 it may be that there was nothing left to do.
                    self.working = self.working or restored < event.done < 1
                    self.done = began + work * event.done
                    event = self._progress(f"{event.doing}, after block {name}" if name else event.doing)
                yield event
                yield from self._missed()
        except StopIteration as end:
            self.done = began + work
            tuned: Tuned = end.value
            return tuned
        finally:
            training.close()

    def _written(self, write: Callable[[], None]) -> None:
        """Write something down; where the disk is full, say, that is told and the work goes on."""
        try:
            write()
        except RunError as error:
            self.missed.append(CheckpointMissed(str(error)))

    def _missed(self) -> Iterator[CheckpointMissed]:
        while self.missed:
            yield self.missed.pop(0)

    def _record(self) -> RunRecord:
        """The blocks pruned so far as a record, and the epochs of earlier stages."""
        done = self.so_far
        blocks = tuple(event.block for event in done.pruned)
        started = Started(blocks, tuple(len(event.selected) for event in done.pruned))
        curve = [dataclasses.asdict(one) for one in done.curve]
        report = {"finished_at": "", "curve": curve, "stops": list(done.stops), "stopped": self.stopped}
        return RunRecord({}, report, list(done.trace), started, list(done.started), list(done.pruned))

    def _take_up(self, record: RunRecord) -> None:
        """Go on from the blocks that an earlier attempt has pruned."""
        ours = [(event.block, event.index, len(event.selected)) for event in self.blocks]
        theirs = [(event.block, event.index, len(event.selected)) for event in record.blocks_pruned]
        if ours[: len(theirs)] != theirs:
            raise RunError(
                "The interrupted fine-tuning is of another run: its blocks are not those of "
                f"{self.given.path.name}. Discard it and begin again."
            )
        try:
            curve, stops = curve_of(record.report["curve"]), list(map(str, record.report["stops"]))
            self.stopped = record.report["stopped"] is True
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"What there is of the interrupted fine-tuning is damaged ({error}); discard it and begin again."
            ) from error
        self.so_far = BlockByBlock(
            list(record.trace), list(record.blocks_started), list(record.blocks_pruned), list(curve), stops
        )
        self.earlier += sum(done.seconds for done in curve)
        self.earlier += sum(event.seconds for event in record.blocks_pruned)

    def _rebuilt(self, empty: nn.Module, weights: Weights) -> nn.Module:
        """The model that the blocks pruned so far have left, with these weights, on the CPU."""
        return surgery.rebuild(copy.deepcopy(empty), self.so_far.pruned, weights)


def _weights(model: nn.Module) -> Weights:
    """A model's state on the CPU, as it would come from disk."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}


def _check_same(found: Block, wanted: Block) -> None:
    """Make sure that a block is still what it was before others were pruned.

    Raises:
        SettingError: it has other groups now.
    """
    if (found.groups, found.group_size, found.cuts) != (wanted.groups, wanted.group_size, wanted.cuts):
        raise SettingError(
            f"The block {wanted.name} is not what it was once the blocks before it are pruned, so this model cannot be "
            "pruned block after block; set after_block to 0."
        )

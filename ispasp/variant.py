"""One run on a subject: plan, prune block after block, slice and check, measure, distil.

Its parts are generators of events. ``Variant.events`` goes through them for a run of its own;
``ispasp.sweeps`` takes several runs through them in step.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ispasp import allocation, evaluate, processes, reports, sensitivity, surgery, taylor
from ispasp import device as devices
from ispasp.clock import Clock
from ispasp.distil import BATCH_SIZE, distil_steps
from ispasp.errors import SettingError, SurgeryError, listing
from ispasp.evaluate import Predictions
from ispasp.graph import exclusive
from ispasp.onepass import BlockDone, OnePass
from ispasp.records import Block, BlockPruned, Distilled, Event, Finished, Progress, Started
from ispasp.reference import Reference
from ispasp.result import PruneResult
from ispasp.settings import PruneSettings, groups_to_keep
from ispasp.subject import Subject

PROGRESS_SECONDS = 0.05  # a Progress event at most this often
# For the progress, what all blocks cost beside streaming: so many examples' forward passes,
BESIDE_EXAMPLES = 200
# and for a re-fit so many passes over the calibration data.
REFIT_PASSES = 1.5

T = TypeVar("T")


class Variant:
    """One way to prune a subject.

    Attributes:
        plan: the blocks that are pruned, in network order, and how many groups each keeps.
        known: the blocks that an earlier attempt has finished, by their place in the plan.
        done, total: work in rough multiply-adds, for the progress.
    """

    def __init__(
        self,
        subject: Subject,
        keep: float | dict[str, float],
        settings: PruneSettings,
        names: Sequence[str] | None = None,
        source: str = "",
        counts: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            keep: kept fraction, or one per block name.
            names: which blocks to prune; all prunable ones by default.
            source: where the model came from, for the record.
            counts: how many groups each block keeps, where an earlier attempt at this run has found it out.

        Raises:
            SettingError, ModelError: a block is unknown or cannot be pruned, or has no fraction.
        """
        self.subject, self.keep, self.settings, self.names, self.source = (
            subject, keep, settings, names, source,
        )  # fmt: skip
        self.plan = self._planned()
        self._shared_out = settings.allocation != "uniform" and counts is None
        if counts is not None:
            self.plan = [(block, kept) for (block, _), kept in zip(self.plan, counts, strict=True)]
        self.known: Mapping[int, BlockDone] = {}
        self._pass: OnePass | None = None
        self._started: Started | None = None
        work, blocks = subject.work, len(self.plan)
        # A sensitivity is about half a forward pass per ratio; a distillation step passes a batch through the
        # dense model and, forth and back, through the pruned one.
        self._measuring = work * subject.streamed * (1 + blocks * len(sensitivity.FRACTIONS) / 2)
        self._distilling = work * BATCH_SIZE * 4 * settings.distil
        held_out = sum(len(batch) for batch in subject.evaluation)
        refitting = REFIT_PASSES * subject.streamed if settings.reconstruct != "none" else 0.0
        self._beside = work * (BESIDE_EXAMPLES + refitting)
        self.total = work * subject.streamed * (2 if self.asymmetric else 1) + self._distilling
        self.total += work * held_out * (3 if settings.distil else 2)
        self.total += self._beside + (self._measuring if self._shared_out else 0.0)
        self.done = self._last_progress = 0.0
        self.clock = Clock()

    @property
    def asymmetric(self) -> bool:
        """Whether it needs the dense network over all calibration data."""
        return self.settings.reconstruct == "asymmetric"

    @property
    def blocks_done(self) -> Mapping[int, BlockDone]:
        """What has happened to the blocks so far, by their place in the plan, in the order of execution."""
        return self._pass.done if self._pass else {}

    def written(self, index: int) -> None:
        """A finished block is on disk: what only another attempt needs of it need not be held."""
        assert self._pass is not None
        self._pass.done[index] = dataclasses.replace(self._pass.done[index], refits=())

    def events(self) -> Iterator[Event]:
        """The whole run; the last event is ``Finished``."""
        return self.timed(self._events())

    def _events(self) -> Iterator[Event]:
        yield from self.prepare()
        reference = self.reference()
        self.join(reference)
        for index in reference.order:
            for work in reference.advance(self.plan[index][0]):
                yield from self.progress(work, "streaming the dense network")
            yield from self.prune_block(index)
        yield from self.finish()

    def timed(self, steps: Iterator[T]) -> Iterator[T]:
        """Go through a part, counting the seconds it works: what passes between two events does not count."""
        return self.clock.timed(steps)

    def reference(self) -> Reference:
        """The dense network beside it, which runs with the same blocks and the same kind of re-fit may share."""
        subject, blocks = self.subject, [block for block, _ in self.plan]
        return Reference(subject.traced, blocks, self.asymmetric, subject.batches, subject.probe)

    def prepare(self) -> Iterator[Event]:
        """Settle how much of each block is kept; the last event is ``Started``."""
        subject, blocks = self.subject, [block for block, _ in self.plan]
        self._scores: dict[str, Tensor] = {}
        if self.settings.selector == "taylor":
            self._scores = taylor.scores(subject.traced, blocks, subject.batches)
        if self._shared_out:
            self.plan = yield from self._allocated()
        self._started = Started(tuple(blocks), tuple(kept for _, kept in self.plan))
        yield self._started

    def join(self, reference: Reference) -> None:
        """Begin to prune beside ``reference``, which stands before the first block."""
        batches = [batch.copy() for batch in self.subject.batches]  # the stream may overwrite them
        self._pass = OnePass(
            reference,
            self.plan,
            self.settings,
            batches,
            self._scores,
            self.clock,
            self.progress,
            self.known,
        )

    def prune_block(self, index: int) -> Iterator[Event]:
        """Prune one block; the reference has been taken to it, and the last event is its ``BlockPruned``."""
        assert self._pass is not None
        for event in self._pass.prune_block(index):
            if isinstance(event, BlockPruned):
                self.done += self._beside / len(self.plan)
            yield event

    def finish(self) -> Iterator[Event]:
        """Slice, check, distil and measure; the last event is ``Finished``."""
        subject, settings, one_pass = self.subject, self.settings, self._pass
        assert one_pass is not None and self._started is not None
        yield from one_pass.finish()
        yield Progress(self.done / self.total, "slicing and checking the model")
        pruned = _sliced(one_pass, subject)
        for examples in subject.predict():
            yield from self.progress(subject.work * examples, "measuring accuracy")
        predictions = yield from self._compared(pruned)
        report = {
            "params_before": subject.params,
            "params_after": evaluate.count_parameters(pruned),
            "macs_before": subject.macs,
            "macs_after": evaluate.count_macs(pruned, subject.probe),
            **evaluate.report(predictions),
            "distil": None,
        }
        distilled = None
        if settings.distil:
            pruned, distilled = yield from self._distilled(pruned)
            yield distilled
            report["distil"] = dataclasses.asdict(distilled) | {
                "accuracy_before": report["accuracy_after"],
                "agreement_before": report["agreement"],
            }
            predictions = yield from self._compared(pruned)
            report |= evaluate.report(predictions)
        report |= {
            "device": devices.describe(subject.device),
            "seconds": self.clock(),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "blocks": [reports.block(block.pruned) for block in one_pass.done.values()],
        }
        result = PruneResult(
            settings=self._plain_settings(),
            report=report,
            trace=one_pass.trace,
            started=self._started,
            blocks_started=[block.started for block in one_pass.done.values()],
            blocks_pruned=[block.pruned for block in one_pass.done.values()],
            distilled=distilled,
            predictions=predictions,
            model=pruned.to(subject.home),
        )
        self._pass = None
        del one_pass  # with the last values
        processes.meet()
        yield Progress(1.0, "finished")
        yield Finished(result)

    def _planned(self) -> list[tuple[Block, int]]:
        """Which blocks to visit, and how many groups each keeps."""
        keep, names = self.keep, self.names
        if isinstance(keep, dict):
            self.subject.chosen(list(keep))  # refuses unknown names
            names = list(keep) if names is None else names
            if missing := [name for name in names if name not in keep]:
                raise SettingError(
                    f"keep names no fraction for block {listing(missing)}; add one or leave it out."
                )
        found = self.subject.chosen(names)
        fractions = [keep[block.name] if isinstance(keep, dict) else keep for block in found]
        return [
            (block, groups_to_keep(block.groups, fraction, block.multiple(self.settings.multiple)))
            for block, fraction in zip(found, fractions, strict=True)
        ]

    def _allocated(self) -> Generator[Event, None, list[tuple[Block, int]]]:
        """The plan with other counts that cost the same in all."""
        assert isinstance(self.keep, float)
        subject, blocks = self.subject, [block for block, _ in self.plan]
        measuring = sensitivity.measure(subject.traced, blocks, subject.batches, self.settings, self._scores)
        curves = yield from self._part(measuring, self._measuring)
        model = allocation.layers(subject.traced, blocks, self.settings.allocation)
        counts = allocation.share_out(curves, model, self.keep, self.settings.multiple)
        return list(zip(blocks, counts, strict=True))

    def _part(self, steps: Generator[Progress, None, T], work: float) -> Generator[Event, None, T]:
        """Drive a part of the run that tells its own progress and is ``work`` of the whole."""
        before = self.done
        try:
            while True:
                step = next(steps)
                self.done = before + work * step.done
                yield Progress(min(1.0, self.done / self.total), step.doing)
        except StopIteration as stop:
            self.done = before + work
            result: T = stop.value
            return result
        finally:
            steps.close()

    def _distilled(self, pruned: nn.Module) -> Generator[Event, None, tuple[nn.Module, Distilled]]:
        """Train the sliced model towards the dense one."""
        subject = self.subject
        batches = [batch.to(subject.device) for batch in subject.calibration]
        steps = distil_steps(pruned, subject.dense, batches, self.settings.distil, seed=self.settings.seed)
        began = self.clock()
        result = yield from self._part(steps, self._distilling)
        event = Distilled(result.steps, result.objective_before, result.objective_after, self.clock() - began)
        return result.model, event

    def _compared(self, pruned: nn.Module) -> Generator[Event, None, Predictions | None]:
        """The pruned model's predictions beside the dense one's; None without evaluation data."""
        batches, after = self.subject.evaluation, []
        for batch, classes in zip(batches, evaluate.predictions(pruned, batches), strict=True):
            after.append(classes)
            yield from self.progress(self.subject.work * len(batch), "measuring accuracy")
        return evaluate.compare(self.subject.predicted, after, batches) if batches else None

    def progress(self, work: float, doing: str) -> Iterator[Progress]:
        """Account for work done; a Progress event now and then."""
        self.done += work
        now = time.perf_counter()
        if now - self._last_progress >= PROGRESS_SECONDS:
            self._last_progress = now
            yield Progress(min(1.0, self.done / self.total), doing)

    def _plain_settings(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "keep": self.keep,
            **dataclasses.asdict(self.settings),
            "blocks": self.names,
            "calibration_examples": self.subject.examples,
            "calibration_digest": self.subject.digest,
            "versions": reports.versions(),
        }


def _sliced(one_pass: OnePass, subject: Subject) -> nn.Module:
    """The sliced model, checked against the masked one on the examples of the probe."""
    pruned = copy.deepcopy(subject.dense)
    for edit in one_pass.edits:
        edit(pruned)
    try:
        with exclusive():  # torch's fast path writes zeros at padding, the traced model does not
            outputs = evaluate.forward(pruned, subject.probe)
    except Exception as error:  # whatever a forward raises when a width is written into it
        raise SurgeryError(
            f"The sliced {type(pruned).__name__} does not run ({error}), so nothing was kept: its forward "
            "depends on the width of a pruned layer. Prune other blocks (blocks=...), or use x.flatten(1)."
        ) from error
    sliced = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    surgery.check_equal(one_pass.outputs(), sliced)
    return pruned

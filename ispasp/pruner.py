"""Prune a whole model: one pass over its graph, block after block, each step an event.

Every block sees the inputs that the already pruned network gives it, as in the paper.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ispasp import allocation, evaluate, reports, sensitivity, surgery, taylor
from ispasp import blocks as block_finding
from ispasp import calibration as calibration_data
from ispasp import device as devices
from ispasp.calibration import Batch
from ispasp.distil import BATCH_SIZE, distil_steps
from ispasp.errors import ModelError, SettingError, SurgeryError, listing
from ispasp.graph import Traced, exclusive, trace
from ispasp.onepass import OnePass
from ispasp.records import Block, Distilled, Event, Finished, Progress, Started
from ispasp.result import PruneResult
from ispasp.settings import PruneSettings, check_keep, groups_to_keep

PROBE_SHARE = 32  # the dense stream runs over one in so many calibration examples,
PROBE_LEAST = 2  # but over no fewer than this
PROGRESS_SECONDS = 0.05  # a Progress event at most this often

T = TypeVar("T")


def prune(
    model: nn.Module, calibration: Iterable[Any], keep: float | Mapping[str, float] = 0.5, **options: Any
) -> PruneResult:
    """Prune ``model`` and return the smaller model with a record of how it came about.

    ``selector="ispasp", reconstruct="none", multiple=1`` is Algorithm 1 of Wolfe & Kyrillidis (2022).

    Args:
        model: any module that torch.export can trace; it is not changed.
        calibration: batches (see ``ispasp.calibration``); a few hundred unlabelled examples do.
        keep: kept fraction in (0, 1], or a fraction per block name (other blocks are left alone).
        **options: as in ``iterate``.

    Raises:
        SettingError, CalibrationError, ModelError, DeviceError: what was given cannot be used.
        SurgeryError: the sliced model does not compute what the masked one does.
    """
    for event in iterate(model, calibration, keep, **options):
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
    run = _Run(
        given=model,
        calibration=calibration_data.read(calibration),
        keep=fractions,
        settings=settings,
        names=None if blocks is None else [blocks] if isinstance(blocks, str) else [str(b) for b in blocks],
        device=devices.pick(device),
        evaluation=None if evaluation is None else calibration_data.read(evaluation, "evaluation"),
        source=str(source),
    )
    return run.events()


@dataclasses.dataclass
class _Run:
    """One run: what was asked for, and what has happened so far."""

    given: nn.Module
    calibration: list[Batch]
    keep: float | dict[str, float]
    settings: PruneSettings
    names: list[str] | None
    device: torch.device
    evaluation: list[Batch] | None
    source: str
    # Work in rough multiply-adds, for the progress.
    done: float = 0.0
    total: float = 1.0
    last_progress: float = 0.0
    # Seconds of work: what passes between two events, while somebody looks, does not count.
    worked: float = 0.0
    resumed: float = 0.0

    def events(self) -> Iterator[Event]:
        steps = self._steps()
        try:
            while True:
                self.resumed = time.perf_counter()
                event = next(steps, None)
                self.worked = self._clock()
                if event is None:
                    return
                yield event
        finally:
            steps.close()

    def _clock(self) -> float:
        return self.worked + time.perf_counter() - self.resumed

    def _steps(self) -> Generator[Event, None, None]:
        yield Progress(0.0, "tracing the model")
        dense = evaluate.copy_to(self.given, self.device)
        batches = [batch.to(self.device) for batch in self.calibration]
        traced = trace(dense, batches[0])
        evaluate.try_forward(dense, batches[0], "calibration")
        if self.evaluation is not None:
            evaluate.try_forward(dense, self.evaluation[0], "evaluation")
        plan = self._plan(traced)
        work = sum(traced.cost(node) for node in traced.nodes)
        examples = sum(len(batch) for batch in batches)
        held_out = sum(len(batch) for batch in self.evaluation or [])
        settings = self.settings
        streams = 2 if settings.reconstruct == "asymmetric" else 1
        shared_out, distilled = settings.allocation != "uniform", None
        # A sensitivity is about half a forward pass per ratio; a distillation step passes a batch through
        # the dense model and, forth and back, through the pruned one.
        measuring = work * examples * (1 + len(plan) * len(sensitivity.FRACTIONS) / 2) if shared_out else 0.0
        distilling = work * BATCH_SIZE * 4 * settings.distil
        evaluating = work * held_out * (3 if settings.distil else 2)
        self.total = work * streams * examples + measuring + distilling + evaluating
        scores = {}
        if settings.selector == "taylor":
            scores = taylor.scores(traced, [block for block, _ in plan], batches)
        if shared_out:
            plan = yield from self._allocate(traced, plan, batches, scores, measuring)
        started = Started(tuple(block for block, _ in plan), tuple(kept for _, kept in plan))
        yield started

        probe, batches = _set_apart(batches)
        one_pass = OnePass(traced, plan, settings, batches, probe, scores, self._clock, self._progress)
        yield from one_pass.events()
        yield Progress(self.done / self.total, "slicing and checking the model")
        pruned = _sliced(dense, one_pass, probe)
        comparison = evaluate.UNMEASURED
        if self.evaluation is not None:
            comparison = yield from self._evaluate(dense, pruned, self.evaluation, work)
        report = {
            "params_before": evaluate.count_parameters(dense),
            "params_after": evaluate.count_parameters(pruned),
            "macs_before": evaluate.count_macs(dense, probe),
            "macs_after": evaluate.count_macs(pruned, probe),
            **dataclasses.asdict(comparison),
            "distil": None,
        }
        if settings.distil:
            pruned, distilled = yield from self._distil(pruned, dense, distilling)
            yield distilled
            report["distil"] = dataclasses.asdict(distilled) | {
                "accuracy_before": comparison.accuracy_after,
                "agreement_before": comparison.agreement,
            }
            if self.evaluation is not None:
                comparison = yield from self._evaluate(dense, pruned, self.evaluation, work)
                report |= dataclasses.asdict(comparison)
        report |= {
            "device": devices.describe(self.device),
            "seconds": self._clock(),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "blocks": [reports.block(event) for event in one_pass.blocks_pruned],
        }
        result = PruneResult(
            settings=self._plain_settings(),
            report=report,
            trace=one_pass.trace,
            started=started,
            blocks_started=one_pass.blocks_started,
            blocks_pruned=one_pass.blocks_pruned,
            distilled=distilled,
            model=pruned.to(evaluate.device_of(self.given)),
        )
        yield Progress(1.0, "finished")
        yield Finished(result)

    def _plan(self, traced: Traced) -> list[tuple[Block, int]]:
        """Which blocks to visit, and how many groups each keeps."""
        blocks = block_finding.find(traced)
        names = self.names
        if isinstance(self.keep, dict):
            block_finding.chosen(blocks, self.keep)  # refuses unknown names
            names = list(self.keep) if names is None else names
            if missing := [name for name in names if name not in self.keep]:
                raise SettingError(
                    f"keep names no fraction for block {listing(missing)}; add one or leave it out."
                )
        found = block_finding.chosen(blocks, names)
        fractions = [self.keep[block.name] if isinstance(self.keep, dict) else self.keep for block in found]
        return [
            (block, groups_to_keep(block.groups, fraction, block.multiple(self.settings.multiple)))
            for block, fraction in zip(found, fractions, strict=True)
        ]

    def _allocate(
        self,
        traced: Traced,
        plan: Sequence[tuple[Block, int]],
        batches: list[Batch],
        scores: dict[str, Tensor],
        work: float,
    ) -> Generator[Event, None, list[tuple[Block, int]]]:
        """The plan with other counts that cost the same in all."""
        assert isinstance(self.keep, float)
        blocks = [block for block, _ in plan]
        measuring = sensitivity.measure(traced, blocks, batches, self.settings, scores)
        curves = yield from self._part(measuring, work)
        model = allocation.layers(traced, blocks, self.settings.allocation)
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

    def _distil(
        self, pruned: nn.Module, dense: nn.Module, work: float
    ) -> Generator[Event, None, tuple[nn.Module, Distilled]]:
        """Train the sliced model towards the dense one; ``work`` is what it adds to the progress."""
        batches = [batch.to(self.device) for batch in self.calibration]
        steps = distil_steps(pruned, dense, batches, self.settings.distil, seed=self.settings.seed)
        began = self._clock()
        result = yield from self._part(steps, work)
        event = Distilled(
            result.steps, result.objective_before, result.objective_after, self._clock() - began
        )
        return result.model, event

    def _evaluate(
        self, dense: nn.Module, pruned: nn.Module, batches: list[Batch], work: float
    ) -> Generator[Event, None, evaluate.Comparison]:
        predicted: list[list[Tensor]] = []
        for model in (dense, pruned):
            predicted.append([])
            for batch, classes in zip(batches, evaluate.predictions(model, batches), strict=True):
                predicted[-1].append(classes)
                yield from self._progress(work * len(batch), "measuring accuracy")
        return evaluate.compare(predicted[0], predicted[1], batches)

    def _progress(self, work: float, doing: str) -> Iterator[Progress]:
        """Account for work done; a Progress event now and then."""
        self.done += work
        now = time.perf_counter()
        if now - self.last_progress >= PROGRESS_SECONDS:
            self.last_progress = now
            yield Progress(min(1.0, self.done / self.total), doing)

    def _plain_settings(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "keep": self.keep,
            **dataclasses.asdict(self.settings),
            "blocks": self.names,
            "calibration_examples": sum(len(batch) for batch in self.calibration),
            "calibration_digest": calibration_data.digest(self.calibration),
            "versions": reports.versions(),
        }


def _set_apart(batches: Sequence[Batch]) -> tuple[Batch, list[Batch]]:
    """The few examples that also run through the dense network, and all data with these as first batch."""
    first = batches[0]
    few = max(PROBE_LEAST, sum(map(len, batches)) // PROBE_SHARE)
    rest = [first.after(few)] if len(first) > few else []
    # Copies, because the streams may overwrite what they are given.
    return first.first(few).copy(), [first.first(few), *rest, *batches[1:]]


def _sliced(dense: nn.Module, one_pass: OnePass, probe: Batch) -> nn.Module:
    """The sliced model, checked against the masked one on the examples of ``probe``."""
    pruned = copy.deepcopy(dense)
    for edit in one_pass.edits:
        edit(pruned)
    try:
        with (
            exclusive()
        ):  # torch's fast path for attention writes zeros at padding, the traced model does not
            outputs = evaluate.forward(pruned, probe)
    except Exception as error:  # whatever a forward raises when a width is written into it
        raise SurgeryError(
            f"The sliced {type(pruned).__name__} does not run ({error}), so nothing was kept: its forward "
            "depends on the width of a pruned layer. Prune other blocks (blocks=...), or use x.flatten(1)."
        ) from error
    sliced = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    surgery.check_equal(one_pass.outputs(), sliced)
    return pruned

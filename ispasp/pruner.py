"""Prune a whole model: one pass over its graph, block after block, each step an event.

Every block sees the inputs that the already pruned network gives it, as in the paper.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ispasp import blocks as block_finding
from ispasp import calibration as calibration_data
from ispasp import device as devices
from ispasp import evaluate, selectors, statistics, surgery
from ispasp.algorithm import SelectorSettings, candidate_count
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError, ModelError, SettingError, listing
from ispasp.graph import Traced, trace
from ispasp.records import Block, BlockPruned, BlockStarted, Event, Finished, Iteration, Progress, Started
from ispasp.residual import Consumer, squared_norm
from ispasp.result import PruneResult
from ispasp.settings import PruneSettings, check_keep, groups_to_keep
from ispasp.stream import Stream

SAMPLE_EXAMPLES = 4  # examples of each hidden representation that an inspector can show
PROBE_SHARE = 32  # the dense stream runs over one in so many calibration examples,
PROBE_LEAST = 2  # but over no fewer than this
PROGRESS_SECONDS = 0.05  # a Progress event at most this often


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
    evaluation: Iterable[Any] | None = None,
    source: str = "",
) -> Iterator[Event]:
    """The same as ``prune``, step by step: yields events and can be stopped between any two.

    Settings are checked at the call, before the first event is asked for. The events are one
    ``Started``; for each block ``BlockStarted``, its ``Iteration`` records and ``BlockPruned``;
    ``Progress`` in between; ``Finished`` with the result at the end.

    Args:
        model, calibration, keep: as in ``prune``.
        selector: which way to choose groups; see ``ispasp.selectors.names()``.
        reconstruct: what to do with the consumer's weights afterwards; ``"none"`` leaves them.
        multiple: kept groups are rounded to multiples of this; 1 for the paper's exact counts.
        candidate_factor: c, candidates per kept group (2 in the paper).
        iterations: most iterations per block (20 in the paper); it stops earlier at the fixed point.
        blocks: names of the blocks to prune; all prunable ones by default.
        device: ``"auto"`` (CUDA, then MPS, then CPU), or a device's name.
        seed: for selectors that draw at random.
        evaluation: batches on which the report's accuracy and agreement are measured; without them
            both are None, because measuring costs more forward passes than pruning.
        source: where the model came from, e.g. ``"zoo:mnist_mlp"``, so that ``ispasp.load`` can rebuild it.
    """
    settings = PruneSettings(selector, reconstruct, multiple, candidate_factor, iterations, seed)
    fractions: float | dict[str, float]
    if isinstance(keep, Mapping):
        fractions = {str(name): check_keep(value, f"keep of block {name}") for name, value in keep.items()}
    else:
        fractions = check_keep(keep)
    if not isinstance(model, nn.Module):
        raise ModelError(f"The model is a {type(model).__name__}; give a torch.nn.Module.")
    run = _Run(
        given=model,
        calibration=calibration_data.read(calibration),
        keep=fractions,
        settings=settings,
        names=None if blocks is None else [str(name) for name in blocks],
        device=devices.pick(device),
        evaluation=None if evaluation is None else calibration_data.read(evaluation, "evaluation"),
        source=source,
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
    trace: list[Iteration] = dataclasses.field(default_factory=list)
    blocks_started: list[BlockStarted] = dataclasses.field(default_factory=list)
    blocks_pruned: list[BlockPruned] = dataclasses.field(default_factory=list)
    # Work in rough multiply-adds, for the progress.
    done: float = 0.0
    total: float = 1.0
    last_progress: float = 0.0

    def events(self) -> Iterator[Event]:
        began = time.perf_counter()
        yield Progress(0.0, "tracing the model")
        dense = copy.deepcopy(self.given).to(self.device).eval()
        batches = [batch.to(self.device) for batch in self.calibration]
        traced = _trace(dense, batches)
        plan = self._plan(traced)
        started = Started(tuple(block for block, _ in plan), tuple(kept for _, kept in plan))
        yield started

        work = sum(traced.cost(node) for node in traced.nodes)
        # The pruned stream and its statistics come to about two passes.
        self.total = 2 * work * sum(len(batch) for batch in [*batches, *(self.evaluation or [])])
        probe = self._probe(traced, batches[0])
        masked_output = yield from self._stream(traced, plan, batches, probe)
        yield Progress(self.done / self.total, "slicing and checking the model")
        pruned = copy.deepcopy(dense)
        for event in self.blocks_pruned:
            surgery.slice_block(pruned, event.block, event.selected)
        surgery.check_equal(masked_output, evaluate.forward(pruned, probe))
        comparison = evaluate.UNMEASURED
        if self.evaluation is not None:
            comparison = yield from self._evaluate(dense, pruned, self.evaluation, work)
        report = {
            "params_before": evaluate.count_parameters(dense),
            "params_after": evaluate.count_parameters(pruned),
            "macs_before": evaluate.count_macs(dense, batches[0]),
            "macs_after": evaluate.count_macs(pruned, batches[0]),
            **dataclasses.asdict(comparison),
            "device": devices.describe(self.device),
            "seconds": time.perf_counter() - began,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "blocks": [_block_report(event) for event in self.blocks_pruned],
        }
        result = PruneResult(
            settings=self._plain_settings(),
            report=report,
            trace=self.trace,
            started=started,
            blocks_started=self.blocks_started,
            blocks_pruned=self.blocks_pruned,
            model=pruned.to(evaluate.device_of(self.given)),
        )
        yield Progress(1.0, "finished")
        yield Finished(result)

    def _plan(self, traced: Traced) -> list[tuple[Block, int]]:
        """Which blocks to visit, and how many groups each keeps."""
        names = self.names
        if isinstance(self.keep, dict):
            names = list(self.keep) if names is None else names
            if missing := [name for name in names if name not in self.keep]:
                raise SettingError(
                    f"keep names no fraction for block {listing(missing)}; add one or leave it out."
                )
        found = block_finding.chosen(block_finding.find(traced), names)
        fractions = [self.keep[block.name] if isinstance(self.keep, dict) else self.keep for block in found]
        return [
            (block, groups_to_keep(block.groups, fraction, self.settings.multiple))
            for block, fraction in zip(found, fractions, strict=True)
        ]

    def _probe(self, traced: Traced, first: Batch) -> Batch:
        """The few examples that also run through the dense network, to measure drift and check the slicing."""
        examples = sum(len(batch) for batch in self.calibration)
        few = len(first) if traced.fixed_batch else max(PROBE_LEAST, examples // PROBE_SHARE)
        # A copy, because the streams may overwrite what they are given.
        return first.first(few).to(self.device)

    def _stream(
        self, traced: Traced, plan: Sequence[tuple[Block, int]], batches: list[Batch], probe: Batch
    ) -> Generator[Event, None, Tensor]:
        """Execute the graph once, pruning each block when its first consumer comes up.

        Returns the pruned stream's output for the examples of ``probe``, the first of the first batch.
        """
        at = {block.reads[0]: index for index, (block, _) in enumerate(plan)}
        dense = Stream(traced, [probe.to(self.device)])
        pruned = Stream(traced, batches)
        for node in traced.nodes:
            index = at.get(node.name)
            began = time.perf_counter()
            if index is not None:
                block, kept = plan[index]
                yield from self._prune_block(traced, pruned, block, kept, index, len(plan))
            for _ in dense.run(node):
                pass
            cost = 2 * traced.cost(node)
            for number, _ in enumerate(pruned.run(node)):
                yield from self._progress(cost * len(batches[number]), "streaming the calibration data")
            if index is not None:
                drift = _relative_error(dense.values[node][0], pruned.values[node][0][: len(probe)])
                yield self._block_pruned(index, drift, time.perf_counter() - began)
            if node.op != "output":
                dense.free(node)
                pruned.free(node)
        return pruned.outputs()[0][: len(probe)]

    def _prune_block(
        self, traced: Traced, stream: Stream, block: Block, kept: int, index: int, total: int
    ) -> Iterator[Event]:
        """Select this block's groups on the pruned stream, whose consumers then read them alone."""
        by_name = {node.name: node for node in traced.nodes}
        reads = [by_name[name] for name in block.reads]
        hidden = stream.values[by_name[block.hidden]]
        consumers = [Consumer(read, stream.fixed[cast(fx.Node, read.args[1])]) for read in reads]
        collected = statistics.collect(block, consumers, hidden)
        candidates = candidate_count(block.groups, kept, self.settings.candidate_factor)
        started = BlockStarted(
            block=block,
            index=index,
            total=total,
            keep_groups=kept,
            one_iteration_decides=candidates == block.groups,
            sample=_sample(hidden[0], block, consumers[0].feature_dim),
        )
        self.blocks_started.append(started)
        yield started
        settings = self.settings
        options = SelectorSettings(settings.candidate_factor, settings.iterations, settings.seed)
        for iteration in selectors.get(settings.selector)(collected, kept, options):
            self.trace.append(iteration)
            yield iteration
        for consumer, kept_outputs in zip(consumers, collected.output.kept, strict=True):
            stream.replace(consumer.node, [consumer.add_bias(out, stream.fixed) for out in kept_outputs])

    def _block_pruned(self, index: int, drift: float, seconds: float) -> BlockPruned:
        last = self.trace[-1]
        event = BlockPruned(
            block=self.blocks_started[-1].block,
            index=index,
            selected=last.selected,
            iterations=last.t,
            relative_residual=last.relative_residual,
            drift=drift,
            seconds=seconds,
        )
        self.blocks_pruned.append(event)
        return event

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
            "torch": torch.__version__,
        }


def _trace(model: nn.Module, batches: Sequence[Batch]) -> Traced:
    traced = trace(model, batches[0])
    sizes = {len(batch) for batch in batches}
    if traced.fixed_batch is not None and sizes != {traced.fixed_batch}:
        raise CalibrationError(
            f"The model only takes batches of {traced.fixed_batch}, the calibration data has batches of "
            f"{listing(sorted(sizes))}; give batches of {traced.fixed_batch}."
        )
    return traced


def _sample(hidden: Tensor, block: Block, feature_dim: int) -> Tensor:
    """The first examples of a hidden representation, groups in dimension 1."""
    few = hidden[:SAMPLE_EXAMPLES].movedim(feature_dim, 1)
    if block.group_size > 1:
        few = few.unflatten(1, (block.groups, block.group_size))
    limit = torch.finfo(torch.float16).max
    return few.float().clamp(-limit, limit).half().cpu()


def _relative_error(dense: Tensor, pruned: Tensor) -> float:
    """||dense - pruned||_F^2 / ||dense||_F^2; 0 where the dense value is zero."""
    energy = squared_norm(dense)
    return squared_norm(dense - pruned) / energy if energy > 0 else 0.0


def _block_report(event: BlockPruned) -> dict[str, Any]:
    return {
        "name": event.block.name,
        "groups": event.block.groups,
        "kept": len(event.selected),
        "iterations": event.iterations,
        "relative_residual": event.relative_residual,
        "drift": event.drift,
        "selected": list(event.selected),
    }

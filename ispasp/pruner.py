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
from torch.utils import _pytree as pytree

from ispasp import blocks as block_finding
from ispasp import calibration as calibration_data
from ispasp import device as devices
from ispasp import evaluate, selectors, statistics, surgery
from ispasp.algorithm import SelectorSettings, candidate_count
from ispasp.calibration import Batch
from ispasp.errors import ModelError, SettingError, SurgeryError, listing
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

    Settings and data are checked at the call, block names after tracing. The events are one
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

    Raises:
        SettingError, CalibrationError, ModelError, DeviceError, SurgeryError: as ``prune``.
    """
    settings = PruneSettings(selector, reconstruct, multiple, candidate_factor, iterations, seed)
    fractions: float | dict[str, float]
    if isinstance(keep, Mapping):
        fractions = {str(name): check_keep(value, f"keep of block {name}") for name, value in keep.items()}
    else:
        fractions = check_keep(keep)
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
    trace: list[Iteration] = dataclasses.field(default_factory=list)
    blocks_started: list[BlockStarted] = dataclasses.field(default_factory=list)
    blocks_pruned: list[BlockPruned] = dataclasses.field(default_factory=list)
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
        try:
            dense = copy.deepcopy(self.given).to(self.device).eval()
        except RuntimeError as error:
            raise ModelError(
                f"{type(self.given).__name__} cannot be copied ({error}); "
                "build it anew, or clear activations that it keeps."
            ) from error
        batches = [batch.to(self.device) for batch in self.calibration]
        traced = trace(dense, batches[0])
        evaluate.try_forward(dense, batches[0], "calibration")
        if self.evaluation is not None:
            evaluate.try_forward(dense, self.evaluation[0], "evaluation")
        plan = self._plan(traced)
        started = Started(tuple(block for block, _ in plan), tuple(kept for _, kept in plan))
        yield started

        work = sum(traced.cost(node) for node in traced.nodes)
        held_out = sum(len(batch) for batch in self.evaluation or [])
        self.total = work * (sum(len(batch) for batch in batches) + 2 * held_out)
        probe, batches = _set_apart(batches)
        masked_outputs = yield from self._stream(traced, plan, batches, probe)
        yield Progress(self.done / self.total, "slicing and checking the model")
        pruned = self._sliced(dense, probe, masked_outputs)
        comparison = evaluate.UNMEASURED
        if self.evaluation is not None:
            comparison = yield from self._evaluate(dense, pruned, self.evaluation, work)
        report = {
            "params_before": evaluate.count_parameters(dense),
            "params_after": evaluate.count_parameters(pruned),
            "macs_before": evaluate.count_macs(dense, probe),
            "macs_after": evaluate.count_macs(pruned, probe),
            **dataclasses.asdict(comparison),
            "device": devices.describe(self.device),
            "seconds": self._clock(),
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
            (block, groups_to_keep(block.groups, fraction, self.settings.multiple))
            for block, fraction in zip(found, fractions, strict=True)
        ]

    def _stream(
        self, traced: Traced, plan: Sequence[tuple[Block, int]], batches: list[Batch], probe: Batch
    ) -> Generator[Event, None, list[Tensor]]:
        """Execute the graph once, pruning each block when its first consumer comes up.

        Args:
            batches: all calibration data; the first batch holds the same examples as ``probe``.

        Returns the pruned stream's outputs for those examples.
        """
        at = {block.reads[0]: index for index, (block, _) in enumerate(plan)}
        dense, pruned = Stream(traced, [probe.to(self.device)]), Stream(traced, batches)
        for node in traced.nodes:
            index = at.get(node.name)
            began = self._clock()
            if index is not None:
                block, kept = plan[index]
                yield from self._prune_block(traced, pruned, block, kept, index, len(plan))
            for _ in dense.run(node):
                pass
            cost = traced.cost(node)
            replaced = node in pruned.ready
            for number, _ in enumerate(pruned.run(node)):
                yield from self._progress(cost * len(batches[number]), "streaming the calibration data")
            if replaced:
                yield from self._progress(cost * sum(map(len, batches)), "streaming the calibration data")
            if index is not None:
                drift = _relative_error(dense.values[node][0], pruned.values[node][0])
                yield self._block_pruned(index, drift, self._clock() - began)
            if node.op != "output":
                dense.free(node)
                pruned.free(node)
        return pruned.outputs(0)

    def _sliced(self, dense: nn.Module, probe: Batch, masked_outputs: Sequence[Tensor]) -> nn.Module:
        """The sliced model, checked against the masked one on the examples of ``probe``."""
        pruned = copy.deepcopy(dense)
        for event in self.blocks_pruned:
            surgery.slice_block(pruned, event.block, event.selected)
        try:
            outputs = evaluate.forward(pruned, probe)
        except Exception as error:  # whatever a forward raises when a width is written into it
            raise SurgeryError(
                f"The sliced {type(pruned).__name__} does not run ({error}), so nothing was kept: its forward "
                "depends on the width of a pruned layer. Prune other blocks (blocks=...), or use x.flatten(1)."
            ) from error
        sliced = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
        surgery.check_equal(masked_outputs, sliced)
        return pruned

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


def _set_apart(batches: Sequence[Batch]) -> tuple[Batch, list[Batch]]:
    """The few examples that also run through the dense network, and all data with these as first batch."""
    first = batches[0]
    few = max(PROBE_LEAST, sum(map(len, batches)) // PROBE_SHARE)
    rest = [first.after(few)] if len(first) > few else []
    # Copies, because the streams may overwrite what they are given.
    return first.first(few).to(first.tensors[0].device), [first.first(few), *rest, *batches[1:]]


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

"""Execute the graph once over the calibration data, pruning each block when its first consumer comes up.

Every block sees the inputs that the already pruned network gives it, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, fx, nn

from ispasp import masking, padding, reconstruct, selectors, statistics, surgery, targets
from ispasp.algorithm import candidate_count
from ispasp.calibration import Batch
from ispasp.errors import RunError
from ispasp.reconstruct import Refit
from ispasp.records import Block, BlockPruned, BlockStarted, Event, Iteration, Progress
from ispasp.reference import Reference
from ispasp.residual import squared_norm
from ispasp.settings import PruneSettings
from ispasp.statistics import Statistics
from ispasp.stream import Stream
from ispasp.targets import Role

SAMPLE_EXAMPLES = 4  # examples of each hidden representation that an inspector can show


@dataclass(frozen=True)
class BlockDone:
    """All that a finished block leaves behind, so that a run can go on from there.

    Attributes:
        started, trace, pruned: its events.
        refits: the new weights of each consumer; none without a re-fit.
    """

    started: BlockStarted
    trace: tuple[Iteration, ...]
    pruned: BlockPruned
    refits: tuple[Refit, ...]


@dataclass
class OnePass:
    """One execution of a traced model beside the dense one, pruning it.

    Attributes:
        reference: the dense network; the caller takes it to a block before ``prune_block`` is called for it.
        plan: the blocks to prune, in network order, and how many groups each keeps.
        settings: how.
        batches: all calibration data, on the model's device; the stream may overwrite it.
        scores: importance per block name that was measured on the dense model beforehand.
        clock: seconds of work so far.
        progress: accounts for work, in examples times ``Traced.cost``, and says so now and then.
        known: blocks, by their place in the plan, that an earlier execution has finished: taken over as they are.
        done: the blocks finished so far, by their place in the plan, in the order of execution.
    """

    reference: Reference
    plan: Sequence[tuple[Block, int]]
    settings: PruneSettings
    batches: list[Batch]
    scores: Mapping[str, Tensor]
    clock: Callable[[], float]
    progress: Callable[[float, str], Iterator[Progress]]
    known: Mapping[int, BlockDone] = field(default_factory=dict)
    done: dict[int, BlockDone] = field(default_factory=dict)
    # What to do to the dense module, in this order, to have the pruned one.
    edits: list[Callable[[nn.Module], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.traced, self.roles = self.reference.traced, self.reference.roles
        self.dense, self.by_name = self.reference.dense, self.reference.by_name
        self.changed: set[fx.Node] = set()  # what differs between the dense and the pruned network
        self.pruned = Stream(self.traced, self.batches)
        self._next = 0  # place of the next node to execute
        self._reads = {self.by_name[block.reads[0]] for block, _ in self.plan}

    @property
    def trace(self) -> list[Iteration]:
        """The iterations of all finished blocks."""
        return [iteration for block in self.done.values() for iteration in block.trace]

    def prune_block(self, index: int) -> Iterator[Event]:
        """Execute up to the first consumer of the block at ``index`` of the plan, and prune it.

        To be called in the order of execution, see ``Reference.order``.
        """
        block, _ = self.plan[index]
        first = self.by_name[block.reads[0]]
        yield from self._execute(self.traced.nodes[self._next : self.traced.nodes.index(first)])
        began = self.clock()
        started, trace, refits = yield from self._prune(index)
        yield from self._execute([first])
        drift = self._drift(index, first)
        self.pruned.free(first)
        if index in self.known:
            event = self.known[index].pruned
        else:
            event = self._block_pruned(index, trace[-1], drift, self.clock() - began, refits)
        self.done[index] = BlockDone(started, tuple(trace), event, tuple(refit for _, refit in refits))
        yield event

    def finish(self) -> Iterator[Event]:
        """Execute what is behind the last block; afterwards ``edits`` and ``outputs`` are complete."""
        yield from self._execute(self.traced.nodes[self._next :])

    def _execute(self, nodes: Sequence[fx.Node]) -> Iterator[Event]:
        """Execute the next nodes, up to a batch norm that needs all of its input to be measured anew, and so on."""
        waiting: list[fx.Node] = []
        for node in nodes:
            changed = not self.changed.isdisjoint(node.all_input_nodes)
            if changed and (name := self._norm_to_measure(node)):
                yield from self._advance(waiting)
                waiting = []
                self._recalibrate(node, name)
            if changed or node in self.pruned.narrowed:
                self.changed.add(node)
            waiting.append(node)
        yield from self._advance(waiting)

    def _advance(self, nodes: Sequence[fx.Node]) -> Iterator[Event]:
        for node, number in self.pruned.advance(nodes, held=self._reads):
            work = self.traced.cost(node) * self.pruned.batches[number]
            yield from self.progress(work, "streaming the calibration data")
        self._next += len(nodes)

    def outputs(self) -> list[Tensor]:
        """What the masked network returns for the first batch."""
        return self.pruned.outputs(0)

    def _prune(
        self, index: int
    ) -> Generator[Event, None, tuple[BlockStarted, list[Iteration], list[tuple[Role, Refit]]]]:
        """Select this block's groups on the pruned stream, whose consumers then read them alone."""
        block, kept = self.plan[index]
        settings, stream = self.settings, self.pruned
        known = self.known.get(index)
        scores = self.scores.get(block.name)
        collected = statistics.collect_at(
            block, self.traced, stream, settings.hidden_sum == "absolute", scores
        )
        if known:
            _check_same(known, collected)
        started = known.started if known else self._started(index, collected)
        yield started
        trace: list[Iteration] = []
        for iteration in known.trace if known else self._choose(collected, kept):
            if known:  # the same sums in the same order, so that what follows is the same to the last bit
                collected.output.select(collected.mask(iteration.selected))
            trace.append(iteration)
            yield iteration
        self.edits.append(partial(surgery.slice_block, block=block, selected=trace[-1].selected))
        selected = collected.mask(trace[-1].selected)
        masking.regate(self.traced, stream, collected, selected)
        refits: list[tuple[Role, Refit]] = []
        if settings.reconstruct != "none":
            yield from self.progress(0.0, f"re-fitting {block.consumer}")
            refits = [
                self._refit(collected, number, selected, known.refits[number] if known else None)
                for number in range(len(collected.consumers))
            ]
        for number in range(len(collected.consumers)):
            masking.narrow(stream, collected, number, selected, refits[number][1] if refits else None)
        return started, trace, refits

    def _choose(self, collected: Statistics, kept: int) -> Iterator[Iteration]:
        return selectors.get(self.settings.selector)(collected, kept, self.settings.for_selector())

    def _started(self, index: int, collected: Statistics) -> BlockStarted:
        block, kept = self.plan[index]
        candidates = candidate_count(block.groups, kept, self.settings.candidate_factor)
        hidden = self.pruned.values[self.by_name[block.hidden]][0]
        if block.tokens_first:
            whole = hidden.unflatten(0, (-1, self.pruned.batches[0])) if hidden.ndim == 2 else hidden
            hidden = whole.transpose(0, 1)
        return BlockStarted(
            block=block,
            index=index,
            total=len(self.plan),
            keep_groups=kept,
            one_iteration_decides=candidates == block.groups,
            sample=_sample(hidden, block, collected.consumers[0].feature_dim),
        )

    @torch.no_grad()
    def _refit(
        self, collected: Statistics, number: int, selected: Tensor, known: Refit | None
    ) -> tuple[Role, Refit]:
        """Re-fit one consumer; its outputs in ``collected`` become those of the new weights."""
        block, consumer = collected.block, collected.consumers[number]
        role, outputs = self.roles[consumer.node], collected.output.kept[number]
        home = targets.home_of_intercept(consumer.node, role, self.traced)
        if known is None:
            missing = collected.output.lost[number]
            if self.settings.reconstruct == "asymmetric" and not role.problem:
                missing = targets.dense_target(
                    consumer, role, self.dense, self.pruned, outputs, collected.rows
                )
            result = reconstruct.refit(
                consumer,
                collected.hidden,
                selected,
                block.group_size,
                outputs,
                missing,
                intercept=bool(home),
                known=None if block.gates else collected.known_gram(number),
            )
        else:
            result = known.to(outputs[0].device)
            reconstruct.apply(consumer, collected.hidden, selected, block.group_size, outputs, result)
        name = block.consumers[number]
        self.edits.append(
            partial(surgery.refit, name=name, weight=result.weight, intercept=result.intercept, home=home)
        )
        return role, result

    def _drift(self, index: int, node: fx.Node) -> float:
        """How far the pruned stream is from the dense one at ``node``, over the examples both hold."""
        dense, pruned = self.dense.values[node][0], self.pruned.values[node][0]
        block, _ = self.plan[index]
        counts = padding.rows(self.dense.masks[0], dense, block.tokens_first)
        return (
            _relative_error(dense, pruned)
            if counts is None
            else _relative_error(dense[counts], pruned[counts])
        )

    def _norm_to_measure(self, node: fx.Node) -> str:
        """The name of a batch norm that is to have its statistics measured anew; empty for any other node.

        One behind a re-fitted consumer keeps its own: the re-fit has aimed at them.
        """
        if not self.settings.recalibrate:
            return ""
        refitted = self.settings.reconstruct != "none" and any(
            role.norm is node for role in self.roles.values()
        )
        return "" if refitted else targets.norm_name(node, self.traced)

    def _recalibrate(self, norm: fx.Node, name: str) -> None:
        """Measure the statistics of a batch norm anew on the pruned stream."""
        if measured := self.pruned.recalibrate(norm):
            shift, variance = measured
            self.edits.append(partial(surgery.recalibrate, name=name, shift=shift, variance=variance))

    def _block_pruned(
        self, index: int, last: Iteration, drift: float, seconds: float, refits: Sequence[tuple[Role, Refit]]
    ) -> BlockPruned:
        problems = {role.problem for role, _ in refits if role.problem}
        asked = self.settings.reconstruct if refits else "none"
        fallen_back = asked == "asymmetric" and bool(problems)
        notes = [
            f"Re-fitted to the symmetric target in place of the asymmetric one: {problem}."
            for problem in sorted(problems)
            if fallen_back
        ]
        energy = sum(refit.energy for _, refit in refits)

        def share(errors: Sequence[float]) -> float | None:
            return sum(errors) / energy if energy > 0 else 0.0 if refits else None

        return BlockPruned(
            block=self.plan[index][0],
            index=index,
            selected=last.selected,
            iterations=last.t,
            relative_residual=last.relative_residual,
            drift=drift,
            seconds=seconds,
            target="symmetric" if fallen_back else asked,
            error_before=share([refit.before for _, refit in refits]),
            error_after=share([refit.after for _, refit in refits]),
            notes=(*notes, *dict.fromkeys(note for _, refit in refits for note in refit.notes)),
        )


def _check_same(known: BlockDone, collected: Statistics) -> None:
    """Make sure that an interrupted run goes on with the model and the data that it began with.

    Raises:
        RunError: the sums of the hidden representation are others.
    """
    before, now = known.trace[0].hidden_sum, collected.hidden_sum.cpu().double()
    if before.shape != now.shape or not torch.allclose(
        before, now, rtol=1e-3, atol=1e-3 * float(now.abs().max())
    ):
        raise RunError(
            f"The interrupted run cannot go on: at block {collected.block.name} the model or the data are not those "
            "it began with. Discard it and run again."
        )


def _sample(hidden: Tensor, block: Block, feature_dim: int) -> Tensor:
    """The first examples of a hidden representation, groups in dimension 1."""
    few = hidden[:SAMPLE_EXAMPLES].movedim(feature_dim, 1)
    if block.group_size > 1:
        few = few.unflatten(1, (block.groups, block.group_size))
    limit = torch.finfo(torch.float16).max
    return few.float().clamp(-limit, limit).half().cpu()


def _relative_error(dense: Tensor, pruned: Tensor) -> float:
    """||dense - pruned||_F^2 / ||dense||_F^2 over the examples both hold; 0 where the dense value is zero."""
    energy = squared_norm(dense)
    return squared_norm(dense - pruned) / energy if energy > 0 else 0.0

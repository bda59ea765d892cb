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
from ispasp.graph import Traced
from ispasp.reconstruct import Refit
from ispasp.records import Block, BlockPruned, BlockStarted, Event, Iteration, Progress
from ispasp.residual import squared_norm
from ispasp.settings import PruneSettings
from ispasp.statistics import Statistics
from ispasp.stream import Stream
from ispasp.targets import Role

SAMPLE_EXAMPLES = 4  # examples of each hidden representation that an inspector can show


@dataclass
class OnePass:
    """One execution of a traced model.

    Attributes:
        traced: the dense model; nodes may be reordered so that shortcuts are known in time.
        plan: the blocks to prune, in network order, and how many groups each keeps.
        settings: how.
        batches: all calibration data, on the model's device; the streams may overwrite it.
        probe: the examples of the first batch once more, for the dense stream where it needs no others.
        scores: importance per block name that was measured on the dense model beforehand.
        clock: seconds of work so far.
        progress: accounts for work, in examples times ``Traced.cost``, and says so now and then.
    """

    traced: Traced
    plan: Sequence[tuple[Block, int]]
    settings: PruneSettings
    batches: list[Batch]
    probe: Batch
    scores: Mapping[str, Tensor]
    clock: Callable[[], float]
    progress: Callable[[float, str], Iterator[Progress]]
    trace: list[Iteration] = field(default_factory=list)
    blocks_started: list[BlockStarted] = field(default_factory=list)
    blocks_pruned: list[BlockPruned] = field(default_factory=list)
    # What to do to the dense module, in this order, to have the pruned one.
    edits: list[Callable[[nn.Module], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_name = {node.name: node for node in self.traced.nodes}
        blocks = [block for block, _ in self.plan]
        reads = {self.by_name[name]: self.by_name[block.reads[0]] for block in blocks for name in block.reads}
        examples = [self.probe]
        if self.settings.reconstruct == "asymmetric":
            apart = {*reads, *(self.by_name[block.hidden] for block in blocks)}
            self.traced, self.roles = targets.roles(self.traced, reads, apart)
            examples = self.batches
        else:
            self.roles = {read: targets.role(read, self.traced) for read in reads}
        self.traced = masking.hold(self.traced, blocks)
        self.changed: set[fx.Node] = set()  # what differs between the dense and the pruned network
        self.dense = Stream(self.traced, [batch.copy() for batch in examples])
        self.pruned = Stream(self.traced, self.batches)

    def events(self) -> Iterator[Event]:
        """Prune block after block; afterwards ``edits`` and ``outputs`` are complete."""
        at = {block.reads[0]: index for index, (block, _) in enumerate(self.plan)}
        for node in self.traced.nodes:
            index = at.get(node.name)
            began = self.clock()
            refits: list[tuple[Role, Refit]] = []
            if index is not None:
                refits = yield from self._prune_block(index)
            elif self.settings.recalibrate and not self.changed.isdisjoint(node.all_input_nodes):
                self._recalibrate(node)
            if node in self.pruned.narrowed or not self.changed.isdisjoint(node.all_input_nodes):
                self.changed.add(node)
            cost = self.traced.cost(node)
            for number, _ in enumerate(self.dense.run(node)):
                if len(self.dense.batches) > 1:
                    yield from self.progress(cost * self.dense.batches[number], "streaming the dense network")
            replaced = node in self.pruned.ready
            for number, _ in enumerate(self.pruned.run(node)):
                yield from self.progress(cost * self.pruned.batches[number], "streaming the calibration data")
            if replaced:
                yield from self.progress(cost * sum(self.pruned.batches), "streaming the calibration data")
            if index is not None:
                drift = self._drift(index, node)
                yield self._block_pruned(index, drift, self.clock() - began, refits)
            if node.op != "output":
                self.dense.free(node)
                self.pruned.free(node)

    def outputs(self) -> list[Tensor]:
        """What the masked network returns for the first batch."""
        return self.pruned.outputs(0)

    def _prune_block(self, index: int) -> Generator[Event, None, list[tuple[Role, Refit]]]:
        """Select this block's groups on the pruned stream, whose consumers then read them alone."""
        block, kept = self.plan[index]
        settings, stream = self.settings, self.pruned
        scores = self.scores.get(block.name)
        collected = statistics.collect_at(
            block, self.traced, stream, settings.hidden_sum == "absolute", scores
        )
        consumers = collected.consumers
        candidates = candidate_count(block.groups, kept, settings.candidate_factor)
        hidden = stream.values[self.by_name[block.hidden]][0]
        if block.tokens_first:
            whole = hidden.unflatten(0, (-1, stream.batches[0])) if hidden.ndim == 2 else hidden
            hidden = whole.transpose(0, 1)
        started = BlockStarted(
            block=block,
            index=index,
            total=len(self.plan),
            keep_groups=kept,
            one_iteration_decides=candidates == block.groups,
            sample=_sample(hidden, block, consumers[0].feature_dim),
        )
        self.blocks_started.append(started)
        yield started
        choose = selectors.get(settings.selector)
        for iteration in choose(collected, kept, settings.for_selector()):
            self.trace.append(iteration)
            yield iteration
        self.edits.append(partial(surgery.slice_block, block=block, selected=self.trace[-1].selected))
        selected = collected.mask(self.trace[-1].selected)
        masking.regate(self.traced, stream, collected, selected)
        refits: list[tuple[Role, Refit]] = []
        if settings.reconstruct != "none":
            yield from self.progress(0.0, f"re-fitting {block.consumer}")
            refits = [self._refit(collected, number) for number in range(len(consumers))]
        for number in range(len(consumers)):
            masking.narrow(stream, collected, number, selected, refits[number][1] if refits else None)
        return refits

    @torch.no_grad()
    def _refit(self, collected: Statistics, number: int) -> tuple[Role, Refit]:
        """Re-fit one consumer; its outputs in ``collected`` become those of the new weights."""
        block, consumer = collected.block, collected.consumers[number]
        role, outputs = self.roles[consumer.node], collected.output.kept[number]
        missing = collected.output.lost[number]
        if self.settings.reconstruct == "asymmetric":
            dense = self.dense.values[self.by_name[block.hidden]]
            self.dense.replace(
                consumer.node, [consumer.add_bias(consumer(batch), self.dense.fixed) for batch in dense]
            )
            if not role.problem:
                missing = targets.dense_target(
                    consumer, role, self.dense, self.pruned, outputs, collected.rows
                )
        home = targets.home_of_intercept(consumer.node, role, self.traced)
        result = reconstruct.refit(
            consumer,
            collected.hidden,
            collected.mask(self.trace[-1].selected),
            block.group_size,
            outputs,
            missing,
            intercept=bool(home),
            known=None if block.gates else collected.known_gram(number),
        )
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

    def _recalibrate(self, node: fx.Node) -> None:
        """Measure the statistics of a batch norm anew on the pruned stream.

        One behind a re-fitted consumer keeps its own: the re-fit has aimed at them.
        """
        refitted = self.settings.reconstruct != "none" and any(
            role.norm is node for role in self.roles.values()
        )
        name = "" if refitted else targets.norm_name(node, self.traced)
        if name and (measured := self.pruned.recalibrate(node)):
            shift, variance = measured
            self.edits.append(partial(surgery.recalibrate, name=name, shift=shift, variance=variance))

    def _block_pruned(
        self, index: int, drift: float, seconds: float, refits: Sequence[tuple[Role, Refit]]
    ) -> BlockPruned:
        last = self.trace[-1]
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

        event = BlockPruned(
            block=self.blocks_started[-1].block,
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
        self.blocks_pruned.append(event)
        return event


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

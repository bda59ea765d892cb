"""The dense network's side of a pass: what runs are compared with, and what they are re-fitted to.

It stands still at one block while every run that shares it deals with that block, and then moves on to the
next; so one dense execution serves them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from torch import fx

from ispasp import masking, targets
from ispasp.calibration import Batch
from ispasp.graph import Traced
from ispasp.records import Block
from ispasp.residual import Consumer
from ispasp.stream import Stream
from ispasp.targets import Role


class Reference:
    """The dense network, executed up to a block.

    Attributes:
        traced: the model; for asymmetric targets, nodes are reordered so that shortcuts are known in time.
        roles: what becomes of every consumer's output.
        order: places in the list of blocks, in the order in which their first consumers are executed.
        dense: its values; over all calibration data for asymmetric targets, else over a few examples.
    """

    def __init__(
        self,
        traced: Traced,
        blocks: Sequence[Block],
        asymmetric: bool,
        batches: Sequence[Batch],
        probe: Batch,
    ) -> None:
        """
        Args:
            blocks: what will be pruned, in network order.
            batches: all calibration data on the model's device; not changed.
            probe: the first of them, a few.
        """
        by_name = {node.name: node for node in traced.nodes}
        reads = {by_name[name]: by_name[block.reads[0]] for block in blocks for name in block.reads}
        self.roles: dict[fx.Node, Role]
        if asymmetric:
            apart = {*reads, *(by_name[block.hidden] for block in blocks)}
            traced, self.roles = targets.roles(traced, reads, apart)
        else:
            self.roles = {read: targets.role(read, traced) for read in reads}
        self.traced = masking.hold(traced, blocks)
        self.by_name, self.asymmetric, self._next = by_name, asymmetric, 0
        position = {node.name: number for number, node in enumerate(self.traced.nodes)}
        self.order = sorted(range(len(blocks)), key=lambda index: position[blocks[index].reads[0]])
        self.dense = Stream(self.traced, [batch.copy() for batch in (batches if asymmetric else [probe])])

    def advance(self, block: Block) -> Iterator[float]:
        """Execute everything up to the first consumer of ``block``, and that; blocks come in ``order``.

        Yields the work done since it yielded last, in examples times ``Traced.cost``, where it is worth telling.
        """
        first = self.traced.nodes.index(self.by_name[block.reads[0]])
        for before in (True, False):
            if self.asymmetric and not before:
                self._outputs(block)
            part = self.traced.nodes[self._next : first] if before else (self.traced.nodes[first],)
            for node, number in self.dense.advance(part):
                if self.asymmetric:
                    yield self.traced.cost(node) * self.dense.batches[number]
        self._next = first + 1

    def _outputs(self, block: Block) -> None:
        """Compute what the block's later consumers give, while their input is there: their targets need it now."""
        hidden = self.dense.values[self.by_name[block.hidden]]
        for node in [self.by_name[name] for name in block.reads[1:]]:
            consumer = Consumer(node, self.dense.fixed[cast(fx.Node, node.args[1])])
            outputs = [consumer.add_bias(consumer(batch), self.dense.fixed) for batch in hidden]
            self.dense.replace(node, outputs)

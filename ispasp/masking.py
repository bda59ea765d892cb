"""Let the consumers in a stream read the kept groups alone, as they will in the sliced model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx

from ispasp.blocks import between_gates
from ispasp.graph import CONVOLUTIONS, Traced, last_used
from ispasp.layouts import features
from ispasp.reconstruct import Refit
from ispasp.records import Block
from ispasp.statistics import Statistics
from ispasp.stream import Stream


def hold(traced: Traced, blocks: Iterable[Block]) -> Traced:
    """The model with all that gates are computed from kept alive until their groups have been selected."""
    by_name = {node.name: node for node in traced.nodes}
    longer: dict[fx.Node, set[fx.Node]] = {}
    for block in blocks:
        if block.gates:
            between = _between(block, by_name)
            operands = {other for node in between for other in node.all_input_nodes} - between
            longer[by_name[block.reads[0]]] = operands - set(traced.fixed)
    return dataclasses.replace(traced, last_used=last_used(traced.nodes, longer)) if longer else traced


def _between(block: Block, by_name: dict[str, fx.Node]) -> set[fx.Node]:
    return between_gates(by_name[block.hidden], [by_name[name] for name in block.gates])


@torch.no_grad()
def regate(traced: Traced, stream: Stream, collected: Statistics, selected: Tensor) -> None:
    """Compute a block's gates from the kept groups alone, and the hidden representation with them.

    What the kept groups give to the consumers changes with it, in ``collected``; their sum with what is
    missing stays what the consumers gave before. Blocks without gates are left alone.

    Args:
        traced: as ``hold`` gave it.
        stream: has come to the block's first consumer.
        selected: (d,) bool mask.
    """
    block = collected.block
    if not block.gates:
        return
    by_name = {node.name: node for node in traced.nodes}
    between, hidden = _between(block, by_name), by_name[block.hidden]
    gone = (~selected).nonzero().flatten()
    cuts = [cut for cut in block.cuts if cut.role == "gate"]
    dropped = {by_name[name]: features(gone, cut.size) for name, cut in zip(block.gates, cuts, strict=True)}
    again = copy.copy(stream)
    again.values = dict(stream.values)
    for node in traced.nodes:
        if node not in between:
            continue
        if node in dropped:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            whole = again.values[source]
            dim = 1 if node.target in CONVOLUTIONS else -1
            again.values[source] = [value.index_fill(dim, dropped[node], 0) for value in whole]
        again.recompute(node)
    stream.values[hidden] = again.values[hidden]
    index = features(selected.nonzero().flatten(), block.group_size)
    output = collected.output
    output.hidden = collected.counted(again.values[hidden])
    for consumer, kept, lost in zip(collected.consumers, output.kept, output.lost, strict=True):
        weight = consumer.weight.index_select(1, index)
        for number, batch in enumerate(output.hidden):
            new = consumer(batch.index_select(consumer.feature_dim, index), weight).to(kept[number].dtype)
            lost[number] += kept[number] - new
            kept[number] = new


def narrow(stream: Stream, collected: Statistics, number: int, selected: Tensor, refit: Refit | None) -> None:
    """Let one consumer of a block read the kept groups alone, with new weights where it was re-fitted."""
    consumer = collected.consumers[number]
    index = features(selected.nonzero().flatten(), collected.block.group_size)
    weight = consumer.weight.index_select(1, index) if refit is None else refit.weight
    shift = None if refit is None else refit.intercept

    def operation(hidden: Tensor) -> Tensor:
        output = consumer(hidden.index_select(consumer.feature_dim, index), weight)
        if shift is not None:
            output = output + (shift.view(-1, 1, 1) if consumer.feature_dim == 1 else shift).to(output.dtype)
        return consumer.add_bias(output, stream.fixed)

    stream.narrowed[consumer.node] = operation
    if not collected.leaves_out:
        outputs: Sequence[Tensor] = collected.output.kept[number]
        stream.replace(consumer.node, [consumer.add_bias(out, stream.fixed) for out in outputs])

"""Find what can be pruned: walk from every producer to the layers that read its output (``ispasp.walk``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from ispasp import attention, calibration, trial
from ispasp.errors import ModelError, SettingError, listing
from ispasp.graph import CONSUMERS, CONVOLUTIONS, Traced, ancestors, descendants, trace
from ispasp.layouts import MOVING, RESHAPING, Layout, RefusedError, shape_of, tokens_first
from ispasp.owners import Owners
from ispasp.records import Block, Blocks, Cut
from ispasp.walk import ELEMENTWISE, POOLING, POSITIVE, Walk, convolution_groups

aten = torch.ops.aten


def find_blocks(model: nn.Module, example_inputs: Any) -> list[Block]:
    """List every Conv2d and Linear layer in network order: what could be pruned, and why the rest could not.

    Args:
        model: any module that torch.export can trace; it is not changed.
        example_inputs: one batch (see ``ispasp.calibration``).

    Raises:
        ModelError: the model cannot be traced.
        CalibrationError: the example is not a batch.
    """
    batch = calibration.read([example_inputs], "example")[0]
    if not isinstance(model, nn.Module):
        raise ModelError(f"The model is a {type(model).__name__}; give a torch.nn.Module.")
    training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        return find(trace(model, batch))
    finally:
        for name, module in model.named_modules():
            module.training = training[name]


def find(traced: Traced) -> list[Block]:
    """The blocks of a traced model, in the order in which its layers run."""
    owners = Owners(traced)
    blocks: dict[str, Block] = {}
    covered: set[str] = set()  # later producers and riders of blocks that were found already
    for node in traced.nodes:
        if node.op != "call_function" or node.target not in CONSUMERS:
            continue
        block = _block(node, traced, owners)
        if block.name not in blocks and block.name not in covered:
            blocks[block.name] = block
            covered.update(block.producers, block.riders)
    return Blocks(blocks.values())


def chosen(blocks: Iterable[Block], names: Iterable[str] | None) -> list[Block]:
    """The prunable blocks among ``blocks``, or those of them that ``names`` lists.

    Raises:
        SettingError: a name is unknown or not prunable; the message lists the known ones.
        ModelError: nothing is prunable.
    """
    blocks = list(blocks)
    prunable = [block for block in blocks if block.prunable]
    if not prunable:
        reasons = (
            "; ".join(f"{block.name}: {block.reason}" for block in blocks[:3]) or "it has no Conv2d or Linear"
        )
        raise ModelError(
            f"Nothing in this model can be pruned ({reasons}). See ispasp.find_blocks for every reason."
        )
    if names is None:
        return prunable
    wanted = list(names)
    refused = {block.name: block.reason for block in blocks if not block.prunable}
    for name in wanted:
        if name in refused:
            raise SettingError(f"Block {name} cannot be pruned: {refused[name]}.")
        if name not in {block.name for block in prunable}:
            raise SettingError(
                f"Unknown block {name!r}; the prunable blocks are {listing(b.name for b in prunable)}."
            )
    return [block for block in prunable if block.name in wanted]


def _block(producer: fx.Node, traced: Traced, owners: Owners) -> Block:
    weight = producer.args[1]
    is_convolution = producer.target in CONVOLUTIONS
    kind = "channel" if is_convolution else "neuron"
    name = owners.names.get(weight, producer.name) if isinstance(weight, fx.Node) else producer.name
    name = name.removesuffix(".weight")
    groups = int(shape_of(producer)[1 if is_convolution else -1])
    try:
        if known := attention.find(producer, traced, owners):
            return known
        owners.layer(producer)
        if convolution_groups(producer) != 1:
            raise RefusedError("it is a grouped convolution")
        walk = Walk(owners)
        walk.run(producer)
        reads, gates, hidden, layout = _meeting_point(walk, traced)
        if not _bends(hidden, walk):
            raise RefusedError(
                "no nonlinearity stands between it and the next layer, so the two are one linear layer"
            )
        cuts = [walk.producers[node] for node in traced.nodes if node in walk.producers]
        cuts += walk.riders.values()
        cuts += [Cut(owners.layer(read)[0], "gate", walk.layouts[value].size) for read, value in gates]
        cuts += [Cut(owners.layer(read)[0], "consumer", layout.size) for read in reads]
    except RefusedError as refusal:
        return Block(name=name, groups=groups, kind=kind, reason=str(refusal))
    block = Block(
        name=name,
        groups=walk.groups,
        group_size=layout.size,
        kind="head" if any(cut.size > 1 for cut in walk.producers.values()) else kind,
        prunable=True,
        cuts=tuple(cuts),
        hidden=hidden.name,
        reads=tuple(read.name for read in reads),
        gates=tuple(read.name for read, _ in gates),
        signed=not _positive(hidden, walk),
        tokens_first=tokens_first(hidden, traced),
    )
    if walk.written and not trial.fits(block, traced.model, traced.example):
        reason = (
            "it is reshaped to a size written into forward, which does not fit fewer groups (use -1 there)"
        )
        return Block(name=name, groups=groups, kind=kind, reason=reason)
    return block


def _meeting_point(
    walk: Walk, traced: Traced
) -> tuple[list[fx.Node], list[tuple[fx.Node, fx.Node]], fx.Node, Layout]:
    """The consumers; what only computes a gate, with what it reads; and the one value that all consumers read."""
    order = {node: number for number, node in enumerate(traced.nodes)}
    gates = [
        (read, value) for read, value, _ in walk.reads if not descendants(read).isdisjoint(walk.producers)
    ]
    inner = {read for read, _ in gates}
    reads = sorted(
        ((r, v, layout) for r, v, layout in walk.reads if r not in inner), key=lambda r: order[r[0]]
    )
    if not reads:
        raise RefusedError("it feeds back into itself")
    _, hidden, layout = reads[0]
    if any(value is not hidden for _, value, _ in reads):
        raise RefusedError("several layers read it, each through other operations")
    if len(hidden.users) != len(reads):
        raise RefusedError("its hidden representation is also used elsewhere")
    if gates:
        _check_gates(hidden, [read for read, _ in gates], walk, traced)
    return [read for read, _, _ in reads], sorted(gates, key=lambda gate: order[gate[0]]), hidden, layout


def _check_gates(hidden: fx.Node, gates: list[fx.Node], walk: Walk, traced: Traced) -> None:
    """What lies between the gates and the hidden representation must serve nothing else, and what it reads stay."""
    between = between_gates(hidden, gates)
    order = {node: number for number, node in enumerate(traced.nodes)}
    since = min(order[gate] for gate in gates)
    if any(mutates(node) and node not in between and order[node] > since for node in walk.layouts):
        raise RefusedError("it is changed in place after a gate was computed from it")
    for node in between - {hidden}:
        if not between.issuperset(node.users):
            raise RefusedError("a gate on its groups is also used elsewhere")
    if any(mutates(node) and node.args[0] not in between for node in between):
        raise RefusedError("a gate on its groups is applied in place")


def between_gates(hidden: fx.Node, gates: Iterable[fx.Node]) -> set[fx.Node]:
    """Every node on a way from one of ``gates`` to ``hidden``, both included."""
    return set().union(*(descendants(gate) for gate in gates)) & ancestors(hidden)


def mutates(node: fx.Node) -> bool:
    """Whether an operation changes its operand in place."""
    schema = getattr(node.target, "_schema", None)
    passes = getattr(node.target, "overloadpacket", None) in ELEMENTWISE  # dropout_ changes nothing here
    return schema is not None and bool(schema.is_mutable) and not passes


def _bends(hidden: fx.Node, walk: Walk) -> bool:
    """Whether something nonlinear lies between the producers and ``hidden``."""
    queue, seen = [hidden], set()
    while queue:
        node = queue.pop()
        if node in walk.bends:
            return True
        if node not in seen and node not in walk.producers:
            seen.add(node)
            queue.extend(other for other in node.all_input_nodes if other in walk.layouts)
    return False


def _positive(node: fx.Node, walk: Walk) -> bool:
    """Whether a value that carries groups is never negative, as behind a ReLU."""
    packet: Any = getattr(node.target, "overloadpacket", None)
    if packet in POSITIVE:
        return True
    if packet in (aten.hardtanh, aten.hardtanh_):
        return len(node.args) > 1 and float(node.args[1]) >= 0  # type: ignore[arg-type]
    if (
        any(isinstance(argument, float | int) and argument < 0 for argument in node.args)
        and packet not in MOVING
    ):
        return False
    operands = [other for other in node.all_input_nodes if other in walk.layouts]
    keeps = ELEMENTWISE | POOLING | MOVING | RESHAPING | {aten.mul, aten.mul_, aten.mean}
    known = len(operands) == len(node.all_input_nodes) or packet in MOVING | RESHAPING
    return packet in keeps and known and bool(operands) and all(_positive(other, walk) for other in operands)

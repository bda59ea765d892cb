"""What a consumer's re-fitted output should be.

``symmetric``: the dense consumer on the pruned stream, so that this block's own loss is repaired.
``asymmetric``: the dense consumer on the *dense* stream, so that the errors of earlier blocks are repaired
too. Where the output is added to a shortcut, the shortcut's own error (dense less pruned) is part of the
target; without that term asymmetric can be far worse than symmetric. Where the shortcut cannot be
identified, symmetric is used instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ispasp.blocks import mutates
from ispasp.graph import CONSUMERS, CONVOLUTIONS, Traced, descendants, last_used
from ispasp.layouts import shape_of
from ispasp.residual import Consumer
from ispasp.stream import Stream
from ispasp.walk import ELEMENTWISE

aten = torch.ops.aten

_ADDITIONS = {aten.add, aten.add_}


@dataclass(frozen=True)
class Role:
    """What becomes of a consumer's output.

    Attributes:
        norm: the batch norm that alone reads it, if any.
        shortcuts: the values that are added to it.
        ways: for each shortcut, the operations between the consumer and that addition: they scale channels
            or move numbers, so that they can be undone.
        joins: the last of these additions.
        problem: why the target cannot be taken from the dense stream; empty where it can.
    """

    norm: fx.Node | None = None
    shortcuts: tuple[fx.Node, ...] = ()
    ways: tuple[tuple[fx.Node, ...], ...] = ()
    joins: fx.Node | None = None
    problem: str = ""


def role(read: fx.Node, traced: Traced) -> Role:
    """Follow the output of the consumer ``read`` through norms, scales, views and all additions."""
    behind = descendants(read)
    value, norm, joins = read, None, None
    shortcuts: list[fx.Node] = []
    steps: list[fx.Node] = []
    ways: list[tuple[fx.Node, ...]] = []
    while True:
        users = [user for user in value.users if user.target != aten.sym_size.int]
        packet = getattr(users[0].target, "overloadpacket", None) if len(users) == 1 else None
        if packet is aten.batch_norm and value is read and _norms_outputs(users[0], read):
            norm = users[0]
            steps.append(norm)
        elif packet in _ADDITIONS:
            added, problem = _addend(users[0], value, traced)
            if problem:
                return Role(norm, problem=problem)
            if added in behind:
                break  # the beginning of a residual stream: what is added comes from this output
            if added is not None:
                shortcuts.append(added)
                ways.append(tuple(steps))
                joins = users[0]
        elif packet is not None and _undoable(users[0], value, traced):
            steps.append(users[0])
        elif packet not in ELEMENTWISE:
            break
        value = users[0]
    if shortcuts:
        return Role(norm, tuple(shortcuts), tuple(ways), joins)
    later = _added_later(value, behind, traced)
    return Role(norm, problem=f"a shortcut joins it behind {later}" if later else "")


def _undoable(node: fx.Node, value: fx.Node, traced: Traced) -> bool:
    """Whether a node only moves the numbers of ``value``, or scales them by constants."""
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    if packet in (aten.transpose, aten.permute):
        return True
    if packet in (aten.view, aten.reshape, aten.flatten, aten.unflatten, aten.unsqueeze, aten.squeeze):
        return sum(not isinstance(size, int) for size in shape_of(value)) <= 1
    factors = [other for other in node.args if other is not value]
    if packet is not aten.mul or len(factors) != 1 or shape_of(node) != shape_of(value):
        return False
    return isinstance(factors[0], float | int) or factors[0] in traced.fixed


def _norms_outputs(norm: fx.Node, read: fx.Node) -> bool:
    """Whether the norm's channels, dimension 1, are the consumer's outputs."""
    return norm.args[0] is read and (read.target in CONVOLUTIONS or read.meta["val"].ndim == 2)


def _addend(addition: fx.Node, value: fx.Node, traced: Traced) -> tuple[fx.Node | None, str]:
    """What ``addition`` adds to ``value``, None for a constant; and why it cannot be a shortcut, if so."""
    if addition.kwargs.get("alpha", 1) != 1:
        return None, "what is added to it is scaled"
    if addition.args[0] is addition.args[1]:
        return None, "it is added to itself"
    added = addition.args[1] if addition.args[0] is value else addition.args[0]
    if not isinstance(added, fx.Node) or added in traced.fixed:
        return None, ""
    shapes = [getattr(node.meta.get("val"), "shape", None) for node in (added, addition, value)]
    if any(shape != shapes[0] for shape in shapes):
        return None, "what it is added to has another shape"
    return added, ""


def _added_later(value: fx.Node, behind: set[fx.Node], traced: Traced) -> str:
    """The operation behind which something independent is added to ``value``; empty where there is none.

    Looked for up to the next convolutions and linear layers, which could not pass a repair on.
    """
    seen: set[fx.Node] = set()
    queue = [(user, user) for user in value.users]
    while queue:
        node, first = queue.pop()
        if node in seen or node.op != "call_function" or node.target in CONSUMERS:
            continue
        seen.add(node)
        packet = getattr(node.target, "overloadpacket", None)
        others = [
            other for other in node.all_input_nodes if other not in behind and other not in traced.fixed
        ]
        if packet in _ADDITIONS and others:
            return str(getattr(first.target, "overloadpacket", first.target))
        queue.extend((user, first) for user in node.users)
    return ""


def roles(
    traced: Traced, first_reads: Mapping[fx.Node, fx.Node], apart: Collection[fx.Node]
) -> tuple[Traced, dict[fx.Node, Role]]:
    """The role of every consumer, and the model with each shortcut computed before it is needed.

    Args:
        traced: the model.
        first_reads: for every consumer, in execution order, the first consumer of its block.
        apart: nodes that must not be moved: hidden representations and consumers.
    """
    nodes, found = list(traced.nodes), {}
    for read, first in first_reads.items():
        this = role(read, traced)
        if this.joins is not None:
            moved: list[fx.Node] | None = nodes
            for shortcut in this.shortcuts:
                moved = _hoisted(moved, first, shortcut, this.joins, apart) if moved is not None else None
            if moved is None:
                this = Role(this.norm, problem="its shortcut is not known before it runs")
            else:
                nodes = moved
        found[read] = this
    return dataclasses.replace(traced, nodes=tuple(nodes), last_used=last_used(tuple(nodes))), found


def _hoisted(
    nodes: list[fx.Node], first: fx.Node, shortcut: fx.Node, joins: fx.Node, apart: Collection[fx.Node]
) -> list[fx.Node] | None:
    """``nodes`` with all that ``shortcut`` needs before ``first``; None where that could change values."""
    position = {node: index for index, node in enumerate(nodes)}
    start = position[first]
    needed: set[fx.Node] = set()
    queue = [shortcut]
    while queue:
        node = queue.pop()
        if node in needed or position.get(node, -1) < start:
            continue
        if node in apart:
            return None
        needed.add(node)
        queue.extend(node.all_input_nodes)
    # An operation in place may change a value that another one reads; order would matter then. The last
    # addition may be one: it is where the repair takes effect.
    if any(mutates(node) for node in nodes[start : position[joins]]):
        return None
    ahead = [node for node in nodes[start:] if node in needed]
    return [*nodes[:start], *ahead, *(node for node in nodes[start:] if node not in needed)]


def norm_scale(norm: fx.Node, stream: Stream) -> Tensor:
    """What a batch norm multiplies each channel by: (channels,)."""
    _, weight, _, _, variance, _, _, eps, *_ = norm.args
    scale = (stream.fixed[variance] + eps).rsqrt()  # type: ignore[index, operator]
    return scale * stream.fixed[weight] if isinstance(weight, fx.Node) else scale


def dense_target(
    consumer: Consumer,
    this: Role,
    dense: Stream,
    pruned: Stream,
    outputs: Sequence[Tensor],
    rows: Sequence[Tensor | None] = (),
) -> list[Tensor]:
    """What ``outputs`` (A_S(H_S) on the pruned stream, without bias) lack of the asymmetric target.

    The dense stream must hold this consumer's output, or have been given it (``Stream.replace``), and both
    streams the shortcut.

    Args:
        outputs: of each batch, the rows that count.
        rows: which these are, see ``ispasp.statistics.Statistics``.
    """
    bias = consumer.node.args[2] if len(consumer.node.args) > 2 else None
    whole = dense.values[consumer.node] if consumer.node in dense.values else dense.ready[consumer.node]
    missing = []
    for number, output in enumerate(outputs):
        target = whole[number].to(output.dtype)
        if isinstance(bias, fx.Node):
            target = target - dense.fixed[bias].view((-1, 1, 1) if consumer.feature_dim == 1 else (-1,))
        for shortcut, steps in zip(this.shortcuts, this.ways, strict=True):
            repair = (dense.values[shortcut][number] - pruned.values[shortcut][number]).to(output.dtype)
            for step in reversed(steps):
                repair = _undone(step, repair, pruned)
            target = target + repair
        counts = rows[number] if rows else None
        missing.append((target if counts is None else target[counts]) - output)
    return missing


def _undone(step: fx.Node, after: Tensor, stream: Stream) -> Tensor:
    """What ``step`` makes ``after`` of."""
    packet = step.target.overloadpacket  # type: ignore[union-attr]
    if packet is aten.batch_norm:
        scale = norm_scale(step, stream)
        return after * _inverse(scale).view([1, -1] + [1] * (after.ndim - 2))
    if packet is aten.mul:
        for factor in step.args:
            if isinstance(factor, fx.Node) and factor in stream.fixed:
                after = after * _inverse(stream.fixed[factor].to(after.dtype))
            elif not isinstance(factor, fx.Node):
                after = after * _inverse(torch.tensor(factor, dtype=after.dtype, device=after.device))
        return after
    if packet is aten.transpose:
        return after.transpose(*step.args[1:])  # type: ignore[arg-type]
    if packet is aten.permute:
        order = [int(dim) % after.ndim for dim in step.args[1]]  # type: ignore[union-attr, arg-type]
        return after.permute([order.index(dim) for dim in range(after.ndim)])
    before = shape_of(step.args[0])  # type: ignore[arg-type]
    return after.reshape([size if isinstance(size, int) else -1 for size in before])


def _inverse(scale: Tensor) -> Tensor:
    """One over ``scale``; 0 where it is next to nothing: a channel that is switched off cannot repair anything."""
    usable = scale.abs() > 1e-3 * scale.abs().max()
    return torch.where(usable, 1 / scale, torch.zeros_like(scale))


def norm_name(node: fx.Node, traced: Traced) -> str:
    """The module of a batch norm that is used once and keeps running statistics; empty for anything else."""
    if getattr(node.target, "overloadpacket", None) is not aten.batch_norm:
        return ""
    mean = node.args[3]
    if not isinstance(mean, fx.Node) or mean not in traced.fixed or node.args[5]:
        return ""
    uses = sum(len(other.users) for other, value in traced.fixed.items() if value is traced.fixed[mean])
    path, _, leaf = str(mean.target).rpartition(".")
    return path if uses == 1 and leaf == "running_mean" else ""


def home_of_intercept(read: fx.Node, this: Role, traced: Traced) -> str:
    """The module that can take a constant added to the consumer's output: itself, where it has a bias, or the
    batch norm behind it; empty where neither can."""
    bias = read.args[2] if len(read.args) > 2 else None
    if isinstance(bias, fx.Node):
        return str(bias.target).rpartition(".")[0]
    return norm_name(this.norm, traced) if this.norm is not None else ""

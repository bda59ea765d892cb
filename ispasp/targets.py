"""What a consumer's re-fitted output should be.

``symmetric``: the dense consumer on the pruned stream, so that this block's own loss is repaired.
``asymmetric``: the dense consumer on the *dense* stream, so that the errors of earlier blocks are repaired
too. Where the output is added to a shortcut, the shortcut's own error (dense less pruned) is part of the
target; without that term asymmetric can be far worse than symmetric. Where the shortcut cannot be
identified, symmetric is used instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ispasp.blocks import ELEMENTWISE, NONLINEAR, POOLING
from ispasp.graph import Traced, last_used
from ispasp.residual import Consumer
from ispasp.stream import Stream

aten = torch.ops.aten

# Behind these the output is another value, which is not added to a shortcut of this one.
_ENDS = {*NONLINEAR, *POOLING, aten.conv2d, aten.linear, aten.layer_norm, aten.cat, aten.flatten, aten.mean}
_ADDITIONS = {aten.add, aten.add_}


@dataclass(frozen=True)
class Role:
    """What becomes of a consumer's output.

    Attributes:
        norm: the batch norm that alone reads it, if any.
        shortcut: the value that it is added to, behind that norm, if any.
        joins: where the two are added.
        problem: why the target cannot be taken from the dense stream; empty where it can.
    """

    norm: fx.Node | None = None
    shortcut: fx.Node | None = None
    joins: fx.Node | None = None
    problem: str = ""


def role(read: fx.Node, traced: Traced) -> Role:
    """Follow the output of the consumer ``read`` up to an addition, or to what rules one out."""
    value, norm = read, None
    while True:
        users = [user for user in value.users if user.target != aten.sym_size.int]
        if len(users) != 1:
            problems = [problem for user in users if (problem := _problem(user, value))]
            return Role(norm, problem=problems[0] if problems else "")
        user = users[0]
        packet = getattr(user.target, "overloadpacket", None)
        if packet is aten.batch_norm and norm is None and user.args[0] is value:
            norm = user
        elif packet in _ADDITIONS:
            others = [node for node in user.all_input_nodes if node is not value]
            if others and others[0] not in traced.fixed:
                if user.kwargs.get("alpha", 1) != 1:
                    return Role(norm, problem="the shortcut is scaled where it is added")
                return Role(norm, others[0], user)
        elif packet not in ELEMENTWISE:
            return Role(norm, problem=_problem(user, value))
        value = user


def _problem(user: fx.Node, value: fx.Node) -> str:
    """Why a shortcut might be added behind ``user``, which reads ``value``; empty where it cannot be."""
    packet = getattr(user.target, "overloadpacket", user.target)
    if user.op == "output" or packet in _ENDS:
        return ""
    if packet in _ADDITIONS and all(_depends(node, value) for node in user.all_input_nodes):
        return ""  # the beginning of a residual stream: what is added comes from it
    return f"its output goes through {packet} before it meets a shortcut"


def _depends(node: fx.Node, source: fx.Node) -> bool:
    """Whether ``node`` is computed from ``source``."""
    seen: set[fx.Node] = set()
    queue = [node]
    while queue:
        node = queue.pop()
        if node is source:
            return True
        if node not in seen:
            seen.add(node)
            queue.extend(node.all_input_nodes)
    return False


def roles(
    traced: Traced, reads: Sequence[fx.Node], apart: Collection[fx.Node]
) -> tuple[Traced, dict[fx.Node, Role]]:
    """The role of every consumer, and the model with each shortcut computed before its consumer.

    Args:
        traced: the model.
        reads: the consumers, in execution order.
        apart: nodes that must not be moved: hidden representations and consumers.
    """
    nodes, found = list(traced.nodes), {}
    for read in reads:
        this = role(read, traced)
        if this.shortcut is not None and this.joins is not None:
            moved = _hoisted(nodes, read, this.shortcut, this.joins, apart)
            if moved is None:
                this = Role(this.norm, problem="its shortcut is not known before it runs")
            else:
                nodes = moved
        found[read] = this
    return dataclasses.replace(traced, nodes=tuple(nodes), last_used=last_used(tuple(nodes))), found


def _hoisted(
    nodes: list[fx.Node], read: fx.Node, shortcut: fx.Node, joins: fx.Node, apart: Collection[fx.Node]
) -> list[fx.Node] | None:
    """``nodes`` with all that ``shortcut`` needs before ``read``; None where that could change values."""
    position = {node: index for index, node in enumerate(nodes)}
    start = position[read]
    needed: set[fx.Node] = set()
    queue = [shortcut]
    while queue:
        node = queue.pop()
        if node in needed or position.get(node, -1) < start:
            continue
        if node is read or node in apart:
            return None
        needed.add(node)
        queue.extend(node.all_input_nodes)
    # An operation in place may change a value that another one reads; order would matter then.
    if any(_mutates(node) for node in nodes[start : position[joins]]):
        return None
    ahead = [node for node in nodes[start:] if node in needed]
    return [*nodes[:start], *ahead, *(node for node in nodes[start:] if node not in needed)]


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    passes = getattr(node.target, "overloadpacket", None) in ELEMENTWISE  # dropout_ changes nothing here
    return schema is not None and bool(schema.is_mutable) and not passes


def norm_scale(norm: fx.Node, stream: Stream) -> Tensor:
    """What a batch norm multiplies each channel by: (channels,)."""
    _, weight, _, _, variance, _, _, eps, *_ = norm.args
    scale = (stream.fixed[variance] + eps).rsqrt()  # type: ignore[index, operator]
    return scale * stream.fixed[weight] if isinstance(weight, fx.Node) else scale


def dense_target(
    consumer: Consumer, this: Role, dense: Stream, pruned: Stream, outputs: Sequence[Tensor]
) -> list[Tensor]:
    """What ``outputs`` (A_S(H_S) on the pruned stream, without bias) lack of the asymmetric target.

    The dense stream must hold this consumer's output, or be given it (``Stream.replace``), and both streams
    the shortcut.
    """
    shape = (-1, 1, 1) if consumer.feature_dim == 1 else (-1,)
    bias = consumer.node.args[2] if len(consumer.node.args) > 2 else None
    scale: Tensor | None = None
    if this.norm is not None and this.shortcut is not None:
        scale = norm_scale(this.norm, pruned)
        # A channel that the norm switches off cannot repair anything.
        scale = torch.where(scale.abs() > 1e-3 * scale.abs().max(), 1 / scale, torch.zeros_like(scale)).view(
            shape
        )
    missing = []
    for number, output in enumerate(outputs):
        target = dense.ready[consumer.node][number].to(output.dtype)
        if isinstance(bias, fx.Node):
            target = target - dense.fixed[bias].view(shape)
        if this.shortcut is not None:
            repair = (dense.values[this.shortcut][number] - pruned.values[this.shortcut][number]).to(
                output.dtype
            )
            target = target + (repair if scale is None else repair * scale)
        missing.append(target - output)
    return missing


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

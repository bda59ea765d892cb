"""Find what can be pruned: walk from every producer to the layers that read its output.

The walk knows a short list of operations that keep groups apart (a group in is the same group out).
Anything else between producer and consumer refuses the block with the reason: it fails closed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ispasp import calibration
from ispasp.errors import ModelError, SettingError, listing
from ispasp.graph import CONSUMERS, CONVOLUTIONS, Traced, trace
from ispasp.records import Block

aten = torch.ops.aten

# Each maps one number to one number, so no group can leak into another.
_ACTIVATIONS = """
    relu relu_ relu6 hardtanh hardtanh_ leaky_relu leaky_relu_ elu elu_ selu selu_ gelu silu silu_ mish mish_
    sigmoid sigmoid_ tanh tanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ softplus
"""
NONLINEAR = {packet for name in _ACTIVATIONS.split() if (packet := getattr(aten, name, None)) is not None}
ELEMENTWISE = {
    aten.dropout,
    aten.dropout_,
    aten.feature_dropout,
    aten.clone,
    aten.contiguous,
    aten.alias,
    aten.detach,
}
POOLING = {aten.max_pool2d, aten.avg_pool2d, aten.adaptive_avg_pool2d}
_FLATTEN = {aten.flatten.using_ints}
RESHAPING = {aten.view, aten.reshape, aten._unsafe_view}

REASONS: dict[Any, str] = {
    aten.add: "it is added to another value (a residual stream, which the paper does not prune)",
    aten.add_: "it is added to another value (a residual stream, which the paper does not prune)",
    aten.mul: "it is multiplied by another value (a gate)",
    aten.mul_: "it is multiplied by another value (a gate)",
    aten.cat: "it is concatenated with another value, which the paper does not prune",
    aten.softmax: "softmax mixes its groups",
    aten.layer_norm: "layer norm mixes its groups",
    aten.group_norm: "group norm mixes its groups",
    aten.scaled_dot_product_attention: "attention mixes its groups",
}


class _RefusedError(Exception):
    """A block cannot be pruned; the message is the reason."""


@dataclass(frozen=True)
class _Layout:
    """Where a value carries the groups: dimension, and consecutive features per group there."""

    dim: int
    group_size: int
    nonlinear: bool


@dataclass
class _Walk:
    """What the walk from one producer has met so far."""

    reads: list[tuple[fx.Node, fx.Node, _Layout]]
    riders: list[str]


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
    owners = _Owners(traced)
    blocks, seen = [], set()
    for node in traced.nodes:
        if node.op != "call_function" or node.target not in CONSUMERS:
            continue
        block = _block(node, traced, owners)
        if block.name not in seen:
            seen.add(block.name)
            blocks.append(block)
    return blocks


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


class _Owners:
    """Which module owns the weight of an operation, where exactly one does."""

    def __init__(self, traced: Traced) -> None:
        self.model = traced.model
        self.fixed = traced.fixed
        self.names = {node: str(node.target) for node in traced.fixed}
        self.uses = Counter(id(traced.fixed[node]) for node in traced.fixed for _ in node.users)
        self.holders = Counter(id(p) for _, p in traced.model.named_parameters(remove_duplicate=False))

    def layer(self, node: fx.Node) -> tuple[str, nn.Module]:
        """Name and module of a convolution or linear operation.

        Raises:
            _RefusedError: the weight is computed, functional, shared, or in a module of another kind; or the
                bias is not that module's.
        """
        weight = node.args[1]
        if not isinstance(weight, fx.Node) or weight not in self.names:
            raise _RefusedError("its weight is computed by the model, not a parameter that can be sliced")
        name, module = self.module(weight, (nn.Conv2d, nn.Linear))
        bias = node.args[2] if len(node.args) > 2 else None
        if bias is not None and self._name(bias) != f"{self.names[weight].removesuffix('weight')}bias":
            raise _RefusedError(f"the bias added to {name} is not that layer's own parameter")
        return name, module

    def _name(self, value: object) -> str:
        """The name of a parameter, buffer or constant; empty for anything else."""
        return self.names.get(value, "") if isinstance(value, fx.Node) else ""

    def module(self, weight: fx.Node, kinds: tuple[type[nn.Module], ...]) -> tuple[str, nn.Module]:
        path, _, leaf = self.names[weight].rpartition(".")
        module = self.model.get_submodule(path)
        if not isinstance(module, kinds) or leaf != "weight":
            raise _RefusedError(
                f"its weight {self.names[weight]} is used functionally, "
                "not through nn.Conv2d, nn.Linear or a batch norm"
            )
        for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if self.uses[id(tensor)] > 1 or self.holders[id(tensor)] > 1:
                raise _RefusedError(f"its {leaf} ({path}.{leaf}) is shared (tied) with another use")
        return path, module


def _block(producer: fx.Node, traced: Traced, owners: _Owners) -> Block:
    weight = producer.args[1]
    is_convolution = producer.target in CONVOLUTIONS
    kind = "channel" if is_convolution else "neuron"
    name = owners.names.get(weight, producer.name) if isinstance(weight, fx.Node) else producer.name
    name = name.removesuffix(".weight")
    groups = int(producer.meta["val"].shape[1 if is_convolution else -1])
    try:
        owners.layer(producer)
        if is_convolution and _convolution_groups(producer) != 1:
            raise _RefusedError("it is a grouped convolution")
        walk = _follow(producer, owners)
        hidden, layout = _meeting_point(walk)
        consumers = []
        for read, _, _ in walk.reads:
            consumers.append(owners.layer(read)[0])
    except _RefusedError as refusal:
        return Block(name=name, groups=groups, kind=kind, reason=str(refusal))
    return Block(
        name=name,
        groups=groups,
        group_size=layout.group_size,
        kind=kind,
        prunable=True,
        consumers=tuple(consumers),
        riders=tuple(walk.riders),
        hidden=hidden.name,
        reads=tuple(read.name for read, _, _ in walk.reads),
    )


def _convolution_groups(node: fx.Node) -> int:
    return int(node.args[6]) if len(node.args) > 6 else 1  # type: ignore[arg-type]


def _follow(producer: fx.Node, owners: _Owners) -> _Walk:
    """Visit everything that reads the producer's output, up to and including the consumers."""
    dim = 1 if producer.target in CONVOLUTIONS else producer.meta["val"].ndim - 1
    walk = _Walk(reads=[], riders=[])
    queue = [(producer, _Layout(dim, 1, nonlinear=False))]
    while queue:
        value, layout = queue.pop(0)
        if not value.users:
            raise _RefusedError("nothing reads its output")
        for user in value.users:
            if user.op == "output":
                raise _RefusedError("the model returns it")
            if user.target in CONSUMERS:
                _read(user, value, layout, walk)
            elif user.target != aten.sym_size.int or user.args[1] == layout.dim:
                queue.append((user, _pass(user, value, layout, walk, owners)))
    return walk


def _read(user: fx.Node, value: fx.Node, layout: _Layout, walk: _Walk) -> None:
    """``user`` reads the groups through ``value``: a consumer, if it is linear in them and nothing else."""
    if user.args[0] is not value or value in user.args[1:]:
        raise _RefusedError("it is used as a weight")
    if not layout.nonlinear:
        raise _RefusedError(
            "no nonlinearity stands between it and the next layer, so the two are one linear layer"
        )
    if user.target in CONVOLUTIONS:
        if _convolution_groups(user) != 1:
            raise _RefusedError("a grouped or depthwise convolution reads it")
        if layout.dim != 1 or layout.group_size != 1:
            raise _RefusedError("a convolution reads it through a reshape")
    elif layout.dim != value.meta["val"].ndim - 1:
        raise _RefusedError("a linear layer reads along another dimension than its groups")
    walk.reads.append((user, value, layout))


def _meeting_point(walk: _Walk) -> tuple[fx.Node, _Layout]:
    """The one value through which every consumer reads."""
    _, hidden, layout = walk.reads[0]
    if any(value is not hidden for _, value, _ in walk.reads):
        raise _RefusedError("several layers read it, each through other operations")
    if len(hidden.users) != len(walk.reads):
        raise _RefusedError("its hidden representation is also used elsewhere")
    return hidden, layout


def _pass(user: fx.Node, value: fx.Node, layout: _Layout, walk: _Walk, owners: _Owners) -> _Layout:
    """The layout after ``user``, an operation that keeps groups apart.

    Raises:
        _RefusedError: it does not, or it is not known to.
    """
    if user.op != "call_function":
        raise _RefusedError(f"it is read by {user.op} {user.target}, which is not known to keep groups apart")
    packet = getattr(user.target, "overloadpacket", user.target)
    others = [argument for argument in user.all_input_nodes if argument is not value]
    shape = value.meta["val"].shape
    if packet in NONLINEAR and not others:
        return _Layout(layout.dim, layout.group_size, nonlinear=True)
    if packet in ELEMENTWISE:
        return layout
    if packet in POOLING and layout.dim == 1 and len(shape) == 4:
        return _Layout(1, layout.group_size, layout.nonlinear or packet is aten.max_pool2d)
    if packet is aten.batch_norm and layout.dim == 1 and layout.group_size == 1:
        weight = user.args[1]
        if not isinstance(weight, fx.Node) or user.args[0] is not value:
            raise _RefusedError("it passes through a batch norm without weights")
        if user.args[3] is None or user.args[5]:
            raise _RefusedError("it passes through a batch norm without running statistics")
        walk.riders.append(owners.module(weight, (nn.BatchNorm1d, nn.BatchNorm2d))[0])
        return layout
    if packet is aten.mean and user.target is aten.mean.dim:
        return _after_mean(user, layout, len(shape))
    if (packet is aten.flatten or packet in RESHAPING) and (flat := _flattened(user, value, layout)):
        return flat
    scalar = {aten.add, aten.add_, aten.mul, aten.mul_, aten.div, aten.div_, aten.sub, aten.sub_}
    if packet in scalar and user.args[0] is value and not others and not isinstance(user.args[1], fx.Node):
        return layout
    reason = REASONS.get(packet)
    raise _RefusedError(reason or f"it is read by {user.target}, which is not known to keep groups apart")


def _after_mean(user: fx.Node, layout: _Layout, ndim: int) -> _Layout:
    dims = {int(d) % ndim for d in user.args[1]}  # type: ignore[union-attr, arg-type]
    if layout.dim in dims:
        raise _RefusedError("its groups are averaged")
    keep = len(user.args) > 2 and bool(user.args[2])
    dim = layout.dim if keep else layout.dim - sum(d < layout.dim for d in dims)
    return _Layout(dim, layout.group_size, layout.nonlinear)


def _flattened(user: fx.Node, value: fx.Node, layout: _Layout) -> _Layout | None:
    """Flattening (N, d, h, w) to (N, d*h*w) puts channel c at columns c*h*w to (c+1)*h*w - 1."""
    before, after = value.meta["val"].shape, user.meta["val"].shape
    rest = before[layout.dim + 1 :]
    if len(after) != layout.dim + 1 or not all(isinstance(size, int) for size in (*rest, after[-1])):
        return None
    spread = math.prod(int(size) for size in rest)
    if list(after[: layout.dim]) != list(before[: layout.dim]) or after[-1] != before[layout.dim] * spread:
        return None
    if user.target not in _FLATTEN and _size_argument(user) != -1:
        raise _RefusedError(
            "it is reshaped to a size written into forward, which would not fit fewer groups (use flatten)"
        )
    return _Layout(layout.dim, layout.group_size * spread, layout.nonlinear)


def _size_argument(user: fx.Node) -> object:
    """The last size that a view or reshape was given: -1 where it is left open."""
    sizes = user.args[1]
    return sizes[-1] if isinstance(sizes, (list, tuple)) and sizes else None


def features(groups: Tensor, group_size: int) -> Tensor:
    """Indices of the consumer's input features that belong to ``groups`` (s,), in order: (s * group_size,)."""
    return (groups[:, None] * group_size + torch.arange(group_size, device=groups.device)).flatten()

"""Follow the outputs of a producer through the graph, up to the layers that read them.

Every value that carries the groups is visited: forward to all that read it, and, where two such values
meet (a gate and what it scales; queries, keys and values), backward to the other producers. Operations
that keep groups apart are known by a short list; anything else refuses the block: it fails closed.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from ispasp.graph import CONSUMERS, CONVOLUTIONS
from ispasp.layouts import (
    MOVING,
    RESHAPING,
    Layout,
    RefusedError,
    RegroupError,
    averaged,
    is_written,
    moved,
    reshaped,
    shape_of,
    unmoved,
    unreshaped,
)
from ispasp.owners import Owners
from ispasp.records import Cut

aten = torch.ops.aten


def _packets(names: str) -> set[Any]:
    return {packet for name in names.split() if (packet := getattr(aten, name, None)) is not None}


# Each maps one number to one number, so no group can leak into another; the first never give less than 0.
POSITIVE = _packets("relu relu_ relu6 sigmoid sigmoid_ hardsigmoid hardsigmoid_ softplus exp square abs")
NONLINEAR = POSITIVE | _packets(
    """hardtanh hardtanh_ leaky_relu leaky_relu_ elu elu_ selu selu_ gelu gelu_ silu silu_ mish mish_ tanh tanh_
    hardswish hardswish_ log_sigmoid celu softsign hardshrink"""
)
ELEMENTWISE = _packets("dropout dropout_ feature_dropout alpha_dropout clone contiguous alias detach to")
POOLING = _packets("max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d")
_ASKING = {aten.sym_size.int, aten._assert_tensor_metadata.default}  # about sizes that depend on the batch
_PADDING = _packets("pad constant_pad_nd reflection_pad2d replication_pad2d")
_REDUCING = {aten.mean.dim, aten.sum.dim_IntList}
_PRODUCTS = {aten.mul, aten.mul_}
_JOINING = {*_PRODUCTS, aten.expand_as, *_packets("add add_ sub sub_ div div_ masked_fill masked_fill_")}
_MATRIX = {aten.matmul, aten.bmm}
_ATTENTION = aten.scaled_dot_product_attention
_KEEPING = NONLINEAR | ELEMENTWISE | POOLING | {aten.expand, aten.chunk, aten.batch_norm, aten.layer_norm}
_KEEPING |= _MATRIX | {aten.softmax, aten._softmax, _ATTENTION}

_ADDED = "it is added to another value (a residual stream, which the paper does not prune)"
REASONS: dict[Any, str] = {
    aten.add: _ADDED,
    aten.add_: _ADDED,
    aten.sub: _ADDED,
    aten.cat: "it is concatenated with another value, which the paper does not prune",
    aten.group_norm: "group norm mixes its groups",
    aten.split_with_sizes: "it is split at a size written into forward, which would not fit fewer groups (use chunk)",
    aten.split: "it is split at a size written into forward, which would not fit fewer groups (use chunk)",
}


@dataclass
class Walk:
    """Everything that carries the groups of one producer.

    Attributes:
        owners: of the traced model.
        groups: d.
        layouts: every value that carries the groups.
        producers: the layers whose outputs they are.
        riders: cuts by module name.
        reads: what mixes the groups: node, value it reads, that value's layout.
        bends: the nodes that are not linear in the groups.
        written: a reshape with a size written into forward was met, which may or may not fit fewer groups.
    """

    owners: Owners
    groups: int = 0
    layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    producers: dict[fx.Node, Cut] = field(default_factory=dict)
    riders: dict[str, Cut] = field(default_factory=dict)
    reads: list[tuple[fx.Node, fx.Node, Layout]] = field(default_factory=list)
    bends: set[fx.Node] = field(default_factory=set)
    written: bool = False
    _queue: deque[fx.Node] = field(default_factory=deque)

    def run(self, producer: fx.Node) -> None:
        """Visit everything from ``producer``.

        Raises:
            RefusedError: something on the way is not known to keep groups apart.
        """
        size = repeats = 1
        while True:
            try:
                return self._visit(producer, size, repeats)
            except RegroupError as other:
                size, repeats = size * other.merge, repeats * other.repeats
                fresh = Walk(self.owners)
                vars(self).update(vars(fresh))

    def _visit(self, producer: fx.Node, size: int, repeats: int) -> None:
        dim = 1 if producer.target in CONVOLUTIONS else len(shape_of(producer)) - 1
        width = int(shape_of(producer)[dim])
        if width % (size * repeats):
            raise RefusedError(f"its {width} outputs do not fall into {repeats} equal parts")
        self.groups = width // (size * repeats)
        self._carry(producer, Layout(dim, size, repeats))
        while self._queue:
            value = self._queue.popleft()
            if not value.users:
                raise RefusedError("nothing reads its output")
            for user in value.users:
                self._use(user, value, self.layouts[value])
            if not self._queue:
                self._go_back()

    def _carry(self, value: fx.Node, layout: Layout) -> None:
        if value not in self.layouts:
            self.layouts[value] = layout
            self._queue.append(value)
        elif self.layouts[value] != layout:
            raise RefusedError("its groups meet in two different orders")

    def _use(self, user: fx.Node, value: fx.Node, layout: Layout) -> None:
        if user.op == "output":
            raise RefusedError("the model returns it")
        if user.target == "_guards_fn":
            return  # what torch.export adds to check sizes
        if user.op != "call_function":
            raise RefusedError(
                f"it is read by {user.op} {user.target}, which is not known to keep groups apart"
            )
        if user.target in _ASKING:
            return
        if user.target not in CONSUMERS:
            self._carry(user, self._behind(user, value, layout))
        elif self._rides(user, value, layout):
            self._carry(user, layout)
        else:
            self._read(user, value, layout)

    def _rides(self, user: fx.Node, value: fx.Node, layout: Layout) -> bool:
        """Whether ``user`` is a depthwise convolution of the groups, which passes them on one by one."""
        groups = convolution_groups(user) if user.target in CONVOLUTIONS else 1
        if groups == 1 or user.args[0] is not value:
            return False
        sizes = shape_of(value)
        if layout.dim != 1 or groups != sizes[1] or shape_of(user)[1] != sizes[1]:
            raise RefusedError("a grouped convolution that is not depthwise reads it")
        self._ride(self.owners.layer(user)[0], layout)
        return True

    def _ride(self, module: str, layout: Layout) -> None:
        self.riders[module] = Cut(module, "rider", layout.size, layout.repeats)

    def _read(self, user: fx.Node, value: fx.Node, layout: Layout) -> None:
        """``user`` mixes the groups that it reads through ``value``: a consumer, or part of a gate."""
        if user.args[0] is not value or value in user.args[1:]:
            raise RefusedError("it is used as a weight")
        ndim = len(shape_of(value))
        if user.target in CONVOLUTIONS:
            if layout.dim != 1 or ndim != 4:
                raise RefusedError("a convolution reads it along another dimension than its groups")
        elif layout.dim != ndim - 1:
            raise RefusedError("a linear layer reads along another dimension than its groups")
        if layout.repeats > 1:
            raise RefusedError("one layer reads several copies of its groups")
        self.reads.append((user, value, layout))

    def _behind(self, user: fx.Node, value: fx.Node, layout: Layout) -> Layout:
        """The layout of what ``user``, an operation that keeps groups apart, makes of ``value``.

        Raises:
            RefusedError: it does not, or it is not known to.
            RegroupError: with larger groups it would.
        """
        if user.target is operator.getitem:
            return replace(layout, repeats=1)
        packet: Any = getattr(user.target, "overloadpacket", user.target)
        ndim = len(shape_of(value))
        others = [other for other in user.all_input_nodes if other is not value and _is_tensor(other)]
        if packet in NONLINEAR and not others:
            self.bends.add(user)
            return layout
        if packet in ELEMENTWISE and user.args[0] is value:
            return layout
        if packet in _PADDING and layout.dim < ndim - len(user.args[1]) // 2:  # type: ignore[arg-type]
            return layout
        if packet in POOLING and layout.dim == 1 and ndim == 4:
            if packet not in (aten.avg_pool2d, aten.adaptive_avg_pool2d):
                self.bends.add(user)
            return layout
        if packet is aten.batch_norm and user.args[0] is value:
            return self._through_norm(user, layout)
        if packet in MOVING:
            return moved(user, value, layout)
        if packet in RESHAPING:
            after = reshaped(user, value, layout, self.groups)
            self.written = self.written or is_written(user, after)
            return after
        if packet is aten.expand:
            _check_spread(user, value, layout)
            sizes: Any = user.args[1]
            self.written = self.written or (isinstance(sizes[layout.dim], int) and sizes[layout.dim] != -1)
            return layout
        if user.target in _REDUCING:
            return averaged(user, layout, ndim)
        if packet in (aten.chunk, aten.glu):
            return self._in_parts(user, packet, layout, ndim)
        if packet in (aten.softmax, aten._softmax) and user.args[0] is value:
            return self._through_softmax(user, layout, ndim)
        if packet in (aten.layer_norm, aten.rms_norm) and user.args[0] is value:
            if layout.dim >= ndim - len(user.args[1]):  # type: ignore[arg-type]
                raise RefusedError("layer norm mixes its groups")
            self.bends.add(user)
            return layout
        if packet is aten.prelu and user.args[0] is value:
            return self._through_prelu(user, layout)
        if packet is _ATTENTION or packet in _MATRIX:
            return self._through_product(user, value, layout, packet)
        if packet in _JOINING:
            return self._joined(user, value, layout, others, packet)
        raise RefusedError(
            REASONS.get(packet) or f"it is read by {user.target}, which is not known to keep groups apart"
        )

    def _through_norm(self, user: fx.Node, layout: Layout) -> Layout:
        weight = user.args[1]
        if layout.dim != 1:
            raise RefusedError("a batch norm reads it along another dimension than its groups")
        if not isinstance(weight, fx.Node):
            raise RefusedError("it passes through a batch norm without weights")
        if user.args[3] is None or user.args[5]:
            raise RefusedError("it passes through a batch norm without running statistics")
        self._ride(self.owners.module(weight, (nn.BatchNorm1d, nn.BatchNorm2d))[0], layout)
        return layout

    def _through_prelu(self, user: fx.Node, layout: Layout) -> Layout:
        weight: Any = user.args[1]
        self.bends.add(user)
        if shape_of(weight) != (1,):
            if layout.dim != 1:
                raise RefusedError("a PReLU reads it along another dimension than its groups")
            self._ride(self.owners.module(weight, (nn.PReLU,))[0], layout)
        return layout

    def _in_parts(self, user: fx.Node, packet: Any, layout: Layout, ndim: int) -> Layout:
        """Fused halves taken apart: by chunk, or by glu, which multiplies one with the other's sigmoid."""
        default = 0 if packet is aten.chunk else -1
        at = 2 if packet is aten.chunk else 1
        dim: Any = user.args[at] if len(user.args) > at else default
        parts: Any = user.args[1] if packet is aten.chunk else 2
        if int(dim) % ndim != layout.dim:
            raise RefusedError(f"it is read by {user.target} along another dimension than its groups")
        if int(parts) == 1:
            return layout
        if layout.repeats == 1:
            raise RegroupError(repeats=int(parts))
        if layout.repeats != int(parts):
            raise RefusedError(f"it is split into {parts} parts, each with a part of its groups")
        if packet is aten.glu:
            self.bends.add(user)
            return replace(layout, repeats=1)
        return layout  # of each part after getitem

    def _through_softmax(self, user: fx.Node, layout: Layout, ndim: int) -> Layout:
        if int(user.args[1]) % ndim == layout.dim:  # type: ignore[arg-type]
            raise RefusedError("softmax mixes its groups")
        self.bends.add(user)
        return layout

    def _through_product(self, user: fx.Node, value: fx.Node, layout: Layout, packet: Any) -> Layout:
        """Attention, or a matrix product for each group: the groups are a batch dimension of all factors."""
        is_attention = packet is _ATTENTION
        factors = user.args[: 3 if is_attention else 2]
        if value not in factors:
            raise RefusedError("it is used as a mask of attention")
        if layout.dim >= len(shape_of(value)) - 2:
            raise RefusedError(
                "attention mixes its groups" if is_attention else "a matrix product mixes its groups"
            )
        if user.kwargs.get("enable_gqa"):
            raise RefusedError("several query heads share keys and values")
        for other in factors:
            if not isinstance(other, fx.Node) or len(shape_of(other)) != len(shape_of(value)):
                raise RefusedError("it is multiplied by a matrix that is the same for all groups")
            self._carry(other, layout)
        mask = user.args[3] if is_attention and len(user.args) > 3 else user.kwargs.get("attn_mask")
        if isinstance(mask, fx.Node) and _size_along(mask, user, layout.dim) != 1:
            raise RefusedError("attention has a mask or bias of its own for every head")
        self.bends.add(user)
        return layout

    def _joined(
        self, user: fx.Node, value: fx.Node, layout: Layout, others: Iterable[fx.Node], packet: Any
    ) -> Layout:
        """Two values combined number by number."""
        _check_spread(user, value, layout)
        if packet in _PRODUCTS and user.args[0] is user.args[1]:
            self.bends.add(user)
        for other in others:
            if _size_along(other, user, layout.dim) == 1:
                continue
            if packet not in _PRODUCTS and packet is not aten.expand_as:
                raise RefusedError(
                    REASONS.get(packet) or f"it is read by {user.target} together with another value"
                )
            if other in self.owners.fixed:
                raise RefusedError("a parameter or buffer of the model's own runs along its groups")
            self._carry(other, layout)
            if packet in _PRODUCTS:
                self.bends.add(user)
        return layout

    def _go_back(self) -> None:
        """Carry the groups back to where values come from that did not get them from another one.

        Raises:
            RefusedError: one comes from something else than a layer.
        """
        for value, layout in list(self.layouts.items()):
            if value in self.producers or any(node in self.layouts for node in _carriers(value)):
                continue
            if before := self._before(value, layout):
                self._carry(*before)

    def _before(self, value: fx.Node, layout: Layout) -> tuple[fx.Node, Layout] | None:
        """What the groups of ``value`` come from, and how they lie there; None where it is a producer itself."""
        if value.op == "placeholder" or value in self.owners.fixed:
            raise RefusedError("it meets a value of the same width that no layer of the model makes")
        dim = 1 if value.target in CONVOLUTIONS else len(shape_of(value)) - 1
        if value.target in CONSUMERS and convolution_groups(value) == 1:
            if layout.dim != dim:
                raise RefusedError("it meets the output of a layer along another dimension")
            name = self.owners.layer(value)[0]
            self.producers[value] = Cut(name, "producer", layout.size, layout.repeats)
            return None
        packet: Any = getattr(value.target, "overloadpacket", value.target)
        source = value.args[0] if value.args else None
        before: Layout | None = None
        if isinstance(source, fx.Node):
            if value.target is operator.getitem and source.target is aten.chunk.default:
                before = replace(layout, repeats=int(source.args[1]))  # type: ignore[arg-type]
            elif packet in MOVING:
                before = unmoved(value, source, layout)
            elif packet in RESHAPING:
                before = unreshaped(value, source, layout, self.groups)
            elif value.target in CONSUMERS or packet in _KEEPING:
                before = layout
            elif packet in _JOINING:
                before = layout if _size_along(source, value, layout.dim) != 1 else None
        if before is None:
            what = REASONS.get(packet, f"what {value.target} gives")
            raise RefusedError(f"it meets a value of the same width that cannot be narrowed alike ({what})")
        assert isinstance(source, fx.Node)
        return source, before


def _carriers(value: fx.Node) -> list[fx.Node]:
    """The operands that could have handed the groups to ``value``; none of a layer, which makes new ones."""
    if value.target in CONSUMERS:
        return [] if convolution_groups(value) == 1 else value.all_input_nodes[:1]
    return value.all_input_nodes


def _check_spread(user: fx.Node, value: fx.Node, layout: Layout) -> None:
    """The groups must lie in the result as they do in ``value``."""
    before, after = shape_of(value), shape_of(user)
    if len(before) != len(after) or before[layout.dim] != after[layout.dim]:
        raise RefusedError(f"{user.target} spreads it over more dimensions")


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _size_along(other: fx.Node, result: fx.Node, dim: int) -> Any:
    """How far ``other`` reaches along dimension ``dim`` of ``result``, to which it is broadcast."""
    sizes = shape_of(other)
    at = dim - (len(shape_of(result)) - len(sizes))
    return sizes[at] if at >= 0 else 1


def convolution_groups(node: fx.Node) -> int:
    if node.target not in CONVOLUTIONS:
        return 1
    return int(node.args[6]) if len(node.args) > 6 else 1  # type: ignore[arg-type]

"""Where a value carries the groups of a block, and how operations that only move numbers change that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx

from ispasp.graph import Traced

aten = torch.ops.aten

FLATTEN = {aten.flatten}
RESHAPING = {aten.view, aten.reshape, aten._unsafe_view, aten.unflatten, *FLATTEN}
MOVING = {aten.transpose, aten.mT, aten.permute, aten.unsqueeze, aten.squeeze, aten.select, aten.movedim}


class RefusedError(Exception):
    """A block cannot be pruned; the message is the reason."""


class RegroupError(Exception):
    """The walk has to begin again with other groups.

    Attributes:
        merge: how many of the present groups form one.
        repeats: how many times the producer's outputs hold all groups.
    """

    def __init__(self, merge: int = 1, repeats: int = 1) -> None:
        super().__init__(f"merge {merge}, repeats {repeats}")
        self.merge = merge
        self.repeats = repeats


@dataclass(frozen=True)
class Layout:
    """Entry (r * groups + g) * size + j along ``dim`` belongs to group g, for every repeat r and feature j."""

    dim: int
    size: int = 1
    repeats: int = 1


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """Sizes of a node's value; sizes that depend on the batch are symbols."""
    return tuple(node.meta["val"].shape)


def _symbol(size: Any) -> Any:
    return sympy.Integer(size) if isinstance(size, int) else size.node.expr


def _product(sizes: Sequence[Any]) -> Any:
    return sympy.prod([_symbol(size) for size in sizes])


def moved(user: fx.Node, value: fx.Node, layout: Layout) -> Layout:
    """The layout behind an operation of ``MOVING``.

    Raises:
        RefusedError: the operation takes the dimension of the groups away.
    """
    packet, ndim = user.target.overloadpacket, len(shape_of(value))  # type: ignore[union-attr]
    arguments: Any = user.args[1:]
    if packet is aten.permute:
        order = [int(d) % ndim for d in arguments[0]]
        return replace(layout, dim=order.index(layout.dim))
    if packet is aten.movedim and user.target is aten.movedim.int:
        source, target = (int(d) % ndim for d in arguments)
        others = [d for d in range(ndim) if d != source]
        return replace(layout, dim=[*others[:target], source, *others[target:]].index(layout.dim))
    if packet in (aten.transpose, aten.mT):
        first, second = (int(d) % ndim for d in (arguments if packet is aten.transpose else (-2, -1)))
        return replace(layout, dim={first: second, second: first}.get(layout.dim, layout.dim))
    if packet is aten.unsqueeze:
        at = int(arguments[0]) % (ndim + 1)
        return replace(layout, dim=layout.dim + (at <= layout.dim))
    if packet is aten.select:
        at = int(arguments[0]) % ndim
        if at == layout.dim:
            raise RefusedError("one of its groups is picked out by number")
        return replace(layout, dim=layout.dim - (at < layout.dim))
    if packet is aten.squeeze and arguments:
        gone = [
            int(d) % ndim for d in (arguments[0] if isinstance(arguments[0], (list, tuple)) else arguments)
        ]
        sizes = shape_of(value)
        return replace(layout, dim=layout.dim - sum(d < layout.dim and sizes[d] == 1 for d in gone))
    raise RefusedError(f"it is read by {user.target}, which is not known to keep groups apart")


def unmoved(user: fx.Node, value: fx.Node, layout: Layout) -> Layout | None:
    """The layout before an operation of ``MOVING`` whose result has ``layout``; None where there is none."""
    for dim in range(len(shape_of(value))):
        before = replace(layout, dim=dim)
        try:
            if moved(user, value, before) == layout:
                return before
        except RefusedError:
            continue
    return None


def reshaped(user: fx.Node, value: fx.Node, layout: Layout, groups: int) -> Layout:
    """The layout behind a view, reshape or flatten.

    Raises:
        RefusedError: the groups are torn apart or mixed up with other dimensions.
        RegroupError: they are kept together in larger groups, such as the heads of attention.
    """
    before, after = shape_of(value), shape_of(user)
    ahead = _product(before[: layout.dim])
    for dim in range(len(after)):
        if _product(after[:dim]) != ahead or not isinstance(after[dim], int):
            continue
        if found := _split_or_merged(before[layout.dim :], after[dim:], replace(layout, dim=dim), groups):
            return found
    raise RefusedError("it is reshaped so that its groups are mixed with other dimensions")


def _split_or_merged(
    before: Sequence[Any], after: Sequence[Any], layout: Layout, groups: int
) -> Layout | None:
    """What the dimension of the groups, first in ``before``, becomes at the front of ``after``."""
    width, size = int(before[0]), int(after[0])
    if size == width:
        return layout
    if size == 1:
        return None
    if size > width:
        for end in range(2, len(before) + 1):
            if _product(before[:end]) == size:
                return replace(layout, size=layout.size * size // width)
        return None
    if layout.repeats > 1:
        if size != layout.repeats:
            return None
        rest = replace(layout, dim=layout.dim + 1, repeats=1)
        return _split_or_merged([width // size, *before[1:]], after[1:], rest, groups)
    if size == groups:
        return replace(layout, size=1)
    if width % size == 0 and groups % size == 0:
        raise RegroupError(merge=groups // size)
    return None


def unreshaped(user: fx.Node, value: fx.Node, layout: Layout, groups: int) -> Layout | None:
    """The layout before a view or reshape whose result has ``layout``; None where there is none."""
    for dim, width in enumerate(shape_of(value)):
        if not isinstance(width, int) or width % groups:
            continue
        before = Layout(dim, width // groups)
        try:
            if reshaped(user, value, before, groups) == layout:
                return before
        except (RefusedError, RegroupError):
            continue
    return None


def is_written(user: fx.Node, layout: Layout) -> bool:
    """Whether a reshape gives the dimension that now carries the groups a size written into forward."""
    packet = user.target.overloadpacket  # type: ignore[union-attr]
    if packet in FLATTEN:
        return False
    sizes: Any = user.args[2] if packet is aten.unflatten else user.args[1]
    offset = len(shape_of(user)) - len(sizes)
    if packet is aten.unflatten:
        offset = int(user.args[1]) % len(shape_of(user.args[0]))  # type: ignore[arg-type]
    at = layout.dim - offset
    return 0 <= at < len(sizes) and isinstance(sizes[at], int) and sizes[at] != -1


def tokens_first(hidden: fx.Node, traced: Traced) -> bool:
    """Whether the rows of a value (T, N, features), or flattened to (T * N, features), begin with all examples of
    the first token; not where examples come first, or there is one row per example."""
    node = hidden
    while len(shape_of(node)) == 2 and not traced.is_batch(shape_of(node)[0]):
        if not node.args or not isinstance(node.args[0], fx.Node):
            return False
        node = node.args[0]
    sizes = shape_of(node)
    return len(sizes) > 2 and isinstance(sizes[0], int) and traced.is_batch(sizes[1])


def averaged(user: fx.Node, layout: Layout, ndim: int) -> Layout:
    """The layout behind a mean or sum over other dimensions.

    Raises:
        RefusedError: it is over the groups.
    """
    given: Any = user.args[1]
    if given in (None, []):
        raise RefusedError("its groups are averaged or summed up")
    dims = {int(d) % ndim for d in (given if isinstance(given, (list, tuple)) else [given])}
    if layout.dim in dims:
        raise RefusedError("its groups are averaged or summed up")
    keep = len(user.args) > 2 and bool(user.args[2])
    return layout if keep else replace(layout, dim=layout.dim - sum(d < layout.dim for d in dims))


def features(groups: Tensor, group_size: int) -> Tensor:
    """Indices of the consumer's input features that belong to ``groups`` (s,), in order: (s * group_size,)."""
    return (groups[:, None] * group_size + torch.arange(group_size, device=groups.device)).flatten()

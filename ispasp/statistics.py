"""What a selector may know of a block, taken from the calibration data.

Everything here follows from two facts. The importance is linear in the hidden representation, so
it needs H only summed over the examples. The residual of a support needs the data, but moving from
one support to the next needs only the groups that changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx

from ispasp.blocks import features
from ispasp.device import widest_float
from ispasp.graph import CONVOLUTIONS
from ispasp.records import Block


@dataclass(frozen=True)
class Consumer:
    """A block's linear map A: a convolution or linear operation without its bias."""

    node: fx.Node
    weight: Tensor

    @property
    def feature_dim(self) -> int:
        """Where its input carries features: 1 for a convolution, the last dimension for linear."""
        return 1 if self.node.target in CONVOLUTIONS else -1

    def __call__(self, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
        """A(H) for ``hidden`` (N, d, h, w) or (..., d), with other weights where given."""
        weight = self.weight if weight is None else weight
        operation = cast(Callable[..., Tensor], self.node.target)
        rest = (None, *self.node.args[3:]) if self.feature_dim == 1 else ()
        return operation(hidden, weight, *rest)


def squared_norm(value: Tensor) -> float:
    """||value||_F^2, accumulated in single precision or better."""
    wide = torch.promote_types(value.dtype, torch.float32)
    return float(torch.linalg.vector_norm(value, dtype=wide)) ** 2


class ResidualMeter:
    """||V||_F^2 of one support after another over the calibration data.

    V = A(H) - A_S(H_S) is kept for all batches, beginning with no group selected. A new support
    changes it by the groups that entered or left, so that an iteration costs a small part of a
    consumer forward; where more groups moved than are dropped, V = A_D(H_D) is computed afresh from
    the dropped groups D.

    Attributes:
        energy: ||A(H)||_F^2.
    """

    # Adding and subtracting loses about 1e-7 of the largest V seen; below this share of it (of its
    # square) V is computed afresh.
    REFRESH_BELOW = 1e-6

    def __init__(
        self, consumers: Sequence[Consumer], hidden: Sequence[Tensor], groups: int, group_size: int
    ) -> None:
        self.consumers = consumers
        self.hidden = hidden
        self.group_size = group_size
        self.values = [[consumer(batch) for batch in hidden] for consumer in consumers]
        self.dropped = torch.ones(groups, dtype=torch.bool, device=hidden[0].device)
        self.energy = self.latest = self.largest = self._norm()

    def __call__(self, selected: Tensor) -> float:
        """||V||_F^2 for the support ``selected``, a (d,) bool mask."""
        dropped = ~selected
        change = dropped.int() - self.dropped.int()
        moved = change.nonzero().flatten()
        if len(moved) == 0:
            return self.latest
        self.dropped = dropped
        if len(moved) <= int(dropped.sum()):
            self._add(moved, change[moved])
            self.latest = self._norm()
        if len(moved) > int(dropped.sum()) or self.latest < self.REFRESH_BELOW * self.largest:
            self._afresh()
        self.largest = max(self.largest, self.latest)
        return self.latest

    def _afresh(self) -> None:
        for values in self.values:
            for value in values:
                value.zero_()
        groups = self.dropped.nonzero().flatten()
        self._add(groups, torch.ones_like(groups))
        self.latest = self.largest = self._norm()

    def _add(self, groups: Tensor, sign: Tensor) -> None:
        """V += A(H_groups), each group with its sign."""
        if len(groups) == 0:
            return
        index = features(groups, self.group_size)
        signs = sign.repeat_interleave(self.group_size)
        for consumer, values in zip(self.consumers, self.values, strict=True):
            shape = [1, -1] + [1] * (consumer.weight.ndim - 2)
            weight = consumer.weight.index_select(1, index) * signs.to(consumer.weight.dtype).view(shape)
            for value, hidden in zip(values, self.hidden, strict=True):
                value += consumer(hidden.index_select(consumer.feature_dim, index), weight)

    def _norm(self) -> float:
        return sum(squared_norm(value) for values in self.values for value in values)


@dataclass(frozen=True)
class Statistics:
    """A block's statistics over the calibration data, d groups of ``group_size`` features.

    Attributes:
        block: the block.
        consumers: its linear maps A.
        hidden_map: H summed over the examples: (1, d, h, w), or (1, d * group_size) for linear
            consumers, where tokens are summed too.
        hidden_sum: (d,) float64, sum of H over examples, positions and the group's features.
        residual: ||A(H) - A_S(H_S)||_F^2 for a (d,) bool mask S.
    """

    block: Block
    consumers: tuple[Consumer, ...]
    hidden_map: Tensor
    hidden_sum: Tensor
    residual: ResidualMeter

    @property
    def groups(self) -> int:
        return self.block.groups

    @property
    def energy(self) -> float:
        """||A(H)||_F^2."""
        return self.residual.energy

    def importance(self, selected: Tensor) -> Tensor:
        """y (d,) float64: the gradient of 1/2 ||V||_F^2 in H, summed over each group.

        V is the residual of the support ``selected``, a (d,) bool mask; y = sum of A^T V is linear
        in H, so the summed map stands for all examples (Wolfe & Kyrillidis, 2022, algorithm 1).
        """
        dim = self.consumers[0].feature_dim
        shape = [1] * self.hidden_map.ndim
        shape[dim] = -1
        dropped = (~selected).repeat_interleave(self.block.group_size).view(shape)
        total = torch.zeros_like(self.hidden_map)
        for consumer in self.consumers:
            with torch.enable_grad():
                hidden = (self.hidden_map * dropped).requires_grad_()
                summed_residual = consumer(hidden, consumer.weight.detach().to(hidden.dtype))
                total += torch.autograd.grad(summed_residual, hidden, summed_residual.detach())[0]
        return per_group(total, dim, self.block)


def per_group(feature_map: Tensor, dim: int, block: Block) -> Tensor:
    """Sum a map with features along ``dim`` over positions and the features of each group: (d,)."""
    rest = [d for d in range(feature_map.ndim) if d != dim % feature_map.ndim]
    wide = feature_map.to(widest_float(feature_map.device))
    per_feature = wide.sum(rest) if rest else wide
    return per_feature.view(block.groups, block.group_size).sum(1)


def collect(block: Block, consumers: Sequence[Consumer], hidden: Sequence[Tensor]) -> Statistics:
    """Take a block's statistics from its hidden representation, one tensor per batch.

    Costs one consumer forward over the data, from which the residual starts; the rest is sums.
    """
    dim = consumers[0].feature_dim
    wide = widest_float(hidden[0].device)
    flat = [values if dim == 1 else values.reshape(-1, values.shape[-1]) for values in hidden]
    total = torch.stack([values.sum(0, keepdim=True, dtype=wide) for values in flat]).sum(0)
    return Statistics(
        block=block,
        consumers=tuple(consumers),
        # Half precision would lose the sum; single precision is exact to about 1e-6 and much
        # faster than double in convolutions.
        hidden_map=total.to(torch.promote_types(hidden[0].dtype, torch.float32)),
        hidden_sum=per_group(total, dim, block),
        residual=ResidualMeter(consumers, hidden, block.groups, block.group_size),
    )

"""A block's consumer over the calibration data: what the kept groups give, and what the others gave."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx

from ispasp import processes
from ispasp.graph import CONVOLUTIONS
from ispasp.layouts import features


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

    def add_bias(self, output: Tensor, fixed: Mapping[fx.Node, Tensor]) -> Tensor:
        """``output`` of this map with the layer's bias, in place, in the type of its weight."""
        bias = self.node.args[2] if len(self.node.args) > 2 else None
        if isinstance(bias, fx.Node):
            output += fixed[bias].view(-1, 1, 1) if self.feature_dim == 1 else fixed[bias]
        return output.to(self.weight.dtype)


def squared_norm(value: Tensor) -> float:
    """||value||_F^2, accumulated in single precision or better."""
    wide = torch.promote_types(value.dtype, torch.float32)
    return float(torch.linalg.vector_norm(value, dtype=wide)) ** 2


class SplitOutput:
    """The consumers' output over all batches, split into A_S(H_S) of a support S and the residual V.

    V = A(H) - A_S(H_S) = A_D(H_D) with D the dropped groups, so that the first support costs one
    consumer forward over the data. Another one moves what the groups that entered or left give from
    one part to the other, a small part of a forward.

    Where several processes share the data (``ispasp.processes``), the parts are of this process's share, the
    energies of all data.

    Attributes:
        kept: A_S(H_S) of the latest support, for each consumer and batch.
        lost: V of the latest support, for each consumer and batch.
        energy: ||A(H)||_F^2; 0 before the first support.
        residual: ||V||_F^2 of the latest support.
    """

    # Moving parts loses about 1e-7 of the largest V seen; below this share of it (of its square) V is
    # computed afresh.
    REFRESH_BELOW = 1e-6

    def __init__(self, consumers: Sequence[Consumer], hidden: Sequence[Tensor], group_size: int) -> None:
        self.consumers = consumers
        self.hidden = hidden
        self.group_size = group_size
        self.kept: list[list[Tensor]] = []
        self.lost: list[list[Tensor]] = []
        self.selected: Tensor | None = None
        self.energy = self.residual = self.largest = 0.0

    def copy(self) -> SplitOutput:
        """One whose parts can be overwritten; the hidden representation is shared."""
        other = copy.copy(self)
        other.kept = [[part.clone() for part in parts] for parts in self.kept]
        other.lost = [[part.clone() for part in parts] for parts in self.lost]
        return other

    def select(self, selected: Tensor) -> float:
        """Split at the support ``selected``, a (d,) bool mask; returns ||V||_F^2."""
        if self.selected is None:
            self.kept = self._parts(selected.int())
            self.lost = self._parts((~selected).int())
            self.energy = processes.total_number(
                sum(squared_norm(kept + lost) for kept, lost in self._pairs())
            )
            self.residual = self.largest = self._lost_norm()
        elif not torch.equal(selected, self.selected):
            moved = self.selected.int() - selected.int()
            dropped = (~selected).int()
            few = int(moved.abs().sum()) <= int(dropped.sum())
            if few:
                self._move(self._parts(moved))
                self.residual = self._lost_norm()
            if not few or self.residual < self.REFRESH_BELOW * self.largest:
                fresh = self._parts(dropped)
                for new, (kept, lost) in zip(_flat(fresh), self._pairs(), strict=True):
                    kept += lost - new
                self.lost = fresh
                self.residual = self.largest = self._lost_norm()
            self.largest = max(self.largest, self.residual)
        self.selected = selected.clone()
        return self.residual

    def _parts(self, sign: Tensor) -> list[list[Tensor]]:
        """A(H) of the groups where ``sign`` (d,) is not 0, each times its sign, per consumer and batch."""
        groups = sign.nonzero().flatten()
        if len(groups) == 0:
            groups = torch.zeros(1, dtype=torch.int64, device=sign.device)  # its sign makes it vanish
        index = features(groups, self.group_size)
        signs = sign[groups].repeat_interleave(self.group_size)
        parts = []
        for consumer in self.consumers:
            shape = [1, -1] + [1] * (consumer.weight.ndim - 2)
            weight = consumer.weight.index_select(1, index) * signs.to(consumer.weight.dtype).view(shape)
            dim = consumer.feature_dim
            outputs = [consumer(batch.index_select(dim, index), weight) for batch in self.hidden]
            # Half precision would not survive adding and subtracting.
            parts.append([out.to(torch.promote_types(out.dtype, torch.float32)) for out in outputs])
        return parts

    def _move(self, parts: list[list[Tensor]]) -> None:
        """Take ``parts`` out of what is kept and add it to what is lost."""
        for part, (kept, lost) in zip(_flat(parts), self._pairs(), strict=True):
            kept -= part
            lost += part

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(_flat(self.kept), _flat(self.lost), strict=True))

    def _lost_norm(self) -> float:
        return processes.total_number(sum(squared_norm(lost) for lost in _flat(self.lost)))


def _flat(values: list[list[Tensor]]) -> list[Tensor]:
    return [value for batches in values for value in batches]

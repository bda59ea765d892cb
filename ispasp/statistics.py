"""What a selector may know of a block, taken from the calibration data.

Everything here follows from two facts. The importance is linear in the hidden representation, so
it needs H only summed over the examples. The residual of a support needs the data, but moving from
one support to the next needs only the groups that changed (``ispasp.residual``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ispasp.device import widest_float
from ispasp.records import Block
from ispasp.residual import Consumer, SplitOutput


@dataclass(frozen=True)
class Statistics:
    """A block's statistics over the calibration data, d groups of ``group_size`` features.

    Attributes:
        block: the block.
        consumers: its linear maps A.
        hidden_map: H summed over the examples: (1, d, h, w), or (1, d * group_size) for linear
            consumers, where tokens are summed too.
        hidden_sum: (d,) float64, sum of H over examples, positions and the group's features.
        output: the consumers' output over the data, which gives the residual of any support.
    """

    block: Block
    consumers: tuple[Consumer, ...]
    hidden_map: Tensor
    hidden_sum: Tensor
    output: SplitOutput

    @property
    def groups(self) -> int:
        return self.block.groups

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
    """Take a block's statistics from its hidden representation, one tensor per batch."""
    dim = consumers[0].feature_dim
    wide = widest_float(hidden[0].device)
    flat = [values if dim == 1 else values.reshape(-1, values.shape[-1]) for values in hidden]
    single = torch.promote_types(hidden[0].dtype, torch.float32)
    total = torch.stack([values.sum(0, keepdim=True, dtype=single).to(wide) for values in flat]).sum(0)
    return Statistics(
        block=block,
        consumers=tuple(consumers),
        # Half precision would lose the sum; single precision is exact to about 1e-6 and much
        # faster than double in convolutions.
        hidden_map=total.to(single),
        hidden_sum=per_group(total, dim, block),
        output=SplitOutput(consumers, hidden, block.group_size),
    )

"""What a selector may know of a block, taken from the calibration data.

Everything here follows from three facts. The importance is linear in the hidden representation, so
it needs H only summed over the examples. The residual of a support needs the data, but moving from
one support to the next needs only the groups that changed (``ispasp.residual``). And the energy of any
support, with any weights, follows from a Gram matrix (``ispasp.gram``), which is computed only where a
selector asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, fx, nn

from ispasp import gram, padding, processes
from ispasp.device import widest_float
from ispasp.gram import Gram
from ispasp.graph import Traced
from ispasp.records import Block
from ispasp.residual import Consumer, SplitOutput, squared_norm
from ispasp.stream import Stream


@dataclass(frozen=True)
class Statistics:
    """A block's statistics over the calibration data, d groups of ``group_size`` features.

    Where several processes share the data (``ispasp.processes``), ``hidden``, ``output`` and ``rows`` are of this
    process's share, and every sum is over all data.

    Attributes:
        block: the block.
        consumers: its linear maps A.
        hidden_map: H summed over the examples: (1, d, h, w), or (1, d * group_size) for linear
            consumers, where tokens are summed too.
        hidden_sum: (d,) float64, sum over examples, positions and the group's features of H, or of its
            absolute value where H is signed and that was asked for.
        output: the consumers' output over the data, which gives the residual of any support.
        producer: (d, ...) what makes each group: the weights of all producers.
        rows: for each batch, a bool index of the rows of H that count, see ``ispasp.padding.rows``; None where
            all do. ``hidden`` and ``output`` hold these rows alone.
        taylor: (d,) float64, what the loss loses with each group (``ispasp.taylor``); None without labels.
    """

    block: Block
    consumers: tuple[Consumer, ...]
    hidden_map: Tensor
    hidden_sum: Tensor
    output: SplitOutput
    producer: Tensor
    taylor: Tensor | None = None
    rows: tuple[Tensor | None, ...] = ()

    @property
    def leaves_out(self) -> bool:
        """Whether some positions do not count."""
        return any(rows is not None for rows in self.rows)

    def counted(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The rows that count, of one value per batch with the leading dimensions of H."""
        return counted(values, self.rows)

    @property
    def groups(self) -> int:
        return self.block.groups

    @property
    def hidden(self) -> Sequence[Tensor]:
        """H, one tensor per batch."""
        return self.output.hidden

    @cached_property
    def hidden_rms(self) -> Tensor:
        """(d,) float64: root mean square of H_g over examples, positions and the group's features."""
        dim = self.consumers[0].feature_dim
        wide = widest_float(self.hidden_sum.device)
        squares = torch.zeros(self.groups, dtype=wide, device=self.hidden_sum.device)
        count = 0
        for batch in self.hidden:
            rest = [d for d in range(batch.ndim) if d != dim % batch.ndim]
            norms = torch.linalg.vector_norm(
                batch, dim=rest, dtype=torch.promote_types(batch.dtype, torch.float32)
            )
            squares += norms.to(wide).square().view(self.groups, -1).sum(1)
            count += batch.numel() // self.groups
        return (processes.total(squares) / max(1, processes.total_number(count))).sqrt()

    @cached_property
    def patch_sizes(self) -> tuple[int, ...]:
        """Columns per group of what each consumer reads, see ``gram.patch_size``."""
        return tuple(gram.patch_size(consumer, self.block.group_size) for consumer in self.consumers)

    @cached_property
    def weights(self) -> tuple[Tensor, ...]:
        """Each consumer's weight as (f, outputs) float64, see ``gram.weight_matrix``."""
        return tuple(gram.weight_matrix(consumer) for consumer in self.consumers)

    @cached_property
    def grams(self) -> tuple[Gram, ...]:
        """The Gram matrix of what each consumer reads, over all groups.

        Raises:
            SettingError: one would not fit, see ``gram.collect``.
        """
        return tuple(gram.collect(consumer, self.hidden) for consumer in self.consumers)

    def known_gram(self, number: int) -> Gram | None:
        """The Gram matrix of one consumer where a selector has asked for it; None where none has."""
        return self.grams[number] if "grams" in vars(self) else None

    def mask(self, groups: Iterable[int]) -> Tensor:
        """A (d,) bool mask that is true at ``groups``."""
        selected = torch.zeros(self.groups, dtype=torch.bool, device=self.hidden_sum.device)
        selected[list(groups)] = True
        return selected

    @cached_property
    def contribution(self) -> Tensor:
        """(d,) float64: ||A_g H_g||_F, what each group alone gives to the output, over all consumers."""
        energies = torch.zeros_like(self.hidden_sum)
        for consumer, weight, size in zip(self.consumers, self.weights, self.patch_sizes, strict=True):
            blocks = gram.collect_blocks(consumer, self.hidden, size)
            energies += gram.block_energies(blocks, weight)
        return energies.sqrt()

    @cached_property
    def energy_matrix(self) -> Tensor:
        """Q (d, d) float64: <A_g H_g, A_g' H_g'>, summed over the consumers; ||V||_F^2 = 1_D^T Q 1_D.

        Raises:
            SettingError: a Gram matrix would not fit, see ``gram.collect``.
        """
        parts = [
            gram.energy_matrix(*parts)
            for parts in zip(self.grams, self.weights, self.patch_sizes, strict=True)
        ]
        for other in parts[1:]:
            parts[0] += other
        return parts[0]

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


def counted(values: Sequence[Tensor], rows: Sequence[Tensor | None]) -> list[Tensor]:
    """One value per batch without the rows that do not count."""
    if not rows:
        return list(values)
    return [value if index is None else value[index] for value, index in zip(values, rows, strict=True)]


def collect_at(
    block: Block, traced: Traced, stream: Stream, absolute: bool = True, taylor: Tensor | None = None
) -> Statistics:
    """The statistics of ``block`` when ``stream`` has come to its first consumer."""
    by_name = {node.name: node for node in traced.nodes}
    reads = [by_name[name] for name in block.reads]
    consumers = [Consumer(read, stream.fixed[cast(fx.Node, read.args[1])]) for read in reads]
    hidden = stream.values[by_name[block.hidden]]
    rows = [
        padding.rows(mask, value, block.tokens_first)
        for mask, value in zip(stream.masks, hidden, strict=True)
    ]
    return collect(block, consumers, hidden, producing(block, traced.model), taylor, rows, absolute)


def producing(block: Block, model: nn.Module) -> Tensor:
    """(d, ...) the weights of all producers, those of each group together."""
    parts = []
    for cut in block.cuts:
        if cut.role == "producer":
            module = model.get_submodule(cut.module)
            weight = module.in_proj_weight if isinstance(module, nn.MultiheadAttention) else module.weight
            split = cast(Tensor, weight).detach().flatten(1).view(cut.repeats, block.groups, -1)
            parts.append(split.transpose(0, 1).flatten(1))
    return torch.cat(parts, dim=1)


def collect(
    block: Block,
    consumers: Sequence[Consumer],
    hidden: Sequence[Tensor],
    producer: Tensor,
    taylor: Tensor | None = None,
    rows: Sequence[Tensor | None] = (),
    absolute: bool = True,
) -> Statistics:
    """Take a block's statistics from its hidden representation.

    Args:
        block: the block.
        consumers: what reads it.
        hidden: H, one tensor per batch.
        producer: (d, ...) what makes each group.
        taylor: (d,) from ``ispasp.taylor.scores``, where there are labels.
        rows: which rows of H count, see ``Statistics.rows``; all by default.
        absolute: sum the absolute values of H up where it is signed. The paper's activations are never
            negative, so that there both sums are one.

    Raises:
        CalibrationError: H or a weight is not finite, or so large that the output's energy might not be.
    """
    hidden = counted(hidden, rows)
    _check_energy(consumers, hidden)
    dim = consumers[0].feature_dim
    total = _summed(hidden, dim)
    sums = _summed([values.abs() for values in hidden], dim) if absolute and block.signed else total
    return Statistics(
        block=block,
        consumers=tuple(consumers),
        # Half precision would lose the sum; single precision is exact to about 1e-6 and much
        # faster than double in convolutions.
        hidden_map=total.to(torch.promote_types(hidden[0].dtype, torch.float32)),
        hidden_sum=per_group(sums, dim, block),
        output=SplitOutput(consumers, hidden, block.group_size),
        producer=producer.detach(),
        rows=tuple(rows),
        taylor=taylor,
    )


def _summed(values: Sequence[Tensor], dim: int) -> Tensor:
    """The sum over examples, and for a linear consumer over positions, in the widest type: (1, ...)."""
    wide = widest_float(values[0].device)
    flat = [value if dim == 1 else value.reshape(-1, value.shape[-1]) for value in values]
    single = torch.promote_types(values[0].dtype, torch.float32)
    own = torch.stack([value.sum(0, keepdim=True, dtype=single).to(wide) for value in flat]).sum(0)
    return processes.total(own)


def _check_energy(consumers: Sequence[Consumer], hidden: Sequence[Tensor]) -> None:
    """Refuse what no selector could rank, without computing the output: ||A(H)||^2 <= k^2 ||H||^2 ||W||^2.

    Raises:
        CalibrationError: that bound is not finite in the precision that energies are summed in.
    """
    energy = processes.total_number(sum(squared_norm(batch) for batch in hidden))
    most = torch.finfo(torch.promote_types(hidden[0].dtype, torch.float32)).max
    gram.check_finite(energy, most)
    for consumer in consumers:
        gram.check_finite(energy * squared_norm(consumer.weight) * gram.patch_size(consumer, 1), most)

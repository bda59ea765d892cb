"""Algorithm 1 of Wolfe & Kyrillidis (L4DC 2022), written down as plainly as can be: slow, and clearly right.

Nothing here shares code or shortcuts with the package. The importance comes from autograd over the whole
calibration set in every one of the T iterations, the residual from running the consumer, everything in
float64. Use it on small blocks only.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Consumers = nn.Module | Sequence[nn.Module]


@dataclass(frozen=True)
class OracleIteration:
    """One iteration on a block of d groups; the fields mean what those of ``ispasp.Iteration`` mean.

    Attributes:
        t: iteration number, from 1.
        importance: (d,) float64, before this selection.
        hidden_sum: (d,) float64.
        candidates, selected: sorted group indices.
        residual: ||V||_F^2 after this selection.
        relative_residual: over ||A(H)||_F^2; 0 for a dead block.
    """

    t: int
    importance: Tensor
    hidden_sum: Tensor
    candidates: tuple[int, ...]
    selected: tuple[int, ...]
    residual: float
    relative_residual: float


def keep_groups(keep: float, groups: int) -> int:
    """s, the number of groups kept: the kept fraction rounded down, at least one."""
    return max(1, rounded_down(keep * groups))


def rounded_down(value: float) -> int:
    """The whole part of a product such as 0.29 * 100, which floating point makes 28.999999999999996."""
    return math.floor(value + 1e-9)


def algorithm_one(
    hidden: Tensor,
    consumers: Consumers,
    s: int,
    candidate_factor: float = 2.0,
    iterations: int = 20,
    group_size: int = 1,
) -> list[OracleIteration]:
    """Run all ``iterations`` of Algorithm 1 on one block, without stopping at a fixed point.

    Args:
        hidden: the hidden representation of the whole calibration set, (N, d, h, w) for Conv2d consumers,
            (N, d * group_size) or (N, tokens, d * group_size) for Linear ones.
        consumers: what reads it, one module or several (their squared residuals add up). Biases are left out.
        s: groups to keep.
        candidate_factor: c; c * s is rounded down.
        group_size: neighbouring features of a Linear consumer that form one group.
    """
    hidden = hidden.detach().double()
    linear_maps = _without_bias(consumers)
    groups = _feature_mask(hidden, group_size)[1]
    dense = [consumer(hidden).detach() for consumer in linear_maps]
    energy = sum(float(output.square().sum()) for output in dense)
    hidden_sum = _sum_per_group(hidden, group_size)

    steps: list[OracleIteration] = []
    selected: list[int] = []
    for t in range(1, iterations + 1):
        importance = _importance(hidden, linear_maps, selected, group_size)
        candidates = _largest(importance, range(groups), min(groups, rounded_down(candidate_factor * s)))
        merged = sorted(set(candidates) | set(selected))
        selected = _largest(hidden_sum, merged, s)
        residual = _residual(hidden, linear_maps, selected, group_size)
        steps.append(
            OracleIteration(
                t=t,
                importance=importance,
                hidden_sum=hidden_sum,
                candidates=tuple(candidates),
                selected=tuple(selected),
                residual=residual,
                relative_residual=residual / energy if energy > 0 else 0.0,
            )
        )
    return steps


def residual(hidden: Tensor, consumers: Consumers, selected: Sequence[int], group_size: int = 1) -> float:
    """||A(H) - A_S(H_S)||_F^2 over the whole calibration set; shapes as in ``algorithm_one``."""
    return _residual(hidden.detach().double(), _without_bias(consumers), selected, group_size)


def brute_force(
    hidden: Tensor, consumers: Consumers, s: int, group_size: int = 1
) -> tuple[float, tuple[int, ...]]:
    """The smallest residual over all supports of ``s`` groups, and the first support that reaches it.

    Tries every one of them: for tiny d only. Shapes as in ``algorithm_one``.
    """
    hidden = hidden.detach().double()
    linear_maps = _without_bias(consumers)
    groups = _feature_mask(hidden, group_size)[1]
    tried = (
        (_residual(hidden, linear_maps, support, group_size), support)
        for support in itertools.combinations(range(groups), s)
    )
    return min(tried)


def two_layer_network(inputs: int, hidden: int, outputs: int, seed: int) -> nn.Sequential:
    """Linear, ReLU, Linear with random weights: the paper's two-layer network. Reads (N, inputs)."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)).eval()


def convolution_network(
    inputs: int,
    hidden: int,
    outputs: int,
    seed: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
) -> nn.Sequential:
    """Conv2d, BatchNorm2d, ReLU, Conv2d with random weights and statistics. Reads (N, inputs, h, w).

    Kernel, stride, padding and dilation are those of the second convolution, the consumer.
    """
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(inputs, hidden, 3, padding=1),
        _random_batch_norm(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, outputs, kernel, stride, padding, dilation),
    )
    return network.eval()


def flattening_network(inputs: int, hidden: int, outputs: int, side: int, seed: int) -> nn.Sequential:
    """Conv2d, BatchNorm2d, ReLU, pool, flatten, Linear: a channel becomes ``(side // 2) ** 2`` features.

    Reads (N, inputs, side, side); ``side`` is even.
    """
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(inputs, hidden, 3, padding=1),
        _random_batch_norm(hidden),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(hidden * (side // 2) ** 2, outputs),
    )
    return network.eval()


def hidden_and_consumer(network: nn.Sequential, inputs: Tensor) -> tuple[Tensor, nn.Module]:
    """What enters the last layer of one of the networks above, and that layer."""
    with torch.no_grad():
        return network[:-1](inputs), network[-1]


def _random_batch_norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm whose every parameter and statistic matters, so that a forgotten one shows."""
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0.0, 0.3)
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_(0.0, 0.3)
        norm.running_var.uniform_(0.5, 2.0)
    return norm


def _without_bias(consumers: Consumers) -> list[nn.Module]:
    """Copies in float64 whose bias is gone, so that they are linear in the hidden representation."""
    several = [consumers] if isinstance(consumers, nn.Module) else list(consumers)
    copies = [copy.deepcopy(consumer).double() for consumer in several]
    for consumer in copies:
        if not isinstance(consumer, nn.Conv2d | nn.Linear):
            raise TypeError(f"the oracle knows Conv2d and Linear consumers, not {type(consumer).__name__}")
        consumer.bias = None
    return list(copies)


def _feature_axis(hidden: Tensor) -> int:
    """Channels are axis 1 of a map; neurons are the last axis of a vector or of a token sequence."""
    return 1 if hidden.ndim == 4 else hidden.ndim - 1


def _feature_mask(hidden: Tensor, group_size: int, selected: Sequence[int] = ()) -> tuple[Tensor, int]:
    """1 at the features of the selected groups, else 0, in a shape that multiplies ``hidden``; and d."""
    axis = _feature_axis(hidden)
    features = hidden.shape[axis]
    if features % group_size:
        raise ValueError(f"{features} features do not fall into groups of {group_size}")
    mask = torch.zeros(features, dtype=hidden.dtype)
    for group in selected:
        mask[group * group_size : (group + 1) * group_size] = 1.0
    shape = [1] * hidden.ndim
    shape[axis] = features
    return mask.reshape(shape), features // group_size


def _sum_per_group(values: Tensor, group_size: int) -> Tensor:
    """(d,): the sum over examples, positions and the features of each group."""
    per_feature = values.movedim(_feature_axis(values), 0).flatten(1).sum(1)
    return per_feature.reshape(-1, group_size).sum(1)


def _importance(
    hidden: Tensor, linear_maps: Sequence[nn.Module], selected: Sequence[int], group_size: int
) -> Tensor:
    """d(1/2 ||A(H) - A_S(H_S)||_F^2) / dH, the pruned output held constant, summed per group."""
    hidden = hidden.clone().requires_grad_()
    half = torch.zeros((), dtype=hidden.dtype)
    for consumer in linear_maps:
        with torch.no_grad():
            pruned = consumer(hidden * _feature_mask(hidden, group_size, selected)[0])
        half = half + 0.5 * (consumer(hidden) - pruned).square().sum()
    (gradient,) = torch.autograd.grad(half, hidden)
    return _sum_per_group(gradient, group_size)


@torch.no_grad()
def _residual(
    hidden: Tensor, linear_maps: Sequence[nn.Module], selected: Sequence[int], group_size: int
) -> float:
    kept = hidden * _feature_mask(hidden, group_size, selected)[0]
    return sum(float((consumer(hidden) - consumer(kept)).square().sum()) for consumer in linear_maps)


def _largest(score: Tensor, among: Sequence[int] | range, count: int) -> list[int]:
    """The ``count`` groups of ``among`` with the largest score, sorted; of equal ones the lowest index."""
    ranked = sorted(among, key=lambda group: (-float(score[group]), group))
    return sorted(ranked[:count])

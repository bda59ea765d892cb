"""The consumer's output split into what the kept groups give and the residual, support after support."""

from __future__ import annotations

import pytest
import torch

from ispasp.calibration import Batch
from ispasp.graph import CONSUMERS, trace
from ispasp.residual import Consumer, SplitOutput
from tests import oracle


def split(scale: float) -> tuple[SplitOutput, torch.Tensor, torch.nn.Module]:
    """A two-layer block of 12 neurons, the first of which outweighs the others ``scale`` times."""
    network = oracle.two_layer_network(6, 12, 4, seed=0)
    with torch.no_grad():
        network[2].weight[:, 0] *= scale
    inputs = torch.randn(40, 6)
    hidden, consumer = oracle.hidden_and_consumer(network, inputs)
    traced = trace(network, Batch((inputs,), {}))
    read = [node for node in traced.nodes if node.target in CONSUMERS][-1]
    weight = network[2].weight.detach()
    return SplitOutput([Consumer(read, weight)], list(hidden.split(16)), group_size=1), hidden, consumer


def mask(*groups: int) -> torch.Tensor:
    selected = torch.zeros(12, dtype=torch.bool)
    selected[list(groups)] = True
    return selected


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_any_walk_through_supports_gives_the_directly_computed_residual(scale: float) -> None:
    """With the heavy neuron entering, V falls by 12 orders of magnitude: subtracting alone would lose it."""
    output, hidden, consumer = split(scale)
    for groups in [
        (1, 2, 3),
        (1, 2, 4),
        (0, 1, 2),
        (0, 1, 2),
        (5, 6, 7),
        tuple(range(12)),
        (0,),
        tuple(range(11)),
    ]:
        residual = output.select(mask(*groups))
        direct = oracle.residual(hidden, consumer, groups)
        assert residual == pytest.approx(direct, rel=1e-4, abs=1e-15 * output.energy)
        with torch.no_grad():
            kept = hidden * mask(*groups) @ consumer.weight.T
        assert torch.allclose(torch.cat(output.kept[0]), kept, atol=1e-5 * scale)
    assert output.energy == pytest.approx(oracle.residual(hidden, consumer, ()), rel=1e-5)

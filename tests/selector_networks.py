"""Small networks with one prunable block, their statistics, and what holds for the records of every selector."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ispasp import selectors, statistics
from ispasp.algorithm import SelectorSettings
from ispasp.blocks import find
from ispasp.calibration import Batch
from ispasp.graph import trace
from ispasp.records import Block, Iteration
from ispasp.residual import Consumer
from ispasp.statistics import Statistics
from tests import oracle
from tests.test_gram import materialised

SETTINGS = SelectorSettings()


NETWORKS = {
    "two layers": (lambda: oracle.two_layer_network(6, 14, 5, seed=1), (6,)),
    "3x3": (lambda: oracle.convolution_network(2, 8, 5, seed=1), (2, 6, 6)),
    "stride": (lambda: oracle.convolution_network(2, 8, 5, seed=1, stride=2, padding=0), (2, 7, 6)),
    "flatten": (lambda: oracle.flattening_network(2, 8, 5, side=4, seed=1), (2, 4, 4)),
}
WITH_TWO_HEADS = [*NETWORKS, "two heads"]


class TwoHeads(nn.Module):
    """A hidden representation that two layers read."""

    def __init__(self, first: nn.Module, heads: list[nn.Module]) -> None:
        super().__init__()
        self.first, self.heads = first, nn.ModuleList(heads)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        hidden = F.relu(self.first(x))
        return tuple(head(hidden) for head in self.heads)


def the_block(network: nn.Module, inputs: Tensor) -> tuple[Block, list[Consumer], Tensor]:
    """The network's only prunable block, what reads it, and its producer's weight."""
    traced = trace(network.eval(), Batch((inputs,), {}))
    (block,) = [block for block in find(traced) if block.prunable]
    nodes = {node.name: node for node in traced.nodes}
    reads = [nodes[name] for name in block.reads]
    consumers = [Consumer(read, traced.fixed[read.args[1]].detach()) for read in reads]  # type: ignore[index]
    producer = network.get_submodule(block.name).weight
    assert isinstance(producer, Tensor)
    return block, consumers, producer


def collected(network: nn.Module, inputs: Tensor, hidden: Tensor) -> tuple[Statistics, int]:
    """Statistics of the network's only prunable block, and its group size."""
    block, consumers, producer = the_block(network, inputs)
    return statistics.collect(block, consumers, thirds(hidden), producer), block.group_size


def thirds(hidden: Tensor) -> list[Tensor]:
    return list(hidden.split(math.ceil(len(hidden) / 3)))


@functools.cache
def known(name: str) -> tuple[nn.Sequential, Block, list[Consumer], Tensor]:
    """One of ``NETWORKS``, traced once."""
    make, shape = NETWORKS[name]
    network = make()
    return network, *the_block(network, torch.randn(2, *shape))


def gathered(name: str, examples: int = 40) -> tuple[Statistics, int, Tensor, nn.Module]:
    network, block, consumers, producer = known(name)
    torch.manual_seed(0)
    hidden, consumer = oracle.hidden_and_consumer(network, torch.randn(examples, *NETWORKS[name][1]))
    found = statistics.collect(block, consumers, thirds(hidden), producer)
    return found, block.group_size, hidden, consumer


def two_heads(kind: str) -> tuple[Statistics, Tensor, list[nn.Module]]:
    found, hidden, heads = traced_heads(kind)
    return anew(found), hidden, heads


@functools.cache
def traced_heads(kind: str) -> tuple[Statistics, Tensor, list[nn.Module]]:
    torch.manual_seed(3)
    first: nn.Module
    heads: list[nn.Module]
    if kind == "linear":
        first, heads, inputs = nn.Linear(6, 10), [nn.Linear(10, 4), nn.Linear(10, 7)], torch.randn(40, 6)
    else:
        first, inputs = nn.Conv2d(2, 6, 3, padding=1), torch.randn(12, 2, 6, 6)
        heads = [nn.Conv2d(6, 4, 1), nn.Conv2d(6, 7, 3, padding=1)]
    network = TwoHeads(first, heads)
    with torch.no_grad():
        hidden = F.relu(first(inputs))
    return collected(network, inputs, hidden)[0], hidden, heads


def anew(found: Statistics) -> Statistics:
    """The same statistics, taken anew."""
    return statistics.collect(found.block, found.consumers, found.hidden, found.producer, found.taylor)


def run(name: str, found: Statistics, kept: int, settings: SelectorSettings = SETTINGS) -> list[Iteration]:
    return list(selectors.get(name)(found, kept, settings))


def check(records: list[Iteration], found: Statistics, kept: int) -> None:
    """What holds for the records of every selector."""
    assert 1 <= len(records) <= 32
    previous: tuple[int, ...] | None = None
    for number, record in enumerate(records, start=1):
        assert record.t == number
        for values in (record.importance, record.score, record.hidden_sum):
            assert values.shape == (found.groups,)
            assert values.dtype == torch.float64
            assert bool(values.isfinite().all())
        for groups in (record.candidates, record.selected, record.added, record.dropped):
            assert list(groups) == sorted(set(groups))
            assert all(0 <= group < found.groups for group in groups)
        if previous is not None:
            assert set(record.added) == set(record.selected) - set(previous)
            assert set(record.dropped) == set(previous) - set(record.selected)
        assert math.isfinite(record.residual)
        assert record.residual >= 0
        previous = record.selected
    assert len(records[-1].selected) == kept
    assert records[-1].converged
    assert not any(record.converged for record in records[:-1])


def regression(network: str) -> tuple[Statistics, Tensor, list[nn.Module]]:
    """Statistics of one of ``WITH_TWO_HEADS``, what its consumers read, and they; with rows enough to fit."""
    if network == "two heads":
        return two_heads("convolution")
    found, _, hidden, consumer = gathered(network, examples=60)
    return found, hidden, [consumer]


def rows_and_outputs(
    found: Statistics, hidden: Tensor, layers: list[nn.Module]
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Of each consumer: what it reads, what it gives without its bias, and its columns per group."""
    for layer, size in zip(layers, found.patch_sizes, strict=True):
        rows = materialised(layer, hidden)
        assert isinstance(layer.weight, Tensor)
        yield rows, rows @ layer.weight.detach().double().flatten(1).T, size


def best_error(found: Statistics, hidden: Tensor, layers: list[nn.Module], selected: list[int]) -> float:
    """||A(H) - what the selected groups give||^2 with their weights re-fitted by least squares, no intercept."""
    total = 0.0
    for rows, target, size in rows_and_outputs(found, hidden, layers):
        columns = torch.tensor([g * size + i for g in selected for i in range(size)], dtype=torch.int64)
        x = rows[:, columns]
        solution = torch.linalg.lstsq(x, target, driver="gelsd").solution
        total += float((target - x @ solution).square().sum())
    return total

"""Choosing neurons of a two-layer network from its stored hidden representation, and what that costs.

Greedy forward selection is there twice. ``gfs`` makes its choices through the Gram matrix Q (``ispasp.greedy``).
Evaluated, as published (Ye et al., "Good Subnetworks Provably Exist", ICML 2020, the baseline of the paper), it makes
the same choices by running the output layer once for every neuron that could be added, in every step.

Seconds are processor seconds of the thread that does the work, so that other work on the machine does not count.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ispasp import selectors
from ispasp.algorithm import SelectorSettings
from ispasp.blocks import find
from ispasp.calibration import Batch
from ispasp.graph import trace
from ispasp.records import Block, Iteration
from ispasp.residual import Consumer
from ispasp.statistics import Statistics, collect
from sample_models.architectures import TwoLayerNet

ROUNDS = 3  # of which the median time counts
SHOW_SECONDS = 0.1  # between two signs of life


@dataclass(frozen=True)
class HiddenLayer:
    """The block of a two-layer network, its hidden representation (N, d) and what reads it."""

    block: Block
    consumer: Consumer
    hidden: Tensor
    producer: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, network: TwoLayerNet, inputs: Tensor) -> HiddenLayer:
        """That of ``network`` over the examples ``inputs`` (N, 1, 28, 28)."""
        traced = trace(network, Batch((inputs[:2],), {}))
        (block,) = (block for block in find(traced) if block.prunable)
        (node,) = (node for node in traced.nodes if node.name in block.reads)
        consumer = Consumer(node, traced.fixed[cast(fx.Node, node.args[1])].detach())
        return cls(block, consumer, hidden_of(network, inputs), network.fc1.weight.detach())

    @torch.no_grad()
    def statistics(self) -> Statistics:
        """Taken anew at each call."""
        return collect(self.block, [self.consumer], [self.hidden], self.producer)


@torch.no_grad()
def hidden_of(network: TwoLayerNet, inputs: Tensor) -> Tensor:
    """H (N, d) of examples (N, 1, 28, 28)."""
    hidden: Tensor = network.relu(network.fc1(network.flatten(inputs)))
    return hidden


def evaluations_needed(neurons: int, kept: int) -> int:
    """How many candidates greedy forward selection evaluates: d, d - 1, ... in s steps."""
    return kept * neurons - kept * (kept - 1) // 2


@torch.no_grad()
def evaluated_gfs(
    hidden: Tensor, weight: Tensor, kept: int, most_seconds: float = math.inf
) -> Generator[float, None, tuple[list[int], int, float]]:
    """Greedy forward selection, every candidate evaluated by a forward pass of the output layer.

    Selected neurons are told by a mask, so that every evaluation costs the same (a layer cut down to the selected
    neurons would need about keep / 2 of the multiply-adds, a fifth at keep 0.4).

    Args:
        hidden: (N, d), what the output layer reads.
        weight: (outputs, d).
        kept: s, how many are added, one by one.
        most_seconds: stop after so many processor seconds, also within a step.

    Yields:
        The share of the work done, now and then.

    Returns:
        The neurons in the order added, the number of evaluations made, and the seconds they took.
    """
    needed = evaluations_needed(weight.shape[1], kept)
    target = F.linear(hidden, weight)
    mask = torch.zeros(weight.shape[1], dtype=weight.dtype)
    selected: list[int] = []
    evaluations = 0
    begin = shown = time.thread_time()
    for _ in range(kept):
        best, least = -1, math.inf
        for neuron in (mask == 0).nonzero().flatten().tolist():
            mask[neuron] = 1
            error = float((target - F.linear(hidden, weight * mask)).square().sum())
            mask[neuron] = 0
            evaluations += 1
            if error < least:
                best, least = neuron, error
            now = time.thread_time()
            if now - begin > most_seconds:
                return selected, evaluations, now - begin
            if now - shown > SHOW_SECONDS:
                shown = now
                yield max(evaluations / needed, min(1.0, (now - begin) / most_seconds))
        mask[best] = 1
        selected.append(best)
    return selected, evaluations, time.thread_time() - begin


@dataclass(frozen=True)
class Selection:
    """The neurons chosen, sorted, and what that took; the rest as of ``TwoLayerPoint``."""

    selected: tuple[int, ...]
    residual: float
    iterations: int
    seconds: float


@torch.no_grad()
def select(layer: HiddenLayer, selector: str, kept: int, seed: int, rounds: int = ROUNDS) -> Selection:
    """Choose ``kept`` neurons, from fresh statistics in each of the rounds; the median time counts."""
    settings = SelectorSettings(seed=seed)
    taken = []
    for _ in range(rounds):
        begin = time.thread_time()
        records: list[Iteration] = list(selectors.get(selector)(layer.statistics(), kept, settings))
        taken.append(time.thread_time() - begin)
    last = records[-1]
    return Selection(last.selected, last.relative_residual, last.t, statistics.median(taken))

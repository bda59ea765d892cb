"""Share out one budget among the blocks: keep more where the output is sensitive, less elsewhere.

The curves of ``ispasp.sensitivity`` say what every group is worth, the layers what it costs, and
``ispasp.knapsack`` chooses. The losses of single blocks are taken to add up, which holds while they are small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from ispasp import evaluate, knapsack
from ispasp.errors import SettingError
from ispasp.graph import CONSUMERS, Traced, ancestors, descendants
from ispasp.knapsack import Term
from ispasp.layouts import shape_of
from ispasp.records import Block
from ispasp.sensitivity import Curve
from ispasp.settings import groups_to_keep

aten = torch.ops.aten

MOST_CHOICES = 64  # different counts of one block that are weighed against each other

Shares = NDArray[np.float64]


class Costly(Protocol):
    """A part of the model whose cost depends on how much is kept of at most two blocks.

    ``produces`` and ``consumes`` are positions of the blocks whose groups are its outputs and inputs, None where
    none are; ``at`` gives its cost for the kept shares of both, arrays that broadcast, 1 for None.
    """

    @property
    def produces(self) -> int | None: ...

    @property
    def consumes(self) -> int | None: ...

    def at(self, produced: Shares, consumed: Shares) -> Shares: ...


@dataclass(frozen=True)
class Layer:
    """A part of the model that costs in proportion to the groups that are kept.

    Attributes:
        cost: MACs per example, or parameters, at full width.
        produces, consumes: as in ``Costly``.
    """

    cost: float
    produces: int | None
    consumes: int | None

    def at(self, produced: Shares, consumed: Shares) -> Shares:
        return self.cost * produced * consumed


def layers(traced: Traced, blocks: Sequence[Block], budget: str) -> list[Layer]:
    """All that the model costs in ``budget``, ``"macs"`` or ``"params"``, exactly.

    With any counts of groups the costs add up to ``evaluate.count_macs`` or ``evaluate.count_parameters`` of the
    sliced model, but for rounding.
    """
    return _parameters(traced, blocks) if budget == "params" else _macs(traced, blocks)


def owners(blocks: Sequence[Block]) -> tuple[dict[str, int], dict[str, int]]:
    """For every module that the blocks cut, by name: which block its outputs are, and which its inputs."""
    produced: dict[str, int] = {}
    consumed: dict[str, int] = {}
    for index, block in enumerate(blocks):
        for cut in block.cuts:
            (produced if cut.role in ("producer", "rider") else consumed)[cut.module] = index
    return produced, consumed


def _parameters(traced: Traced, blocks: Sequence[Block]) -> list[Layer]:
    produced, consumed = owners(blocks)
    found, seen = [], set()
    for name, module in traced.model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                # Consumers are narrowed along their weight's inputs; a bias has none.
                inputs = consumed.get(name) if leaf == "weight" else None
                found.append(Layer(float(parameter.numel()), produced.get(name), inputs))
    return found


def _macs(traced: Traced, blocks: Sequence[Block]) -> list[Layer]:
    produced, consumed = owners(blocks)
    found = []
    inside = _attention(traced, blocks)
    for node in traced.nodes:
        if products := _products(node, traced):
            found.append(Layer(products, inside.get(node), None))
        weight = node.args[1] if node.target in CONSUMERS else None
        if isinstance(weight, fx.Node) and weight in traced.fixed:
            repeats = traced.per_example(node) // len(traced.fixed[weight])
            name = str(weight.target).rpartition(".")[0]
            cost = float(repeats * traced.fixed[weight].numel())
            found.append(Layer(cost, produced.get(name), consumed.get(name)))
    # Operations that no block reaches and that are none of these, such as convolutions in one dimension.
    rest = evaluate.count_macs(traced.model, traced.example) - sum(layer.cost for layer in found)
    return [*found, Layer(rest, None, None)] if rest else found


def _products(node: fx.Node, traced: Traced) -> float:
    """Multiply-adds per example of a matrix product without a parameter, such as attention's."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet is aten.scaled_dot_product_attention:
        query, key = node.args[:2]
        # Scores, and their product with the values: each reads as many keys as there are.
        keys = shape_of(key)[-2]  # type: ignore[arg-type]
        return float(keys * (traced.per_example(query) + traced.per_example(node)))  # type: ignore[arg-type]
    if packet in (aten.matmul, aten.bmm) and len(shape_of(node)) > 2:
        return float(traced.per_example(node) * shape_of(node.args[0])[-1])  # type: ignore[arg-type]
    return 0.0


def _attention(traced: Traced, blocks: Sequence[Block]) -> dict[fx.Node, int]:
    """Which block's heads a node between its producers and its hidden representation belongs to."""
    by_name = {node.name: node for node in traced.nodes}
    makes = {
        str(weight.target).rpartition(".")[0]: node
        for node in traced.nodes
        if node.target in CONSUMERS and isinstance(weight := node.args[1], fx.Node) and weight in traced.fixed
    }
    found: dict[fx.Node, int] = {}
    for index, block in enumerate(blocks):
        if block.kind == "head":
            before = ancestors(by_name[block.hidden])
            for name in block.producers:
                found.update(dict.fromkeys(before & descendants(makes[name]), index))
    return found


def cost(model: Sequence[Costly], blocks: Sequence[Block], counts: Sequence[int]) -> float:
    """What the model costs when each block keeps so many groups."""
    one = np.ones(())
    share = [np.array(count / block.groups) for block, count in zip(blocks, counts, strict=True)]
    parts = (
        part.at(
            one if part.produces is None else share[part.produces],
            one if part.consumes is None else share[part.consumes],
        )
        for part in model
    )
    return float(sum(parts))


def choices(blocks: Sequence[Block], multiple: int, also: Sequence[int] = ()) -> list[tuple[int, ...]]:
    """Numbers of groups that each block may keep, rising up to all: multiples of ``multiple`` features.

    Of more than ``MOST_CHOICES`` evenly spaced ones are taken. A block of no more groups than the multiple may keep
    any number, as in ``groups_to_keep``.

    Args:
        blocks: in network order.
        multiple: as in pruning.
        also: one more number for each block.
    """
    found = []
    for index, block in enumerate(blocks):
        step = block.multiple(multiple)
        step = step if block.groups > step else 1
        every = [*range(step, block.groups, step), block.groups]
        if len(every) > MOST_CHOICES:
            every = [every[round(at)] for at in np.linspace(0, len(every) - 1, MOST_CHOICES)]
        found.append(tuple(sorted({*every, *also[index : index + 1]})))
    return found


def terms(model: Sequence[Costly], blocks: Sequence[Block], counts: Sequence[Sequence[int]]) -> list[Term]:
    """The cost of every choice, for ``ispasp.knapsack``."""
    one = np.ones(1)
    share = [np.array(each) / block.groups for block, each in zip(blocks, counts, strict=True)]
    fixed = 0.0
    alone: dict[int, Shares] = {}
    pairs: dict[tuple[int, int], Shares] = {}
    for part in model:
        first, second = part.produces, part.consumes
        if first is None and second is None:
            fixed += float(part.at(one, one)[0])
        elif first is None or second is None or first == second:
            at = first if first is not None else second
            assert at is not None
            values = part.at(one if first is None else share[at], one if second is None else share[at])
            alone[at] = alone.get(at, 0.0) + values
        else:
            table = part.at(share[first][:, None], share[second][None, :])
            at_both = (min(first, second), max(first, second))
            pairs[at_both] = pairs.get(at_both, 0.0) + (table if first < second else table.T)
    return [
        Term((), np.array(fixed)),
        *(Term((index,), values) for index, values in alone.items()),
        *(Term(both, values) for both, values in pairs.items()),
    ]


def solve(
    curves: Sequence[Curve], model: Sequence[Costly], budget: float, multiple: int, also: Sequence[int] = ()
) -> list[int] | None:
    """How many groups each block keeps at least loss within ``budget``; None where not even the fewest fit.

    What is left of the budget is given back, in network order, where a larger choice still fits.

    Args:
        curves: one per block, in network order.
        model: what it costs; ``produces`` and ``consumes`` are positions in ``curves``.
        budget: most cost.
        multiple, also: as in ``choices``.
    """
    blocks = [curve.block for curve in curves]
    counts = choices(blocks, multiple, also)
    losses = [
        np.array([curve.at(count) for count in each]) for curve, each in zip(curves, counts, strict=True)
    ]
    costs = terms(model, blocks, counts)
    chosen = knapsack.solve(losses, costs, budget)
    if chosen is None:
        return None
    for index, each in enumerate(counts):
        for more in range(len(each) - 1, chosen[index], -1):
            other = [*chosen[:index], more, *chosen[index + 1 :]]
            if losses[index][more] <= losses[index][chosen[index]] and knapsack.spent(costs, other) <= budget:
                chosen = other
                break
    return [each[k] for each, k in zip(counts, chosen, strict=True)]


def fewest(model: Sequence[Costly], blocks: Sequence[Block], multiple: int) -> list[int]:
    """The counts that cost least in all."""
    counts = choices(blocks, multiple)
    chosen = knapsack.cheapest([np.zeros(len(each)) for each in counts], terms(model, blocks, counts))
    return [each[k] for each, k in zip(counts, chosen, strict=True)]


def share_out(curves: Sequence[Curve], model: Sequence[Costly], keep: float, multiple: int) -> list[int]:
    """How many groups each block keeps, so that all together cost no more than the uniform ratio does.

    No other counts that are multiples of ``multiple`` lose less by the curves (``solve``).

    Args:
        curves: one per block.
        model: as in ``solve``.
        keep: the uniform ratio whose cost is the budget.
        multiple: as in ``groups_to_keep``.
    """
    blocks = [curve.block for curve in curves]
    counts = uniform(blocks, keep, multiple)
    return solve(curves, model, cost(model, blocks, counts) * (1 + 1e-9), multiple, counts) or counts


def uniform(blocks: Sequence[Block], keep: float, multiple: int) -> list[int]:
    """How many groups each block keeps at one ratio."""
    return [groups_to_keep(block.groups, keep, block.multiple(multiple)) for block in blocks]


def uniform_within(model: Sequence[Costly], blocks: Sequence[Block], budget: float, multiple: int) -> float:
    """The largest single keep ratio, rounded up to few digits, whose counts cost at most ``budget``.

    Raises:
        SettingError: even the smallest ratio costs more.
    """
    edges = {1.0}
    for block in blocks:
        step = block.multiple(multiple)
        step, middle = (step, 0.5) if block.groups > step > 1 else (1, 0.0)
        edges |= {min(1.0, (n - middle) * step / block.groups) for n in range(1, block.groups // step + 2)}
    for edge in sorted(edges, reverse=True):
        keep = _short(blocks, edge, multiple)
        if cost(model, blocks, uniform(blocks, keep, multiple)) <= budget * (1 + 1e-9):
            return keep
    raise SettingError(
        "No single keep ratio is within the budget, because every block keeps at least one group; give a larger one."
    )


def _short(blocks: Sequence[Block], edge: float, multiple: int) -> float:
    """The ratio of fewest digits, at or just above ``edge``, that gives the counts of ``edge``."""
    for digits in range(1, 7):
        keep = min(1.0, math.ceil(edge * 10**digits - 1e-9) / 10**digits)
        if uniform(blocks, keep, multiple) == uniform(blocks, min(1.0, edge + 1e-9), multiple):
            return keep
    return min(1.0, edge + 1e-9)

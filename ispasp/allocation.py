"""Share out one budget among the blocks: keep more where the output is sensitive, less elsewhere.

The uniform keep ratio sets the budget, in MACs or parameters; the curves of ``ispasp.sensitivity`` say what
every group is worth. The losses of single blocks are taken to add up, which holds while they are small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ispasp.graph import CONSUMERS, Traced, ancestors, descendants
from ispasp.layouts import shape_of
from ispasp.records import Block
from ispasp.sensitivity import Curve
from ispasp.settings import groups_to_keep

aten = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """One convolution, linear operation or matrix product: what it costs, and which blocks narrow it.

    Attributes:
        cost: MACs per example, or parameters, at full width.
        produces, consumes: index of the block whose groups are its outputs or inputs; None where none are.
    """

    cost: float
    produces: int | None
    consumes: int | None


def layers(traced: Traced, blocks: Sequence[Block], budget: str) -> list[Layer]:
    """Every layer of the model with its cost in ``budget``, ``"macs"`` or ``"params"``."""
    produced: dict[str, int] = {}
    consumed: dict[str, int] = {}
    for index, block in enumerate(blocks):
        for cut in block.cuts:
            (produced if cut.role in ("producer", "rider") else consumed)[cut.module] = index
    found, seen = [], set()
    inside = _attention(traced, blocks)
    for node in traced.nodes:
        if budget == "macs" and (products := _products(node, traced)):
            found.append(Layer(products, inside.get(node), None))
        weight = node.args[1] if node.target in CONSUMERS else None
        if not isinstance(weight, fx.Node) or weight not in traced.fixed:
            continue
        if budget == "params" and weight in seen:
            continue
        seen.add(weight)
        outputs = len(traced.fixed[weight])
        repeats = traced.per_example(node) // outputs if budget == "macs" else 1
        name = str(weight.target).rpartition(".")[0]
        cost = float(repeats * traced.fixed[weight].numel())
        found.append(Layer(cost, produced.get(name), consumed.get(name)))
    return found


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


def share_out(curves: Sequence[Curve], model: Sequence[Layer], keep: float, multiple: int) -> list[int]:
    """How many groups each block keeps, so that all together cost no more than the uniform ratio does.

    Greedy: as long as the budget is exceeded, take from the block that loses least per cost saved; then
    give back where something still fits. Counts are multiples of ``multiple``, as in uniform pruning.

    Args:
        curves: one per block.
        model: the layers, whose ``produces`` and ``consumes`` are positions in ``curves``.
        keep: the uniform ratio whose cost is the budget.
        multiple: as in ``groups_to_keep``.
    """
    groups = [curve.block.groups for curve in curves]

    def cost(counts: Sequence[int]) -> float:
        def share(index: int | None) -> float:
            return 1.0 if index is None else counts[index] / groups[index]

        return sum(layer.cost * share(layer.produces) * share(layer.consumes) for layer in model)

    multiples = [curve.block.multiple(multiple) for curve in curves]
    uniform = [groups_to_keep(d, keep, step) for d, step in zip(groups, multiples, strict=True)]
    budget = cost(uniform) * (1 + 1e-9)
    steps = [step if d > step else 1 for d, step in zip(groups, multiples, strict=True)]
    counts = list(groups)
    while cost(counts) > budget:
        down = [
            (index, max(steps[index], math.ceil(count / steps[index] - 1) * steps[index]))
            for index, count in enumerate(counts)
        ]
        down = [(index, count) for index, count in down if count < counts[index]]
        index, count = min(down, key=_price(curves, counts, cost))
        counts[index] = count
    while True:
        up = [(index, min(groups[index], count + steps[index])) for index, count in enumerate(counts)]
        up = [
            (index, count)
            for index, count in up
            if count > counts[index] and cost(_with(counts, index, count)) <= budget
        ]
        if not up:
            return counts
        index, count = max(up, key=_price(curves, counts, cost))
        counts[index] = count


def _with(counts: Sequence[int], index: int, count: int) -> list[int]:
    return [*counts[:index], count, *counts[index + 1 :]]


def _price(
    curves: Sequence[Curve], counts: Sequence[int], cost: Callable[[Sequence[int]], float]
) -> Callable[[tuple[int, int]], float]:
    """The divergence gained or lost per cost when block ``index`` goes to ``count`` groups."""
    now = cost(counts)

    def price(step: tuple[int, int]) -> float:
        index, count = step
        loss = curves[index].at(count) - curves[index].at(counts[index])
        return abs(loss) / max(abs(now - cost(_with(counts, index, count))), 1e-12)

    return price

"""One choice per block at least loss within a budget, where neighbouring choices share their cost.

A multiple-choice knapsack (Kellerer, Pferschy & Pisinger, Knapsack Problems, 2004, chapter 11) whose cost also has
terms of two blocks each: a layer between two pruned blocks costs the product of both widths. It is solved by
dynamic programming over the blocks in order with lists of undominated points (Nemhauser & Ullmann, Management
Science 15, 1969), one list for every combination of choices that a later cost still depends on: in a chain the last
block's choice, for separate blocks none. Points that Lagrange's relaxation shows to lead nowhere are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_POINTS = 32_000  # undominated points that are kept after a block, all lists together
_HALVINGS = 80  # of the interval in which the best price of cost is looked for
_ROUNDING = 1e-9  # relative: sums in another order must not decide
_PRICES = (
    0.5,
    0.8,
    0.95,
    1.0,
    1.05,
    1.25,
    2.0,
)  # times the best multiplier, where the relaxation is evaluated

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Term(NamedTuple):
    """A part of the cost: ``cost`` has one dimension per block in ``blocks``, over its choices.

    ``blocks`` are at most two different positions, rising.
    """

    blocks: tuple[int, ...]
    cost: Floats


class _Stage(NamedTuple):
    """One block's turn, from S states before it to those after it.

    ``loss`` (K,) of each choice; ``added`` (S, K) cost; ``after`` (S, K) the state that follows, of ``states``.
    """

    loss: Floats
    added: Floats
    after: Ints
    states: int


class _Points(NamedTuple):
    """Partial solutions (P,): where they stand, what they cost and lose, and which point and choice led there."""

    state: Ints
    cost: Floats
    loss: Floats
    parent: Ints
    choice: Ints


def spent(terms: Iterable[Term], choice: Sequence[int]) -> float:
    """What one choice per block costs."""
    return float(sum(term.cost[tuple(choice[block] for block in term.blocks)] for term in terms))


def cheapest(losses: Sequence[Floats], terms: Sequence[Term]) -> list[int]:
    """The choices that cost least in all."""
    return _path(_stages(losses, terms), 0.0, 1.0)


def solve(
    losses: Sequence[Floats], terms: Sequence[Term], budget: float, most: int = MOST_POINTS
) -> list[int] | None:
    """The choice per block that loses least among those that cost at most ``budget``; None where none does.

    Exact as long as there are at most ``most`` undominated points after every block. Where there are more, only
    the one that loses least stays of those whose costs round up to the same of equal steps; it keeps its own cost,
    so the budget holds in any case. Of equal losses the cheaper stays; the same input gives the same choices.

    Args:
        losses: for each block, what each of its choices loses.
        terms: the cost; without a block, the part that is fixed.
        budget: most cost, but for rounding in the last digits.
        most: points kept after a block.
    """
    fixed = sum(float(term.cost) for term in terms if not term.blocks)
    limit = budget + _ROUNDING * abs(budget) - fixed
    stages = _stages(losses, terms)
    known, prices = _relaxed(stages, limit)
    if known is None:
        return None
    found = _search(stages, limit, _loss(losses, known), prices, most)
    return known if found is None or _loss(losses, found) > _loss(losses, known) else found


def _loss(losses: Sequence[Floats], choice: Sequence[int]) -> float:
    return float(sum(loss[k] for loss, k in zip(losses, choice, strict=True)))


def _stages(losses: Sequence[Floats], terms: Sequence[Term]) -> list[_Stage]:
    sizes = [len(loss) for loss in losses]
    last = {
        block: max(term.blocks[-1] for term in terms if block in term.blocks)
        for term in terms
        for block in term.blocks
    }
    frontier: list[int] = []
    stages = []
    for block, size in enumerate(sizes):
        shape = tuple(sizes[other] for other in frontier)
        states = int(np.prod(shape, dtype=np.int64))
        index = dict(zip(frontier, np.unravel_index(np.arange(states), shape), strict=True)) if shape else {}
        added = np.zeros((states, size))
        for term in terms:
            if term.blocks and term.blocks[-1] == block:
                added += term.cost[index[term.blocks[0]]] if len(term.blocks) == 2 else term.cost
        left = [other for other in (*frontier, block) if last.get(other, -1) > block]
        after = np.zeros((states, size), dtype=np.int64)
        for other in left:
            values = np.arange(size)[None, :] if other == block else index[other][:, None]
            after = after * sizes[other] + values
        stages.append(
            _Stage(
                np.asarray(losses[block], dtype=np.float64),
                added,
                after,
                int(np.prod([sizes[o] for o in left], dtype=np.int64)),
            )
        )
        frontier = left
    return stages


def _rest(stages: Sequence[_Stage], of_loss: float, of_cost: float) -> list[Floats]:
    """For every stage and state before it, the least weighted sum of loss and cost of all that follows."""
    rest = [np.zeros(1)]
    for stage in reversed(stages):
        total = of_loss * stage.loss + of_cost * stage.added + rest[-1][stage.after]
        rest.append(total.min(1))
    return rest[::-1]


def _path(stages: Sequence[_Stage], of_loss: float, of_cost: float) -> list[int]:
    """The choices behind the least weighted sum."""
    rest, state, choice = _rest(stages, of_loss, of_cost), 0, []
    for stage, following in zip(stages, rest[1:], strict=True):
        total = of_loss * stage.loss + of_cost * stage.added[state] + following[stage.after[state]]
        choice.append(int(total.argmin()))
        state = int(stage.after[state, choice[-1]])
    return choice


def _cost(stages: Sequence[_Stage], choice: Sequence[int]) -> float:
    state, total = 0, 0.0
    for stage, k in zip(stages, choice, strict=True):
        total += stage.added[state, k]
        state = int(stage.after[state, k])
    return total


def _relaxed(stages: Sequence[_Stage], limit: float) -> tuple[list[int] | None, list[float]]:
    """The best choices that some price of cost gives within ``limit``, and prices about the best one.

    None where even the cheapest exceeds it.
    """
    known = _path(stages, 0.0, 1.0)
    if _cost(stages, known) > limit:
        return None, []
    best = _loss([stage.loss for stage in stages], known)
    # The cost falls as its price rises: first a price that is high enough, then the lowest such one.
    low, high = 0.0, sum(float(np.ptp(stage.loss)) for stage in stages) / max(abs(limit), 1e-300) or 1.0
    price, enough = high, False
    for _ in range(_HALVINGS):
        found = _path(stages, 1.0, price)
        if _cost(stages, found) > limit:
            low = price
        else:
            high, enough = price, True
            loss = _loss([stage.loss for stage in stages], found)
            if loss < best:
                known, best = found, loss
        price = (low + high) / 2 if enough else 4 * price
    return known, [high * factor for factor in _PRICES]


def _search(
    stages: Sequence[_Stage], limit: float, best: float, prices: Sequence[float], most: int
) -> list[int] | None:
    """The dynamic programme, without points that must cost more than ``limit`` or lose more than ``best``."""
    cheapest_rest = _rest(stages, 0.0, 1.0)
    least_loss = _rest(stages, 1.0, 0.0)
    priced = [(price, _rest(stages, 1.0, price)) for price in prices]
    bar = best + _ROUNDING * abs(best) + 1e-300
    points = _Points._make(np.zeros(1, dtype=kind) for kind in (int, float, float, int, int))
    walked = []
    for number, stage in enumerate(stages, start=1):
        state = stage.after[points.state]
        cost = points.cost[:, None] + stage.added[points.state]
        loss = points.loss[:, None] + stage.loss
        good = (cost + cheapest_rest[number][state] <= limit) & (loss + least_loss[number][state] <= bar)
        for price, rest in priced:
            good &= loss + rest[number][state] + price * (cost - limit) <= bar + 1e-12 * abs(price * limit)
        parent, choice = good.nonzero()
        if not len(parent):
            return None
        points = _undominated(_Points(state[good], cost[good], loss[good], parent, choice))
        points = _thinned(points, limit, most, stage.states)
        walked.append(points)
    at = int(points.loss.argmin())
    choice_of = []
    for points in reversed(walked):
        choice_of.append(int(points.choice[at]))
        at = int(points.parent[at])
    return choice_of[::-1]


def _undominated(points: _Points) -> _Points:
    """For each state, the points that lose less than every cheaper one, by rising cost."""
    order = np.lexsort((points.loss, points.cost, points.state))
    state, loss = points.state[order], points.loss[order]
    keep = np.zeros(len(order), dtype=bool)
    starts = np.flatnonzero(np.diff(state, prepend=-1))
    for first, end in zip(starts, [*starts[1:], len(order)], strict=True):
        part = loss[first:end]
        keep[first] = True
        keep[first + 1 : end] = part[1:] < np.minimum.accumulate(part)[:-1]
    return _Points._make(values[order[keep]] for values in points)


def _thinned(points: _Points, limit: float, most: int, states: int) -> _Points:
    """Of undominated points, where there are too many, the last of each step of cost: the one that loses least."""
    if len(points.cost) <= most:
        return points
    steps = max(32, most // states)
    low = points.cost.min()
    step = np.ceil((points.cost - low) * (steps / max(limit - low, 1e-300)))
    last = np.append((step[1:] != step[:-1]) | (points.state[1:] != points.state[:-1]), True)
    return _Points._make(values[last] for values in points)

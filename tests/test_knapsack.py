"""The solver behind allocations, against exhaustive search."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from ispasp import knapsack
from ispasp.knapsack import Floats, Term


def lost(losses: list[Floats], choice: list[int] | tuple[int, ...]) -> float:
    return float(sum(loss[k] for loss, k in zip(losses, choice, strict=True)))


def random_problem(generator: np.random.Generator, rounded: bool) -> tuple[list[Floats], list[Term]]:
    """Up to four blocks of up to five choices, in a row and with other pairs too; with many ties where rounded."""
    sizes = generator.integers(1, 6, generator.integers(1, 5))
    digits = 1 if rounded else 9
    losses = [np.round(generator.random(size), digits) for size in sizes]
    terms = [Term((), np.array(generator.random()))]
    for i, size in enumerate(sizes):
        terms.append(Term((i,), np.round(5 * generator.random(size), digits)))
        for j in range(i + 1, len(sizes)):
            if j == i + 1 or generator.random() < 0.4:
                terms.append(Term((i, j), np.round(9 * generator.random((size, sizes[j])), digits)))
    return losses, terms


@pytest.mark.parametrize("seed", range(100))
def test_nothing_within_the_budget_loses_less(seed: int) -> None:
    generator = np.random.default_rng(seed)
    losses, terms = random_problem(generator, rounded=seed % 3 == 0)
    every = list(itertools.product(*(range(len(loss)) for loss in losses)))
    costs = [knapsack.spent(terms, choice) for choice in every]
    assert knapsack.spent(terms, knapsack.cheapest(losses, terms)) == pytest.approx(min(costs))
    for budget in generator.uniform(0.9 * min(costs), 1.1 * max(costs), 5):
        found = knapsack.solve(losses, terms, budget)
        within = [lost(losses, choice) for choice, cost in zip(every, costs, strict=True) if cost <= budget]
        if not within:
            assert found is None
            continue
        assert found is not None and knapsack.spent(terms, found) <= budget * (1 + 1e-8)
        assert lost(losses, found) == pytest.approx(min(within), abs=1e-9)
        assert knapsack.solve(losses, terms, budget) == found


def network(chain: bool, seed: int) -> tuple[list[Floats], list[Term]]:
    """VGG16's fifteen layers in a row, or sixteen separate blocks as in ResNet34, 8 to 64 choices each."""
    generator = np.random.default_rng(seed)
    widths = (
        [64, 64, 128, 128, *[256] * 3, *[512] * 8]
        if chain
        else [*[64] * 3, *[128] * 4, *[256] * 6, *[512] * 3]
    )
    shares = [np.arange(8, width + 1, 8) / width for width in widths]
    losses = [generator.random() * (1 - share) ** 2 + 0.02 * generator.random(len(share)) for share in shares]
    terms = []
    for i, share in enumerate(shares):
        cost = 1e8 * generator.random()
        terms.append(
            Term((i - 1, i), cost * np.outer(shares[i - 1], share))
            if chain and i
            else Term((i,), cost * share)
        )
    return losses, terms


@pytest.mark.parametrize("chain", [True, False])
def test_networks_as_large_as_usual_take_little_time(chain: bool) -> None:
    losses, terms = network(chain, seed=1)
    whole = knapsack.spent(terms, [len(loss) - 1 for loss in losses])
    begun = time.process_time()
    for share in (0.3, 0.5, 0.8):
        found = knapsack.solve(losses, terms, share * whole)
        assert found is not None and 0.98 * share * whole < knapsack.spent(terms, found) <= share * whole * (
            1 + 1e-8
        )
    assert time.process_time() - begun < 10


def test_too_many_points_are_thinned_and_the_budget_still_holds() -> None:
    losses, terms = network(chain=True, seed=2)
    budget = 0.4 * knapsack.spent(terms, [len(loss) - 1 for loss in losses])
    exact, rough = (knapsack.solve(losses, terms, budget, most) for most in (knapsack.MOST_POINTS, 70))
    assert exact is not None and rough is not None
    assert knapsack.spent(terms, rough) <= budget * (1 + 1e-8)
    assert lost(losses, exact) <= lost(losses, rough) <= 1.1 * lost(losses, exact)

"""CoSaMP: it finds a planted support, and its scores are those of least squares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ispasp.statistics import Statistics
from tests import oracle
from tests.selector_networks import (
    WITH_TWO_HEADS,
    best_error,
    check,
    collected,
    regression,
    rows_and_outputs,
    run,
)


def planted(seed: int) -> tuple[Statistics, tuple[int, ...]]:
    """Only 6 of 40 neurons are read, none of them much: small activations, large weights. The rest is loud."""
    torch.manual_seed(seed)
    network, inputs = oracle.two_layer_network(30, 40, 8, seed), torch.randn(400, 30)
    support = tuple(sorted(torch.randperm(40)[:6].tolist()))
    with torch.no_grad():
        network[2].weight[:, [g for g in range(40) if g not in support]] = 0
        network[0].weight[list(support)] *= 0.1
        network[0].bias[list(support)] *= 0.1
    hidden, _ = oracle.hidden_and_consumer(network, inputs)
    return collected(network, inputs, hidden)[0], support


@pytest.mark.parametrize("seed", range(5))
def test_cosamp_recovers_a_planted_support_where_the_hidden_sum_does_not(seed: int) -> None:
    found, support = planted(seed)
    records = run("cosamp", found, 6)
    check(records, found, 6)
    assert records[-1].selected == support
    assert records[-1].relative_residual == pytest.approx(0, abs=1e-10)
    assert run("ispasp", found, 6)[-1].selected != support


@pytest.mark.parametrize("network", WITH_TWO_HEADS)
def test_cosamp_ends_with_its_best_set_and_scores_are_least_squares(network: str) -> None:
    found, hidden, layers = regression(network)
    for kept in (2, 3):
        records = run("cosamp", found, kept)
        errors = [best_error(found, hidden, layers, list(record.selected)) for record in records]
        assert errors == sorted(errors, reverse=True)
        first = records[0]
        projected = first_projections(found, hidden, layers)
        assert first.importance.tolist() == pytest.approx(projected, rel=1e-3)
        outside = set(range(found.groups)) - set(first.candidates)
        assert float(first.score[sorted(outside)].abs().sum()) == 0
        merged = sorted(set(first.candidates))
        assert first.score[merged].tolist() == pytest.approx(
            refitted_norms(found, hidden, layers, merged), rel=1e-2
        )


def first_projections(found: Statistics, hidden: Tensor, layers: list[nn.Module]) -> list[float]:
    """||P_g T||_F per group, P_g the projection on the group's columns, T the output; squares added up."""
    total = torch.zeros(found.groups, dtype=torch.float64)
    for rows, target, size in rows_and_outputs(found, hidden, layers):
        for group in range(found.groups):
            x = rows[:, group * size : (group + 1) * size]
            total[group] += (x @ torch.linalg.lstsq(x, target, driver="gelsd").solution).square().sum()
    return total.sqrt().tolist()


def refitted_norms(
    found: Statistics, hidden: Tensor, layers: list[nn.Module], merged: list[int]
) -> list[float]:
    """||X_g W'_g||_F of each of the merged groups, W' the least-squares weights on them."""
    total = torch.zeros(len(merged), dtype=torch.float64)
    for rows, target, size in rows_and_outputs(found, hidden, layers):
        columns = [g * size + i for g in merged for i in range(size)]
        solution = torch.linalg.lstsq(rows[:, columns], target, driver="gelsd").solution
        for place, group in enumerate(merged):
            part = slice(place * size, (place + 1) * size)
            total[place] += (rows[:, group * size : (group + 1) * size] @ solution[part]).square().sum()
    return total.sqrt().tolist()

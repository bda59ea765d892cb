"""Greedy forward selection and backward elimination against trying every group."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from tests import oracle
from tests.selector_networks import (
    NETWORKS,
    WITH_TWO_HEADS,
    best_error,
    check,
    collected,
    gathered,
    regression,
    run,
    two_heads,
)

# ----------------------------------------------------------------------------------------------------- gfs


def evaluated_gfs(
    hidden: Tensor, consumers: nn.Module | list[nn.Module], kept: int, groups: int, group_size: int
) -> list[int]:
    """Greedy forward selection, every candidate evaluated by a forward pass; groups in the order added."""
    order: list[int] = []
    for _ in range(kept):
        rest = [group for group in range(groups) if group not in order]
        order.append(min(rest, key=lambda g: oracle.residual(hidden, consumers, [*order, g], group_size)))
    return order


@pytest.mark.parametrize("network", NETWORKS)
def test_gfs_through_q_equals_evaluated_gfs(network: str) -> None:
    found, group_size, hidden, consumer = gathered(network)
    order = evaluated_gfs(hidden, consumer, found.groups, found.groups, group_size)
    records = run("gfs", found, found.groups)
    assert [record.candidates for record in records] == [(group,) for group in order]
    for number, record in enumerate(records, start=1):
        assert record.selected == tuple(sorted(order[:number]))
        before = oracle.residual(hidden, consumer, order[: number - 1], group_size)
        for group in set(range(found.groups)) - set(order[: number - 1]):
            after = oracle.residual(hidden, consumer, [*order[: number - 1], group], group_size)
            gain = float(record.importance[group])
            assert gain == pytest.approx(before - after, rel=1e-3, abs=1e-4 * before + 1e-6)
        assert float(record.importance[order[: number - 1]].abs().sum()) == 0


def test_gfs_with_several_consumers_equals_evaluated_gfs() -> None:
    for kind in ("linear", "convolution"):
        found, hidden, heads = two_heads(kind)
        order = evaluated_gfs(hidden, heads, 5, found.groups, 1)
        assert [record.candidates for record in run("gfs", found, 5)] == [(group,) for group in order]


def test_long_runs_are_shown_in_32_records() -> None:
    network, inputs = oracle.two_layer_network(8, 200, 5, seed=0), torch.randn(300, 8)
    hidden, consumer = oracle.hidden_and_consumer(network, inputs)
    found, _ = collected(network, inputs, hidden)
    forward = run("gfs", found, 70)
    check(forward, found, 70)
    assert len(forward) == 32
    assert [len(record.candidates) for record in forward] == [len(record.added) for record in forward]
    assert {len(record.added) for record in forward} == {2, 3}
    assert sorted(evaluated_gfs(hidden, consumer, 6, 200, 1)) == list(forward[2].selected)[:6]
    backward = run("obs", found, 70)
    check(backward, found, 70)
    assert len(backward) == 32
    assert backward[0].added == ()
    assert {len(record.dropped) for record in backward} == {4, 5}
    assert all(record.candidates == record.dropped for record in backward)


# ----------------------------------------------------------------------------------------------------- obs


@pytest.mark.parametrize("network", WITH_TWO_HEADS)
def test_obs_cost_is_the_real_increase_of_the_least_squares_error(network: str) -> None:
    found, hidden, layers = regression(network)
    everything = range(found.groups)
    (one,) = run("obs", found, found.groups - 1)
    errors = [best_error(found, hidden, layers, [h for h in everything if h != g]) for g in everything]
    assert one.added == ()
    assert len(one.dropped) == 1
    assert set(everything) - set(one.selected) == {errors.index(min(errors))}
    # The ridge costs a little, which shows where a group is dead.
    assert one.importance.tolist() == pytest.approx(errors, rel=1e-3, abs=1e-5 * max(errors))
    # Later steps: each removal is the best one given those before, and costs what it says.
    records = run("obs", found, 2)
    left, error = list(everything), 0.0
    for record in records:
        tried = {g: best_error(found, hidden, layers, [h for h in left if h != g]) for g in left}
        assert record.candidates == (min(tried, key=lambda g: tried[g]),)
        for group, after in tried.items():
            assert float(record.importance[group]) == pytest.approx(
                after - error, rel=1e-2, abs=1e-4 * max(tried.values())
            )
        left = [g for g in left if g not in record.candidates]
        error = tried[record.candidates[0]]


def test_obs_catches_up_and_compacts_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    found, *_ = gathered("3x3")
    expected = run("obs", found, 1)
    for pending, compact in itertools.product((1, 20, 1000), (0.0, 0.5, 1.0)):
        monkeypatch.setattr("ispasp.obs.MOST_PENDING", pending)
        monkeypatch.setattr("ispasp.obs.COMPACT_BELOW", compact)
        records = run("obs", found, 1)
        assert records == expected
        for ours, theirs in zip(records, expected, strict=True):
            assert torch.allclose(ours.score, theirs.score, rtol=1e-6)

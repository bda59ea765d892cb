"""The pruner's iterations against a plain transcription of Algorithm 1, and against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ispasp
from ispasp.algorithm import candidate_count
from ispasp.settings import groups_to_keep
from tests import oracle

NETWORKS = {
    "two layers": (lambda seed: oracle.two_layer_network(12, 40, 7, seed), (12,)),
    "wide two layers": (lambda seed: oracle.two_layer_network(20, 200, 10, seed), (20,)),
    "3x3": (lambda seed: oracle.convolution_network(3, 20, 9, seed), (3, 8, 8)),
    "1x1": (lambda seed: oracle.convolution_network(3, 20, 9, seed, kernel=1, padding=0), (3, 8, 8)),
    "stride 2": (lambda seed: oracle.convolution_network(3, 20, 9, seed, stride=2), (3, 9, 7)),
    "dilation 2": (lambda seed: oracle.convolution_network(3, 20, 9, seed, dilation=2, padding=2), (3, 8, 8)),
    "no padding": (lambda seed: oracle.convolution_network(3, 20, 9, seed, padding=0), (3, 8, 8)),
    "flatten": (lambda seed: oracle.flattening_network(3, 24, 10, side=8, seed=seed), (3, 8, 8)),
}
SETTINGS = [(0.2, 2.0), (0.4, 2.0), (0.5, 2.0), (0.3, 1.0), (0.15, 4.0), (1.0, 2.0)]


def pruned(network: nn.Module, batches: list[Tensor], **options: object) -> ispasp.PruneResult:
    return ispasp.prune(network, batches, multiple=1, device="cpu", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("keep", "factor"), SETTINGS)
def test_iterations_equal_the_oracle(name: str, keep: float, factor: float) -> None:
    make, shape = NETWORKS[name]
    network, inputs = make(seed=1), torch.randn(23, *shape)
    result = pruned(network, list(inputs.split(8)), keep=keep, candidate_factor=factor)
    block = result.started.blocks[0]
    hidden, consumer = oracle.hidden_and_consumer(network, inputs)
    expected = oracle.algorithm_one(
        hidden, consumer, oracle.keep_groups(keep, block.groups), factor, group_size=block.group_size
    )
    previous: tuple[int, ...] = ()
    for ours, theirs in zip(result.trace, expected, strict=False):
        scale = theirs.importance.abs().max()
        assert torch.allclose(ours.importance / scale, theirs.importance / scale, atol=1e-4)
        assert torch.allclose(ours.hidden_sum, theirs.hidden_sum, rtol=1e-4)
        assert (ours.t, ours.candidates, ours.selected) == (theirs.t, theirs.candidates, theirs.selected)
        assert set(ours.added) == set(ours.selected) - set(previous)
        assert set(ours.dropped) == set(previous) - set(ours.selected)
        assert ours.residual == pytest.approx(theirs.residual, rel=1e-4)
        assert ours.relative_residual == pytest.approx(theirs.relative_residual, rel=1e-4)
        previous = ours.selected
    # Stopping at the fixed point lost nothing of the other iterations up to 20.
    assert result.trace[-1].converged
    assert all(theirs.selected == result.trace[-1].selected for theirs in expected[len(result.trace) - 1 :])


@pytest.mark.parametrize("seed", range(5))
def test_several_iterations_happen_and_never_lose_hidden_sum(seed: int) -> None:
    network, inputs = oracle.two_layer_network(30, 300, 20, seed), torch.randn(64, 30)
    trace = pruned(network, [inputs], keep=0.1).trace
    assert len(trace) >= 3
    sums = [iteration.hidden_sum[list(iteration.selected)].sum().item() for iteration in trace]
    assert sums == sorted(sums)
    assert trace[-1].selected == trace[-2].selected


def test_iterations_limit_stops_short_and_says_so() -> None:
    network = oracle.two_layer_network(30, 300, 20, seed=0)
    trace = pruned(network, [torch.randn(64, 30)], keep=0.1, iterations=1).trace
    assert len(trace) == 1
    assert not trace[0].converged


def test_when_every_group_is_a_candidate_one_iteration_decides() -> None:
    network = oracle.two_layer_network(12, 40, 7, seed=0)
    result = pruned(network, [torch.randn(20, 12)], keep=0.5)
    assert result.blocks_started[0].one_iteration_decides
    (only,) = result.trace
    top = torch.argsort(only.hidden_sum, descending=True)[:20]
    assert only.converged
    assert set(only.selected) == set(top.tolist())


@pytest.mark.parametrize("s", [1, 3, 5])
def test_brute_force_bounds_the_residual_from_below(s: int) -> None:
    network, inputs = oracle.two_layer_network(6, 8, 4, seed=s), torch.randn(40, 6)
    last = pruned(network, [inputs], keep=s / 8).trace[-1]
    best, _ = oracle.brute_force(*oracle.hidden_and_consumer(network, inputs), s)
    assert 0 < best <= last.residual * (1 + 1e-6)


def test_residual_of_a_later_support_is_exact_after_many_changes() -> None:
    """The meter moves from support to support; it must not drift away from the direct value."""
    network, inputs = oracle.convolution_network(3, 32, 8, seed=2), torch.randn(16, 3, 8, 8)
    hidden, consumer = oracle.hidden_and_consumer(network, inputs)
    for iteration in pruned(network, [inputs], keep=0.125, candidate_factor=1.5).trace:
        direct = oracle.residual(hidden, consumer, iteration.selected)
        assert iteration.residual == pytest.approx(direct, rel=1e-5)


def test_a_residual_far_below_the_first_is_still_exact() -> None:
    """One huge group and many tiny ones: the residual falls by many orders of magnitude."""
    network = oracle.two_layer_network(6, 12, 4, seed=3)
    with torch.no_grad():
        network[2].weight[:, 1:] *= 1e-5
        network[2].weight[:, 0] *= 1e3
        network[0].weight[1:] *= 10
    inputs = torch.randn(40, 6)
    hidden, consumer = oracle.hidden_and_consumer(network, inputs)
    for iteration in pruned(network, [inputs], keep=0.34, candidate_factor=1.0).trace:
        direct = oracle.residual(hidden, consumer, iteration.selected)
        assert iteration.residual == pytest.approx(direct, rel=1e-3)


def test_a_dead_block_has_no_residual_and_no_nan() -> None:
    network = oracle.two_layer_network(6, 12, 4, seed=3)
    with torch.no_grad():
        network[0].bias.fill_(-1e6)
    trace = pruned(network, [torch.randn(10, 6)], keep=0.5).trace
    assert trace[-1].relative_residual == 0.0
    assert trace[-1].selected == (0, 1, 2, 3, 4, 5)


def test_keep_is_rounded_down_or_to_multiples_and_never_to_nothing() -> None:
    assert [groups_to_keep(64, 0.4), groups_to_keep(256, 0.4), groups_to_keep(100, 0.29)] == [25, 102, 29]
    assert groups_to_keep(10, 0.01) == 1
    assert [groups_to_keep(64, keep, 8) for keep in (0.01, 0.3, 0.4, 0.9, 1.0)] == [8, 16, 24, 56, 64]
    assert groups_to_keep(8, 0.5, 8) == 4
    assert groups_to_keep(10, 1.0, 8) == 10
    for groups in range(1, 70):
        for keep in (0.001, 0.2, 0.5, 0.999, 1.0):
            for multiple in (1, 8, 16):
                assert 1 <= groups_to_keep(groups, keep, multiple) <= groups


def test_candidates_are_at_most_all_groups() -> None:
    assert candidate_count(10, 3, 2.0) == 6
    assert candidate_count(10, 7, 2.0) == 10
    assert candidate_count(10, 3, 1.5) == math.floor(4.5)

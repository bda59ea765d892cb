"""The re-fit of one layer against torch.linalg.lstsq on materialised patches, and what it must never do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ispasp import gram, reconstruct
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError
from ispasp.graph import CONSUMERS, trace
from ispasp.reconstruct import Refit
from ispasp.residual import Consumer
from tests import oracle
from tests.patches import output_rows, patch_matrix

KEPT = (0, 2, 3, 7, 8)


def consumer_of(network: nn.Module, inputs: Tensor) -> Consumer:
    """The last convolution or linear operation of ``network``, as the pruner sees it."""
    traced = trace(network, Batch((inputs,), {}))
    read = [node for node in traced.nodes if node.target in CONSUMERS][-1]
    return Consumer(read, traced.fixed[read.args[1]].detach())  # type: ignore[index]


NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...], int]] = {
    "linear": (lambda: oracle.two_layer_network(6, 10, 4, seed=1), (50, 6), 1),
    "tokens": (lambda: oracle.two_layer_network(6, 10, 4, seed=1), (9, 7, 6), 1),
    "1x1": (lambda: oracle.convolution_network(3, 10, 4, seed=1, kernel=1, padding=0), (5, 3, 7, 6), 1),
    "3x3": (lambda: oracle.convolution_network(3, 10, 4, seed=1), (8, 3, 7, 6), 1),
    "stride": (lambda: oracle.convolution_network(3, 10, 4, seed=1, stride=2), (16, 3, 9, 8), 1),
    "dilation": (
        lambda: oracle.convolution_network(3, 10, 4, seed=1, padding=2, dilation=2),
        (8, 3, 8, 9),
        1,
    ),
    "flatten": (lambda: oracle.flattening_network(3, 10, 4, side=4, seed=1), (60, 3, 4, 4), 4),
}


def refit_of(
    network: nn.Sequential,
    inputs: Tensor,
    size: int,
    ridge: float,
    intercept: bool = True,
    known: bool = False,
) -> tuple[Refit, Tensor, Tensor, list[Tensor]]:
    """Re-fit to a random target, in two batches; also the kept H, R as rows, and the new outputs."""
    hidden, layer = oracle.hidden_and_consumer(network, inputs)
    consumer = consumer_of(network, inputs)
    selected = torch.zeros(10, dtype=torch.bool)
    selected[list(KEPT)] = True
    mask = selected.repeat_interleave(size)
    shape = [1] * hidden.ndim
    shape[consumer.feature_dim] = -1
    batches = list(hidden.split(len(hidden) // 2 + 1))
    outputs = [consumer(batch * mask.view(shape)) for batch in batches]
    targets = [consumer(batch) + torch.randn_like(out) for batch, out in zip(batches, outputs, strict=True)]
    missing = [target - out for target, out in zip(targets, outputs, strict=True)]
    rows = output_rows(layer, torch.cat(missing))
    result = reconstruct.refit(
        consumer,
        batches,
        selected,
        size,
        outputs,
        missing,
        intercept,
        known=gram.collect(consumer, batches) if known else None,
        ridge=ridge,
    )
    return result, hidden.index_select(consumer.feature_dim, mask.nonzero().flatten()), rows, outputs


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("ridge", "intercept", "known"), [(0.0, True, False), (0.0, False, True), (0.1, True, True)]
)
def test_solution_is_that_of_lstsq_on_materialised_patches(
    name: str, ridge: float, intercept: bool, known: bool
) -> None:
    build, shape, size = NETWORKS[name]
    network = build().double()
    layer = network[-1]
    inputs = torch.randn(*shape, dtype=torch.float64)
    result, kept, rows, outputs = refit_of(network, inputs, size, ridge, intercept, known)
    x = patch_matrix(layer, kept)
    if intercept:
        mean, offset = x.mean(0), rows.mean(0)
    else:
        mean, offset = torch.zeros_like(x[0]), torch.zeros_like(rows[0])
    centred = x - mean
    penalty = (ridge * centred.square().sum(0).mean()).sqrt() * torch.eye(x.shape[1], dtype=x.dtype)
    expected = torch.linalg.lstsq(
        torch.cat([centred, penalty]),
        torch.cat([rows - offset, torch.zeros(len(penalty), rows.shape[1], dtype=x.dtype)]),
    ).solution
    index = torch.tensor(KEPT)[:, None] * size + torch.arange(size)
    old = layer.weight.detach()[:, index.flatten()].flatten(1).T
    assert torch.allclose(result.weight.flatten(1).T, old + expected, atol=1e-8)
    error = (rows - centred @ expected - offset).square().sum().item()
    assert result.after == pytest.approx(error, rel=1e-8)
    assert result.before == pytest.approx(rows.square().sum().item(), rel=1e-8)
    assert result.after < result.before
    new = x @ result.weight.flatten(1).T + (result.intercept if result.intercept is not None else 0.0)
    assert torch.allclose(output_rows(layer, torch.cat(outputs)), new, atol=1e-8)
    assert result.notes == ()


def test_without_room_for_the_gram_matrix_a_sample_of_positions_solves_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All positions fit into the sample here, so both forms have one solution."""
    build, shape, size = NETWORKS["3x3"]
    network, inputs = build().double(), torch.randn(*shape, dtype=torch.float64)
    torch.manual_seed(5)
    expected, *_ = refit_of(network, inputs, size, ridge=1e-3)
    monkeypatch.setattr(gram, "MOST_GRAM_BYTES", 1000)
    torch.manual_seed(5)
    result, *_ = refit_of(network, inputs, size, ridge=1e-3)
    assert torch.allclose(result.weight, expected.weight, atol=1e-8)
    assert result.intercept is not None and expected.intercept is not None
    assert torch.allclose(result.intercept, expected.intercept, atol=1e-8)
    assert "positions" in result.notes[0]
    monkeypatch.setattr(reconstruct, "SAMPLED_POSITIONS", 50)
    sampled, *_ = refit_of(network, inputs, size, ridge=1e-3)
    assert sampled.after <= sampled.before and sampled.weight.isfinite().all()


def test_fewer_positions_than_unknowns_is_said_and_stays_finite() -> None:
    network = oracle.convolution_network(3, 10, 4, seed=1)
    result, *_ = refit_of(network, torch.randn(2, 3, 3, 3), 1, reconstruct.RIDGE)
    assert any("18 calibration positions for 45 unknowns" in note for note in result.notes)
    assert result.weight.isfinite().all() and result.after <= result.before


def test_dead_and_repeated_groups_give_finite_weights_and_a_note() -> None:
    """A group that is always zero and two that are equal make X^T X singular."""
    network = oracle.two_layer_network(6, 10, 4, seed=1)
    with torch.no_grad():
        network[0].weight[2] = 0
        network[0].bias[2] = -1.0
        network[0].weight[8], network[0].bias[8] = network[0].weight[7], network[0].bias[7]
    for ridge in (reconstruct.RIDGE, 0.0):
        result, *_ = refit_of(network, torch.randn(50, 6), 1, ridge)
        assert any("1 of 5 inputs of the kept groups are always zero" in note for note in result.notes)
        assert result.weight.isfinite().all() and result.after < result.before
        # The dead group's weights keep their values.
        assert torch.equal(result.weight[:, 1], network[2].weight.detach()[:, 2])
    assert any("singular" in note for note in result.notes)


def test_a_solution_that_would_raise_the_error_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(*arguments: object, **keywords: object) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        return torch.full((5, 4), float("nan")), torch.zeros(4), ()

    monkeypatch.setattr(reconstruct, "solve", bad)
    network = oracle.two_layer_network(6, 10, 4, seed=1)
    result, kept, _, outputs = refit_of(network, torch.randn(50, 6), 1, 0.0)
    assert torch.equal(result.weight, network[2].weight.detach()[:, list(KEPT)])
    assert result.after == result.before
    assert any("would have raised the error" in note for note in result.notes)
    assert torch.allclose(torch.cat(outputs), kept @ result.weight.T, atol=1e-5)


@pytest.mark.parametrize("where", ["X", "R"])
@pytest.mark.parametrize("sampled", [False, True])
def test_equations_that_are_not_finite_are_refused(
    where: str, sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = oracle.two_layer_network(6, 10, 4, seed=1)
    consumer, hidden, missing = consumer_of(network, torch.randn(9, 6)), torch.randn(9, 5), torch.randn(9, 4)
    (hidden if where == "X" else missing)[3, 2] = torch.inf
    with pytest.raises(CalibrationError, match="NaN, infinite or too large to square"):
        if sampled:
            reconstruct._solve_sampled(consumer, [hidden], [missing], True, reconstruct.RIDGE)
        else:
            reconstruct.solve(reconstruct._normal(consumer, [hidden], [missing], None), True)


@pytest.mark.parametrize("intercept", [True, False])
def test_a_target_that_is_not_finite_leaves_the_old_weights(intercept: bool) -> None:
    network = oracle.two_layer_network(6, 10, 4, seed=1)
    hidden, selected = torch.randn(9, 10), torch.arange(10) < 5
    outputs, missing = [torch.randn(9, 4)], [torch.full((9, 4), -torch.inf)]
    kept = outputs[0].clone()
    result = reconstruct.refit(
        consumer_of(network, torch.randn(9, 6)), [hidden], selected, 1, outputs, missing, intercept
    )
    assert torch.equal(result.weight, network[2].weight.detach()[:, :5]) and torch.equal(outputs[0], kept)
    assert (result.intercept is not None) == intercept
    assert result.intercept is None or not result.intercept.any()
    assert (result.energy, result.before, result.after) == (0, 0, 0)
    assert "target of the re-fit is not finite" in result.notes[0]


def test_a_solution_holds_one_matrix_besides_the_equations() -> None:
    """Counted by the allocator: the Cholesky factor is the only other thing of that size."""
    count, outputs = 600, 3
    rows = torch.randn(2 * count, count, dtype=torch.float64)
    cross = rows.T @ torch.randn(len(rows), outputs, dtype=torch.float64)
    equations = reconstruct.Normal(
        gram.Gram(rows.T @ rows, rows.sum(0), len(rows)),
        cross,
        torch.zeros(outputs, dtype=torch.float64),
        torch.finfo(torch.float64).eps,
    )
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as seen:
        reconstruct.solve(equations, True)
    held = peak = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 8 * count * count <= peak < 1.2 * 8 * count * count

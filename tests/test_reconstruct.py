"""The re-fit against torch.linalg.lstsq on materialised patches, and what it must never do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ispasp
from ispasp import gram, reconstruct, zoo
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError
from ispasp.graph import CONSUMERS, trace
from ispasp.reconstruct import Refit
from ispasp.residual import Consumer
from tests import oracle
from tests.conftest import settle_batch_norm

KEPT = (0, 2, 3, 7, 8)


def consumer_of(network: nn.Module, inputs: Tensor) -> Consumer:
    """The last convolution or linear operation of ``network``, as the pruner sees it."""
    traced = trace(network, Batch((inputs,), {}))
    read = [node for node in traced.nodes if node.target in CONSUMERS][-1]
    return Consumer(read, traced.fixed[read.args[1]].detach())  # type: ignore[index]


def patch_matrix(layer: nn.Module, hidden: Tensor) -> Tensor:
    """What ``layer`` reads, one row per output position, columns as in ``layer.weight.flatten(1)``."""
    if isinstance(layer, nn.Conv2d):
        rows = F.unfold(hidden, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        return rows.transpose(1, 2).reshape(-1, rows.shape[1])
    return hidden.reshape(-1, hidden.shape[-1])


def output_rows(layer: nn.Module, output: Tensor) -> Tensor:
    last = output.movedim(1, -1) if isinstance(layer, nn.Conv2d) else output
    return last.reshape(-1, last.shape[-1])


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


class Residual(nn.Module):
    """A stem and two residual blocks, the second with a downsample that runs after its second convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.first = self._branch(8, 8, 1)
        self.second = self._branch(8, 12, 2)
        self.downsample = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
        self.head = nn.Linear(12, 5)

    @staticmethod
    def _branch(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu_(self.first(x) + x)
        y = self.second(x)
        y += self.downsample(x)
        return self.head(F.relu_(y).mean((2, 3)))


@pytest.fixture
def residual() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(3)
    batches = [torch.randn(16, 3, 12, 12) for _ in range(2)]
    model = settle_batch_norm(Residual(), batches)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model, batches


def inputs_and_output(model: nn.Module, name: str, data: Tensor) -> tuple[Tensor, Tensor]:
    """What one module reads and gives."""
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: seen.extend([inputs[0].clone(), output.clone()])
    )
    with torch.no_grad():
        model(data)
    hook.remove()
    return seen[0], seen[1]


def test_asymmetric_target_is_the_dense_sum_less_the_pruned_shortcut(
    residual: tuple[nn.Module, list[Tensor]],
) -> None:
    """The second block, re-fitted by hand: its normalised output should make up for its downsample's error."""
    model, batches = residual
    data = torch.cat(batches)
    result = ispasp.prune(model, batches, 0.5, reconstruct="asymmetric", multiple=1)
    assert [event.target for event in result.blocks_pruned] == ["asymmetric", "asymmetric"]
    hidden, _ = inputs_and_output(result.model, "second.3", data)
    _, normed = inputs_and_output(result.model, "second.4", data)
    _, dense_normed = inputs_and_output(model, "second.4", data)
    shortcut = inputs_and_output(result.model, "downsample", data)[1]
    dense_shortcut = inputs_and_output(model, "downsample", data)[1]
    norm = model.get_submodule("second.4")
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    wanted = output_rows(nn.Conv2d(1, 1, 1), (dense_normed + dense_shortcut - shortcut)) / scale
    rows = patch_matrix(result.model.get_submodule("second.3"), hidden).double()
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(rows, wanted.detach().double()).solution
    by_hand = (rows @ best).float() * scale
    got = output_rows(nn.Conv2d(1, 1, 1), normed)
    # The ridge keeps the two from being equal to the last digit.
    assert ((by_hand - got).norm() / got.norm()).item() < 1e-3
    # The same without the shortcut term is another solution.
    plain = torch.linalg.lstsq(
        rows, (output_rows(nn.Conv2d(1, 1, 1), dense_normed) / scale).detach().double()
    ).solution
    assert (((rows @ plain).float() * scale - got).norm() / got.norm()).item() > 1e-2


def test_asymmetric_is_symmetric_on_the_first_block(residual: tuple[nn.Module, list[Tensor]]) -> None:
    """Nothing before it was pruned, so both streams are the same there."""
    model, batches = residual
    weights = []
    for target in ("symmetric", "asymmetric"):
        result = ispasp.prune(model, batches, {"first.0": 0.5}, reconstruct=target, multiple=1)
        weights.append(result.model.state_dict())
        assert result.blocks_pruned[0].error_before == pytest.approx(
            result.blocks_pruned[0].relative_residual, rel=1e-4
        )
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])


@pytest.mark.parametrize("target", ["symmetric", "asymmetric"])
def test_keeping_everything_is_the_identity(target: str, residual: tuple[nn.Module, list[Tensor]]) -> None:
    model, batches = residual
    result = ispasp.prune(model, batches, 1.0, reconstruct=target)
    for name, value in model.state_dict().items():
        assert torch.allclose(value.float(), result.model.state_dict()[name].float(), atol=1e-5), name
    assert all(event.error_after == pytest.approx(0.0, abs=1e-9) for event in result.blocks_pruned)


@pytest.mark.parametrize("target", ["symmetric", "asymmetric"])
def test_on_a_trained_model_no_block_gets_worse_and_the_output_gets_closer(
    target: str, resnet20_batches: list[tuple[Tensor, Tensor]]
) -> None:
    model = zoo.load("cifar10_resnet20")
    options = {"evaluation": resnet20_batches, "multiple": 1}
    plain = ispasp.prune(model, resnet20_batches, 0.5, **options)
    result = ispasp.prune(model, resnet20_batches, 0.5, reconstruct=target, **options)
    for event in result.blocks_pruned:
        assert event.target == target, event.notes
        assert event.error_after is not None and event.error_before is not None
        assert event.error_after <= event.error_before
    assert result.report["accuracy_after"] > plain.report["accuracy_after"] + 0.2
    assert result.report["blocks"][0]["error_after"] == result.blocks_pruned[0].error_after


class Gated(Residual):
    """Its second branch is scaled by what depends on the input before it is added."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.first(x) + x)
        return self.head(
            F.relu(self.second(x) * x.mean((1, 2, 3), keepdim=True) + self.downsample(x)).mean((2, 3))
        )


class Late(Residual):
    """The shortcut of its second branch is changed in place between that branch and the addition."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.first(x) + x)
        y = self.second(x)
        z = self.downsample(x)
        return self.head(F.relu(y + z.relu_()).mean((2, 3)))


@pytest.mark.parametrize("kind", [Gated, Late])
def test_symmetric_is_used_and_said_where_the_shortcut_cannot_be_identified(kind: type[nn.Module]) -> None:
    torch.manual_seed(3)
    batches = [torch.randn(16, 3, 12, 12)]
    model = settle_batch_norm(kind(), batches)
    result = ispasp.prune(model, batches, 0.5, reconstruct="asymmetric", multiple=1)
    first, second = result.blocks_pruned
    assert (first.target, first.notes) == ("asymmetric", ())
    assert second.target == "symmetric"
    assert "in place of the asymmetric one" in second.notes[0] and len(second.notes) == 1


def test_a_plain_chain_is_refitted_to_the_dense_stream() -> None:
    """Without any addition the target needs no shortcut; each layer is consumer and producer in turn."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 16, 20),
        nn.ReLU(),
        nn.Linear(20, 6, bias=False),
    ).eval()
    data = [torch.randn(64, 3, 8, 8), torch.randn(64, 3, 8, 8)]
    errors = {}
    with torch.no_grad():
        dense = model(torch.cat(data))
        for target in ("none", "symmetric", "asymmetric"):
            result = ispasp.prune(model, data, 0.5, reconstruct=target, multiple=1)
            errors[target] = (result.model(torch.cat(data)) - dense).norm().item()
            assert {event.target for event in result.blocks_pruned} == {target}
    assert errors["asymmetric"] < errors["symmetric"] < errors["none"]


def test_recalibrated_norms_have_the_statistics_of_their_input(
    residual: tuple[nn.Module, list[Tensor]],
) -> None:
    """All data in one batch: what a batch norm in training mode would measure in the pruned model."""
    model, batches = residual
    data = torch.cat(batches)
    for target in ("none", "asymmetric"):
        result = ispasp.prune(model, [data], 0.5, reconstruct=target, recalibrate=True, multiple=1)
        changed = []
        for name, module in result.model.named_modules():
            if not isinstance(module, nn.BatchNorm2d):
                continue
            inputs, _ = inputs_and_output(result.model, name, data)
            same = torch.allclose(module.running_mean, inputs.mean((0, 2, 3)), atol=1e-4) and torch.allclose(
                module.running_var, inputs.var((0, 2, 3), correction=0), rtol=1e-3
            )
            if same:
                changed.append(name)
        # Behind a re-fitted consumer the norm keeps its own: the re-fit has aimed at them.
        expected = {"second.1", "downsample.1"} | ({"first.4", "second.4"} if target == "none" else set())
        assert expected <= set(changed) and (target == "none" or not {"first.4", "second.4"} & set(changed))


def test_inputs_that_do_not_vary_keep_their_weights() -> None:
    """Less their means nothing is left but rounding, from which nothing can be learnt."""
    network = oracle.two_layer_network(20, 64, 10, seed=0)
    same = torch.randn(1, 20).expand(64, 20).contiguous()
    result = ispasp.prune(network, [same], 0.5, reconstruct="symmetric", multiple=1)
    kept = list(result.blocks_pruned[0].selected)
    old, new = network[2].weight.detach()[:, kept], result.model[2].weight.detach()
    assert ((new - old).norm() / old.norm()).item() < 0.05

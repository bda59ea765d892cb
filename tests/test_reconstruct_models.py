"""Whole models re-fitted: what the target is, that it helps, and batch norms measured anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ispasp
from ispasp import zoo
from tests import oracle
from tests.conftest import settle_batch_norm
from tests.patches import output_rows, patch_matrix


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

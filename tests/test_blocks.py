"""What the walk finds, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

import ispasp
from ispasp import zoo
from ispasp.errors import CalibrationError, ModelError

IMAGE = torch.randn(2, 3, 32, 32)
VECTOR = torch.randn(2, 6)


def prunable(model: nn.Module, example: Tensor) -> list[ispasp.Block]:
    return [block for block in ispasp.find_blocks(model, example) if block.prunable]


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 8), ("resnet34", 16), ("vgg11_bn", 10), ("alexnet", 7)]
)
def test_torchvision_models(name: str, count: int) -> None:
    model = models.get_model(name, weights=None).eval()
    assert len(prunable(model, torch.randn(2, 3, 64, 64))) == count


def test_every_residual_block_of_the_sample_resnet_is_found_in_order() -> None:
    blocks = prunable(zoo.load("cifar10_resnet20"), IMAGE)
    assert [block.name for block in blocks] == [
        f"layer{stage}.{number}.conv1" for stage in (1, 2, 3) for number in (0, 1, 2)
    ]
    assert [block.groups for block in blocks] == [16] * 3 + [32] * 3 + [64] * 3
    assert all(block.consumer == block.name.replace("conv1", "conv2") for block in blocks)
    assert all(block.riders == (block.name.replace("conv1", "bn1"),) for block in blocks)


def test_a_flatten_makes_groups_of_several_features() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(5 * 15 * 15, 4)
    )
    (block,) = prunable(model.eval(), IMAGE)
    assert (block.groups, block.group_size, block.consumer) == (5, 225, "4")


def test_finding_blocks_leaves_the_model_as_it_was() -> None:
    model = zoo.load("cifar10_resnet20").train()
    model.bn1.eval()
    ispasp.find_blocks(model, IMAGE)
    assert model.training
    assert not model.bn1.training


class Two(nn.Module):
    """Two linear layers; subclasses say what happens in between and around."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)


class Residual(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)) + x)


class Returned(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.first(x))
        return self.second(hidden), hidden


class Softmax(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.softmax(self.first(x), dim=-1))


class NoNonlinearity(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Tied(Two):
    def __init__(self) -> None:
        super().__init__()
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class UsedTwice(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(torch.relu(self.first(x)))))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6))
        self.second = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(F.linear(x, self.w)))


class AddedToABuffer(Two):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)) + self.offset)


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.cat([torch.relu(self.first(x)), x], dim=-1))


class ReadThroughTwoWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.third = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        return self.second(hidden) + self.third(torch.tanh(hidden))


class UsedElsewhere(Two):
    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        return self.second(hidden) * hidden.sum(dim=-1, keepdim=True)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.second = nn.Conv2d(6, 6, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class AsWeight(Two):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch.relu(self.first(x)))


class ShuffledView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)).view(-1, 3, 2))


class SharedBias(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.second(torch.relu(self.first(x))), x.sum(1) + self.first.bias.sum()


class TiedUnused(Two):
    """The other holder of the weight is not part of the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 6)
        self.head.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class LinearOverPositions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.second = nn.Linear(30, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class GroupedProducer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, groups=3)
        self.second = nn.Conv2d(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Averaged(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)).mean(dim=1, keepdim=True).expand(-1, 6))


class PlainNorm(nn.Module):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6, **options),
            nn.Conv2d(6, 6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x))))


class NormWithoutWeights(PlainNorm):
    def __init__(self) -> None:
        super().__init__(affine=False)


class NormWithoutStatistics(PlainNorm):
    def __init__(self) -> None:
        super().__init__(track_running_stats=False)


class ForeignBias(Two):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.first(x)), self.second.weight, bias=self.offset)


class ComputedBias(ForeignBias):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.first(x)), self.second.weight, self.second.bias * self.offset)


class ProducerWithForeignBias(ForeignBias):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(F.linear(x, self.first.weight, self.offset)))


class ComputedBiasOfAConvolution(Grouped):
    def forward(self, x: Tensor) -> Tensor:
        assert self.first.bias is not None
        return self.second(torch.relu(F.conv2d(x, self.first.weight, self.first.bias * 2)))


class WithoutItsBias(Two):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.first(x)), self.second.weight)


@pytest.mark.parametrize("reconstruct", ["none", "symmetric"])
def test_a_bias_that_is_left_out_is_no_obstacle(reconstruct: str) -> None:
    model = WithoutItsBias().eval()
    result = ispasp.prune(model, [VECTOR], 0.5, multiple=1, reconstruct=reconstruct, device="cpu")
    assert result.model.second.weight.shape == (6, 3)


class GradientsInside(Two):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize(
    ("kind", "example", "reason"),
    [
        (SharedBias, VECTOR, "its bias (first.bias) is shared"),
        (TiedUnused, VECTOR, "shared (tied)"),
        (LinearOverPositions, IMAGE, "along another dimension"),
        (GroupedProducer, IMAGE, "it is a grouped convolution"),
        (Averaged, VECTOR, "its groups are averaged"),
        (NormWithoutWeights, IMAGE, "batch norm without weights"),
        (NormWithoutStatistics, IMAGE, "without running statistics"),
        (Residual, VECTOR, "residual stream"),
        (Returned, VECTOR, "the model returns it"),
        (Softmax, VECTOR, "softmax"),
        (NoNonlinearity, VECTOR, "no nonlinearity"),
        (Tied, VECTOR, "shared (tied)"),
        (UsedTwice, VECTOR, "shared (tied)"),
        (Functional, VECTOR, "functionally"),
        (AddedToABuffer, VECTOR, "added to another value"),
        (Concatenated, VECTOR, "concatenated"),
        (ReadThroughTwoWays, VECTOR, "several layers"),
        (UsedElsewhere, VECTOR, "its groups are averaged or summed up"),
        (Grouped, IMAGE, "a grouped convolution that is not depthwise"),
        (AsWeight, VECTOR, "used as a weight"),
        (ShuffledView, VECTOR, "along another dimension than its groups"),
        (ForeignBias, VECTOR, "the bias added to second is not that layer's own parameter"),
        (ComputedBias, VECTOR, "the bias added to second is not"),
        (ProducerWithForeignBias, VECTOR, "the bias added to first is not"),
        (ComputedBiasOfAConvolution, IMAGE, "the bias added to first is not"),
    ],
)
def test_what_could_be_pruned_wrongly_is_refused_with_the_reason(
    kind: type[nn.Module], example: Tensor, reason: str
) -> None:
    first = ispasp.find_blocks(kind().eval(), example)[0]
    assert not first.prunable
    assert reason in first.reason
    with pytest.raises(ModelError, match="Nothing in this model can be pruned"):
        ispasp.prune(kind().eval(), [example], keep=0.5, device="cpu")


class TwoConsumers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.second = nn.Linear(16, 6)
        self.third = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        return torch.cat([self.second(hidden), self.third(hidden)], dim=-1)


def test_several_consumers_of_one_hidden_representation_are_sliced_together() -> None:
    (block,) = prunable(TwoConsumers(), VECTOR)
    assert block.consumers == ("second", "third")
    result = ispasp.prune(TwoConsumers(), [torch.randn(30, 6)], keep=0.5, multiple=1, device="cpu")
    assert result.model.second.weight.shape == (6, 8)
    assert result.model.third.weight.shape == (4, 8)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_traced_is_named_with_the_cause() -> None:
    with pytest.raises(ModelError, match="Branching cannot be traced by torch.export"):
        ispasp.find_blocks(Branching(), VECTOR)


def test_gradient_switches_inside_forward_are_named() -> None:
    with pytest.raises(ModelError, match="GradientsInside"):
        ispasp.prune(GradientsInside(), [VECTOR], keep=0.5, device="cpu")


def test_what_is_not_a_model_or_not_a_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="the model is a str|The model is a str"):
        ispasp.find_blocks("resnet18", VECTOR)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="is a str"):
        ispasp.find_blocks(Two(), "images")

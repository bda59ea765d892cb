"""The published way of working and the package choose the same channels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ispasp
from benchmarks.published import published_prune, residual_blocks
from sample_models.architectures import CifarResNet
from tests.oracle import algorithm_one, brute_force, keep_groups

KEEPS = (0.25, 0.4, 0.6)


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    """Two batches of eight smooth random images (8, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(16, 3, 8, 8, generator=generator)
    return list(nn.functional.interpolate(coarse, size=32, mode="bilinear").split(8))


@pytest.fixture(scope="module")
def model(batches: list[Tensor]) -> nn.Module:
    """A small residual network with random weights whose batch norms have seen the images."""
    torch.manual_seed(5)
    network = CifarResNet(blocks_per_stage=1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
    network.train()
    with torch.no_grad():
        for images in batches:
            network(images)
    return network.eval()


@pytest.mark.parametrize("keep", KEEPS)
def test_prune_selects_what_the_published_loop_selects(
    model: nn.Module, batches: list[Tensor], keep: float
) -> None:
    expected = {block.name: list(block.selected) for block in published_prune(model, batches, keep)}
    result = ispasp.prune(
        model, batches, keep=keep, selector="ispasp", reconstruct="none", multiple=1, device="cpu"
    )
    selected = {block["name"]: list(block["selected"]) for block in result.report["blocks"]}
    assert selected == expected


@pytest.mark.parametrize("keep", KEEPS)
def test_first_block_of_the_published_loop_follows_algorithm_one(
    model: nn.Module, batches: list[Tensor], keep: float
) -> None:
    first = residual_blocks(model)[0]
    consumer = model.get_submodule(first.consumer)
    hidden: list[Tensor] = []
    handle = consumer.register_forward_pre_hook(lambda _, arguments: hidden.append(arguments[0]))
    with torch.no_grad():
        for images in batches:
            model(images)
    handle.remove()
    steps = algorithm_one(torch.cat(hidden), consumer, keep_groups(keep, 16))
    (block,) = published_prune(model, batches, keep, blocks=[first.producer])
    assert block.selected == steps[-1].selected


def test_published_loop_visits_every_block_and_leaves_the_model_alone(
    model: nn.Module, batches: list[Tensor]
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    blocks = list(published_prune(model, batches, 0.4))
    assert [block.name for block in blocks] == ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]
    assert [len(block.selected) for block in blocks] == [6, 12, 25]
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_oracle_on_a_block_worked_out_by_hand() -> None:
    """H = diag(1, 2, 3, 4), A = the row (1, 1, -2, 3): A(H) = (1, 2, -6, 12) over the four examples.

    With S empty, y_g = a_g * sum over n of V_n = a_g * 9 = (9, 9, -18, 27). With s = 1 and c = 2 the
    candidates are 3 and, of the tied 0 and 1, the lower; the larger hidden sum keeps 3. What is left is
    (1, 2, -6, 0), 41 of 185 in energy; its sum is -3, so y = (-3, -3, 6, -9), and the candidates 0 and 2
    do not displace 3.
    """
    consumer = nn.Linear(4, 1)
    with torch.no_grad():
        consumer.weight.copy_(torch.tensor([[1.0, 1.0, -2.0, 3.0]]))
        consumer.bias.fill_(7.0)
    hidden = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    first, second = algorithm_one(hidden, consumer, 1, iterations=2)
    assert first.importance.tolist() == [9.0, 9.0, -18.0, 27.0]
    assert first.hidden_sum.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert (first.candidates, first.selected) == ((0, 3), (3,))
    assert first.residual == 41.0
    assert first.relative_residual == pytest.approx(41 / 185)
    assert second.importance.tolist() == [-3.0, -3.0, 6.0, -9.0]
    assert (second.candidates, second.selected) == ((0, 2), (3,))
    assert brute_force(hidden, consumer, 1) == (41.0, (3,))

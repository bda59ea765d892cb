"""Views with numbers in them: tried out, because the graph cannot tell an asked size from a written one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import ispasp
from ispasp import trial


class Squeeze(nn.Module):
    """Squeeze-excitation as most repositories spell it; ``asked`` says whether its views adapt."""

    def __init__(self, asked: bool, spread: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.gate = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16), nn.Sigmoid())
        self.last = nn.Conv2d(16, 5, 1)
        self.asked, self.spread = asked, spread

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        channels = x.size(1) if self.asked else 16
        gate = self.gate(x.mean((2, 3)).view(-1, channels)).view(-1, channels, 1, 1)
        return self.last(x * (gate.expand_as(x) if self.spread else gate))


class Heads(nn.Module):
    """Attention whose views take the number of heads from the layer's width, or from the module."""

    def __init__(self, asked: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.asked = asked

    def split(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        return x.view(batch, tokens, width // 4 if self.asked else 3, 4).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        heads = (query @ key.transpose(-2, -1) / 2).softmax(-1) @ value
        return self.out(heads.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("spread", [False, True])
def test_a_size_that_is_asked_for_adapts(spread: bool) -> None:
    model, images = Squeeze(asked=True, spread=spread).eval(), torch.randn(6, 3, 8, 8)
    block = ispasp.find_blocks(model, images)[0]
    assert block.prunable and block.consumers == ("last",) and block.named("gate") == ("gate.0",)
    result = ispasp.prune(model, [images], 0.5, multiple=1, reconstruct="asymmetric")
    assert [len(event.selected) for event in result.blocks_pruned] == [2, 8]
    assert result.model.gate[0].in_features == 8 and result.model.gate[2].out_features == 8


def test_a_size_that_is_written_does_not() -> None:
    first, *_ = ispasp.find_blocks(Squeeze(asked=False, spread=False).eval(), torch.randn(6, 3, 8, 8))
    assert not first.prunable and "size written into forward" in first.reason


@pytest.mark.parametrize("asked", [True, False])
def test_heads(asked: bool) -> None:
    block, *_ = ispasp.find_blocks(Heads(asked).eval(), torch.randn(2, 5, 12))
    assert block.prunable == asked
    assert asked or "size written into forward" in block.reason
    if asked:
        assert (block.kind, block.groups, block.group_size) == ("head", 3, 4)
        assert block.producers == ("query", "key", "value")


def test_a_trial_leaves_the_model_alone() -> None:
    model, images = Squeeze(asked=True, spread=False).eval(), torch.randn(6, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    (block, *_) = ispasp.find_blocks(model, images)
    assert trial.fits(block, model, ispasp.calibration.as_batch(images))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class ChannelsLast(nn.Module):
    """Squeeze-excitation by linear layers over (N, h, w, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 5)
        self.gate = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(x * self.gate(x.mean((1, 2), keepdim=True)))


def test_a_gate_over_the_last_dimension() -> None:
    images = torch.randn(6, 4, 4, 3)
    result = ispasp.prune(ChannelsLast().eval(), [images], 0.5, multiple=1, reconstruct="symmetric")
    assert [event.block.gates != () for event in result.blocks_pruned] == [False, True]
    assert result.model.gate[0].in_features == 8

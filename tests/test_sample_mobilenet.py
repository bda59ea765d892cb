"""cifar10_mobilenetv2: torchvision's names, the paper's blocks, widths that kernels like."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import mobilenet_v2

from ispasp import find_blocks, zoo

EXPANDED = range(2, 18)  # features.1 has no expanding convolution


def test_parameters_have_torchvisions_names():
    model = zoo.build("cifar10_mobilenetv2")
    assert list(model.state_dict()) == list(mobilenet_v2(weights=None).state_dict())


def test_it_is_small_and_its_hidden_widths_are_multiples_of_8():
    model = zoo.build("cifar10_mobilenetv2")
    assert sum(p.numel() for p in model.parameters()) <= 700_000
    hidden = [model.get_submodule(f"features.{i}.conv.0.0").out_channels for i in range(1, 18)]
    assert all(width % 8 == 0 for width in hidden)
    assert max(hidden) == 480


def test_the_hidden_channels_of_every_expanded_block_can_be_pruned():
    model = zoo.build("cifar10_mobilenetv2").eval()
    prunable = {b.name: b.groups for b in find_blocks(model, torch.zeros(2, 3, 32, 32)) if b.prunable}
    for i in EXPANDED:
        convolution = model.get_submodule(f"features.{i}.conv.0.0")
        assert prunable[f"features.{i}.conv.0.0"] == convolution.out_channels


def test_the_map_shrinks_to_4_by_4_in_three_strides():
    model = zoo.build("cifar10_mobilenetv2").eval()
    assert model.features(torch.zeros(1, 3, 32, 32)).shape == (1, 256, 4, 4)
    strides = [m.stride for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)]
    assert strides == [(2, 2)] * 3

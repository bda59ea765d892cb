"""The check of the sliced model against the masked one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ispasp
from ispasp import surgery
from ispasp.errors import SurgeryError


class MaskedClasses(nn.Module):
    """Two of six classes are switched off, as where only some answers are allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 6))
        self.register_buffer("mask", torch.tensor([0, 0, -math.inf, 0, -math.inf, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.mask


@pytest.mark.parametrize("reconstruct", ["none", "symmetric", "asymmetric"])
def test_classes_masked_with_infinity_can_be_pruned(reconstruct: str) -> None:
    model, data = MaskedClasses().eval(), torch.randn(40, 5)
    result = ispasp.prune(model, [data], 0.5, multiple=1, reconstruct=reconstruct, device="cpu")
    assert result.model.layers[0].weight.shape == (6, 5)
    assert torch.equal(result.model(data).isinf(), model(data).isinf())


@pytest.mark.parametrize("value", [math.inf, math.nan, 1.0])
def test_values_that_are_not_finite_must_be_the_same(value: float) -> None:
    masked = torch.tensor([[2.0, -math.inf, 1.0]])
    surgery.check_equal([masked], [masked + 1e-5])
    with pytest.raises(SurgeryError, match="differs from the masked model in values that are not finite"):
        surgery.check_equal([masked], [torch.tensor([[2.0, value, 1.0]])])
    with pytest.raises(SurgeryError, match="not finite"):
        surgery.check_equal([masked], [torch.tensor([[2.0, -math.inf, math.inf]])])
    with pytest.raises(SurgeryError, match="of the output's scale"):
        surgery.check_equal([masked], [masked + 1e-2])


def test_nan_never_passes() -> None:
    with pytest.raises(SurgeryError, match="not finite"):
        surgery.check_equal([torch.tensor([math.nan, 1.0])], [torch.tensor([math.nan, 1.0])])

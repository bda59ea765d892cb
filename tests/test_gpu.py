"""The same prune on CUDA and on the CPU. Run with: make test ARGS="-m gpu"."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

import ispasp
from ispasp import data, zoo
from tests.conftest import settle_batch_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def both(model: nn.Module, batches: object, keep: float) -> tuple[ispasp.PruneResult, ispasp.PruneResult]:
    # TensorFloat-32 would make convolutions of the two devices differ by 1e-3.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    options = {"keep": keep, "multiple": 1}
    return tuple(ispasp.prune(model, batches, device=name, **options) for name in ("cpu", "cuda"))  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["mnist_mlp", "cifar10_resnet20", "cifar10_mobilenetv2", "nli_bert"])
@pytest.mark.parametrize("keep", [0.2, 0.4, 0.6])
def test_sample_models_keep_the_same_groups(name: str, keep: float) -> None:
    if name == "nli_bert":
        pytest.importorskip("transformers")
    cpu, cuda = both(zoo.load(name), data.sample_batches(name, "calibration"), keep)
    assert [i.selected for i in cuda.trace] == [i.selected for i in cpu.trace]
    for ours, theirs in zip(cuda.trace, cpu.trace, strict=True):
        assert ours.residual == pytest.approx(theirs.residual, rel=1e-3)
    assert next(cuda.model.parameters()).device.type == "cpu"


def test_resnet18_keeps_the_same_groups() -> None:
    images = [torch.randn(4, 3, 64, 64) for _ in range(2)]
    cpu, cuda = both(settle_batch_norm(models.resnet18(weights=None), images), images, 0.4)
    assert [event.selected for event in cuda.blocks_pruned] == [event.selected for event in cpu.blocks_pruned]

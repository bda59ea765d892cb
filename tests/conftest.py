"""What several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ispasp import data, zoo

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # several processes at once; each with all cores would only wait for the others


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, so that order does not matter."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def resnet20_batches() -> list[tuple[Tensor, Tensor]]:
    """128 calibration images in two batches, as the sample ResNet-20 takes them."""
    card = zoo.card("cifar10_resnet20")
    images = data.choose(data.sample_images(card.dataset, "calibration"), 128, seed=0)
    return data.batches(images, card.mean, card.std)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of a Python file, pruned to half, to be fine-tuned."""
    from tests.small_tuned_runs import own_run

    torch.set_num_threads(1)
    return own_run(tmp_path_factory.mktemp("own"), keep=0.5)


def settle_batch_norm(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """Give random weights batch-norm statistics of real activations; returns the model in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return model.eval()

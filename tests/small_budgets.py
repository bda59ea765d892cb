"""A network of three blocks in a row in a Python file, so that runs on it take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ispasp.run_settings import RunSettings

FILE = '''
import torch
from torch import nn


def model():
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 5),
    ).eval()
    with torch.no_grad():
        net[0].weight *= torch.linspace(0.1, 1, 16).view(-1, 1, 1, 1)  # some channels matter more than others
        net[-1].weight *= 20
        net[-1].bias -= net(torch.randn(256, 3, 8, 8)).mean(0)  # every class comes up
    return net, torch.randn(2, 3, 8, 8)


def data():
    """Labels are what the dense model says, so that it is always right."""
    net, _ = model()
    for number in range(6):
        images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            yield images, net(images).argmax(-1)


def unlabelled():
    for images, _ in data():
        yield (images,)
'''


def small_settings(folder: Path, **more: Any) -> RunSettings:
    """Settings for that network, whose file is written to ``folder``; it needs ``allow_code=True``."""
    file = folder / "small_budget.py"
    if not file.exists():
        file.write_text(FILE)
    given = {
        "model": f"python:{file}:model",
        "data": f"python:{file}:data",
        "device": "cpu",
        "evaluation": 200,
    }
    return RunSettings(**{**given, "samples": 128, **more})

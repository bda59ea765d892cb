"""A small network, its pruned version and its data to distil with, and the objective worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor, nn

from ispasp.distil import Recovery
from ispasp.records import Progress
from tests.conftest import settle_batch_norm


class Residual(nn.Module):
    """A block with ``width`` hidden channels between two sums of four."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.conv2(self.bn1(self.conv1(x)).relu())).relu_()


class SmallNet(nn.Module):
    """Stem, a stage of two blocks, a classifier; (N, 3, 8, 8) to (N, 5). ``returned`` wraps the logits."""

    def __init__(self, width: int = 12, returned: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stage = nn.Sequential(Residual(width), Residual(width))
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 5)
        self.returned = returned

    def forward(self, x: Tensor) -> Any:
        return self.returned(self.fc(self.dropout(self.stage(self.stem(x)).mean((2, 3)))))


def narrow(dense: SmallNet, width: int) -> SmallNet:
    """The same network with only the first hidden channels of each block."""
    pruned = SmallNet(width, dense.returned).eval()
    state = pruned.state_dict()
    for name, value in dense.state_dict().items():
        state[name] = value[tuple(slice(size) for size in state[name].shape)]
    pruned.load_state_dict(state)
    return pruned


def pair(
    returned: Callable[[Tensor], Any] = lambda logits: logits,
) -> tuple[SmallNet, SmallNet, list[Tensor]]:
    """A pruned model, its dense one, and data in batches of unequal size."""
    batches = [torch.randn(n, 3, 8, 8) for n in (24, 24, 9)]
    dense = SmallNet(returned=returned)
    dense.fc.weight.data *= 5
    settle_batch_norm(dense, batches)
    return narrow(dense, 5), dense, batches


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)).eval()


def finish(work: Generator[Progress, None, Recovery]) -> tuple[Recovery, list[Progress]]:
    seen = []
    while True:
        try:
            seen.append(next(work))
        except StopIteration as stop:
            return stop.value, seen


def objective_by_hand(pruned: SmallNet, dense: SmallNet, batches: list[Tensor]) -> float:
    """The documented objective for SmallNet, from its own modules: no shared code."""
    data = torch.cat(batches)
    values = []
    with torch.no_grad():
        for model in (dense, pruned):
            blocks = [model.stem(data)]
            for block in model.stage:
                blocks.append(block(blocks[-1]))
            values.append([*blocks[1:], model.fc(blocks[-1].mean((2, 3)))])
    relative = [((d - p) ** 2).sum() / (d**2).sum() for d, p in zip(*values, strict=True)]
    p, q = ((v[-1] / 2).softmax(1) for v in values)
    divergence = (p * (p / q).log()).sum(1).mean()
    return float(sum(relative) / len(relative) + 0.1 * divergence)

"""Small networks put together out of a few named layers and what a forward does with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ispasp
from ispasp.errors import ModelError
from tests.hooks import difference, masked_twin

SHAPES = {"vectors": (20, 6), "tokens": (8, 5, 6), "pictures": (6, 3, 8, 8)}


class Net(nn.Module):
    """Layers by name, and what forward does with them."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


@dataclass
class Case:
    """A network whose layers ``first`` and ``second`` would be a block, were it not for ``reason``."""

    run: Callable[[Any, Tensor], Any]
    reason: str
    data: str = "vectors"
    hidden: int = 8
    out: int = 0
    more: Callable[[], dict[str, Any]] = field(default=dict)

    def net(self) -> Net:
        pictures = self.data == "pictures"
        make: Any = (lambda a, b: nn.Conv2d(a, b, 1)) if pictures else nn.Linear
        parts = {"first": make(3 if pictures else 6, self.hidden), "second": make(self.out or self.hidden, 6)}
        return Net(self.run, **(parts | self.more())).eval()


def hidden(m: Any, x: Tensor) -> Tensor:
    return torch.relu(m.first(x))


def heads(x: Tensor, count: int = -1) -> Tensor:
    return x.unflatten(-1, (count, 2 if count == -1 else -1)).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def qkv() -> dict[str, Any]:
    return {"k": nn.Linear(6, 8), "v": nn.Linear(6, 8)}


def gate() -> dict[str, Any]:
    return {"squeeze": nn.Linear(8, 3), "excite": nn.Linear(3, 8)}


def gated(m: Any, h: Tensor) -> Tensor:
    return torch.sigmoid(m.excite(torch.relu(m.squeeze(h))))


def parameter(*sizes: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"own": nn.Parameter(torch.randn(*sizes))}


def first_block(net: nn.Module, data: Tensor) -> ispasp.Block:
    return next(block for block in ispasp.find_blocks(net, data) if block.name == "first")


def check(net: nn.Module, data: Tensor, **options: Any) -> ispasp.PruneResult | None:
    """Prune all that may be pruned, and compare with hooks on the dense network; None where nothing may be."""
    found = [block for block in ispasp.find_blocks(net, data) if block.prunable]
    if not found:
        with pytest.raises(ModelError, match="Nothing in this model can be pruned"):
            ispasp.prune(net, [data], keep=0.5, device="cpu")
        return None
    result = ispasp.prune(net, [data], keep=0.5, multiple=1, device="cpu", **options)
    with torch.no_grad():
        expected, got = masked_twin(net, result)(data), result.model(data)
    pairs = zip(expected.values(), got.values(), strict=True) if isinstance(got, dict) else [(expected, got)]
    assert all(difference(*pair) <= 1e-4 for pair in pairs)
    return result

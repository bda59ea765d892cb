"""Random small networks out of operations that keep groups apart, and of others that do not."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Step = Callable[[nn.Module, list[Tensor]], Tensor]

ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    torch.relu,
    torch.relu_,
    F.gelu,
    torch.tanh,
    torch.sigmoid,
    F.silu,
    torch.abs,
    lambda x: F.hardsigmoid(x, inplace=True),
]
MIXING: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.roll(1, 1),
    lambda x: x.flip(-1),
    lambda x: x.cumsum(1),
    lambda x: x.sort(-1)[0],
    lambda x: x.softmax(1),
    lambda x: x.softmax(-1),
    lambda x: x * x.mean(1, keepdim=True),
    lambda x: F.layer_norm(x, x.shape[-1:]),
    lambda x: F.layer_norm(x, x.shape[1:]),
    lambda x: x.transpose(1, -1),
    lambda x: x.flatten(1),
    lambda x: x.unflatten(1, (-1, 2)),
    lambda x: x.unflatten(-1, (-1, 2)),
    lambda x: x.unflatten(-1, (2, -1)),
    lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
    lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].tanh(),
    lambda x: F.glu(x, -1),
    lambda x: x.chunk(2, -1)[1],
    lambda x: x[:, :2],
    lambda x: x.mean(-1),
    lambda x: x.unsqueeze(1),
    lambda x: x.squeeze(1),
    lambda x: x[:, 0],
    lambda x: x @ x.transpose(-1, -2),
    lambda x: x * 2.0,
    lambda x: x + 0.5,
    lambda x: F.scaled_dot_product_attention(x, x.tanh(), x),
    lambda x: x.movedim(1, -1),
    lambda x: F.adaptive_avg_pool2d(x, 1),
    lambda x: F.max_pool2d(x, 2),
]


class RandomNetwork(nn.Module):
    """A list of steps, each of which makes a new value out of earlier ones; the last value is returned.

    Reads (N, 5, 6), or (N, 4, 4, 4) where ``pictures``. Steps that do not fit the shapes are left out when it
    is made.
    """

    def __init__(self, seed: int, pictures: bool, length: int = 9) -> None:
        super().__init__()
        self.steps: list[tuple[Step, str]] = []
        self.random = random.Random(seed)
        self.example = torch.randn(6, 4, 4, 4) if pictures else torch.randn(6, 5, 6)
        values = [self.example.clone()]
        for number in range(length):
            while not self._try(self._layer(number) if number in (0, 3) else self._any(number), values):
                pass
        self._try(self._layer(length), values)
        self._try(self._layer(length + 1, 0), values)

    def forward(self, x: Tensor) -> Tensor:
        values = [x.clone()]
        for step, _ in self.steps:
            values.append(step(self, values))
        return values[-1]

    @torch.no_grad()
    def _try(self, named: tuple[Step, str], values: list[Tensor]) -> bool:
        state = [value.clone() for value in values]
        before = list(self._modules)
        try:
            made = named[0](self, state)
        except (RuntimeError, IndexError, ValueError):
            made = torch.empty(0)
        if made.ndim < 2 or len(made) != len(values[0]) or not 12 <= made.numel() <= 5000:
            for name in set(self._modules) - set(before):
                delattr(self, name)
            return False
        values[:] = [*state, made]
        self.steps.append(named)
        return True

    def _any(self, number: int) -> tuple[Step, str]:
        kinds = [self._layer, self._activation, self._activation, self._other, self._two, self._gate]
        return self.random.choice(kinds)(number)

    def _back(self) -> int:
        """Mostly the newest value, at times an older one."""
        return self.random.choice([-1] * 8 + [-2, -3])

    def _activation(self, number: int) -> tuple[Step, str]:
        function, back = self.random.choice(ACTIVATIONS), self._back()
        return lambda model, values: function(values[max(back, -len(values))]), f"activation {back}"

    def _other(self, number: int) -> tuple[Step, str]:
        which = self.random.randrange(len(MIXING))
        return lambda model, values: MIXING[which](values[-1]), f"other {which}"

    def _two(self, number: int) -> tuple[Step, str]:
        a, b, how = self._back(), self.random.choice([-2, -3, -4]), self.random.randrange(4)

        def step(model: nn.Module, values: list[Tensor]) -> Tensor:
            left, right = values[a], values[max(b, -len(values))]
            if how == 3:
                return torch.cat([left, right], 1)
            return left + right if how == 0 else left * right if how == 1 else left.mul_(right)

        return step, f"two {a} {b} {how}"

    def _layer(self, number: int, back: int | None = None) -> tuple[Step, str]:
        back = self._back() if back is None else -1
        width, kind = (
            self.random.choice([4, 6, 8, 12]),
            self.random.choice(["plain", "plain", "riding", "norm"]),
        )

        def step(model: nn.Module, values: list[Tensor]) -> Tensor:
            value = values[max(back, -len(values))]
            return _module(model, f"layer{number}", value, width, kind)(value)

        return step, f"layer {back} {kind}"

    def _gate(self, number: int) -> tuple[Step, str]:
        short, kind, broad = (
            self.random.choice([2, 3]),
            self.random.choice(["full", "one"]),
            self.random.random() < 0.3,
        )

        def step(model: nn.Module, values: list[Tensor]) -> Tensor:
            value = values[-1]
            pooled = value.mean((2, 3), keepdim=True) if value.ndim == 4 else value
            source = values[-2] if broad else pooled
            inner = torch.relu(_module(model, f"squeeze{number}", source, short, "plain")(source))
            dim = 1 if value.ndim == 4 else -1
            width = value.shape[dim] if kind == "full" else 1
            return value * torch.sigmoid(_module(model, f"excite{number}", inner, width, "plain")(inner))

        return step, f"gate {kind} {broad}"


def _module(model: nn.Module, name: str, value: Tensor, width: int, kind: str) -> nn.Module:
    """A layer that fits ``value``, made at the first call."""
    if hasattr(model, name):
        found: nn.Module = getattr(model, name)
        return found
    layer: nn.Module
    if value.ndim == 4:
        channels = value.shape[1]
        layer = nn.Conv2d(channels, width, 1)
        if kind == "riding":
            layer = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        elif kind == "norm":
            layer = nn.BatchNorm2d(channels)
    else:
        layer = nn.Linear(value.shape[-1], width)
        if kind == "norm" and value.ndim == 2:
            layer = nn.BatchNorm1d(value.shape[1])
        elif kind == "riding":
            layer = nn.LayerNorm(value.shape[-1])
    layer.eval()
    layer(value)  # refuses what does not fit before it becomes part of the model
    setattr(model, name, layer)
    return layer

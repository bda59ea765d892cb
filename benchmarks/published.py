"""How the published implementation of i-SpaSP goes about its work, transcribed for comparison.

The loop is that of github.com/wolfecameron/i-SpaSP (Wolfe & Kyrillidis, L4DC 2022, Algorithm 1). It
visits the inner channels of the residual blocks one after the other. For each block it runs the prefix of
the network, pruned so far, over all calibration images, and stores the block's hidden representation in
host memory. Then, in each of T = 20 iterations, it takes every stored batch to the device again, runs the
dense and the pruned consumer on it, and calls ``backward`` on the squared residual: the gradient in the
hidden representation is the importance, those of the weights come along and are thrown away. It never
stops early. It is written here for fidelity, not for speed.

Three things differ from the published code. Its batch-norm defect is repaired: every batch norm is in
eval mode and carries its running statistics into the pruned block. The residual is taken at the consumer,
as in Algorithm 1; the published code takes it after the batch norm that follows (``after_norm=True`` does
as it does). And all residual blocks are visited, those with a downsample and the last of a stage too.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class InnerBlock:
    """Qualified names of a residual block's two convolutions, each with the batch norm after it."""

    producer: str
    norm: str
    consumer: str
    consumer_norm: str


@dataclass(frozen=True)
class PublishedBlock:
    """Outcome of one block: ``selected`` are the kept channels, sorted; ``seconds`` is wall time."""

    name: str
    groups: int
    selected: tuple[int, ...]
    seconds: float


class _PrefixDoneError(Exception):
    """Raised inside a forward pass to leave it once the activation has been read."""


def residual_blocks(model: nn.Module) -> list[InnerBlock]:
    """The inner channels of every basic residual block, in network order."""
    found = []
    for name, module in model.named_modules():
        parts = {"conv1": nn.Conv2d, "bn1": nn.BatchNorm2d, "conv2": nn.Conv2d, "bn2": nn.BatchNorm2d}
        basic = all(isinstance(getattr(module, part, None), kind) for part, kind in parts.items())
        if basic and not hasattr(module, "conv3"):
            found.append(InnerBlock(*(f"{name}.{part}" for part in parts)))
    return found


def published_prune(
    model: nn.Module,
    batches: Sequence[Tensor],
    keep: float,
    *,
    candidate_factor: float = 2.0,
    iterations: int = 20,
    blocks: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    after_norm: bool = False,
) -> Iterator[PublishedBlock]:
    """Prune a copy of ``model`` block by block and yield each block's outcome when it is done.

    Args:
        model: a network of basic residual blocks, in eval mode; left as it is.
        batches: image batches (n, channels, height, width), in host memory.
        keep: kept fraction of every block's channels, rounded down, at least one channel.
        candidate_factor: c; c * s is rounded down.
        iterations: T; all of them are run.
        blocks: producer names to visit; all when None. They are visited in network order.
        device: where the network runs.
        after_norm: take the residual after the batch norm that follows the consumer.
    """
    pruned = copy.deepcopy(model).eval().to(device)
    for names in residual_blocks(pruned):
        if blocks is not None and names.producer not in blocks:
            continue
        begin = time.perf_counter()
        producer, norm, consumer, consumer_norm = (
            pruned.get_submodule(name)
            for name in (names.producer, names.norm, names.consumer, names.consumer_norm)
        )
        assert isinstance(consumer, nn.Conv2d)
        groups = consumer.in_channels
        s = max(1, math.floor(keep * groups + 1e-9))  # 0.29 * 100 is 28.999999999999996 in floating point
        stored = _stored(pruned, consumer, batches, device)
        then = consumer_norm if after_norm else nn.Identity()
        selected = _select(stored, consumer, then, s, candidate_factor, iterations, device)
        _narrow(producer, selected, 0)
        _narrow(norm, selected, 0)
        _narrow(consumer, selected, 1)
        seconds = time.perf_counter() - begin
        yield PublishedBlock(names.producer, groups, tuple(selected.tolist()), seconds)


@torch.no_grad()
def _stored(
    model: nn.Module, consumer: nn.Module, batches: Sequence[Tensor], device: torch.device | str
) -> list[Tensor]:
    """Run the prefix up to ``consumer`` over all batches; what enters it, on the host."""
    stored: list[Tensor] = []

    def read_and_leave(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        stored.append(arguments[0].cpu())
        raise _PrefixDoneError

    handle = consumer.register_forward_pre_hook(read_and_leave)
    try:
        for images in batches:
            try:
                model(images.to(device))
            except _PrefixDoneError:
                continue
    finally:
        handle.remove()
    return stored


def _select(
    stored: Sequence[Tensor],
    consumer: nn.Conv2d,
    then: Callable[[Tensor], Tensor],
    s: int,
    candidate_factor: float,
    iterations: int,
    device: torch.device | str,
) -> Tensor:
    """Algorithm 1 over the stored hidden representation of one block; the kept channels, sorted."""
    groups = consumer.in_channels
    candidate_count = min(groups, math.floor(candidate_factor * s + 1e-9))
    hidden_sum = torch.stack([batch.double().sum((0, 2, 3)) for batch in stored]).sum(0).to(device)
    selected = torch.zeros(0, dtype=torch.long, device=device)
    for _ in range(iterations):
        importance = torch.zeros(groups, dtype=torch.float64, device=device)
        for batch in stored:
            hidden = batch.to(device).detach().requires_grad_()
            residual = then(_without_bias(consumer, hidden, consumer.weight))
            if len(selected):
                with torch.no_grad():
                    kept = _without_bias(consumer, hidden[:, selected], consumer.weight[:, selected])
                    pruned_output = then(kept)
                residual = residual - pruned_output
            (0.5 * (residual**2).sum()).backward()
            assert hidden.grad is not None
            importance += hidden.grad.sum((0, 2, 3)).double()
            consumer.zero_grad()
        candidates = importance.argsort(descending=True, stable=True)[:candidate_count]
        merged = torch.cat([candidates, selected]).unique()
        by_hidden_sum = hidden_sum[merged].argsort(descending=True, stable=True)[:s]
        selected = merged[by_hidden_sum].sort().values
    return selected


def _without_bias(like: nn.Conv2d, hidden: Tensor, weight: Tensor) -> Tensor:
    return nn.functional.conv2d(hidden, weight, None, like.stride, like.padding, like.dilation)


@torch.no_grad()
def _narrow(module: nn.Module, selected: Tensor, dim: int) -> None:
    """Take all other channels out of a layer, along ``dim`` of its weight, with a norm's statistics."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.ndim > dim and (dim == 0 or name == "weight"):
            kept = value.index_select(dim, selected)
            setattr(module, name, nn.Parameter(kept) if isinstance(value, nn.Parameter) else kept)

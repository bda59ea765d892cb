"""Everything random in a fine-tuning: drawn from the seed, the stage and the epoch alone, so that it needs no memory.

A resumed fine-tuning draws what the uninterrupted one did, and every one of several processes what one alone would.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ispasp.processes import Processes


def seed_of(*parts: object) -> int:
    """A seed below 2^63 for these words and numbers."""
    digest = hashlib.sha256(" / ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_of(*parts: object) -> torch.Generator:
    """A generator on the CPU for these words and numbers."""
    return torch.Generator().manual_seed(seed_of(*parts))


def held_out(examples: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Which examples are held out, and which are trained on; at least one each where there are two."""
    order = torch.randperm(examples, generator=generator_of(seed, "held out")).tolist()
    count = min(examples - 1, max(1, round(share * examples)))
    return sorted(order[:count]), sorted(order[count:])


def steps_of(examples: Sequence[int], batch_size: int, generator: torch.Generator) -> list[tuple[int, ...]]:
    """All examples in random order, in as few steps as ``batch_size`` allows, which differ by one at most."""
    order = [examples[i] for i in torch.randperm(len(examples), generator=generator).tolist()]
    count = -(-len(order) // batch_size)
    ends = [len(order) * step // count for step in range(count + 1)]
    return [tuple(order[start:end]) for start, end in itertools.pairwise(ends)]


def slice_of(count: int, group: Processes) -> slice:
    """This process's part of ``count`` examples, as many as the others have or one more."""
    return slice(count * group.rank // group.size, count * (group.rank + 1) // group.size)


@contextmanager
def repeatable(device: torch.device, seed: int) -> Iterator[None]:
    """Within, what is drawn on ``device`` (dropout) begins at ``seed``, and CUDA's convolutions add up in one order.

    The random state is the caller's again afterwards. On MPS nothing is done.
    """
    generator = _generator(device)
    if generator is None:
        yield
        return
    state, deterministic = generator.get_state(), torch.backends.cudnn.deterministic
    try:
        generator.manual_seed(seed)
        torch.backends.cudnn.deterministic = True
        yield
    finally:
        torch.backends.cudnn.deterministic = deterministic
        generator.set_state(state)


def _generator(device: torch.device) -> torch.Generator | None:
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator if device.type == "cpu" else None

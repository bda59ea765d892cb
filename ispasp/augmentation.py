"""Images made from images, for learning from the dense model: it says itself what each of them is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ispasp import evaluate
from ispasp.calibration import Batch
from ispasp.records import Progress

SHIFT_SHARE = 8  # images are shifted by up to one in so many of their pixels
FAMILIAR_SHARE = 0.8  # of its predictions that the dense model must keep


class Variation(Protocol):
    """Images (n, C, h, w) to as many others, at random.

    Args:
        first, of: they are those from ``first`` of a batch of ``of`` images, whose draws fall to them; all by default.
    """

    def __call__(
        self, images: Tensor, generator: torch.Generator, first: int = 0, of: int | None = None
    ) -> Tensor: ...


def mirrored(images: Tensor, generator: torch.Generator, first: int = 0, of: int | None = None) -> Tensor:
    """Each of the images (n, C, h, w) mirrored left to right, or not."""
    drawn = torch.rand(len(images) if of is None else of, generator=generator)
    chosen = drawn[first : first + len(images)] < 0.5
    return torch.where(chosen.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)


def shifted(images: Tensor, generator: torch.Generator, first: int = 0, of: int | None = None) -> Tensor:
    """Each of the images (n, C, h, w) shifted by up to 1 / SHIFT_SHARE of its side; zeros enter."""
    count, channels, height, width = images.shape
    device = images.device
    most = min(height, width) // SHIFT_SHARE
    drawn = torch.randint(0, 2 * most + 1, (2, count if of is None else of, 1), generator=generator)
    shift = drawn[:, first : first + count].to(device)
    rows = (shift[0] + torch.arange(height, device=device))[:, None, :, None]
    columns = (shift[1] + torch.arange(width, device=device))[:, None, None, :]
    which = torch.arange(count, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
    return F.pad(images, (most,) * 4)[which, channel, rows, columns]


def mixed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each of the images (n, C, h, w) blended with another one, in a proportion drawn from [0, 1)."""
    count = len(images)
    share = torch.rand(count, 1, 1, 1, generator=generator).to(images)
    partner = torch.randperm(count, generator=generator).to(images.device)
    return images.lerp(images[partner], share)


def changed(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with ``change`` applied to every input, without labels."""
    return Batch(
        tuple(change(value) for value in batch.inputs),
        {name: change(value) for name, value in batch.keywords.items()},
    )


def familiar(dense: nn.Module, batches: Iterable[Batch]) -> Generator[Progress, None, list[Variation]]:
    """Which of ``mirrored`` and ``shifted`` leave the dense model most of its predictions, step by step.

    A mirrored car is a car, but a mirrored digit is something that the dense model never saw, and to
    imitate it there would waste the few parameters of a pruned model. Both are taken where the model
    does not give one of several classes per image. Three forward passes over the images.

    Args:
        dense: in eval mode.
        batches: of a single input of images (n, C, h, w).
    """
    variations: tuple[Variation, ...] = (mirrored, shifted)
    kept, examples = [0] * len(variations), 0
    generator = torch.Generator().manual_seed(0)
    asking = Progress(0.0, "asking which augmentation the dense model knows")
    for batch in batches:
        yield asking
        output = evaluate.first_tensor(evaluate.forward(dense, batch))
        if output.ndim != 2 or output.shape[1] < 2:
            return list(variations)
        examples += len(batch)
        for index, vary in enumerate(variations):
            yield asking
            other = changed(batch, functools.partial(vary, generator=generator))
            again = evaluate.first_tensor(evaluate.forward(dense, other))
            kept[index] += int((again.argmax(1) == output.argmax(1)).sum())
    return [vary for vary, count in zip(variations, kept, strict=True) if count >= FAMILIAR_SHARE * examples]

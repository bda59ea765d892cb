"""Small tasks that can be learned in a moment, and a fine-tuning carried to its end."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ispasp.calibration import Batch, read
from ispasp.records import Progress
from ispasp.tuning.loop import tune_steps
from ispasp.tuning.records import EpochDone, Tuned
from ispasp.tuning.settings import TuneSettings
from ispasp.tuning.training_set import MemorySet, TrainingSet

CPU = torch.device("cpu")


def vectors(examples: int = 90, features: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Vectors around one centre per class, and their labels."""
    labels = torch.arange(examples) % classes
    return 3 * torch.randn(classes, features)[labels] + torch.randn(examples, features), labels


def pictures(examples: int = 90, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Images (examples, 3, 8, 8) around one colour per class, and their labels."""
    labels = torch.arange(examples) % classes
    return 2 * torch.randn(classes, 3, 1, 1)[labels] + torch.randn(examples, 3, 8, 8), labels


def normed(width: int = 8, dropout: float = 0.0) -> nn.Module:
    """(N, 6) to (N, 3), with a batch norm."""
    layers = [nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 3)]
    return nn.Sequential(*layers).eval()


class Words(nn.Module):
    """Tokens (N, T) and their mask to a class per example, or per token."""

    def __init__(self, width: int = 8, each: bool = False) -> None:
        super().__init__()
        self.each, self.embed, self.norm = each, nn.Embedding(11, 6), nn.LayerNorm(6)
        self.up, self.down, self.head = nn.Linear(6, width), nn.Linear(width, 6), nn.Linear(6, 4)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.embed(tokens)
        x = self.norm(x + self.down(self.up(x).relu()))
        if not self.each:
            mask = attention_mask[..., None].float()
            x = (x * mask).sum(1) / mask.sum(1)
        return {"logits": self.head(x)}


def sentences(examples: int = 60, each: bool = False) -> dict[str, Tensor]:
    """Sentences of one to five tokens; the label is the first token modulo four, or every token's own."""
    tokens = torch.randint(0, 11, (examples, 5))
    mask = (torch.arange(5) < torch.randint(1, 6, (examples, 1))).long()
    return {"tokens": tokens, "attention_mask": mask, "labels": tokens % 4 if each else tokens[:, 0] % 4}


def end(
    work: Generator[Progress | EpochDone, None, Tuned],
) -> tuple[Tuned, list[Progress | EpochDone]]:
    """What it comes to, and its events."""
    seen: list[Progress | EpochDone] = []
    while True:
        try:
            seen.append(next(work))
        except StopIteration as stop:
            return stop.value, seen


def tuned(
    pruned: nn.Module,
    data: Iterable[Any] | TrainingSet,
    settings: TuneSettings,
    dense: nn.Module | None = None,
    evaluation: Sequence[Batch] = (),
    **more: Any,
) -> Tuned:
    """A fine-tuning on the CPU, carried to its end."""
    training = data if hasattr(data, "labelled") else MemorySet(data)
    return end(tune_steps(pruned, dense, training, evaluation, settings, device=CPU, **more))[0]


def batches(inputs: Tensor, labels: Tensor) -> list[Batch]:
    return read([(inputs, labels)])


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two states are the same to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(v, second[name]) for name, v in first.items())

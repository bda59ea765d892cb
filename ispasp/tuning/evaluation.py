"""Accuracy and agreement after every epoch, for the curve."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor, nn

from ispasp import evaluate, processes
from ispasp.calibration import Batch


class Evaluation:
    """Measures models on the evaluation data, of which every process takes some of the batches.

    Attributes:
        dense: what the dense model predicts on this process's batches; None until ``compare_with``.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        group = processes.here()
        self.batches = batches[group.rank :: group.size]
        self.dense: list[Tensor] | None = None

    def compare_with(self, dense: nn.Module) -> Generator[None, None, None]:
        """Keep what ``dense`` predicts, batch by batch."""
        self.dense = yield from self._predicted(dense)

    def measured(self, pruned: nn.Module) -> Generator[None, None, tuple[float | None, float | None]]:
        """Accuracy and agreement with the dense model over the data of all processes, batch by batch.

        None where there are no labels or no dense model, and where the model gives no classes.
        """
        predicted = yield from self._predicted(pruned)
        before = predicted if self.dense is None else self.dense
        found = evaluate.compare(before, predicted, self.batches) if predicted else None
        examples = labels = right = same = 0
        if found is not None:
            examples, same = len(found.pruned), int((found.pruned == found.dense).sum())
            if found.labels is not None:
                labels, right = examples, int((found.pruned == found.labels).sum())
        examples, labels, right, same = processes.summed(
            torch.tensor([examples, labels, right, same])
        ).tolist()
        if not examples:
            return None, None
        accuracy = right / examples if labels == examples else None
        return accuracy, None if self.dense is None else same / examples

    def _predicted(self, model: nn.Module) -> Generator[None, None, list[Tensor]]:
        found = []
        for classes in evaluate.predictions(model.eval(), self.batches):
            found.append(classes)
            yield
        return found

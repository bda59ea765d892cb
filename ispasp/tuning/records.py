"""The frozen records that flow from a fine-tuning to page, command line and notebook."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ispasp.records import Shown

DIVERGED = "because the loss"
"""What the sentence of a fine-tuning says that was stopped as its loss grew without end."""


@dataclass(frozen=True)
class Began:
    """What there was before the first epoch, on the examples that all else is measured on.

    Attributes:
        dense_accuracy: of the dense model, in [0, 1]; None where it is unknown.
        accuracy, agreement: of the weights that the fine-tuning starts from; of the run as it was, where that is pruned
            again block after block. None where they are unknown, as where that run was measured on other examples.
    """

    dense_accuracy: float | None
    accuracy: float | None
    agreement: float | None


@dataclass(frozen=True)
class EpochDone(Shown):
    """One pass over the training data is made.

    Attributes:
        stage: the block after which it was; empty at the end.
        epoch: from 1.
        epochs: how many this stage has.
        learning_rate: of its last step.
        loss: mean over the training examples, as they came (augmented, in training mode).
        held_out_loss: mean over the held-out examples, afterwards, in eval mode; what chooses the best epoch.
        accuracy: top-1 on the evaluation data, in [0, 1], for the curve; None where it has no labels or is empty.
        agreement: share of its predictions that the dense model makes, too; None without a dense model or classes.
        best: whether ``held_out_loss`` is the lowest so far, that of the weights given included.
        seconds: of work; what passes between two events does not count.
    """

    stage: str
    epoch: int
    epochs: int
    learning_rate: float
    loss: float
    held_out_loss: float
    accuracy: float | None
    agreement: float | None
    best: bool
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class Tuned:
    """What a fine-tuning came to.

    Attributes:
        model: a copy with the best weights, in eval mode, on the device of the work; its types and which of its
            parameters are frozen are those of the model given.
        curve: all epochs that were made.
        best_epoch: whose weights these are; 0 for those that were given.
        stopped: why it ended early, in a sentence; empty where all epochs were made.
        seconds: of work in all epochs, those before a resumption included.
        held_out: how many examples were held out.
        held_out_loss_before: of the weights given.
        precision: in which the forward passes were: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
    """

    model: nn.Module
    curve: tuple[EpochDone, ...]
    best_epoch: int
    stopped: str
    seconds: float
    held_out: int
    held_out_loss_before: float
    precision: str

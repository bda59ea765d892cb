"""Where a fine-tuning is written down on its way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ispasp.records import Shown
from ispasp.result import RunRecord
from ispasp.tuning.checkpoint import TuneState

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class CheckpointMissed(Shown):
    """What is done could not be written down; the work goes on, and the next epoch tries again.

    Attributes:
        problem: why, in a sentence.
    """

    problem: str


class Memory(Protocol):
    """Where a schedule is written down, and what an earlier attempt at it has left. Stages count from 0."""

    def pruned(self) -> tuple[RunRecord, Weights] | None:
        """The record of the blocks pruned so far and the weights behind the last of them; None before the first."""
        ...

    def keep_pruned(self, record: RunRecord, weights: Weights) -> None: ...

    def state(self, stage: int, fingerprint: str) -> TuneState | None: ...

    def keep_state(self, stage: int, state: TuneState) -> None: ...


class Forgetful:
    """Writes nothing down."""

    def pruned(self) -> None:
        return None

    def keep_pruned(self, record: RunRecord, weights: Weights) -> None:
        return

    def state(self, stage: int, fingerprint: str) -> None:
        return None

    def keep_state(self, stage: int, state: TuneState) -> None:
        return

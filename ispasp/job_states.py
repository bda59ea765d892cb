"""What a job is at one moment, for whoever looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class State(Enum):
    """Where a job is. The value is the word a person reads."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "stopped"

    @property
    def ended(self) -> bool:
        return self in (State.FINISHED, State.FAILED, State.CANCELLED)

    @property
    def live(self) -> bool:
        """Whether the job may change without anybody pressing anything."""
        return self in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True)
class Snapshot:
    """What a job looked like at one moment.

    Attributes:
        version: rises with every change; equal versions are equal snapshots but for ``seconds`` and ``seconds_left``.
        events: every event so far except ``Progress``, in order.
        stopping: cancel or pause was asked for and the job has not come to it yet.
        finishing: it was asked to come to its end with what it has, and has not yet.
        ahead: jobs before this one in the queue of its device, the running one included; 0 unless queued.
        done: fraction of the whole work in [0, 1].
        doing: what the job does now, in words; may be empty.
        seconds_left: estimate from the pace so far, in seconds; None while it cannot be told.
        seconds: time spent working, in seconds; waiting and pauses not counted.
        error: the sentence of a failed job; empty otherwise.
        failure: the class of its error; None otherwise.
        submitted, started, finished: seconds since the epoch; None while not yet.
    """

    id: str
    title: str
    device: str
    subject: str
    state: State
    version: int
    events: tuple[Any, ...]
    stopping: bool
    finishing: bool
    ahead: int
    done: float
    doing: str
    seconds_left: float | None
    seconds: float
    error: str
    failure: type[BaseException] | None
    submitted: float
    started: float | None
    finished: float | None

    @property
    def live(self) -> bool:
        """Whether the job may change without anybody pressing anything: a paused one that is being ended, too."""
        return self.state.live or self.stopping

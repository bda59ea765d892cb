"""Seconds of work, where the work is a generator that others may let wait."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Clock:
    """Counts the seconds that a generator works: what passes between two of its events does not count.

    Calling it gives the seconds so far.
    """

    def __init__(self) -> None:
        self._worked = 0.0
        self._resumed: float | None = None  # while it stands still

    def __call__(self) -> float:
        return self._worked + (0.0 if self._resumed is None else time.perf_counter() - self._resumed)

    def timed(self, steps: Iterator[T]) -> Generator[T, None, Any]:
        """Go through ``steps`` with the clock running; what they return is returned."""
        try:
            while True:
                self._resumed = time.perf_counter()
                try:
                    event = next(steps)
                except StopIteration as end:
                    return end.value
                finally:
                    self._worked, self._resumed = self(), None
                yield event
        finally:
            if isinstance(steps, Generator):
                steps.close()

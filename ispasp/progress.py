"""Progress of work that consists of parts."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from ispasp.records import Progress

T = TypeVar("T")


def part(steps: Generator[Progress, None, T], low: float, high: float) -> Generator[Progress, None, T]:
    """Drive a part whose progress goes from ``low`` to ``high`` of the whole."""
    try:
        while True:
            step = next(steps)
            yield Progress(low + (high - low) * step.done, step.doing)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        steps.close()

"""Work that consists of parts, each of which tells its own progress."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar, cast

from ispasp.records import Progress

E = TypeVar("E")
T = TypeVar("T")


def part(steps: Generator[E, None, T], low: float, high: float) -> Generator[E, None, T]:
    """Drive a part whose progress goes from ``low`` to ``high`` of the whole; its other events pass unchanged."""
    try:
        while True:
            step = next(steps)
            if isinstance(step, Progress):
                step = cast(E, Progress(min(1.0, low + (high - low) * step.done), step.doing))
            yield step
    except StopIteration as stop:
        value: T = stop.value
        return value
    finally:
        steps.close()


def result(steps: Generator[object, None, T]) -> T:
    """What the work comes to, made at one go."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            value: T = stop.value
            return value

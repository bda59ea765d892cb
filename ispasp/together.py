"""Several generators side by side in threads of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def together(steps: Sequence[Iterator[T]], workers: int) -> Iterator[tuple[int, T]]:
    """Go through generators side by side; yields the number of one and what it gave, as they come.

    Never more than a few items ahead of the caller, so that one who stops asking stops the work. Whoever closes
    it closes all of them, and waits for that.

    Args:
        steps: the generators; each is gone through by one thread.
        workers: how many at once.

    Raises:
        Exception: what the first of them raised; the others are closed.
    """
    if workers == 1:
        try:
            for number, items in enumerate(steps):
                for item in items:
                    yield number, item
        finally:
            for items in steps:
                if isinstance(items, Generator):
                    items.close()
        return
    ready: queue.Queue[tuple[int, Any, BaseException | None]] = queue.Queue(maxsize=workers)
    stop, over = threading.Event(), object()

    def put(number: int, item: Any, problem: BaseException | None = None) -> None:
        while not stop.is_set():
            try:
                return ready.put((number, item, problem), timeout=0.1)
            except queue.Full:
                continue

    def go(number: int, items: Iterator[T]) -> None:
        problem: BaseException | None = None
        try:
            while not stop.is_set():
                item = next(items, over)
                if item is over:
                    break
                put(number, item)
            if isinstance(items, Generator):
                items.close()
        except BaseException as error:  # the caller's thread raises it
            problem = error
        put(number, over, problem)

    with ThreadPoolExecutor(workers, thread_name_prefix="together") as pool:
        try:
            for number, items in enumerate(steps):
                pool.submit(go, number, items)
            left = len(steps)
            while left:
                number, item, problem = ready.get()
                if problem is not None:
                    raise problem
                if item is over:
                    left -= 1
                else:
                    yield number, item
        finally:
            stop.set()

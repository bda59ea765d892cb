"""How many of the CPU's cores torch uses, which decides the last digits of sums and so is part of what a run is."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.Lock()
_open = 0
_usual = 0


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads, at most as many as there are cores.

    The setting is the process's: work that stands still within this block leaves it to the next that begins one, and
    the count from before the first comes back with each that ends.
    """
    global _open, _usual
    with _LOCK:
        if not _open:
            _usual = torch.get_num_threads()
        _open += 1
    torch.set_num_threads(max(1, min(count, os.cpu_count() or count)))
    try:
        yield
    finally:
        with _LOCK:
            _open -= 1
        torch.set_num_threads(_usual)


def usual() -> int:
    """The threads that torch uses where nothing here changes them."""
    with _LOCK:
        return _usual if _open else torch.get_num_threads()

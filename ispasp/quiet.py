"""Libraries that write to the terminal whatever the program wants."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def libraries() -> Iterator[None]:
    """Drop the warnings and the log records of this thread; those of other threads are shown as before."""
    own = threading.get_ident()

    def others(record: logging.LogRecord) -> bool:
        return record.thread != own

    root = logging.getLogger()
    silent = logging.NullHandler()
    root.addHandler(silent)  # without any handler, logging would install one, or print by itself
    handlers = list(root.handlers)
    for handler in handlers:
        handler.addFilter(others)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(others)
        root.removeHandler(silent)

"""Seconds of work are counted while there is work, and at no other time."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ispasp.clock import Clock


def test_it_stands_still_while_others_wait_and_afterwards() -> None:
    clock, began = Clock(), time.perf_counter()

    def work() -> Iterator[float]:
        for _ in range(2):
            time.sleep(0.02)
            yield clock()

    assert clock() == 0
    for within in clock.timed(work()):
        waiting = clock()
        time.sleep(0.05)
        assert clock() == waiting >= within
    assert 0.04 <= clock() == clock() <= time.perf_counter() - began - 0.1

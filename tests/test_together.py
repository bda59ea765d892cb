"""Generators side by side in threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from ispasp import cores
from ispasp.together import together


class Counted:
    """Makes generators and knows how many of them are at work, were closed, and how far they came."""

    def __init__(self) -> None:
        self.lock, self.at_once, self.most, self.closed = threading.Lock(), 0, 0, 0
        self.given: list[int] = []

    def items(self, count: int, fails: bool = False) -> Iterator[int]:
        with self.lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            for number in range(count):
                time.sleep(0.002)
                self.given.append(number)
                yield number
            if fails:
                raise ValueError("it fails")
        finally:
            with self.lock:
                self.at_once -= 1
                self.closed += 1


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_all_items_come_each_in_its_own_order(workers: int) -> None:
    counted = Counted()
    seen = list(together([counted.items(n) for n in (4, 0, 7, 5)], workers))
    for number, count in enumerate((4, 0, 7, 5)):
        assert [item for index, item in seen if index == number] == list(range(count))
    assert counted.most <= workers and counted.closed == 4
    if workers > 1:
        assert counted.most > 1


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_failure_ends_all(workers: int) -> None:
    counted = Counted()
    with pytest.raises(ValueError, match="it fails"):
        list(together([counted.items(3, fails=True), counted.items(10_000)], workers))
    assert counted.at_once == 0 and len(counted.given) < 1000


def test_who_stops_asking_stops_the_work() -> None:
    for workers in (2, 1):
        counted = Counted()
        steps = together([counted.items(10_000), counted.items(10_000)], workers)
        next(steps)
        time.sleep(0.1)
        assert len(counted.given) < 12  # a few ahead, and no more
        steps.close()  # type: ignore[attr-defined]
        assert counted.at_once == 0 and counted.closed == workers


def test_cores_are_given_back_whoever_ends_first() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first, second = cores.threads(1), cores.threads(1)
        first.__enter__()
        assert (torch.get_num_threads(), cores.usual()) == (1, 2)
        second.__enter__()  # as where a job was paused and another one began
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert (torch.get_num_threads(), cores.usual()) == (2, 2)
        with cores.threads(10**6):
            assert torch.get_num_threads() == os.cpu_count()
    finally:
        torch.set_num_threads(before)

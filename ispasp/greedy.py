"""Greedy forward selection: the baseline with a guarantee, which the paper compares with.

Evaluated literally it runs the consumer once per group that could be added, in every step: O(s * d)
forward passes. With Q_gg' = <A_g H_g, A_g' H_g'> (``Statistics.energy_matrix``) the same choice is exact in
O(d) per step: with D the groups not selected and V = sum of A_g H_g over D, adding g lowers ||V||^2 by
2 <V, A_g H_g> - Q_gg, and <V, A_g H_g> is a row sum of Q over D.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch

from ispasp.algorithm import SelectorSettings, record
from ispasp.records import Iteration
from ispasp.statistics import Statistics

# A run over hundreds of groups is shown in so many records.
MOST_RECORDS = 32


def record_after(steps: int) -> list[int]:
    """After how many of ``steps`` to record: at most ``MOST_RECORDS`` times, evenly spaced, the last included."""
    count = max(1, min(MOST_RECORDS, steps))
    return [steps * (number + 1) // count for number in range(count)]


def gfs(statistics: Statistics, kept: int, settings: SelectorSettings) -> Iterator[Iteration]:
    """Greedy forward selection: adds, one by one, the group that lowers the error of the output most.

    Records are evenly spaced over the s steps; the selected set grows from record to record. In each,
    ``importance`` is what adding a group would take off ||V||^2 at the first of its steps (0 for selected
    groups; negative where a group would add to it), ``candidates`` are the groups added, and ``score`` is
    what a group took off when it was added, or would take off now.

    Args:
        statistics: of a block with d groups.
        kept: s, in [1, d].
        settings: not used.

    Raises:
        SettingError: the Gram matrix would not fit (``gram.collect``).
    """
    started = time.perf_counter()
    energies = statistics.energy_matrix
    gain = 2 * energies.sum(1) - energies.diagonal()
    entered = torch.zeros_like(gain)
    selected = torch.zeros(statistics.groups, dtype=torch.bool, device=gain.device)
    done = 0
    for t, end in enumerate(record_after(kept), start=1):
        importance, previous = gain.masked_fill(selected, 0), selected.clone()
        for _ in range(done, end):
            best = int(gain.argmax())  # of equal ones the first
            entered[best] = gain[best]
            gain.sub_(energies[best], alpha=2)
            gain[best] = -math.inf
            selected[best] = True
        done = end
        score = torch.where(selected, entered, gain)
        yield record(
            statistics, t, importance, score, selected & ~previous, selected, previous, end == kept, started
        )
        started = time.perf_counter()

"""Selectors that rank every group by one number and keep the s largest: the well-known importances.

Each yields a single record in which every group is a candidate and ``importance`` and ``score`` are that
number.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ispasp.algorithm import SelectorSettings, largest, record
from ispasp.errors import SettingError
from ispasp.records import Iteration
from ispasp.statistics import Statistics


def l1(statistics: Statistics, kept: int, settings: SelectorSettings) -> Iterator[Iteration]:
    """Keeps the groups whose producer weights have the largest sum of absolute values (Li et al., 2017).

    The weights are those of the dense model: a re-fit of an earlier block does not change the ranking.
    """
    return _rank(statistics, kept, _producer_norm(statistics, 1))


def l2(statistics: Statistics, kept: int, settings: SelectorSettings) -> Iterator[Iteration]:
    """Keeps the groups whose producer weights have the largest Euclidean norm.

    The weights are those of the dense model: a re-fit of an earlier block does not change the ranking.
    """
    return _rank(statistics, kept, _producer_norm(statistics, 2))


def activation(statistics: Statistics, kept: int, settings: SelectorSettings) -> Iterator[Iteration]:
    """Keeps the groups with the largest root mean square activation.

    Not the mean: behind a ReLU that would be the hidden sum.
    """
    return _rank(statistics, kept, statistics.hidden_rms)


def taylor(statistics: Statistics, kept: int, settings: SelectorSettings) -> Iterator[Iteration]:
    """Keeps the groups whose removal changes the labelled loss most, to first order (Molchanov et al., 2019).

    Raises:
        SettingError: the calibration data had no labels.
    """
    if statistics.taylor is None:
        raise SettingError(
            "Selector taylor needs labels with the calibration data, and there are none; give batches of "
            "(inputs, labels), or choose a selector that needs none, such as ispasp."
        )
    return _rank(statistics, kept, statistics.taylor)


def random(statistics: Statistics, kept: int, settings: SelectorSettings) -> Iterator[Iteration]:
    """Keeps groups drawn at random, for comparison; seed and block name decide the draw."""
    # Python's own hash of a string differs between processes.
    draw = zlib.crc32(f"{settings.seed} {statistics.block.name}".encode())
    generator = torch.Generator().manual_seed(draw)
    return _rank(statistics, kept, torch.rand(statistics.groups, generator=generator, dtype=torch.float64))


def _producer_norm(statistics: Statistics, order: int) -> Tensor:
    weight = statistics.producer.flatten(1)
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.linalg.vector_norm(weight, order, dim=1, dtype=wide)


def _rank(statistics: Statistics, kept: int, score: Tensor) -> Iterator[Iteration]:
    started = time.perf_counter()
    score = score.to(statistics.hidden_sum)
    everything = torch.ones(statistics.groups, dtype=torch.bool, device=score.device)
    selected = largest(score, kept)
    yield record(
        statistics,
        t=1,
        importance=score,
        score=score,
        candidates=everything,
        selected=selected,
        previous=torch.zeros_like(everything),
        converged=True,
        started=started,
    )

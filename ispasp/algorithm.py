"""Algorithm 1 of i-SpaSP on the statistics of one block (Wolfe & Kyrillidis, L4DC 2022).

Also what the other selectors share with it: settings, the choice of the largest, the record of a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ispasp.records import Iteration
from ispasp.statistics import Statistics


@dataclass(frozen=True)
class SelectorSettings:
    """What every selector may be told.

    Attributes:
        candidate_factor: c, candidates per kept group; 2 in the paper.
        iterations: T, the most iterations; 20 in the paper.
        seed: for selectors that draw at random.
    """

    candidate_factor: float = 2.0
    iterations: int = 20
    seed: int = 0


def candidate_count(groups: int, kept: int, candidate_factor: float) -> int:
    """How many groups are candidates: c * s rounded down, at least 1, at most d."""
    return max(1, min(groups, math.floor(candidate_factor * kept + 1e-9)))


def ispasp(statistics: Statistics, kept: int, settings: SelectorSettings) -> Iterator[Iteration]:
    """Algorithm 1 of the paper: candidates by the residual's gradient, the largest hidden sums stay.

    Args:
        statistics: of a block with d groups.
        kept: s, in [1, d].
        settings: candidate factor c and most iterations T.
    """
    return _iterate(statistics, kept, settings, statistics.hidden_sum)


def ispasp_contribution(statistics: Statistics, kept: int, settings: SelectorSettings) -> Iterator[Iteration]:
    """Algorithm 1, but of the merged groups those stay that give most energy to the consumer's output.

    Step 4 ranks by ||A_g H_g||_F (``Statistics.contribution``) in place of the hidden sum, which
    knows nothing of the consumer's weights. Arguments as in ``ispasp``.
    """
    return _iterate(statistics, kept, settings, statistics.contribution)


def _iterate(
    statistics: Statistics, kept: int, settings: SelectorSettings, score: Tensor
) -> Iterator[Iteration]:
    """Run Algorithm 1, yielding one record per iteration, until the selected set repeats.

    Per iteration: importance from the residual; the c*s most important groups are candidates;
    candidates are merged with the selected set; of the merged, the s groups with the largest
    ``score`` (d,) are selected; the residual is updated.

    Stopping at the fixed point is lossless. The selected set is always part of the merged one, so
    the sum of its scores never falls (ties go to the lower index), and once a set repeats so does
    every later iteration. When every group is a candidate, the first iteration decides.
    """
    d = statistics.groups
    candidates_wanted = candidate_count(d, kept, settings.candidate_factor)
    selected = torch.zeros(d, dtype=torch.bool, device=score.device)
    for t in range(1, settings.iterations + 1):
        started = time.perf_counter()
        importance = statistics.importance(selected)
        candidates = largest(importance, candidates_wanted)
        merged = candidates | selected
        previous, selected = selected, largest(score.masked_fill(~merged, -math.inf), kept)
        repeated = torch.equal(selected, previous)
        converged = repeated or candidates_wanted == d
        yield record(statistics, t, importance, score, candidates, selected, previous, converged, started)
        if converged:
            return


def largest(values: Tensor, count: int) -> Tensor:
    """A bool mask of the ``count`` largest of ``values`` (d,); ties go to the lower index."""
    order = torch.sort(values, descending=True, stable=True).indices
    mask = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    mask[order[:count]] = True
    return mask


def record(
    statistics: Statistics,
    t: int,
    importance: Tensor,
    score: Tensor,
    candidates: Tensor,
    selected: Tensor,
    previous: Tensor,
    converged: bool,
    started: float,
) -> Iteration:
    """The frozen record of one iteration; sets are (d,) bool masks. Measures the residual.

    ``importance`` decided the candidates, ``score`` which of the merged groups stay, both (d,) and finite.
    """
    residual = statistics.output.select(selected)
    energy = statistics.output.energy
    return Iteration(
        block=statistics.block.name,
        t=t,
        importance=importance.cpu().double(),
        hidden_sum=statistics.hidden_sum.cpu().double(),
        score=score.cpu().double(),
        candidates=indices(candidates),
        selected=indices(selected),
        added=indices(selected & ~previous),
        dropped=indices(previous & ~selected),
        residual=residual,
        relative_residual=residual / energy if energy > 0 else 0.0,
        converged=converged,
        seconds=time.perf_counter() - started,
    )


def indices(mask: Tensor) -> tuple[int, ...]:
    """Sorted indices where a bool mask is true."""
    return tuple(mask.nonzero().flatten().tolist())

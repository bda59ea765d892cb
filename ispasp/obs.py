"""Backward elimination by the optimal-brain-surgeon cost of removing a whole group.

Hassibi & Stork (1993) remove the weight whose loss, with all others re-fitted, raises the error least. For
a consumer Y = X W and a group g of columns of X, with G = X^T X + r I, that error is exactly

    cost_g = tr(W_g^T ((G^-1)_gg)^-1 W_g)

and the others become W - (G^-1)_:g ((G^-1)_gg)^-1 W_g. Striking g out of G turns G^-1 into
G^-1 - (G^-1)_:g ((G^-1)_gg)^-1 (G^-1)_g:. The ridge r pulls the others towards the weights they had.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from ispasp.algorithm import SelectorSettings, record
from ispasp.gram import Gram, diagonal_blocks, factor
from ispasp.greedy import record_after
from ispasp.records import Iteration
from ispasp.statistics import Statistics

# Columns by which G^-1 may lag behind: one large product is far cheaper than many outer ones.
MOST_PENDING = 128
# Removed groups are cut out of G^-1 once no more than this share of its rows is alive.
COMPACT_BELOW = 0.8


def obs(statistics: Statistics, kept: int, settings: SelectorSettings) -> Iterator[Iteration]:
    """Backward elimination: removes, one by one, the group that costs least with the others re-fitted.

    Records are evenly spaced over the d - s steps; the selected set shrinks from record to record. In
    each, ``importance`` is the cost of removing each group at the first of its steps (0 for removed ones),
    ``candidates`` are the groups removed, and ``score`` is what a group cost when it was removed, or would
    cost now. Costs of several consumers add up.

    Args:
        statistics: of a block with d groups.
        kept: s, in [1, d].
        settings: not used.

    Raises:
        SettingError: a Gram matrix would not fit (``gram.collect``).
    """
    started = time.perf_counter()
    fits = [
        _Fit(*parts)
        for parts in zip(statistics.grams, statistics.weights, statistics.patch_sizes, strict=True)
    ]
    d = statistics.groups
    selected = torch.ones(d, dtype=torch.bool, device=statistics.hidden_sum.device)
    members = torch.arange(d, device=selected.device)  # the groups that the fits still have, in order
    left_at = torch.zeros_like(statistics.hidden_sum)
    costs = _costs(fits, selected, members)
    done = 0
    for t, end in enumerate(record_after(d - kept), start=1):
        importance, previous = costs.masked_fill(~selected, 0), selected.clone()
        for _ in range(done, end):
            worst = d - 1 - int(costs.flip(0).argmin())  # of equal ones the last
            left_at[worst] = costs[worst]
            selected[worst] = False
            position = int(torch.searchsorted(members, worst))
            for fit in fits:
                fit.remove(position)
            alive = selected[members]
            if int(alive.sum()) <= COMPACT_BELOW * len(members):
                for fit in fits:
                    fit.keep(alive)
                members = members[alive]
            costs = _costs(fits, selected, members)
        done = end
        score = torch.where(selected, costs, left_at)
        removed = previous & ~selected
        yield record(statistics, t, importance, score, removed, selected, previous, end == d - kept, started)
        started = time.perf_counter()


def _costs(fits: list[_Fit], selected: Tensor, members: Tensor) -> Tensor:
    """(d,): the cost of removing each selected group, infinite for the others."""
    costs = torch.full(selected.shape, math.inf, dtype=fits[0].inverse.dtype, device=selected.device)
    costs[members] = torch.stack([fit.costs() for fit in fits]).sum(0)
    return costs.masked_fill_(~selected, math.inf)


class _Fit:
    """One consumer's re-fitted weights and G^-1, as groups are removed.

    Attributes:
        inverse: (f, f) G^-1, some removals behind.
        floor: (n, 1, 1) what ``blocks`` cannot fall below; None for groups of several columns.
        pending: rows u (f,) whose first ``count`` are the removals it is behind by: G^-1 is ``inverse`` less
            the sum of u u^T.
        blocks: (n, size, size) the diagonal blocks of G^-1, up to date; I for removed groups.
        weight: (f, outputs), up to date; 0 for removed groups.
    """

    def __init__(self, gram: Gram, weight: Tensor, size: int) -> None:
        self.size = size
        lower, ridge = factor(gram.matrix.clone())
        self.inverse = torch.cholesky_inverse(lower)
        # However many others are removed, ((G^-1)_gg)^-1 never exceeds G_gg.
        self.floor = 1 / (gram.matrix.diagonal()[:, None, None] + ridge) if size == 1 else None
        self.weight = weight.clone()
        self.blocks = diagonal_blocks(self.inverse, size).clone()
        self.pending = self._nothing_pending()
        self.count = 0

    def costs(self) -> Tensor:
        """(n,): tr(W_g^T ((G^-1)_gg)^-1 W_g)."""
        if self.size == 1:
            return self.weight.square().sum(1) / self.blocks.flatten()
        grouped = self.weight.view(len(self.blocks), self.size, -1)
        halves = torch.linalg.solve_triangular(_lower(self.blocks), grouped, upper=False)
        return halves.square().sum((1, 2))

    def remove(self, position: int) -> None:
        """Strike out the group at ``position`` and re-fit the others."""
        first = position * self.size
        rows = slice(first, first + self.size)
        pending = self.pending[: self.count]
        column = self.inverse[rows] - pending[:, rows].T @ pending
        lower = _lower(self.blocks[position])
        u = torch.linalg.solve_triangular(lower, column, upper=False)
        self.weight -= u.T @ torch.linalg.solve_triangular(lower, self.weight[rows], upper=False)
        self.weight[rows] = 0
        grouped = u.view(self.size, -1, self.size).transpose(0, 1)
        self.blocks -= grouped.transpose(1, 2) @ grouped
        self.blocks[position] = torch.eye(self.size, dtype=u.dtype, device=u.device)
        if self.floor is not None:
            self.blocks = torch.maximum(self.blocks, self.floor)
        self.pending[self.count : self.count + self.size] = u
        self.count += self.size
        if self.count + self.size > len(self.pending):
            self._catch_up()

    def keep(self, alive: Tensor) -> None:
        """Cut out the groups that are not ``alive``, an (n,) bool mask."""
        self._catch_up()
        features = alive.repeat_interleave(self.size).nonzero().flatten()
        self.inverse = self.inverse[features[:, None], features]
        self.weight, self.blocks = self.weight[features], self.blocks[alive]
        self.floor = self.floor if self.floor is None else self.floor[alive]
        self.pending = self._nothing_pending()

    def _catch_up(self) -> None:
        pending = self.pending[: self.count]
        self.inverse.addmm_(pending.T, pending, alpha=-1)
        self.count = 0

    def _nothing_pending(self) -> Tensor:
        rows = max(1, MOST_PENDING // self.size) * self.size
        return self.inverse.new_zeros(rows, len(self.inverse))


def _lower(blocks: Tensor) -> Tensor:
    """Cholesky factors of symmetric blocks (..., p, p), which rounding may have made slightly indefinite."""
    blocks = (blocks + blocks.mT) / 2
    scale = blocks.diagonal(dim1=-2, dim2=-1).abs().amax(-1)[..., None, None]
    eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    for exponent in range(-14, 3, 2):
        lower, failed = torch.linalg.cholesky_ex(blocks + 10.0**exponent * scale * eye)
        if not bool(failed.any()):
            break
    return lower

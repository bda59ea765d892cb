"""CoSaMP over groups: i-SpaSP with the step that the paper drops, least squares in every iteration.

Needell & Tropp (2009) estimate the coefficients anew on every merged support before they cut it back. Here
the signal is the consumer's output T = X W, the dictionary the columns of X, a group of columns an atom, and
a coefficient a row of W' in T ~ X_S W'. Everything follows from G = X^T X and W.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from ispasp.algorithm import SelectorSettings, candidate_count, largest, record
from ispasp.gram import Gram, block_energies, diagonal_blocks, factor
from ispasp.layouts import features
from ispasp.records import Iteration
from ispasp.statistics import Statistics

# Directions within a group's span whose energy is below this share of the strongest count as rounding.
NEGLIGIBLE = 1e-6
# What the error must fall by for another iteration to be worth it, and where nothing is left to explain, as
# a share of ||A(H)||^2: the Gram matrix knows no better.
NOISE = 1e-9


def cosamp(statistics: Statistics, kept: int, settings: SelectorSettings) -> Iterator[Iteration]:
    """CoSaMP: as i-SpaSP, but with the consumer's weights re-fitted by least squares in every iteration.

    Per iteration: ``importance`` is the norm of the present error's projection on each group's span; the c*s
    largest are candidates; candidates are merged with the selected set; the weights are re-fitted on the
    merged; ``score`` is ||X_g W'_g||_F of those (0 for the rest), whose s largest are selected; the weights
    are re-fitted on them. It ends where the set repeats or the error of the re-fit no longer falls, which
    then keeps the set it had. Several consumers are re-fitted each; squares of norms add up.

    Args:
        statistics: of a block with d groups.
        kept: s, in [1, d].
        settings: candidate factor c and most iterations T.

    Raises:
        SettingError: a Gram matrix would not fit (``gram.collect``).
    """
    started = time.perf_counter()
    d = statistics.groups
    wanted = candidate_count(d, kept, settings.candidate_factor)
    fits = [
        _Fit(*parts)
        for parts in zip(statistics.grams, statistics.weights, statistics.patch_sizes, strict=True)
    ]
    selected = torch.zeros(d, dtype=torch.bool, device=statistics.hidden_sum.device)
    solutions = [torch.zeros_like(fit.weight) for fit in fits]
    energy = sum(fit.error(solution) for fit, solution in zip(fits, solutions, strict=True))
    error = math.inf
    for t in range(1, settings.iterations + 1):
        pairs = list(zip(fits, solutions, strict=True))
        importance = torch.stack([fit.projections(solution) for fit, solution in pairs]).sum(0).sqrt()
        candidates = largest(importance, wanted)
        merged = candidates | selected
        score = torch.stack([fit.energies(fit.refit(merged)) for fit in fits]).sum(0).sqrt()
        proposal = largest(score.masked_fill(~merged, -math.inf), kept)
        previous = selected
        falls = False
        if not torch.equal(proposal, selected):
            refitted = [fit.refit(proposal) for fit in fits]
            new_error = sum(fit.error(solution) for fit, solution in zip(fits, refitted, strict=True))
            falls = error == math.inf or new_error < error - NOISE * energy
            if falls:
                selected, solutions, error = proposal, refitted, new_error
        converged = not falls or wanted == d or error <= NOISE * energy
        yield record(statistics, t, importance, score, candidates, selected, previous, converged, started)
        if converged:
            return
        started = time.perf_counter()


class _Fit:
    """Least squares of one consumer on any support: f features, ``size`` per group, o outputs."""

    def __init__(self, gram: Gram, weight: Tensor, size: int) -> None:
        self.matrix, self.weight, self.size = gram.matrix, weight, size
        self.target = gram.matrix @ weight  # X^T T
        self.blocks = diagonal_blocks(gram.matrix, size)
        values, vectors = torch.linalg.eigh(self.blocks)
        strong = values > NEGLIGIBLE * values[:, -1:].clamp_min(0)
        roots = torch.where(strong, values, math.inf).rsqrt()
        self.whitening = (vectors * roots[:, None, :]).mT

    def projections(self, solution: Tensor) -> Tensor:
        """(d,): tr(C_g^T G_gg^+ C_g) with C = X^T (T - X W'), the energy of the error in each group's span."""
        correlation = self.target - self.matrix @ solution
        grouped = correlation.view(len(self.blocks), self.size, -1)
        return (self.whitening @ grouped).square().sum((1, 2))

    def refit(self, support: Tensor) -> Tensor:
        """W' (f, o) that minimises ||X W - X W'||^2 with rows of zero outside ``support``, a (d,) bool mask.

        A small ridge towards W keeps it unique where the Gram matrix is singular.
        """
        if bool(support.all()):
            return self.weight
        index = features(support.nonzero().flatten(), self.size)
        lower, ridge = factor(self.matrix[index[:, None], index])
        solution = torch.zeros_like(self.weight)
        solution[index] = torch.cholesky_solve(self.target[index] + ridge * self.weight[index], lower)
        return solution

    def energies(self, solution: Tensor) -> Tensor:
        """(d,): ||X_g W'_g||_F^2."""
        return block_energies(self.blocks, solution)

    def error(self, solution: Tensor) -> float:
        """||X W - X W'||_F^2."""
        difference = self.weight - solution
        return max(0.0, float((difference * (self.target - self.matrix @ solution)).sum()))

"""Re-fit a consumer on the groups that are kept: ridge least squares towards a target output.

CoSaMP, from which i-SpaSP descends, estimates the coefficients anew after each selection; the paper's
algorithm drops that step, and this is it, put back as a stage of its own:

    minimise over D and e:  ||R - X D - e||_F^2 + ridge ||D||_F^2,   R = T - X W_S

X are the patches that the consumer reads from the kept groups, W_S its own weights on them, T the target.
The new weights are W_S + D, so the ridge pulls towards the old ones and keep 1.0 is the identity. The
intercept e goes into the layer's bias or into the batch norm behind it. Outputs do not interact: a batch
norm's scale behind the layer changes nothing.

What the target is, is decided in ``ispasp.targets``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ispasp import gram as grams
from ispasp import processes
from ispasp.device import widest_float
from ispasp.gram import Gram
from ispasp.layouts import features
from ispasp.residual import Consumer, squared_norm

# The ridge, as a share of the mean diagonal of X^T X: NOISE for as many unknowns as positions, in proportion
# for fewer, as the best ridge for weights that are all alike would be (the noise in R over what D explains);
# at least RIDGE. Without it a re-fit of about as many unknowns as positions learns the noise (docs/experiments.md).
NOISE = 0.03
RIDGE = 1e-4
# Where X^T X does not fit into memory, so many positions, evenly spread, stand for all.
SAMPLED_POSITIONS = 4096


@dataclass(frozen=True)
class Refit:
    """A consumer's new weights on s kept groups.

    Attributes:
        weight: in the layer's own layout, with the kept input features alone.
        intercept: (outputs,) to be added to the layer's output; None where it has no place to go.
        energy: ||T||_F^2 over the calibration data.
        before: ||T - A_S(H_S)||_F^2 with the old weights.
        after: the same with the new ones, measured on the data; never larger.
        notes: warnings, a sentence each.
        change: what was added to the old weights, in the precision of the outputs; None where they stay.

    A target that is not finite (masks of -inf are added behind the layer, say) leaves the old weights; the
    errors and the energy are then 0, and a note says so.
    """

    weight: Tensor
    intercept: Tensor | None
    energy: float
    before: float
    after: float
    notes: tuple[str, ...]
    change: Tensor | None = None

    def to(self, device: torch.device) -> Refit:
        """The same on ``device``."""
        intercept = None if self.intercept is None else self.intercept.to(device)
        change = None if self.change is None else self.change.to(device)
        return replace(self, weight=self.weight.to(device), intercept=intercept, change=change)


@dataclass(frozen=True)
class Normal:
    """The normal equations: ``gram`` of X (f features), X^T R (f, o), the column sums of R (o,), and the
    relative precision in which their products were taken."""

    gram: Gram
    cross: Tensor
    sums: Tensor
    precision: float

    def noise(self) -> float:
        """How far rounding may move the eigenvalues of X^T X; to be asked before ``centre``."""
        size = float(self.gram.matrix.diagonal().mean())
        return 8 * self.precision * math.sqrt(len(self.gram.sums)) * size

    def centre(self) -> None:
        """Make X^T X and X^T R those of the columns less their means, in place."""
        mean = self.gram.sums / self.gram.positions
        self.gram.matrix.addr_(mean, self.gram.sums, alpha=-1)
        self.cross.addr_(mean, self.sums, alpha=-1)


def refit(
    consumer: Consumer,
    hidden: Sequence[Tensor],
    selected: Tensor,
    group_size: int,
    outputs: Sequence[Tensor],
    missing: Sequence[Tensor],
    intercept: bool,
    known: Gram | None = None,
    ridge: float | None = None,
) -> Refit:
    """Re-fit ``consumer`` on the kept groups, and bring its outputs up to date, in place.

    Args:
        consumer: the linear map A with its own weights.
        hidden: H of all groups, one tensor per batch.
        selected: (d,) bool mask of the s kept groups.
        group_size: features per group.
        outputs: A_S(H_S) per batch, single precision or better; becomes the output of the new weights
            and the intercept.
        missing: R = T - A_S(H_S) per batch; becomes what is still missing.
        intercept: whether there is a place for one.
        known: the Gram matrix of all groups, where it was computed already.
        ridge: as a share of the mean diagonal of X^T X; ``ridge_for`` the data by default.

    Raises:
        CalibrationError: H is not finite, or too large to square.
    """
    index = features(selected.nonzero().flatten(), group_size)
    kept = [batch.index_select(consumer.feature_dim, index) for batch in hidden]
    weight = consumer.weight.index_select(1, index)
    before = _energy(missing)
    energy = _energy(old + part for old, part in zip(outputs, missing, strict=True))
    unchanged = outputs[0].new_zeros(len(weight)) if intercept else None
    if not math.isfinite(before + energy):
        reason = "The target of the re-fit is not finite, or too large to square, so the old weights stay."
        return Refit(weight.clone(), unchanged, 0.0, 0.0, 0.0, (reason,))
    count = len(index) * grams.patch_size(consumer, 1)
    if grams.fits(count):
        columns = features(index, grams.patch_size(consumer, 1))
        gram = None if known is None else known.part(columns)
        change, shift, notes = solve(_normal(consumer, kept, missing, gram), intercept, ridge)
    else:
        change, shift, notes = _solve_sampled(consumer, kept, missing, intercept, ridge)
    change = change.T.reshape(weight.shape).to(outputs[0].dtype)
    steps = [_step(consumer, batch, change, shift) for batch in kept]
    after = _energy(part - step for part, step in zip(missing, steps, strict=True))
    if not after <= before:  # NaN compares false
        reason = (
            f"The re-fit would have raised the error ({before:.2e} to {after:.2e}), so the old weights stay."
        )
        return Refit(weight.clone(), unchanged, energy, before, before, (*notes, reason))
    for old, part, step in zip(outputs, missing, steps, strict=True):
        old += step
        part -= step
    new = (weight.to(change.dtype) + change).to(weight.dtype)
    shift = shift.to(outputs[0].dtype)
    return Refit(new, shift if intercept else None, energy, before, after, notes, change)


def apply(
    consumer: Consumer,
    hidden: Sequence[Tensor],
    selected: Tensor,
    group_size: int,
    outputs: Sequence[Tensor],
    refit: Refit,
) -> None:
    """Bring ``outputs`` up to date with an earlier re-fit, in place, to the last bit as ``refit`` did.

    Arguments as in ``refit``.
    """
    if refit.change is None:
        return
    index = features(selected.nonzero().flatten(), group_size)
    shift = refit.change.new_zeros(len(refit.change)) if refit.intercept is None else refit.intercept
    for old, batch in zip(outputs, hidden, strict=True):
        old += _step(consumer, batch.index_select(consumer.feature_dim, index), refit.change, shift)


def _energy(parts: Iterable[Tensor]) -> float:
    """The squared norm over all batches, and over all processes that share the data."""
    return processes.total_number(sum(map(squared_norm, parts)))


def _step(consumer: Consumer, kept: Tensor, change: Tensor, shift: Tensor) -> Tensor:
    """What the change of weights and the intercept add to the output of one batch."""
    step = consumer(kept.to(change.dtype), change)
    shift = shift.to(step.dtype)
    return step + (shift.view(-1, 1, 1) if consumer.feature_dim == 1 else shift)


def _rows(consumer: Consumer, output: Tensor) -> Tensor:
    """An output (N, o, h, w) or (N, ..., o) as (positions, o), in the order of ``gram.patches``."""
    last = output.movedim(1, -1) if consumer.feature_dim == 1 else output
    return last.reshape(-1, last.shape[-1])


def _normal(
    consumer: Consumer, kept: Sequence[Tensor], missing: Sequence[Tensor], known: Gram | None
) -> Normal:
    wide = widest_float(kept[0].device)
    outputs, device = len(consumer.weight), kept[0].device
    count = kept[0].shape[consumer.feature_dim] * grams.patch_size(consumer, 1)
    precision = torch.finfo(torch.promote_types(kept[0].dtype, torch.float32)).eps
    cross = torch.zeros(count, outputs, dtype=wide, device=device)
    sums = torch.zeros(outputs, dtype=wide, device=device)

    def add(rows: Tensor, number: int, examples: slice) -> None:
        targets = _rows(consumer, missing[number][examples]).to(rows.dtype)
        cross.add_(rows.T @ targets)
        sums.add_(targets.sum(0, dtype=wide))

    if known is None:
        known = grams.collect(consumer, kept, add)
    else:
        for number, batch in enumerate(kept):
            for rows, examples in grams.patches(consumer, batch):
                add(rows, number, examples)
    return Normal(known, processes.total(cross), processes.total(sums), precision)


def ridge_for(unknowns: int, positions: int) -> float:
    """The ridge for so many unknowns per output and calibration positions."""
    return max(RIDGE, NOISE * unknowns / positions)


def solve(
    normal: Normal, intercept: bool, ridge: float | None = None
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The change of weights D (f, o), the intercept e (o,) (zeros without one), and warnings.

    Solved in double precision by Cholesky; where X^T X is singular, on the span of its eigenvectors.
    ``normal`` is overwritten, so that two matrices of its size are all that is held (a ridge in place of I).

    Raises:
        CalibrationError: the equations are not finite.
    """
    gram, matrix, cross = normal.gram, normal.gram.matrix, normal.cross
    diagonal = matrix.diagonal()
    grams.check_finite(float(matrix.norm() + cross.norm()))
    notes = []
    count = len(diagonal)
    if gram.positions < count:
        notes.append(
            f"{gram.positions:,} calibration positions for {count:,} unknowns per output: the re-fit leans "
            "on the old weights; use more samples."
        )
    dead = int((diagonal <= 0).sum())
    if dead:
        notes.append(
            f"{dead:,} of {count:,} inputs of the kept groups are always zero and keep their weights."
        )
    # Inputs that hardly vary leave nothing but rounding when their means are taken off; a ridge stays above it.
    floor = normal.noise() if ridge != 0 else 0.0
    if intercept:
        normal.centre()
    ridge = ridge_for(count, gram.positions) if ridge is None else ridge
    penalty = (ridge * diagonal.mean()).clamp_min(max(floor, torch.finfo(diagonal.dtype).tiny))
    diagonal.add_(penalty)
    change = _cholesky_solve(matrix, cross)
    if change is None:
        notes.append("X^T X is singular: solved on the span of its eigenvectors instead.")
        diagonal.sub_(penalty)
        change = _pseudo_solve(matrix, cross)
    mean = gram.sums / gram.positions
    shift = normal.sums / gram.positions - mean @ change if intercept else torch.zeros_like(normal.sums)
    return change, shift, tuple(notes)


def _cholesky_solve(matrix: Tensor, cross: Tensor) -> Tensor | None:
    """The solution of ``matrix @ x = cross``; None where the matrix is singular."""
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        return None
    # torch.cholesky_solve would copy the factor.
    half = torch.linalg.solve_triangular(lower, cross, upper=False)
    solution = torch.linalg.solve_triangular(lower.mT, half, upper=True)
    return solution if bool(solution.isfinite().all()) else None


def _pseudo_solve(matrix: Tensor, cross: Tensor) -> Tensor:
    """The smallest solution of ``matrix @ x = cross`` in the least-squares sense; symmetric ``matrix``."""
    values, vectors = torch.linalg.eigh(matrix)  # reads the lower triangle alone
    limit = values.max() * len(values) * torch.finfo(torch.float32).eps
    inverse = torch.where(values > limit, 1 / values, torch.zeros_like(values))
    return vectors @ (inverse[:, None] * (vectors.T @ cross))


def _solve_sampled(
    consumer: Consumer,
    kept: Sequence[Tensor],
    missing: Sequence[Tensor],
    intercept: bool,
    ridge: float | None,
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """As ``solve``, over a sample of positions, when X^T X would not fit: (XX^T + ridge)^-1 does.

    D = X^T (X X^T + ridge I)^-1 R solves the same problem (the dual form of ridge regression).

    Raises:
        CalibrationError: X or R is not finite.
    """
    own = sum(_rows(consumer, part[:1]).shape[0] * len(part) for part in missing)
    ends = processes.gathered(torch.tensor([own])).cumsum(0).tolist()
    total, seen = ends[-1], ends[processes.sharers().rank] - own
    chosen = torch.linspace(0, total - 1, min(total, SAMPLED_POSITIONS)).long().unique()
    inputs, targets = [], []
    for batch, part in zip(kept, missing, strict=True):
        for rows, examples in grams.patches(consumer, batch):
            here = chosen[(chosen >= seen) & (chosen < seen + len(rows))] - seen
            here = here.to(rows.device)
            inputs.append(rows[here])
            targets.append(_rows(consumer, part[examples])[here].to(rows.dtype))
            seen += len(rows)
    x, r = (processes.gathered(torch.cat(parts)) for parts in (inputs, targets))
    mean_x = x.mean(0) if intercept else torch.zeros_like(x[0])
    mean_r = r.mean(0) if intercept else torch.zeros_like(r[0])
    x, r = x - mean_x, r - mean_r
    wide = widest_float(x.device)
    kernel = (x @ x.T).to(wide)
    grams.check_finite(float(kernel.norm() + r.norm()))
    # The mean diagonal of X^T X is the trace of X X^T over the number of features.
    scale = (kernel.diagonal().sum() / x.shape[1]).clamp_min(torch.finfo(wide).tiny)
    ridge = ridge_for(x.shape[1], len(x)) if ridge is None else ridge
    kernel.diagonal().add_(ridge * scale)
    weights = _cholesky_solve(kernel, r.to(wide))
    notes = [
        f"{x.shape[1]:,} unknowns per output: re-fitted on {len(x):,} of {total:,} positions, to stay within "
        f"{grams.MOST_GRAM_BYTES / 2**30:.0f} GiB."
    ]
    if weights is None:
        notes.append("X X^T is singular: solved on the span of its eigenvectors instead.")
        weights = _pseudo_solve(kernel, r.to(wide))
    change = (x.T @ weights.to(x.dtype)).to(wide)
    shift = mean_r.to(wide) - mean_x.to(wide) @ change
    return change, shift, tuple(notes)

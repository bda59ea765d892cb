"""Gram matrices of what a consumer reads: all that least squares and the energy of any support need.

A consumer is linear, so its output is a matrix product: one row of ``patches`` per output position, times
the weight as a matrix. X^T X of those rows, summed over the calibration data, holds every inner product
between features; no later question needs the data again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ispasp import processes
from ispasp.device import widest_float
from ispasp.errors import CalibrationError, SettingError
from ispasp.residual import Consumer

# The most memory for one Gram matrix in double precision: 11,585 unknowns per output. A re-fit holds at most
# two of that size at once, the matrix and its factor, besides those that the selector asked for; where the
# matrix is singular, four for a moment: its eigenvectors and LAPACK's work space in place of the factor.
MOST_GRAM_BYTES = 2**30
# The most memory for rows of patches that are held at a time.
MOST_PATCH_BYTES = 2**26
# Rows of a Gram matrix that are worked on at a time, so that no second matrix of its size is needed.
STRIPE = 2048
# What ``factor`` adds to the diagonal, as a share of its mean.
RIDGE = 1e-6


@dataclass(frozen=True)
class Gram:
    """Second and first moments of a consumer's patches, f features.

    Attributes:
        matrix: (f, f) float64, X^T X summed over all positions.
        sums: (f,) float64, X summed over all positions.
        positions: number of rows of X.
    """

    matrix: Tensor
    sums: Tensor
    positions: int

    def part(self, index: Tensor) -> Gram:
        """The same of the features ``index`` (n,) alone."""
        return Gram(self.matrix[index[:, None], index], self.sums[index], self.positions)


def patch_size(consumer: Consumer, group_size: int) -> int:
    """Columns of ``patches`` per group: kernel positions, or the group's features for a linear consumer."""
    return group_size * (consumer.weight[0, 0].numel() if consumer.feature_dim == 1 else 1)


def fits(count: int) -> bool:
    """Whether a Gram matrix of ``count`` features stays within the memory bound."""
    return 8 * count * count <= MOST_GRAM_BYTES


def weight_matrix(consumer: Consumer) -> Tensor:
    """The consumer's weight as (f, outputs) float64, rows in the order of the columns of ``patches``."""
    return consumer.weight.detach().to(widest_float(consumer.weight.device)).flatten(1).T


def patches(
    consumer: Consumer, hidden: Tensor, most_bytes: int = MOST_PATCH_BYTES
) -> Iterator[tuple[Tensor, slice]]:
    """What the consumer reads, unfolded, a few examples at a time.

    Args:
        consumer: a convolution (ungrouped) or linear operation.
        hidden: (N, d, h, w) or (N, ..., d), its input or some of its input's features.
        most_bytes: memory for one part, unless a single example needs more.

    Yields:
        (P, f) in single precision or better, rows in the order of the output's positions, columns in the
        order of ``weight.flatten(1)``; and which examples they come from.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    one = _unfold(consumer, hidden[:1]) if consumer.feature_dim == 1 else hidden[:1]
    step = max(1, most_bytes // max(1, one.numel() * wide.itemsize))
    for first in range(0, len(hidden), step):
        examples = slice(first, min(first + step, len(hidden)))
        part = hidden[examples].to(wide)
        if consumer.feature_dim == 1:
            yield _unfold(consumer, part).T, examples
        else:
            yield part.reshape(-1, part.shape[-1]), examples


def _unfold(consumer: Consumer, hidden: Tensor) -> Tensor:
    """(d * k * k, P) patches of a convolution's input, position after position of example after example.

    Features lead: whole maps are copied then, and the products that follow read memory in order. That is a third to
    nine tenths of the time of ``F.unfold`` and a transposition, least for wide maps.
    """
    _, _, _, stride, padding, dilation, *_ = (*consumer.node.args, *(None,) * 7)[:7]
    kernel = tuple(consumer.weight.shape[2:])
    strides, dilations = _pair(stride, 1), _pair(dilation, 1)
    reach = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    if isinstance(padding, str):
        # "same" puts the odd one out at the end, as torch's convolution does.
        before = [r // 2 for r in reach] if padding == "same" else [0, 0]
        after = [r - b for r, b in zip(reach, before, strict=True)] if padding == "same" else [0, 0]
    else:
        before = after = list(_pair(padding, 0))
    maps = F.pad(hidden.transpose(0, 1), (before[1], after[1], before[0], after[0]))
    ends = [size - r for size, r in zip(maps.shape[2:], reach, strict=True)]
    shifted = [
        maps[:, :, y : y + ends[0] : strides[0], x : x + ends[1] : strides[1]]
        for y in range(0, reach[0] + 1, dilations[0])
        for x in range(0, reach[1] + 1, dilations[1])
    ]
    return torch.stack(shifted, dim=1).flatten(0, 1).flatten(1)


def _pair(value: object, default: int) -> tuple[int, int]:
    if isinstance(value, (list, tuple)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value)) if isinstance(value, int) else (default, default)


def collect(
    consumer: Consumer, hidden: Sequence[Tensor], also: Callable[[Tensor, int, slice], None] | None = None
) -> Gram:
    """The Gram matrix of all features in ``hidden``, one tensor per batch.

    Products are taken in single precision and summed in double, the upper triangle only.

    Args:
        consumer: what reads ``hidden``.
        hidden: its input, or some of its input's features.
        also: what else to do with each part of ``patches``: rows, number of the batch, examples.

    Raises:
        SettingError: it would not fit (see ``MOST_GRAM_BYTES``).
    """
    matrix: Tensor | None = None
    sums: Tensor | None = None
    positions = 0
    for number, batch in enumerate(hidden):
        for rows, examples in patches(consumer, batch):
            if also is not None:
                also(rows, number, examples)
            if matrix is None or sums is None:
                count = rows.shape[1]
                if not fits(count):
                    raise SettingError(
                        f"A Gram matrix of {count:,} features needs {8 * count * count / 2**30:.1f} GiB, more than the "
                        f"{MOST_GRAM_BYTES / 2**30:.0f} GiB allowed; choose a selector that needs none, such as ispasp."
                    )
                wide = widest_float(rows.device)
                matrix = torch.zeros(count, count, dtype=wide, device=rows.device)
                sums = torch.zeros(count, dtype=wide, device=rows.device)
            for first in range(0, rows.shape[1], STRIPE):
                matrix[first : first + STRIPE, first:] += rows[:, first : first + STRIPE].T @ rows[:, first:]
            sums += rows.sum(0)
            positions += len(rows)
    if matrix is None or sums is None:
        raise AssertionError("a block has at least one batch")
    matrix = processes.total(matrix)
    _mirror(matrix)
    return Gram(matrix, processes.total(sums), int(processes.total_number(positions)))


def _mirror(matrix: Tensor) -> None:
    """Copy the upper triangle to the lower one, in place, a stripe at a time."""
    for first in range(0, len(matrix), STRIPE):
        last = first + STRIPE
        square = matrix[first:last, first:last]
        square.copy_((square + square.T) / 2)
        matrix[last:, first:last] = matrix[first:last, last:].T


def collect_blocks(consumer: Consumer, hidden: Sequence[Tensor], size: int) -> Tensor:
    """(d, size, size) float64: the blocks of each group on the diagonal of X^T X, without the rest of it.

    Args:
        consumer, hidden: as in ``collect``.
        size: columns per group, see ``patch_size``.
    """
    total: Tensor | None = None
    for batch in hidden:
        for rows, _ in patches(consumer, batch):
            if size == 1:
                part = (
                    torch.linalg.vector_norm(rows, dim=0)
                    .to(widest_float(rows.device))
                    .square()[:, None, None]
                )
            else:
                grouped = rows.reshape(len(rows), -1, size)
                part = grouped.permute(1, 2, 0) @ grouped.transpose(0, 1)
            if total is None:
                total = torch.zeros(part.shape, dtype=widest_float(rows.device), device=rows.device)
            total += part
    if total is None:
        raise AssertionError("a block has at least one batch")
    return processes.total(total)


def diagonal_blocks(matrix: Tensor, size: int) -> Tensor:
    """(d, size, size) view of the blocks on the diagonal of ``matrix`` (d * size, d * size)."""
    return matrix.view(len(matrix) // size, size, -1, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def block_energies(blocks: Tensor, weight: Tensor) -> Tensor:
    """(d,): ||X_g W_g||_F^2 from the diagonal blocks (d, size, size) and ``weight`` (d * size, outputs)."""
    grouped = weight.view(len(blocks), -1, weight.shape[1])
    return ((blocks @ grouped) * grouped).sum((1, 2)).clamp_min(0)


def energy_matrix(gram: Gram, weight: Tensor, size: int) -> Tensor:
    """Q (d, d): Q_gg' = <X_g W_g, X_g' W_g'>, so that 1_D^T Q 1_D is the energy of the groups D.

    Args:
        gram: of all d * size features.
        weight: (d * size, outputs), as ``weight_matrix`` gives it.
        size: columns per group, see ``patch_size``.
    """
    groups = len(weight) // size
    energies = gram.matrix.new_empty(groups, groups)
    step = max(1, STRIPE // size)
    for first in range(0, groups, step):
        last = min(first + step, groups)
        part = slice(first * size, last * size)
        products = weight[part] @ weight.T
        products *= gram.matrix[part]
        energies[first:last] = products.view(last - first, size, groups, size).sum((1, 3))
    return energies


def check_finite(value: float, most: float = math.inf) -> None:
    """Refuse what came of squares of calibration data, where it is NaN, or not below ``most`` in size.

    Raises:
        CalibrationError: so it is.
    """
    if not abs(value) < most:  # NaN compares false
        raise CalibrationError(
            "What a block reads from the calibration data is NaN, infinite or too large to square; check the "
            "model's weights and the scale of its inputs."
        )


def factor(matrix: Tensor, ridge: float = RIDGE) -> tuple[Tensor, float]:
    """The lower Cholesky factor of ``matrix`` + r I, and r; ``matrix`` (f, f) is overwritten.

    r is ``ridge`` times the mean of the diagonal, and ten times more until the factor exists: rounding in
    single precision can give a singular Gram matrix slightly negative eigenvalues. A matrix of zeros
    counts as one with a mean diagonal of 1.

    Raises:
        CalibrationError: the matrix is not finite.
    """
    mean = float(matrix.diagonal().mean())
    check_finite(mean)
    penalty = ridge * (mean if mean > 0 else 1.0)
    matrix.diagonal().add_(penalty)
    while True:
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if not int(failed):
            return lower, penalty
        matrix.diagonal().add_(9 * penalty)
        penalty *= 10

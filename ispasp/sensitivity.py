"""How much the whole network's output moves when one block alone is pruned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ispasp import evaluate, masking, padding, processes, reconstruct, selectors, statistics, targets
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError
from ispasp.graph import Traced
from ispasp.records import Block, Progress
from ispasp.residual import squared_norm
from ispasp.settings import PruneSettings, groups_to_keep
from ispasp.statistics import Statistics
from ispasp.stream import Stream

FRACTIONS = (0.125, 0.25, 0.5, 0.75)
"""Kept fractions at which a run measures that shares its budget out."""
FINE = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Kept fractions at which a heat map and a budget measure."""


@dataclass(frozen=True)
class Curve:
    """What pruning one block alone does to the network's output, over the calibration data.

    Attributes:
        block: the block, of d groups.
        kept: numbers of groups kept, rising; the last is d.
        divergence: for each of ``kept``, mean KL divergence of the pruned network's softmax from the dense
            one's, in nats per example (per position, where there are several); where the output is a single
            number per example, the relative squared error. 0 for all groups. What is measured with fewer
            groups counts as no less than with more.
        residual: for each of ``kept``, ||V||_F^2 / ||A(H)||_F^2 of the block itself with the weights its consumer
            has, as ``Iteration.relative_residual``; 0 for all groups.
        error_after: the same after the re-fit against its target, the dense output; None where there was no re-fit;
            0 for all groups.
        agreement: share of examples (positions, where each has classes) for which the pruned network's top-1 class is
            the dense one's; 1 for all groups; None where the output has no classes.

    The last three are empty where nobody measured them.
    """

    block: Block
    kept: tuple[int, ...]
    divergence: tuple[float, ...]
    residual: tuple[float, ...] = ()
    error_after: tuple[float, ...] | None = None
    agreement: tuple[float, ...] | None = None

    def at(self, kept: int) -> float:
        """The divergence at ``kept`` groups, between the measured numbers.

        The divergence grows as the square of a small error, so its square root is taken to be straight
        between two points; below the smallest it grows in inverse proportion to ``kept``.
        """
        if kept < self.kept[0]:
            return self.divergence[0] * self.kept[0] / kept
        return float(np.interp(kept, self.kept, np.sqrt(self.divergence))) ** 2


class _Point(NamedTuple):
    """One count of one block: as in ``Curve``."""

    divergence: float = 0.0
    residual: float = 0.0
    error_after: float | None = None
    agreement: float | None = None


def measure(
    traced: Traced,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    settings: PruneSettings,
    scores: dict[str, Tensor],
    fractions: Sequence[float] = FRACTIONS,
) -> Generator[Progress, None, list[Curve]]:
    """Prune every block alone at a few keep ratios and compare the outputs with the dense network's.

    Nothing else is pruned, so the statistics of all blocks come from one dense pass; each ratio costs a
    selection, a re-fit where ``settings`` ask for one, and the part of the network behind the block.

    Args:
        traced: the dense model.
        blocks: what to measure, in network order.
        batches: calibration data on the model's device; not changed.
        settings: selector, re-fit and multiple, as in pruning.
        scores: as ``OnePass.scores``.
        fractions: kept fractions at which to measure, each in (0, 1).

    Raises:
        CalibrationError: the output is not finite, or does not depend on any block.
    """
    traced = masking.hold(traced, blocks)
    dense = yield from _run(
        traced,
        Stream(traced, [batch.copy() for batch in batches]),
        0,
        Progress(0.0, "running the dense model"),
    )
    stream = Stream(traced, [batch.copy() for batch in batches])
    by_read = {block.reads[0]: block for block in blocks}
    curves: list[Curve] = []
    executed = 0
    for position, node in enumerate(traced.nodes):
        if not (block := by_read.get(node.name)):
            continue
        for _ in stream.advance(traced.nodes[executed:position]):
            pass
        executed = position
        collected = statistics.collect_at(
            block, traced, stream, settings.hidden_sum == "absolute", scores.get(block.name)
        )
        points: dict[int, _Point] = {}
        least = 0.0
        for fraction in sorted(fractions, reverse=True):
            kept = groups_to_keep(block.groups, fraction, block.multiple(settings.multiple))
            if kept < block.groups and kept not in points:
                now = Progress(len(curves) / len(blocks), f"measuring how sensitive {block.name} is")
                yield now
                fork = stream.fork()
                residual, error_after = _prune(traced, fork, collected, kept, settings)
                outputs = yield from _run(traced, fork, position, now)
                masks = [batch.mask for batch in batches]
                divergence, agreement = _compare(dense, outputs, masks, block)
                least = max(least, divergence)
                points[kept] = _Point(least, residual, error_after, agreement)
        curves.append(_curve(block, points))
    if all(curve.divergence[0] == 0 for curve in curves):
        raise CalibrationError(
            "The model's output does not change when any of its blocks is pruned, so no budget can be shared out "
            'by sensitivity; use allocation="uniform".'
        )
    return curves


def _curve(block: Block, points: dict[int, _Point]) -> Curve:
    """The curve through what was measured, which ends at all groups."""
    kept = sorted(points)
    found = [points[count] for count in kept]
    errors = [point.error_after for point in found if point.error_after is not None]
    shares = [point.agreement for point in found if point.agreement is not None]
    return Curve(
        block,
        (*kept, block.groups),
        (*(point.divergence for point in found), 0.0),
        (*(point.residual for point in found), 0.0),
        (*errors, 0.0) if found and len(errors) == len(found) else None,
        (*shares, 1.0) if len(shares) == len(found) else None,
    )


@torch.no_grad()
def _prune(
    traced: Traced, fork: Stream, collected: Statistics, kept: int, settings: PruneSettings
) -> tuple[float, float | None]:
    """Let the consumers in ``fork`` read ``kept`` groups alone, re-fitted where asked.

    Both streams agree before the block, so the symmetric target is the asymmetric one.

    Returns:
        The block's relative residual, and its error after the re-fit, as in ``Curve``.
    """
    *_, last = selectors.get(settings.selector)(collected, kept, settings.for_selector())
    selected = collected.mask(last.selected)
    own = dataclasses.replace(collected, output=collected.output.copy())
    masking.regate(traced, fork, own, selected)
    energy = after = 0.0
    for number, consumer in enumerate(own.consumers):
        refit = None
        if settings.reconstruct != "none":
            home = targets.home_of_intercept(consumer.node, targets.role(consumer.node, traced), traced)
            refit = reconstruct.refit(
                consumer,
                own.hidden,
                selected,
                own.block.group_size,
                own.output.kept[number],
                own.output.lost[number],
                bool(home),
                None if own.block.gates else collected.known_gram(number),
            )
            energy, after = energy + refit.energy, after + refit.after
        masking.narrow(fork, own, number, selected, refit)
    error = None if settings.reconstruct == "none" else after / energy if energy else 0.0
    return last.relative_residual, error


def _run(
    traced: Traced, stream: Stream, first: int, now: Progress
) -> Generator[Progress, None, list[Tensor]]:
    """Execute every node from ``first`` on, saying ``now`` in between; the model's first output per batch."""
    for node, _ in stream.advance(traced.nodes[first:]):
        if node.op == "output":
            yield now
    return [stream.outputs(number)[0] for number in range(len(stream.batches))]


def _compare(
    dense: Sequence[Tensor], outputs: Sequence[Tensor], masks: Sequence[Tensor | None], block: Block
) -> tuple[float, float | None]:
    """Divergence and agreement of the pruned network's output, as in ``Curve``."""
    total = count = same = positions = 0.0
    for whole, other, mask in zip(dense, outputs, masks, strict=True):
        expected, output = (padding.counted(mask, value.float()) for value in (whole, other))
        classes = evaluate.class_dimension(output)
        if classes is None:
            total += squared_norm(expected - output)
            count += squared_norm(expected)
        else:
            log_p, log_q = (value.log_softmax(classes) for value in (expected, output))
            # Classes that a model masks out with -inf have no part in it.
            masked = log_p.isneginf() & log_q.isneginf()
            terms = F.kl_div(log_q, log_p, log_target=True, reduction="none")
            total += float(terms.masked_fill(masked, 0).sum())
            count += output.numel() / output.shape[classes]
            equal = expected.argmax(classes) == output.argmax(classes)
            same, positions = same + float(equal.sum()), positions + equal.numel()
    total, count, same, positions = map(processes.total_number, (total, count, same, positions))
    divergence = total / count if count else 0.0
    if not math.isfinite(divergence):
        raise CalibrationError(
            f"The model's output is not finite when block {block.name} is pruned; check its weights and the scale "
            "of its inputs."
        )
    return divergence, same / positions if positions else None

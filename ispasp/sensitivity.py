"""How much the whole network's output moves when one block alone is pruned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ispasp import evaluate, masking, padding, reconstruct, selectors, statistics, targets
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError
from ispasp.graph import Traced
from ispasp.records import Block, Progress
from ispasp.residual import squared_norm
from ispasp.settings import PruneSettings, groups_to_keep
from ispasp.statistics import Statistics
from ispasp.stream import Stream

FRACTIONS = (0.125, 0.25, 0.5, 0.75)


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
    """

    block: Block
    kept: tuple[int, ...]
    divergence: tuple[float, ...]

    def at(self, kept: int) -> float:
        """The divergence at ``kept`` groups, between the measured numbers.

        The divergence grows as the square of a small error, so its square root is taken to be straight
        between two points; below the smallest it grows in inverse proportion to ``kept``.
        """
        if kept < self.kept[0]:
            return self.divergence[0] * self.kept[0] / kept
        return float(np.interp(kept, self.kept, np.sqrt(self.divergence))) ** 2


def measure(
    traced: Traced,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    settings: PruneSettings,
    scores: dict[str, Tensor],
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
    for position, node in enumerate(traced.nodes):
        if block := by_read.get(node.name):
            collected = statistics.collect_at(
                block, traced, stream, settings.hidden_sum == "absolute", scores.get(block.name)
            )
            loss = {block.groups: 0.0}
            for fraction in sorted(FRACTIONS, reverse=True):
                kept = groups_to_keep(block.groups, fraction, block.multiple(settings.multiple))
                if kept not in loss:
                    now = Progress(len(curves) / len(blocks), f"measuring how sensitive {block.name} is")
                    yield now
                    fork = stream.fork()
                    _prune(traced, fork, collected, kept, settings)
                    outputs = yield from _run(traced, fork, position, now)
                    masks = [batch.mask for batch in batches]
                    loss[kept] = max(_divergence(dense, outputs, masks, block), *loss.values())
            curves.append(Curve(block, tuple(sorted(loss)), tuple(loss[kept] for kept in sorted(loss))))
            if len(curves) == len(blocks):
                break
        for _ in stream.run(node):
            pass
        if node.op != "output":
            stream.free(node)
    if all(curve.divergence[0] == 0 for curve in curves):
        raise CalibrationError(
            "The model's output does not change when any of its blocks is pruned, so no budget can be shared out "
            'by sensitivity; use allocation="uniform".'
        )
    return curves


@torch.no_grad()
def _prune(traced: Traced, fork: Stream, collected: Statistics, kept: int, settings: PruneSettings) -> None:
    """Let the consumers in ``fork`` read ``kept`` groups alone, re-fitted where asked.

    Both streams agree before the block, so the symmetric target is the asymmetric one.
    """
    *_, last = selectors.get(settings.selector)(collected, kept, settings.for_selector())
    selected = collected.mask(last.selected)
    own = dataclasses.replace(collected, output=collected.output.copy())
    masking.regate(traced, fork, own, selected)
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
        masking.narrow(fork, own, number, selected, refit)


def _run(
    traced: Traced, stream: Stream, first: int, now: Progress
) -> Generator[Progress, None, list[Tensor]]:
    """Execute every node from ``first`` on, saying ``now`` in between; the model's first output per batch."""
    for node in traced.nodes[first:]:
        for _ in stream.run(node):
            pass
        if node.op != "output":
            stream.free(node)
            yield now
    return [stream.outputs(number)[0] for number in range(len(stream.batches))]


def _divergence(
    dense: Sequence[Tensor], outputs: Sequence[Tensor], masks: Sequence[Tensor | None], block: Block
) -> float:
    total = count = 0.0
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
    divergence = total / count if count else 0.0
    if not math.isfinite(divergence):
        raise CalibrationError(
            f"The model's output is not finite when block {block.name} is pruned; check its weights and the scale "
            "of its inputs."
        )
    return divergence

"""The operators of a dense and a pruned model side by side, and their times by block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ispasp.allocation import owners
from ispasp.deployment.operators import Kernel
from ispasp.deployment.origins import Origins
from ispasp.records import Block


@dataclass(frozen=True)
class Operator:
    """What one layer runs by one operator, dense and pruned. Where a model does not run it, its figures are 0.

    Attributes:
        layer: qualified module name; empty for what comes before the first.
        op_type: as in ``Kernel``.
        block: the block that the layer belongs to: of two the one that it produces; None outside them.
        nodes_dense, nodes_pruned: how many nodes.
        dense_ms, pruned_ms: median time per call, in milliseconds.
        macs_dense, macs_pruned: multiply-adds per example.
        moved_dense, moved_pruned: bytes of the activations read and written per call.
        shape_dense, shape_pruned: of the layer's weight, for an operator that multiplies by it; else empty.
        blocked_dense, blocked_pruned: whether it runs in onnxruntime's blocked layout.
        channels_dense, channels_pruned: outputs of a convolution in that layout as it runs; else 0.
        gflops_dense, gflops_pruned: 10^9 FLOPs per second, two per multiply-add; None without multiply-adds.
        share_of_peak_dense, share_of_peak_pruned: of the machine's peak in float32; None without multiply-adds, and in
            a file that computes in integers.
    """

    layer: str
    op_type: str
    block: str | None
    nodes_dense: int
    nodes_pruned: int
    dense_ms: float
    pruned_ms: float
    macs_dense: int
    macs_pruned: int
    moved_dense: int
    moved_pruned: int
    shape_dense: tuple[int, ...]
    shape_pruned: tuple[int, ...]
    blocked_dense: bool
    blocked_pruned: bool
    channels_dense: int
    channels_pruned: int
    gflops_dense: float | None
    gflops_pruned: float | None
    share_of_peak_dense: float | None
    share_of_peak_pruned: float | None


@dataclass(frozen=True)
class BlockTime:
    """What the layers of one block take together.

    Attributes:
        block: its name; None for all that belongs to no block.
        dense_ms, pruned_ms: sums over its operators of their median times per call, in milliseconds.
        macs_dense, macs_pruned: multiply-adds per example.
        layers: their names, as they run.
    """

    block: str | None
    dense_ms: float
    pruned_ms: float
    macs_dense: int
    macs_pruned: int
    layers: tuple[str, ...]


def side_by_side(
    dense: Sequence[Kernel],
    pruned: Sequence[Kernel],
    origins: Sequence[Origins],
    blocks: Sequence[Block],
    batch: int,
    peak: float | None,
) -> list[Operator]:
    """Both models' kernels, matched by layer and operator, as the dense model runs them; then what only the pruned
    model runs.

    Args:
        dense, pruned: the kernels of both.
        origins: of both models, for the shapes of their weights.
        blocks: those that were pruned.
        batch: examples per call.
        peak: GFLOP/s of the machine; None where shares of it would mean nothing.
    """
    produced, consumed = owners(blocks)
    before, after = ({(k.layer, k.op_type): k for k in kernels} for kernels in (dense, pruned))
    found = []
    for layer, operator in dict.fromkeys((*before, *after)):
        nothing = Kernel(layer, operator, 0, 0.0, 0, 0, False)
        one, two = before.get((layer, operator), nothing), after.get((layer, operator), nothing)
        index = produced.get(layer, consumed.get(layer))
        weighted = one.macs + two.macs > 0 and "of activations" not in operator
        rates = [2 * k.macs / k.ms / 1e6 if k.macs and k.ms else None for k in (one, two)]
        shares = [None if rate is None or peak is None else rate / peak for rate in rates]
        found.append(
            Operator(
                layer=layer,
                op_type=operator,
                block=None if index is None else blocks[index].name,
                nodes_dense=one.nodes,
                nodes_pruned=two.nodes,
                dense_ms=one.ms,
                pruned_ms=two.ms,
                macs_dense=one.macs // batch,
                macs_pruned=two.macs // batch,
                moved_dense=one.moved,
                moved_pruned=two.moved,
                shape_dense=origins[0].weights.get(layer, ()) if weighted else (),
                shape_pruned=origins[1].weights.get(layer, ()) if weighted else (),
                blocked_dense=one.blocked,
                blocked_pruned=two.blocked,
                channels_dense=one.channels,
                channels_pruned=two.channels,
                gflops_dense=rates[0],
                gflops_pruned=rates[1],
                share_of_peak_dense=shares[0],
                share_of_peak_pruned=shares[1],
            )
        )
    return found


def by_block(operators: Iterable[Operator], blocks: Iterable[Block]) -> tuple[list[BlockTime], BlockTime]:
    """The blocks in network order, and the rest; every operator counts in one of them."""
    mine: dict[str | None, list[Operator]] = {block.name: [] for block in blocks}
    mine[None] = []
    for operator in operators:
        mine[operator.block].append(operator)
    *found, rest = (_together(name, own) for name, own in mine.items())
    return found, rest


def _together(name: str | None, own: Sequence[Operator]) -> BlockTime:
    return BlockTime(
        name,
        sum(o.dense_ms for o in own),
        sum(o.pruned_ms for o in own),
        sum(o.macs_dense for o in own),
        sum(o.macs_pruned for o in own),
        tuple(dict.fromkeys(o.layer for o in own if o.layer)),
    )

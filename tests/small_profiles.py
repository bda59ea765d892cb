"""Made-up profiles: operators with the figures that matter, and the others in proportion."""

from __future__ import annotations

from typing import Any

from ispasp.deployment.by_block import BlockTime, Operator
from ispasp.latency import LatencyReport, Timing


def operator(layer: str, dense_ms: float, pruned_ms: float, **changed: Any) -> Operator:
    """A convolution of 64 to 64 channels, pruned to 32 outputs, in the blocked layout."""
    usual: dict[str, Any] = {
        "op_type": "Conv",
        "block": layer,
        "nodes_dense": 1,
        "nodes_pruned": 1,
        "macs_dense": 4_000_000,
        "macs_pruned": 2_000_000,
        "moved_dense": 100_000,
        "moved_pruned": 75_000,
        "shape_dense": (64, 64, 3, 3),
        "shape_pruned": (32, 64, 3, 3),
        "blocked_dense": True,
        "blocked_pruned": True,
        "channels_dense": 64,
        "channels_pruned": 32,
    }
    values = usual | changed
    for side, ms in (("dense", dense_ms), ("pruned", pruned_ms)):
        macs = values[f"macs_{side}"]
        rate = 2 * macs / ms / 1e6 if macs and ms else None
        values.setdefault(f"gflops_{side}", rate)
        values.setdefault(f"share_of_peak_{side}", None if rate is None else rate / 100)
    return Operator(layer=layer, dense_ms=dense_ms, pruned_ms=pruned_ms, **values)


def plain(layer: str, op_type: str, dense_ms: float, pruned_ms: float, **changed: Any) -> Operator:
    """An operator without multiply-adds."""
    nothing = {"macs_dense": 0, "macs_pruned": 0, "shape_dense": (), "shape_pruned": ()}
    more = {"blocked_dense": False, "blocked_pruned": False, "channels_dense": 0, "channels_pruned": 0}
    return operator(layer, dense_ms, pruned_ms, op_type=op_type, **(nothing | more | changed))


def blocks(operators: list[Operator]) -> tuple[list[BlockTime], BlockTime]:
    """A block for every layer that has one, and the rest."""
    mine: dict[str | None, list[Operator]] = {o.block: [] for o in operators if o.block is not None}
    for o in operators:
        mine.setdefault(o.block, []).append(o)
    times = {
        name: BlockTime(
            name,
            sum(o.dense_ms for o in own),
            sum(o.pruned_ms for o in own),
            sum(o.macs_dense for o in own),
            sum(o.macs_pruned for o in own),
            tuple(o.layer for o in own),
        )
        for name, own in mine.items()
    }
    rest = times.pop(None, BlockTime(None, 0.0, 0.0, 0, 0, ()))
    return list(times.values()), rest


def latency(dense_ms: float, pruned_ms: float, low: float, high: float) -> LatencyReport:
    dense, pruned = (Timing(ms, ms, ms, 1e3 / ms) for ms in (dense_ms, pruned_ms))
    return LatencyReport(1, 1, "CPUExecutionProvider", 30, 4, dense, pruned, dense_ms / pruned_ms, low, high)

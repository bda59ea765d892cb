"""A block, a trace of three iterations and a report, made up by hand."""

from __future__ import annotations

from typing import Any

import torch

from ispasp.records import Block, BlockPruned, BlockStarted, Cut, Iteration


def started(groups: int, keep: int, decides: bool = False, kind: str = "channel") -> BlockStarted:
    block = Block(
        "layer1.0.conv1", groups, kind=kind, prunable=True, cuts=(Cut("layer1.0.conv2", "consumer"),)
    )
    return BlockStarted(block, 0, 1, keep, decides, torch.zeros(2, groups, 4, 4, dtype=torch.float16))


def iteration(
    t: int,
    candidates: tuple[int, ...],
    selected: tuple[int, ...],
    before: tuple[int, ...] = (),
    groups: int = 6,
    relative: float = 0.5,
    converged: bool = False,
    score: torch.Tensor | None = None,
    importance: torch.Tensor | None = None,
) -> Iteration:
    added = tuple(sorted(set(selected) - set(before)))
    dropped = tuple(sorted(set(before) - set(selected)))
    if importance is None:
        importance = torch.arange(groups, dtype=torch.float64).flip(0)  # group 0 matters most
    hidden = torch.arange(groups, dtype=torch.float64)  # the last group has the largest hidden sum
    return Iteration(
        "layer1.0.conv1",
        t,
        importance,
        hidden,
        hidden if score is None else score,
        candidates,
        selected,
        added,
        dropped,
        relative,
        relative,
        converged,
        0.1,
    )


FIRST = iteration(1, (0, 1, 2, 3), (2, 3), relative=0.157)


SECOND = iteration(2, (0, 4, 5, 1), (4, 5), before=(2, 3), relative=0.149)


THIRD = iteration(3, (0, 1, 4, 5), (4, 5), before=(4, 5), relative=0.149, converged=True)


TRACE = [FIRST, SECOND, THIRD]


REPORT: dict[str, Any] = {
    "params_before": 270_000,
    "params_after": 140_000,
    "macs_before": 41_000_000,
    "macs_after": 21_000_000,
    "accuracy_before": 0.879,
    "accuracy_after": 0.841,
    "agreement": 0.902,
    "blocks": [
        {"name": "a", "groups": 16, "kept": 8},
        {"name": "b", "groups": 8, "kept": 8},
        {"name": "c", "groups": 20, "kept": 8},
    ],
}


def pruned(before: float | None, after: float | None, drift: float = 0.2, **more: object) -> BlockPruned:
    target = "none" if before is None else "asymmetric"
    return BlockPruned(
        started(6, 2).block,
        0,
        (4, 5),
        3,
        0.149,
        drift,
        1.0,
        target,
        before,
        after,
        **more,  # type: ignore[arg-type]
    )

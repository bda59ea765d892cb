"""What there is to see of one run: the same view of a job under way, a finished run and a mere plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ispasp.records import Block, BlockPruned, BlockStarted, Distilled, Finished, Iteration, Started


@dataclass(frozen=True)
class BlockView:
    """One block: what will be kept of it, and what has happened to it so far."""

    block: Block
    keep_groups: int
    started: BlockStarted | None = None
    trace: tuple[Iteration, ...] = ()
    pruned: BlockPruned | None = None

    @property
    def state(self) -> str:
        return "done" if self.pruned else "current" if self.started else "waiting"


@dataclass(frozen=True)
class View:
    """The blocks in network order; how the distillation went, and the report, once there is one."""

    blocks: tuple[BlockView, ...] = ()
    report: dict[str, Any] | None = None
    distilled: Distilled | None = None

    @property
    def current(self) -> int | None:
        """Index of the block begun last; None before the first."""
        begun = [i for i, block in enumerate(self.blocks) if block.started]
        return begun[-1] if begun else None

    @property
    def chosen(self) -> bool:
        """Whether every block's groups are chosen, so that only measuring is left."""
        return bool(self.blocks) and all(block.pruned for block in self.blocks)

    @property
    def first_look(self) -> int | None:
        """The block worth looking at: the one under work; after a run, the one with most iterations."""
        if self.report is None:
            return self.current
        return max(range(len(self.blocks)), key=lambda i: len(self.blocks[i].trace), default=None)

    def index(self, name: str | None) -> int | None:
        """Index of the block with this name; None when there is none."""
        return next((i for i, block in enumerate(self.blocks) if block.block.name == name), None)


def from_plan(blocks: Sequence[Block], keep_groups: Sequence[int]) -> View:
    """A network nothing was done to yet."""
    return View(tuple(BlockView(b, k) for b, k in zip(blocks, keep_groups, strict=True)))


def from_events(events: Iterable[Any]) -> View:
    """What the events so far amount to; an empty view before ``Started``."""
    blocks: list[BlockView] = []
    report = distilled = None
    for event in events:
        match event:
            case Started():
                blocks = list(from_plan(event.blocks, event.keep_groups).blocks)
            case BlockStarted():
                blocks[event.index] = replace(blocks[event.index], started=event)
            case Iteration():
                index = next(i for i, b in enumerate(blocks) if b.block.name == event.block)
                blocks[index] = replace(blocks[index], trace=(*blocks[index].trace, event))
            case BlockPruned():
                blocks[event.index] = replace(blocks[event.index], pruned=event)
            case Distilled():
                distilled = event
            case Finished():
                report = event.result.report
    return View(tuple(blocks), report, distilled)


def from_saved(saved: Any) -> View:
    """A run opened from disk (``ispasp.result.RunRecord``)."""
    view = from_events([saved.started, *saved.blocks_started, *saved.trace, *saved.blocks_pruned])
    return replace(view, report=saved.report, distilled=saved.distilled)

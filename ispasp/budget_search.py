"""The counts that meet a budget: by the solver, by measuring latency, or by measuring accuracy."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ispasp import allocation, latency_table, surgery
from ispasp.allocation import Costly
from ispasp.budget_report import Budget, points
from ispasp.errors import SettingError
from ispasp.latency import LatencyReport, compare_latency
from ispasp.narrative import percent, quantity
from ispasp.onnx_export import export_onnx
from ispasp.opened import Opened
from ispasp.records import Block, Finished, Progress
from ispasp.run_settings import KINDS, RunSettings
from ispasp.sensitivity import Curve
from ispasp.sensitivity_run import blocks_of

ROUNDS = 4  # of measuring and asking the table for more or less
HALVINGS = 6  # of the interval in which the cheapest model that loses little enough lies
BELOW, ABOVE = 0.97, 1.12  # times the limit: measured speedups between them count as met
AIM = 1.03  # times the limit: what the table is asked for once it was wrong
TINY = 1e-9  # a keep ratio at which every block keeps as little as it can
SECONDS = 2.5  # of timed calls per comparison

Counts = tuple[int, ...]


@dataclass
class Search:
    """What a model may be pruned to, and what is known about it.

    Attributes:
        opened: the model and its data.
        settings: how it is pruned.
        model: what it costs, in the unit of the budget.
        curves: its sensitivities.
        rounds: what was tried, for the report.
        blocks: what is pruned.

    Raises:
        SettingError: there is no such block.
    """

    opened: Opened
    settings: RunSettings
    model: Sequence[Costly] = ()
    curves: Sequence[Curve] = ()
    rounds: list[dict[str, Any]] = field(default_factory=list)
    blocks: list[Block] = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = blocks_of(self.opened, self.settings)

    @property
    def whole(self) -> Counts:
        """All groups of every block."""
        return tuple(block.groups for block in self.blocks)

    @property
    def fewest(self) -> Counts:
        """The counts that cost least."""
        return tuple(allocation.fewest(self.model, self.blocks, self.settings.multiple))

    def cost(self, counts: Sequence[int]) -> float:
        return allocation.cost(self.model, self.blocks, counts)

    def solve(self, most: float) -> Counts:
        """The counts that lose least at a cost of at most ``most``; the cheapest where none are so cheap."""
        fewest = self.fewest
        if self.cost(fewest) > most:
            return fewest
        _, same = self.uniform(most)
        found = allocation.solve(self.curves, self.model, most, self.settings.multiple, same)
        return fewest if found is None else tuple(found)

    def uniform(self, most: float) -> tuple[float, Counts]:
        """The largest single ratio at that cost, and its counts; the smallest where none is so cheap."""
        multiple = self.settings.multiple
        most = max(most, self.cost(allocation.uniform(self.blocks, TINY, multiple)))
        keep = allocation.uniform_within(self.model, self.blocks, most, multiple)
        return keep, tuple(allocation.uniform(self.blocks, keep, multiple))

    def keeps(self, counts: Sequence[int]) -> dict[str, float]:
        """Kept fractions by block name, which round to just these counts."""
        return {block.name: count / block.groups for block, count in zip(self.blocks, counts, strict=True)}

    @property
    def instead(self) -> str:
        """What else could reach a budget that cannot be reached, as the end of a sentence."""
        ways = ["prune more kinds of groups"] if set(self.settings.kinds) < set(KINDS) else []
        if self.settings.multiple > 1:
            ways.append(f"round to a smaller multiple than {self.settings.multiple}")
        return "".join(f", or {way}" for way in ways)

    def check(self, budget: Budget) -> float:
        """The most that the model may cost.

        Raises:
            SettingError: the budget asks for nothing, or for more than the fewest groups give.
        """
        dense, least = self.cost(self.whole), self.cost(self.fewest)
        most, what = budget.most(dense), "MACs" if budget.kind == "macs" else "parameters"
        if most >= dense:
            raise SettingError(
                f"The budget '{budget.words}' asks for nothing: the dense model has {quantity(dense)} {what}; give "
                "less."
            )
        if most < least * (1 - 1e-9):
            raise SettingError(
                f"The budget '{budget.words}' cannot be reached: with the fewest groups in every block "
                f"{quantity(least)} {what} are left, {percent(least / dense)} of the dense model's; allow "
                f"more{self.instead}."
            )
        return most


@dataclass
class Stopwatch:
    """Compares dense and sliced models in onnxruntime.

    Attributes:
        search: the model and its blocks.
        folder: where the ONNX files lie meanwhile.
        threads: of onnxruntime.
    """

    search: Search
    folder: Path
    threads: int

    def __post_init__(self) -> None:
        loaded = self.search.opened.loaded
        example = loaded.example.first(1)
        self.inputs = example.keywords or example.inputs
        self.dense = self.folder / "dense.onnx"
        self.known: dict[Counts, float] = {}

    @property
    def fixed(self) -> float:
        """Milliseconds of the dense model beside the layers that blocks narrow."""
        parts = (part for part in self.search.model if part.produces is None and part.consumes is None)
        return sum(float(part.at(np.ones(()), np.ones(()))) for part in parts)

    def table(self, runs_folder: Path) -> Generator[Progress, None, list[Costly]]:
        """The cost of the model in milliseconds (``ispasp.latency_table``)."""
        search = self.search
        yield Progress(0.0, "exporting the dense model")
        export_onnx(search.opened.loaded.model, self.inputs, self.dense)
        return (
            yield from latency_table.measure(
                search.opened.subject.traced,
                search.blocks,
                search.settings.multiple,
                self.dense,
                self.inputs,
                runs_folder,
                self.threads,
            )
        )

    def speedup(self, counts: Counts) -> Generator[Progress, None, float]:
        """How many times faster the model is with so many groups; weights do not matter, so the first ones stay."""
        if counts in self.known:
            return self.known[counts]
        yield Progress(0.0, "exporting a sliced model")
        sliced = copy.deepcopy(self.search.opened.loaded.model)
        for block, count in zip(self.search.blocks, counts, strict=True):
            if count < block.groups:
                surgery.slice_block(sliced, block, range(count))
        path = self.folder / "sliced.onnx"
        export_onnx(sliced, self.inputs, path)
        for step in compare_latency(self.dense, path, self.inputs, threads=self.threads, seconds=SECONDS):
            if isinstance(step, LatencyReport):
                self.known[counts] = step.ratio
            else:
                yield step
        return self.known[counts]

    def reachable(self, budget: Budget) -> Generator[Progress, None, None]:
        """Look whether the fewest groups are fast enough, where the table has doubts.

        Raises:
            SettingError: they are not.
        """
        search = self.search
        if search.cost(search.whole) / search.cost(search.fewest) >= budget.limit * ABOVE:
            return
        fastest = yield from self.speedup(search.fewest)
        if fastest < budget.limit * BELOW:
            before, after = (search.cost(counts) - self.fixed for counts in (search.whole, search.fewest))
            rest = f", and all else {self.fixed:.2g} ms" if self.fixed else ""
            raise SettingError(
                f"The budget '{budget.words}' cannot be reached: with the fewest groups in every block the model is "
                f"{fastest:.2f}× as fast, because the layers that pruning narrows still take {after:.2g} ms of "
                f"{before:.2g} ms by the table{rest}; ask for less{search.instead}."
            )

    def meet(self, budget: Budget) -> Generator[Progress, None, tuple[Counts, float]]:
        """The counts that lose least among those that were measured to be fast enough, or the fastest measured; and
        the table's time that gave them.

        The table knows layers alone; what it gets wrong for the whole model is made up for by asking it for more
        or less, in proportion.
        """
        search, limit = self.search, budget.limit
        dense, target = search.cost(search.whole), limit
        tried: dict[Counts, tuple[float, float]] = {}
        for number in range(ROUNDS):
            counts = search.solve(dense / target)
            if counts in tried:
                break
            doing = f"measuring latency, attempt {number + 1}"
            yield from _said(self.speedup(counts), number / ROUNDS, doing)
            ratio = self.known[counts]
            tried[counts] = (ratio, dense / target)
            search.rounds.append({"target": target, "speedup": ratio, "counts": list(counts)})
            if limit <= ratio <= limit * ABOVE:
                break
            target = max(1.0, target * limit * AIM / ratio)
        enough = [counts for counts, (ratio, _) in tried.items() if ratio >= limit]
        if enough:
            chosen = min(enough, key=lambda counts: loss(search.curves, counts))
        else:
            chosen = max(tried, key=lambda counts: tried[counts][0])
        return chosen, tried[chosen][1]


def _said(steps: Generator[Progress, None, Any], done: float, doing: str) -> Generator[Progress, None, None]:
    """The same steps, each with other words."""
    for _ in steps:
        yield Progress(done, doing)


def loss(curves: Sequence[Curve], counts: Sequence[int]) -> float:
    """The sum of the divergences."""
    return sum(curve.at(count) for curve, count in zip(curves, counts, strict=True))


@dataclass
class Trials:
    """Prunes without saving and looks at the accuracy.

    Attributes:
        search: the model.
        known: points of accuracy lost at the counts that were tried.
    """

    search: Search
    known: dict[Counts, float] = field(default_factory=dict)

    def lost(self, counts: Counts) -> Generator[Progress, None, float]:
        """Percentage points of accuracy on the evaluation data that pruning to ``counts`` costs."""
        if counts in self.known:
            return self.known[counts]
        search = self.search
        asked = dataclasses.replace(search.settings, keep_by_block=search.keeps(counts))
        for event in search.opened.variant(asked).events():
            if isinstance(event, Finished):
                self.known[counts] = points_lost(event.result.report)
            elif isinstance(event, Progress):
                yield event
        return self.known[counts]

    def cheapest(
        self, limit: float, low: float, high: float
    ) -> Generator[Progress, None, tuple[Counts, float] | None]:
        """The counts of least cost between ``low`` and ``high`` that lose at most ``limit`` points, and that cost,
        by bisection; None where all that were tried lose more.

        The loss is measured and need not fall at every step, so a cheaper model may go unseen.
        """
        search, found = self.search, None
        for number in range(HALVINGS):
            middle = (low + high) / 2
            counts = search.solve(middle)
            doing = (
                f"looking for the cheapest model that loses little enough, attempt {number + 1} of {HALVINGS}"
            )
            yield from _said(self.lost(counts), number / HALVINGS, doing)
            lost = self.known[counts]
            search.rounds.append({"cost": search.cost(counts), "loss": lost, "counts": list(counts)})
            if lost <= limit:
                found, high = (counts, middle), search.cost(counts)
            else:
                low = middle
        return found

    def mildest(self) -> str:
        """What the largest model that was tried loses, in words."""
        last = max(self.known, key=self.search.cost)
        share = self.search.cost(last) / self.search.cost(self.search.whole)
        return f"with {percent(share)} of the dense cost it loses {points(self.known[last])}"


def points_lost(report: dict[str, Any]) -> float:
    """Percentage points between dense and pruned accuracy.

    Raises:
        SettingError: there are no labels, so that accuracy is unknown.
    """
    before, after = report["accuracy_before"], report["accuracy_after"]
    if before is None or after is None:
        raise SettingError(
            "A budget of accuracy needs evaluation data with labels, and these have none; give other data or budget."
        )
    # A count of examples over their number: rounding in the last digits must not decide.
    return round(100 * (before - after), 9)

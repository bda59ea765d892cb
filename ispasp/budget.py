"""Prune a model to a budget: measure, solve, run, and set the largest uniform ratio within it beside it."""

from __future__ import annotations

import dataclasses
import secrets
import tempfile
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ispasp import allocation, runs
from ispasp.allocation import Layer
from ispasp.budget_report import (
    WORDS,
    Budget,
    BudgetReport,
    Side,
    check,
    list_reports,
    load,
    parse,
    points,
    save,
)
from ispasp.budget_search import Counts, Search, Stopwatch, Trials, loss, points_lost
from ispasp.errors import SettingError
from ispasp.latency_table import device_name
from ispasp.narrative import percent, quantity
from ispasp.opened import open_all
from ispasp.progress import part
from ispasp.records import Finished, Progress
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from ispasp.sensitivity_run import curves_of
from ispasp.unfinished import Discarded

__all__ = [
    "Budget",
    "BudgetDone",
    "BudgetReport",
    "Side",
    "check",
    "execute",
    "list_reports",
    "load",
    "parse",
    "save",
]


@dataclass(frozen=True)
class BudgetDone:
    """Both runs are on disk, and so is the report."""

    report: BudgetReport


def execute(
    settings: RunSettings,
    budgets: Iterable[Budget],
    runs_folder: Path,
    *,
    threads: int = 1,
    allow_code: bool = False,
) -> Generator[Progress | RunSaved | BudgetDone, None, None]:
    """Prune to at most one budget of cost and one of loss; the last event is ``BudgetDone``.

    A cost alone: the counts that lose least by the sensitivities (``allocation.solve``). A speedup: the same on a
    table of latencies, corrected by measuring whole models. A loss alone: the fewest MACs, by bisection over runs
    that are not saved. Both: the cost, and whether it loses too much. The chosen counts and the largest uniform
    ratio within the budget become two saved runs, ``RunSaved`` each; only one where both keep the same.

    Args:
        settings: what to prune and how; its ``keep`` does not matter.
        budgets: as ``parse`` reads them.
        runs_folder: where runs, sensitivities, latency tables and the report are kept.
        threads: of onnxruntime, for a speedup.
        allow_code: whether a Python file that the settings name may be run.

    Raises:
        SettingError: the budgets contradict each other or cannot be reached; the message says what can.
        ISpaSPError: as ``runs.execute``.
    """
    cost, most_loss = check(budgets)
    if settings.keep_by_block or settings.allocation != "uniform":
        raise SettingError(
            "A budget decides what every block keeps, and there are ratios per block or an allocation already; clear "
            "them, or leave the budget out."
        )
    with tempfile.TemporaryDirectory() as folder:
        yield from _Run(settings, cost, most_loss, runs_folder, Path(folder), threads, allow_code).events()


@dataclass
class _Run:
    """One call of ``execute``.

    Attributes:
        settings, runs_folder, threads, allow_code: as there.
        limit, most_loss: the budgets.
        folder: for files that are not kept.
        costs: ``macs`` and ``params`` of the model.
        dense: as ``BudgetReport.dense``.
    """

    settings: RunSettings
    limit: Budget | None
    most_loss: Budget | None
    runs_folder: Path
    folder: Path
    threads: int
    allow_code: bool
    costs: dict[str, list[Layer]] = field(default_factory=dict)
    dense: dict[str, float | None] = field(default_factory=dict)

    def events(self) -> Generator[Progress | RunSaved | BudgetDone, None, None]:
        opened = yield from part(open_all(self.settings, allow_code=self.allow_code), 0.0, 0.05)
        if self.most_loss and any(batch.labels is None for batch in opened.subject.evaluation):
            points_lost({"accuracy_before": None, "accuracy_after": None})
        search = Search(opened, self.settings)
        self.costs = {
            kind: allocation.layers(opened.subject.traced, search.blocks, kind) for kind in ("macs", "params")
        }
        kind = self.limit.kind if self.limit else "macs"
        search.model = self.costs.get(kind, ())
        watch = Stopwatch(search, self.folder, self.threads)
        if kind == "speedup":
            assert self.limit is not None
            search.model = yield from part(watch.table(self.runs_folder), 0.05, 0.15)
            yield from part(watch.reachable(self.limit), 0.15, 0.2)
        elif self.limit:
            search.check(self.limit)
        search.curves = yield from part(curves_of(opened, self.settings, self.runs_folder), 0.2, 0.35)
        trials = Trials(search)
        counts, most = yield from self._chosen(search, watch, trials)
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        keep, same = search.uniform(most)
        own = yield from self._side(search, watch, name, "budget", keep, counts, 0.6, 0.75)
        needs = ""
        if self.limit and self.most_loss:
            needs = yield from self._contradiction(search, trials, own, most)
        other = None
        if same != counts:
            other = yield from self._side(search, watch, name, "uniform", keep, same, 0.85, 1.0)
        report = self._report(search, name, own, other, needs)
        save(report, self.runs_folder)
        yield Progress(1.0, "finished")
        yield BudgetDone(report)

    def _chosen(
        self, search: Search, watch: Stopwatch, trials: Trials
    ) -> Generator[Progress, None, tuple[Counts, float]]:
        """The counts to prune to, and the cost that the uniform ratio may have."""
        if self.limit is None:
            assert self.most_loss is not None
            ends = search.cost(search.fewest), search.cost(search.whole)
            found = yield from part(trials.cheapest(self.most_loss.limit, *ends), 0.35, 0.6)
            if found is None:
                raise SettingError(
                    f"The budget '{self.most_loss.words}' was not met by any model that was tried: "
                    f"{trials.mildest()}; allow a larger loss, re-fit or distil, or round to a smaller multiple."
                )
            return found[0], search.cost(found[0])
        if self.limit.kind == "speedup":
            return (yield from part(watch.meet(self.limit), 0.35, 0.6))
        most = self.limit.most(search.cost(search.whole))
        return search.solve(most), most

    def _side(
        self,
        search: Search,
        watch: Stopwatch,
        name: str,
        role: str,
        keep: float,
        counts: Counts,
        low: float,
        high: float,
    ) -> Generator[Progress | RunSaved, None, Side]:
        """Prune to ``counts``, save the run, and measure it."""
        predicted = {
            kind: allocation.cost(costs, search.blocks, counts) for kind, costs in self.costs.items()
        }
        predicted["divergence"] = loss(search.curves, counts)
        speedup = None
        if self.limit and self.limit.kind == "speedup":
            predicted["speedup"] = search.cost(search.whole) / search.cost(counts)
            speedup = yield from part(watch.speedup(counts), low, low)
        by_block = search.keeps(counts) if role == "budget" else {}
        asked = dataclasses.replace(self.settings, keep=keep, keep_by_block=by_block)
        steps = runs.execute(
            asked, self.runs_folder, lineage={"budget": name, "role": role}, opened=search.opened
        )
        report: dict[str, Any] = {}
        run_id = ""
        try:
            for event in steps:
                if isinstance(event, Finished):
                    report = event.result.report
                elif isinstance(event, Progress):
                    what = "the budget's run" if role == "budget" else "the uniform run"
                    yield Progress(low + (high - low) * event.done, f"{what}: {event.doing}")
                elif isinstance(event, RunSaved):
                    run_id = event.run_id
                    yield event
        except Discarded as unwanted:  # thrown at a yield of ours, so the run under way is told
            steps.throw(unwanted)
        self.dense = {what: report[f"{what}_before"] for what in ("macs", "params", "accuracy")}
        measured = {what: report[f"{what}_after"] for what in ("macs", "params", "accuracy")}
        measured |= {"agreement": report["agreement"], "speedup": speedup}
        return Side(run_id, keep, counts, predicted, measured)

    def _contradiction(
        self, search: Search, trials: Trials, own: Side, most: float
    ) -> Generator[Progress, None, str]:
        """Where the cost's model loses too much: what the allowed loss would need, in a sentence."""
        assert self.limit is not None and self.most_loss is not None
        lost = self._lost(own)
        if lost <= self.most_loss.limit:
            return ""
        whole = search.cost(search.whole)
        found = yield from part(trials.cheapest(self.most_loss.limit, most, whole), 0.75, 0.85)
        said = f"The two budgets contradict each other: {self.limit.words} loses {points(lost)} of accuracy"
        if found is None:
            return f"{said}, and no model that was tried loses at most {points(self.most_loss.limit)}."
        need = search.cost(found[0])
        if self.limit.kind == "speedup":
            return f"{said}; {points(self.most_loss.limit)} allow about {whole / need:.2f}×, by the table of latencies."
        what = "MACs" if self.limit.kind == "macs" else "parameters"
        return (
            f"{said}; {points(self.most_loss.limit)} need {quantity(need)} {what}, "
            f"{percent(need / whole)} of the dense model's."
        )

    def _lost(self, side: Side) -> float:
        return points_lost(
            {"accuracy_before": self.dense["accuracy"], "accuracy_after": side.measured["accuracy"]}
        )

    def _report(self, search: Search, name: str, own: Side, other: Side | None, needs: str) -> BudgetReport:
        limits: dict[str, float] = {}
        met = True
        sentences = []
        if self.limit and self.limit.kind == "speedup":
            limits["speedup"] = self.limit.limit
            reached = own.measured["speedup"] or 0.0
            met = reached >= self.limit.limit
            sentences.append(_speedup_sentence(self.limit, reached, own.predicted["speedup"]))
        elif self.limit:
            kind = self.limit.kind
            limits[kind] = self.limit.most(search.cost(search.whole))
            used = own.measured[kind] or 0.0
            met = used <= limits[kind] * (1 + 1e-9)
            sentences.append(_cost_sentence(self.limit, used, self.dense[kind] or 0.0))
        sentences.append(self._beside(own, other))
        if self.most_loss:
            limits["loss"] = self.most_loss.limit
            lost = self._lost(own)
            met = met and lost <= self.most_loss.limit
            sentences.append(needs or _loss_sentence(lost, self.most_loss, chosen_by_it=self.limit is None))
        return BudgetReport(
            id=name,
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
            settings=self.settings.plain(),
            budgets=tuple(str(each) for each in (self.limit, self.most_loss) if each),
            limits=limits,
            met=met,
            blocks=tuple(block.name for block in search.blocks),
            groups=search.whole,
            dense=self.dense,
            budget=own,
            uniform=other,
            rounds=tuple(search.rounds),
            sentences=tuple(sentences),
        )

    def _beside(self, own: Side, other: Side | None) -> str:
        """What the uniform ratio gives."""
        if other is None:
            return f"The uniform keep ratio {own.keep:g} keeps the same groups, so there is nothing to share out."
        if own.measured["accuracy"] is None or other.measured["accuracy"] is None:
            return f"T{self._uniform(other)[1:]}."
        dense, mine, theirs = (
            percent(value or 0.0)
            for value in (self.dense["accuracy"], own.measured["accuracy"], other.measured["accuracy"])
        )
        return f"Accuracy {dense} → {mine}; {self._uniform(other)} and gives {theirs}."

    def _uniform(self, other: Side) -> str:
        """Which ratio it is and what it costs: it takes steps, so it seldom costs just what the budget does."""
        kinds = ["params", "macs"] if self.limit and self.limit.kind == "params" else ["macs", "params"]
        first, second = (
            f"{percent((other.measured[kind] or 0.0) / (self.dense[kind] or 1.0))} of the {WORDS[kind]}"
            for kind in kinds
        )
        which = "the largest uniform keep ratio that costs no more MACs"
        fast = ""
        if self.limit and self.limit.kind == "speedup":
            which = "the largest uniform keep ratio that is as fast by the table"
            fast = f"was measured at {other.measured['speedup'] or 0.0:.2f}×, "
        elif self.limit:
            most = self.limit.most(self.dense[kinds[0]] or 0.0)
            within = (other.measured[kinds[0]] or 0.0) <= most * (1 + 1e-9)
            size = "largest uniform keep ratio within" if within else "cheapest uniform keep ratio, above"
            which = f"the {size} the budget"
        return f"{which}, {other.keep:g}, {fast}costs {first} (and {second})"


def _cost_sentence(limit: Budget, used: float, dense: float) -> str:
    what = "MACs" if limit.kind == "macs" else "parameters"
    return (
        f"Asked for {limit.words}: {quantity(used, dense)} of {quantity(dense)} {what} are left, "
        f"{percent(used / dense)}."
    )


def _speedup_sentence(limit: Budget, reached: float, predicted: float) -> str:
    said = (
        f"Asked for {limit.words}: measured {reached:.2f}× on {device_name()}, by the table {predicted:.2f}×"
    )
    if reached >= limit.limit:
        return f"{said}."
    return f"{said}; this is the fastest of what was tried, and misses the target by {limit.limit - reached:.2f}×."


def _loss_sentence(lost: float, limit: Budget, chosen_by_it: bool) -> str:
    said = f"It loses {points(max(0.0, lost))} of accuracy, {points(limit.limit)} were allowed."
    if chosen_by_it:
        return f"{said} The evaluation examples chose this budget, so others may lose a little more."
    return said

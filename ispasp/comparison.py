"""Finished runs side by side: pure functions from saved runs to their differences."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ispasp.errors import RunError, SettingError
from ispasp.evaluate import Predictions
from ispasp.narrative import tuned_words
from ispasp.result import RunRecord
from ispasp.store import RunSummary, export_report
from ispasp.vocabulary import refit_words, selector_words


class Family(NamedTuple):
    """What runs must have in common to stand in one picture: the dense model, and what it was measured on.

    ``examples``: on how many examples accuracy and agreement were measured.
    """

    model: str
    weights: str
    data: str
    examples: int


class Dense(NamedTuple):
    """The baseline of all runs of one family; ``macs`` are for one example, ``accuracy`` None where unknown."""

    parameters: int
    macs: int
    accuracy: float | None


@dataclass(frozen=True)
class Row:
    """One run among others.

    Attributes:
        run_id, name: folder name, and what a person calls the run (the folder name where nothing else was given).
        keep: the kept fraction that was asked for; None where every block had its own.
        macs, parameters: of the pruned model; MACs for one example.
        accuracy, agreement: in [0, 1]; None where they are unknown.
        speedup: dense over pruned latency, measured by the run's export; None without one.
        seconds: how long the run took.
        lineage: what the run is part of, such as ``{"sweep": ID}``.
        samples, seed, distil: as the run was made.
        tuned: how it was fine-tuned last (``narrative.tuned_words``); empty where it was only pruned.
        conditions: name and value of the other settings that decide what a block loses.
    """

    run_id: str
    name: str
    family: Family
    dense: Dense
    keep: float | None
    selector: str
    reconstruct: str
    macs: int
    parameters: int
    accuracy: float | None
    agreement: float | None
    speedup: float | None
    seconds: float
    finished_at: str
    lineage: Mapping[str, str]
    samples: int | None
    seed: int | None
    distil: int
    tuned: str = ""
    conditions: tuple[tuple[str, str], ...] = ()

    @property
    def change(self) -> float | None:
        """Accuracy minus that of the dense model, as a fraction; None where unknown."""
        known = self.accuracy is not None and self.dense.accuracy is not None
        return self.accuracy - self.dense.accuracy if known else None  # type: ignore[operator]

    @property
    def made(self) -> tuple[str, str]:
        """Selector and re-fit, which decide how a run is drawn."""
        return self.selector, self.reconstruct

    @property
    def title(self) -> str:
        """``"keep 0.5, i-SpaSP, re-fit asymmetric, fine-tuned, quick"``."""
        keep = "keep per block" if self.keep is None else f"keep {self.keep:g}"
        return ", ".join(filter(None, (keep, made_words(self.made), self.tuned)))


def made_words(made: tuple[str, str]) -> str:
    """Selector and re-fit in words."""
    selector, reconstruct = made
    refit = "no re-fit" if reconstruct == "none" else f"re-fit {refit_words(reconstruct)[0]}"
    return f"{short_words(selector)}, {refit}"


def short_words(selector: str) -> str:
    """The selector's title without what only a newcomer needs: ``"i-SpaSP"``."""
    return selector_words(selector).title.removesuffix(", as in the paper").removesuffix(", uses labels")


def rows(runs: Iterable[RunSummary]) -> tuple[list[Row], list[RunSummary]]:
    """The runs that can be compared, in their order, and those that cannot: damaged, or made from Python."""
    fit, unfit = [], []
    for run in runs:
        try:
            fit.append(_row(run))
        except (KeyError, TypeError, ValueError):
            unfit.append(run)
    return fit, unfit


def _row(run: RunSummary) -> Row:
    settings, report = run.settings, run.report
    if run.problem or not isinstance(settings["model"], str):
        raise ValueError("not a run of a named model")
    keep = settings.get("keep")
    latency = (export_report(run.path) or {}).get("latency") if run.exported else None
    ratio = latency.get("ratio") if isinstance(latency, dict) else None
    return Row(
        run_id=run.run_id,
        name=run.name or run.run_id,
        family=Family(
            settings["model"],
            str(settings.get("weights", "")),
            str(settings.get("data", "")),
            _count(report.get("examples", 0)),
        ),
        dense=Dense(
            _count(report["params_before"]), _count(report["macs_before"]), _share(report, "accuracy_before")
        ),
        keep=float(keep) if isinstance(keep, (int, float)) and not settings.get("keep_by_block") else None,
        selector=str(settings.get("selector", "ispasp")),
        # What a run of an earlier version does not say was not done.
        reconstruct=str(settings.get("reconstruct", "none")),
        macs=_count(report["macs_after"]),
        parameters=_count(report["params_after"]),
        accuracy=_share(report, "accuracy_after"),
        agreement=_share(report, "agreement"),
        speedup=_positive(ratio),
        seconds=_positive(report.get("seconds")) or 0.0,
        finished_at=run.finished_at,
        lineage=run.lineage,
        samples=_whole(settings.get("samples")),
        seed=_whole(settings.get("seed")),
        distil=_whole(settings.get("distil")) or 0,
        tuned=tuned_words(settings),
        conditions=(
            *((key, _said(settings[key])) for key in _CONDITIONS if key in settings),
            ("fine-tuning", tuned_words(settings) or "none"),
        ),
    )


_CONDITIONS = (
    "samples", "seed", "multiple", "candidate_factor", "iterations", "recalibrate", "hidden_sum", "kinds",
)  # fmt: skip


def _said(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _positive(value: Any) -> float | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable and value > 0 else None


def _share(report: Mapping[str, Any], key: str) -> float | None:
    value = report.get(key)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{key} is {value!r}")
    return float(value)


def families(found: Iterable[Row]) -> list[Family]:
    """What the runs are about; the family of the first run first."""
    return list(dict.fromkeys(row.family for row in found))


def efficient_frontier(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Indices of the runs that no other one beats, by rising cost.

    One run beats another when it costs no more and is no less accurate, and is better in one of the two; of
    equal runs, all are on the frontier.

    Args:
        costs: (n,) less is better.
        accuracies: (n,) more is better.

    Raises:
        SettingError: the two are not of one length.
    """
    if len(costs) != len(accuracies):
        raise SettingError(
            f"Got {len(costs)} costs and {len(accuracies)} accuracies: give one of each per run."
        )
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -accuracies[i]))
    kept: list[int] = []
    for i in order:
        equal = bool(kept) and (costs[i], accuracies[i]) == (costs[kept[-1]], accuracies[kept[-1]])
        if equal or not kept or accuracies[i] > accuracies[kept[-1]]:
            kept.append(i)
    return kept


class Overlap(NamedTuple):
    """What two runs keep of one block, as counts of groups."""

    block: str
    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def jaccard(self) -> float:
        """Groups that both keep over groups that at least one keeps, in [0, 1]."""
        return self.both / max(self.both + self.only_a + self.only_b, 1)


def overlaps(a: RunRecord, b: RunRecord) -> list[Overlap]:
    """What two runs keep of the blocks that both pruned, in network order.

    Raises:
        RunError: they have no block in common, or one of another size: they are of different models.
    """
    first, second = ({p.block.name: p for p in run.blocks_pruned} for run in (a, b))
    common = [name for name in first if name in second]
    differing = [name for name in common if first[name].block.groups != second[name].block.groups]
    if not common or differing:
        what = f"the block {differing[0]} has another size" if differing else "they have no block in common"
        raise RunError(
            f"The selected sets of these runs cannot be compared, as {what}: choose two runs of the same model."
        )
    found = []
    for name in common:
        one, other = set(first[name].selected), set(second[name].selected)
        both = len(one & other)
        neither = first[name].block.groups - len(one | other)
        found.append(Overlap(name, both, len(one) - both, len(other) - both, neither))
    return found


class ClassChange(NamedTuple):
    """Accuracy on the examples of one class, in [0, 1], under two models; ``examples`` is how many there are."""

    label: int
    examples: int
    before: float
    after: float


def class_changes(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> list[ClassChange]:
    """Per-class accuracy under two models, the largest change first.

    Args:
        labels, before, after: (n,) integers: the true class, and what each of the two predicts.
    """
    found = []
    for label in np.unique(labels):
        of = labels == label
        right = [float((predicted[of] == label).mean()) for predicted in (before, after)]
        found.append(ClassChange(int(label), int(of.sum()), *right))
    return sorted(found, key=lambda c: (-abs(c.after - c.before), c.label))


LOST, GAINED, CHANGED = "right before, wrong now", "wrong before, right now", "another answer"
FLIPS = (LOST, GAINED, CHANGED)
"""Kinds of flips, those that matter most first. Without labels every flip is another answer."""


class Flip(NamedTuple):
    """An evaluation example (its position) whose prediction changed; ``label`` is None where it is unknown."""

    example: int
    kind: str
    label: int | None
    before: int
    after: int


def flips(labels: np.ndarray | None, before: np.ndarray, after: np.ndarray) -> list[Flip]:
    """The examples that two models answer differently: those that went wrong first, then by position.

    Args:
        labels: (n,) true classes, None where unknown.
        before, after: (n,) what each of the two predicts.
    """
    found = []
    for example in np.flatnonzero(before != after).tolist():
        label = None if labels is None else int(labels[example])
        kind = LOST if before[example] == label else GAINED if after[example] == label else CHANGED
        found.append(Flip(example, kind, label, int(before[example]), int(after[example])))
    return sorted(found, key=lambda flip: (FLIPS.index(flip.kind), flip.example))


def check_same_examples(a: RunRecord, b: RunRecord) -> tuple[Predictions, Predictions]:
    """The predictions of two runs, where they are about the same examples.

    Raises:
        RunError: a run has none on record, or they were measured on other examples.
    """
    one, other = predictions(a), predictions(b)
    same = one.dense.shape == other.dense.shape
    if one.labels is not None and other.labels is not None:
        same = same and torch.equal(one.labels, other.labels)
    else:  # which examples were drawn is then all there is to go by
        drawn = ("data", "evaluation", "samples", "seed")
        same = same and all(a.settings.get(key) == b.settings.get(key) for key in drawn)
    if not same:
        raise RunError(
            "These two runs were measured on different examples, so their answers cannot be compared one by one: "
            "choose runs with the same data, seed and number of samples."
        )
    return one, other


def predictions(run: RunRecord) -> Predictions:
    """What a run's dense and pruned model predict.

    Raises:
        RunError: the run has none on record.
    """
    if run.predictions is None:
        raise RunError(
            "This run has no predictions on record: it was made by an earlier version, or without evaluation data. "
            "Run it again to see which answers changed."
        )
    return run.predictions


def table_csv(found: Sequence[Row]) -> str:
    """The rows as comma-separated values with a header, the dense model first; fractions, to 6 digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["run", "name", "model", "weights", "data", "keep", "selector", "reconstruct", "distil", "tuned", "samples",
         "seed", "macs", "macs_of_dense", "parameters", "parameters_of_dense", "accuracy", "accuracy_change",
         "agreement", "examples", "speedup", "seconds", "finished_at", *(f"lineage_{key}" for key in _lineages(found))]
    )  # fmt: skip
    if found:
        dense, family = found[0].dense, found[0].family
        writer.writerow(
            ["dense", "dense", *family[:3], 1, "", "", "", "", "", "", dense.macs, 1, dense.parameters, 1,
             _cell(dense.accuracy), 0, 1, family.examples, 1, "", "", *("" for _ in _lineages(found))]
        )  # fmt: skip
    for row in found:
        writer.writerow(
            [row.run_id, row.name, *row.family[:3], _cell(row.keep), row.selector, row.reconstruct, row.distil,
             row.tuned, _cell(row.samples), _cell(row.seed), row.macs, _cell(row.macs / max(row.dense.macs, 1)),
             row.parameters, _cell(row.parameters / max(row.dense.parameters, 1)), _cell(row.accuracy),
             _cell(row.change), _cell(row.agreement), row.family.examples, _cell(row.speedup), _cell(row.seconds),
             row.finished_at, *(row.lineage.get(key, "") for key in _lineages(found))]
        )  # fmt: skip
    return out.getvalue()


def _lineages(found: Sequence[Row]) -> list[str]:
    return sorted({str(key) for row in found for key in row.lineage})


def _cell(value: float | None) -> float | str:
    return "" if value is None else round(value, 6)

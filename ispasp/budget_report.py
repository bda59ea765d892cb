"""What a pruned model may cost or lose, and the report of a run that was made to fit."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ispasp import plain_files
from ispasp.errors import RunError, SettingError, listing
from ispasp.narrative import quantity

FOLDER = ".budgets"  # in the runs folder
FORMAT = 1
KINDS = {
    "macs": "macs=50% or macs=20M",
    "params": "params=40% or params=1M",
    "speedup": "speedup=2",
    "loss": "loss=2",
}
_MEASURED = {"macs", "params", "accuracy"}  # of every model
_SIZES = {"G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}
WORDS = {"macs": "MACs", "params": "parameters"}


@dataclass(frozen=True)
class Budget:
    """One condition on a pruned model; ``str()`` of it is what ``parse`` reads.

    Attributes:
        kind: ``"macs"`` (per example) or ``"params"``, at most ``limit``; ``"speedup"``, at least ``limit`` times
            faster than the dense model at batch 1 on this machine; ``"loss"``, at most ``limit`` percentage points of
            accuracy lost.
        limit: a number of MACs or parameters, or a fraction of the dense model's where ``share``; times; points.
        share: whether ``limit`` is a fraction.

    Raises:
        SettingError: the kind is unknown or the limit out of range.
    """

    kind: str
    limit: float
    share: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingError(f"Unknown budget {self.kind!r}: give {_forms()}.")
        if self.share and self.kind not in WORDS:
            raise SettingError(f"The budget {self.kind} takes no per cent: give such as {KINDS[self.kind]}.")
        low, high, accepted = {
            "speedup": (1.0, math.inf, "more than 1, such as 2"),
            "loss": (-math.ulp(0.0), 100.0, "percentage points from 0 up to 100, such as 2"),
        }.get(
            self.kind,
            (0.0, 1.0, "above 0 % and below 100 %") if self.share else (1.0, math.inf, "more than 1"),
        )
        if not low < self.limit < high:
            raise SettingError(f"The budget '{self.words}' is out of range: give {accepted}.")

    def __str__(self) -> str:
        if self.share:
            return f"{self.kind}={100 * self.limit:.12g}%"
        unit = next((u for u, size in _SIZES.items() if self.limit >= size), "") if self.kind in WORDS else ""
        return f"{self.kind}={self.limit / _SIZES[unit]:.15g}{unit}"

    @property
    def words(self) -> str:
        """``"at most 50 % of the MACs"``."""
        if self.kind == "speedup":
            return f"at least {self.limit:g}× faster at batch 1 on this machine"
        if self.kind == "loss":
            return f"lose at most {points(self.limit)} of accuracy"
        if self.share:
            return f"at most {100 * self.limit:g} % of the {WORDS[self.kind]}"
        return f"at most {quantity(self.limit)} {WORDS[self.kind]}"

    def most(self, dense: float) -> float:
        """The most MACs, parameters or milliseconds where the dense model has ``dense``."""
        if self.kind == "speedup":
            return dense / self.limit
        return self.limit * dense if self.share else self.limit


def points(value: float) -> str:
    """``"1 point"``, ``"2.5 points"``."""
    return f"{value:.3g} point{'' if f'{value:.3g}' == '1' else 's'}"


def parse(text: str) -> Budget:
    """Read ``"macs=50%"``, ``"macs=20M"``, ``"params=1M"``, ``"params=40%"``, ``"speedup=2"`` or ``"loss=2"``.

    Raises:
        SettingError: it is none of these.
    """
    kind, _, value = (part.strip() for part in str(text).partition("="))
    found = re.fullmatch(
        r"(\d+\.?\d*|\.\d+)\s*(%|[kKmMgG]?)", value.removesuffix("x" if kind == "speedup" else "")
    )
    if kind not in KINDS or not found:
        raise SettingError(f"Got {str(text)!r} as a budget: give {_forms()}.")
    number, unit = float(found[1]), found[2]
    if unit == "%":
        return Budget(kind, number / 100, share=True)
    if unit and kind not in WORDS:
        raise SettingError(f"Got {str(text)!r} as a budget: give such as {KINDS[kind]}.")
    if kind in WORDS:
        if not unit and number <= 1:
            raise SettingError(
                f"Got {str(text)!r} as a budget: a fraction is given in per cent, {KINDS[kind]}."
            )
        number = float(round(number * _SIZES[unit.upper().replace("K", "k")]))
    return Budget(kind, number)


def _forms() -> str:
    return f"{', '.join(list(KINDS.values())[:-1])} or {list(KINDS.values())[-1]}"


def check(budgets: Iterable[Budget]) -> tuple[Budget | None, Budget | None]:
    """What the model may cost and what it may lose, one of each at most.

    Raises:
        SettingError: there is none, or more than one of either.
    """
    given = list(budgets)
    if not given:
        raise SettingError(f"No budget is given: give {_forms()}.")
    costs = [budget for budget in given if budget.kind != "loss"]
    losses = [budget for budget in given if budget.kind == "loss"]
    for same in (costs, losses):
        if len(same) > 1:
            raise SettingError(
                f"The budgets {listing(same)} stand beside each other: give one of macs, params and speedup, and one "
                "loss, at most."
            )
    return (costs[0] if costs else None), (losses[0] if losses else None)


@dataclass(frozen=True)
class Side:
    """One of the two runs in a report.

    Attributes:
        run_id: the run in the runs folder.
        keep: the uniform ratio; for the budget's own run the ratio that its run is filed under.
        counts: groups kept of each block.
        predicted: before the run: ``macs``, ``params``, ``divergence`` (sum over the blocks, as in ``Curve``), and
            ``speedup`` where a latency table was measured.
        measured: of the run: ``macs``, ``params``, ``accuracy`` (None without labels), ``agreement``, ``speedup``.
    """

    run_id: str
    keep: float
    counts: tuple[int, ...]
    predicted: dict[str, float]
    measured: dict[str, float | None]


@dataclass(frozen=True)
class BudgetReport:
    """Target against measured.

    Attributes:
        id: name of the report.
        finished_at: ISO 8601, UTC.
        settings: of both runs, but for their keep ratios.
        budgets: what was asked for, as ``parse`` reads it.
        limits: the same as numbers: most ``macs`` or ``params``, least ``speedup``, most ``loss`` in points.
        met: whether the budget's run is within all of them, as measured.
        blocks, groups: names and sizes of the blocks.
        dense: ``macs``, ``params``, ``accuracy`` of the dense model.
        budget: the run that was made to fit.
        uniform: the run with one keep ratio for all blocks within the budget; None where it keeps the same.
        rounds: what was tried on the way: ``counts``, and ``target``, ``speedup`` or ``cost``, ``loss``.
        sentences: what came of it, for people.
    """

    id: str
    finished_at: str
    settings: dict[str, Any]
    budgets: tuple[str, ...]
    limits: dict[str, float]
    met: bool
    blocks: tuple[str, ...]
    groups: tuple[int, ...]
    dense: dict[str, float | None]
    budget: Side
    uniform: Side | None
    rounds: tuple[dict[str, Any], ...] = field(repr=False)
    sentences: tuple[str, ...]


def save(report: BudgetReport, runs_folder: Path) -> Path:
    """Write the report to the runs folder, all of it or nothing. Raises RunError where it cannot be written."""
    path = runs_folder / FOLDER / f"{report.id}.json"
    plain_files.write_json(path, {"format": FORMAT} | dataclasses.asdict(report))
    return path


def load(runs_folder: Path, name: str) -> BudgetReport:
    """The report called ``name``.

    Raises:
        RunError: there is none, or it is damaged or from a newer version.
    """
    path = runs_folder / FOLDER / f"{name}.json"
    plain: Any = plain_files.read_json(path) if re.fullmatch(r"[\w-]+", name) else None
    version = plain.get("format") if isinstance(plain, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise RunError(f"The budget {name} was saved by a newer ispasp; install that one.")
    try:
        return _report(dict(plain))
    except (AttributeError, KeyError, TypeError, ValueError, SettingError) as error:
        raise RunError(
            f"There is no budget {name} in {runs_folder} that can be read; run it again."
        ) from error


def list_reports(runs_folder: Path) -> list[BudgetReport]:
    """All reports in the runs folder that can be read, newest first."""
    found = []
    for path in (runs_folder / FOLDER).glob("*.json"):
        if path.name.startswith("."):
            continue
        try:
            found.append(load(runs_folder, path.stem))
        except RunError:
            continue
    return sorted(found, key=lambda report: (report.finished_at, report.id), reverse=True)


def _report(plain: dict[str, Any]) -> BudgetReport:
    del plain["format"]
    plain["budget"] = _side(plain["budget"])
    plain["uniform"] = None if plain["uniform"] is None else _side(plain["uniform"])
    report = plain_files.check_fields(BudgetReport(**plain_files.tuples(plain)))
    for name in report.budgets:
        parse(name)
    asked = set(report.limits) - {"loss"}
    for side in filter(None, (report.budget, report.uniform)):
        sizes = zip(report.blocks, report.groups, side.counts, strict=True)
        if not all(0 < kept <= groups for _, groups, kept in sizes):
            raise ValueError("its blocks and counts do not fit")
        if not set(side.measured) >= _MEASURED | asked or not asked <= set(side.predicted):
            raise ValueError("it does not say what was measured")
        if set(side.measured) != set(report.budget.measured):
            raise ValueError("the uniform run was not measured as the other")
    if not set(report.dense) >= _MEASURED or not isinstance(report.settings.get("model", ""), str):
        raise ValueError("it does not say what the dense model is and costs")
    return report


def _side(plain: dict[str, Any]) -> Side:
    return plain_files.check_fields(Side(**plain_files.tuples(plain)))

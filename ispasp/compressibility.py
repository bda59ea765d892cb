"""How compressible the hidden rows of a model's blocks are, and what the theorem promises for them.

Row g of the hidden representation H is what group g gives over the whole calibration set. The rows are compressible
with exponent p where the i-th largest of their norms is about R i^(-1/p) (CoSaMP's compressible signals, Needell &
Tropp 2009, taken from entries to rows by Wolfe & Kyrillidis 2022). The residual then decays as
||V||_F ~ s^(1/2 - 1/p) with the number s of groups kept, so that log ||V||_F^2 falls along log s with the slope
1 - 2/p. That says something for p < 2 alone: else the tail of the rows does not become small.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ispasp import algorithm, plain_files, sensitivity_run, statistics
from ispasp.algorithm import SelectorSettings
from ispasp.errors import SettingError
from ispasp.opened import open_all
from ispasp.plain_files import check_fields, tuples
from ispasp.records import Progress, Shown
from ispasp.run_settings import RunSettings
from ispasp.settings import check_keep, groups_to_keep
from ispasp.stream import Stream

FOLDER = ".theory"  # in the runs folder
FORMAT = 1
KEEPS = (0.25, 0.5, 0.75)
"""Kept fractions at which blocks are pruned unless others are asked for."""
RANKS = 48  # ranks, evenly spaced on a log scale, through which a power law is fitted
MOST_ROWS = 10**9  # of a block in a file; more is damage
LEAST_ROWS = 8  # fewer say nothing about a law
GOOD_FIT = 0.95  # coefficient of determination from which a power law counts as one
NOTHING = 1e-12  # of the largest row: what is smaller counts as a dead group


@dataclass(frozen=True)
class PowerLaw(Shown):
    """The norms of rows, largest first, against R i^(-1/p), by least squares on log-log axes.

    Attributes:
        slope: of log norm against log i, -1/p; 0 where all rows are alike.
        scale: R over the largest norm.
        goodness: coefficient of determination R^2 of the fit, in [0, 1].
        ranks: the ranks i that were fitted, rising from 1.
        norms: at these ranks, over the largest.
        rows: number of rows that are not dead.
        dead: number of rows that are.
    """

    slope: float
    scale: float
    goodness: float
    ranks: tuple[int, ...]
    norms: tuple[float, ...]
    rows: int
    dead: int

    @property
    def exponent(self) -> float:
        """p, above 0; infinite where all rows are alike."""
        return -1 / self.slope if self.slope < 0 else math.inf

    @property
    def fits(self) -> bool:
        """Whether the norms follow a power law."""
        return self.goodness >= GOOD_FIT

    @property
    def rate(self) -> float | None:
        """The theorem's slope 1 - 2/p; None from p = 2 on, where it promises no decay."""
        return theorem_rate(self.exponent) if self.exponent < 2 else None

    def tail(self, kept: int) -> float:
        """What the law leaves of the rows' squared norms without the ``kept`` largest, of all ``rows``."""
        energies = np.arange(1, self.rows + 1, dtype=np.float64) ** (2 * self.slope)
        return float(energies[kept:].sum() / energies.sum())


@dataclass(frozen=True)
class BlockRows(Shown):
    """One block: its rows, and what is left out when it alone is pruned, over the calibration data.

    Attributes:
        block: its name.
        kind: as in ``Block``.
        groups: d.
        law: of its rows; None where fewer than ``LEAST_ROWS`` are not dead.
        kept: numbers of groups kept, rising.
        promised: for each of ``kept``, the share of the rows' squared norms that the fitted law leaves out: the
            residual that the theorem's decay comes from, were the consumer an isometry; None without a law.
        left_out: the same share of the real rows.
        residual: ||V||_F^2 / ||A(H)||_F^2 that i-SpaSP comes to, with the consumer's own weights.
    """

    block: str
    kind: str
    groups: int
    law: PowerLaw | None
    kept: tuple[int, ...]
    promised: tuple[float, ...] | None
    left_out: tuple[float, ...]
    residual: tuple[float, ...]


def verdict(block: BlockRows) -> str:
    """What the theorem says of a block, in a few words."""
    if block.law is None:
        return f"fewer than {LEAST_ROWS} rows are alive"
    if not block.law.fits:
        return f"no power law (R² {block.law.goodness:.2f})"
    if block.law.rate is None:
        return "rows too alike (p ≥ 2): no decay promised"
    return f"decays as s^{block.law.rate:.2f}"


@dataclass(frozen=True)
class CompressibilityDone:
    """Every block was looked at; ``path`` is where the records lie."""

    blocks: list[BlockRows]
    path: Path


def theorem_rate(exponent: float) -> float:
    """1 - 2/p, the slope of log ||V||_F^2 against log s."""
    return 1 - 2 / exponent


def line(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Slope, intercept and coefficient of determination of the least-squares line through log y over log x."""
    across, up = np.log(np.asarray(x, np.float64)), np.log(np.asarray(y, np.float64))
    slope, start = np.polyfit(across, up, 1)
    spread = float(((up - up.mean()) ** 2).sum())
    missed = float(((up - slope * across - start) ** 2).sum())
    return float(slope), float(start), max(0.0, 1 - missed / spread) if spread > 0 else 1.0


def fit(norms: Sequence[float] | np.ndarray) -> PowerLaw | None:
    """The power law of rows with these norms, in any order; None where too few are not dead.

    It goes through ranks that are evenly spaced on a log scale, so that each decade of them weighs the same.
    """
    found = np.sort(np.asarray(norms, np.float64))[::-1]
    alive = found[found > NOTHING * found[0]] if len(found) and found[0] > 0 else found[:0]
    if len(alive) < LEAST_ROWS:
        return None
    ranks = np.unique(np.round(np.geomspace(1, len(alive), min(RANKS, len(alive)))).astype(np.int64))
    shown = alive[ranks - 1] / alive[0]
    slope, start, goodness = line(ranks, shown)
    return PowerLaw(
        slope=min(slope, 0.0),
        scale=math.exp(start),
        goodness=goodness,
        ranks=tuple(ranks.tolist()),
        norms=tuple(shown.tolist()),
        rows=len(alive),
        dead=len(found) - len(alive),
    )


def execute(
    settings: RunSettings,
    runs_folder: Path,
    keeps: Sequence[float] = KEEPS,
    *,
    allow_code: bool = False,
) -> Generator[Progress | CompressibilityDone, None, None]:
    """Look at every block of a model in one dense pass, and keep what was found; the last event says where.

    Args:
        settings: model, data, kinds of groups, candidate factor, iterations and multiple; the rest does not matter.
        runs_folder: where runs are kept.
        keeps: kept fractions at which each block is pruned, each in (0, 1).
        allow_code: whether a Python file that the settings name may be run.

    Raises:
        ISpaSPError: what was given cannot be used, or the folder cannot be written.
    """
    for keep in keeps:
        if check_keep(keep) == 1:
            raise SettingError("keep is 1, at which nothing is pruned; give fractions below 1.")
    opened = yield from open_all(settings, allow_code=allow_code)
    subject, blocks = opened.subject, sensitivity_run.blocks_of(opened, settings)
    stream = Stream(subject.traced, [batch.copy() for batch in subject.batches])
    by_read = {block.reads[0]: block for block in blocks}
    found: list[BlockRows] = []
    executed = 0
    for position, node in enumerate(subject.traced.nodes):
        if not (block := by_read.get(node.name)):
            continue
        now = Progress(len(found) / len(blocks), f"looking at the rows of {block.name}")
        for _ in stream.advance(subject.traced.nodes[executed:position]):
            yield now
        executed = position
        collected = statistics.collect_at(block, subject.traced, stream, settings.hidden_sum == "absolute")
        multiple = block.multiple(settings.multiple)
        counts = sorted({groups_to_keep(block.groups, keep, multiple) for keep in keeps} - {block.groups})
        norms = np.sort(collected.hidden_rms.cpu().numpy())[::-1]
        law = fit(norms)
        energies = norms.astype(np.float64) ** 2
        whole = energies.sum()
        residuals = []
        for kept in counts:
            yield now
            residuals.append(_residual(collected, kept, settings))
        found.append(
            BlockRows(
                block=block.name,
                kind=block.kind,
                groups=block.groups,
                law=law,
                kept=tuple(counts),
                promised=None if law is None else tuple(law.tail(kept) for kept in counts),
                left_out=tuple(float(energies[kept:].sum() / whole) if whole else 0.0 for kept in counts),
                residual=tuple(residuals),
            )
        )
    yield Progress(1.0, "finished")
    path = path_of(settings, runs_folder, keeps)
    plain_files.write_json(path, {"format": FORMAT, "blocks": [dataclasses.asdict(block) for block in found]})
    yield CompressibilityDone(found, path)


@torch.no_grad()
def _residual(collected: statistics.Statistics, kept: int, settings: RunSettings) -> float:
    """The relative residual that Algorithm 1 comes to."""
    chosen = SelectorSettings(settings.candidate_factor, settings.iterations, settings.seed)
    *_, last = algorithm.ispasp(collected, kept, chosen)
    return last.relative_residual


def load(settings: RunSettings, runs_folder: Path, keeps: Sequence[float] = KEEPS) -> list[BlockRows] | None:
    """What was found last with such settings; None where nothing was, or the file is damaged."""
    plain = plain_files.read_json(path_of(settings, runs_folder, keeps))
    try:
        if plain["format"] != FORMAT:
            return None
        return [_block(values) for values in plain["blocks"]]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def path_of(settings: RunSettings, runs_folder: Path, keeps: Sequence[float] = KEEPS) -> Path:
    """Where what was found with such settings lies."""
    names = (
        "model",
        "weights",
        "multiple",
        "candidate_factor",
        "iterations",
        "samples",
        "seed",
        "hidden_sum",
    )
    deciding = {name: getattr(settings, name) for name in names} | {
        "data": str(settings.data_source()),
        "kinds": sorted(settings.kinds),
        "keeps": sorted(keeps),
    }
    return runs_folder / FOLDER / f"rows-{plain_files.digest(deciding)}.json"


def _block(values: dict[str, Any]) -> BlockRows:
    law = None if values["law"] is None else law_of(values["law"])
    block = check_fields(BlockRows(**{**tuples(values), "law": law}))
    lengths = {
        len(column) for column in (block.kept, block.left_out, block.residual, block.promised or block.kept)
    }
    whole = lengths == {len(block.kept)} and _rising((*block.kept, block.groups), MOST_ROWS)
    if not whole or (law is not None and law.rows + law.dead != block.groups):
        raise ValueError(f"the record of {block.block} is not whole")
    return block


def _rising(numbers: Sequence[int], most: int) -> bool:
    """Whether they rise, between 1 and ``most``."""
    return all(a < b for a, b in pairwise((0, *numbers, most + 1)))


def law_of(values: dict[str, Any]) -> PowerLaw:
    """A power law from plain values.

    Raises:
        TypeError, ValueError: they are none.
    """
    law = check_fields(PowerLaw(**tuples(values)))
    whole = law.ranks and len(law.ranks) == len(law.norms) and _rising((*law.ranks, law.rows + 1), MOST_ROWS)
    if not whole or law.slope > 0 or min(law.norms) <= 0 or law.dead < 0:
        raise ValueError("the power law is not whole")
    return law

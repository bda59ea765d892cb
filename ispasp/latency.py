"""Time a dense and a pruned model against each other, with an honest interval.

Two things spoil such a comparison. Load from elsewhere drifts while it runs: so both models are called
in turns, and the interval resamples blocks of consecutive pairs. And where a model's weights lie in
memory shifts its time by up to 2 % for as long as it lives (the same file measured against itself with
one pair of sessions: its interval held 1 in 9 of 20 runs): so both are opened anew for each of several
rounds, and the interval resamples the rounds as well.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from statistics import NormalDist

import numpy as np

from ispasp.errors import ExportError, SettingError, listing
from ispasp.parity import PROVIDER, open_session, reason, session_batch
from ispasp.records import Progress
from ispasp.settings import check_whole_number

_REPORT_EVERY = 0.05  # seconds between two Progress records
_MOST_PAIRS = 2_000  # per round: beyond it the memory of the bootstrap grows and the interval does not shrink
_CHUNK = 2_000_000  # resampled pairs held in memory at once


@dataclass(frozen=True)
class Timing:
    """Time of one call over all pairs: median and percentiles in milliseconds; throughput by the median."""

    median_ms: float
    p95_ms: float
    p99_ms: float
    examples_per_second: float


@dataclass(frozen=True)
class LatencyReport:
    """Dense against pruned.

    Attributes:
        batch: examples per call.
        threads: intra-op threads.
        provider: what runs the models: onnxruntime's execution provider.
        pairs: number of timed pairs, one call of each model.
        rounds: number of times that both were opened anew.
        dense, pruned: time per call.
        ratio: median of dense over median of pruned; above 1 the pruned model is faster.
        ratio_low, ratio_high: 95 % bootstrap interval of the ratio over rounds and blocks of pairs.
    """

    batch: int
    threads: int
    provider: str
    pairs: int
    rounds: int
    dense: Timing
    pruned: Timing
    ratio: float
    ratio_low: float
    ratio_high: float

    @property
    def verdict(self) -> str:
        """In words: ``"1.62x faster [1.55, 1.70]"``, ``"slower: 0.90x [0.88, 0.92]"``, or ``"no measurable
        difference [0.98, 1.03]"`` where the interval, rounded as it is shown, holds 1."""
        low, high = round(self.ratio_low, 2), round(self.ratio_high, 2)
        interval = f"[{low:.2f}, {high:.2f}]"
        if low <= 1 <= high:
            return f"no measurable difference {interval}"
        return f"{self.ratio:.2f}x faster {interval}" if low > 1 else f"slower: {self.ratio:.2f}x {interval}"

    def as_dict(self) -> dict[str, object]:
        """All fields and the verdict, ready for JSON."""
        return asdict(self) | {"verdict": self.verdict}


@dataclass(frozen=True)
class Call:
    """A model that is open, with its inputs: ``run()`` makes one call for ``batch`` examples."""

    run: Callable[[], object]
    batch: int


Opener = Callable[[], Call]
"""Opens a model afresh: each time its weights come to lie elsewhere in memory."""


def compare_latency(
    dense_path: str | os.PathLike[str],
    pruned_path: str | os.PathLike[str],
    inputs: object,
    *,
    threads: int = 1,
    provider: str = PROVIDER,
    seconds: float = 4.0,
    rounds: int = 10,
    pairs_at_least: int = 30,
    warm_up: int = 2,
    seed: int = 0,
) -> Iterator[Progress | LatencyReport]:
    """Time both ONNX files in onnxruntime; see ``compare_calls`` for how, and for what is not said here.

    Args:
        inputs: one batch for both models: a tensor, a tuple of tensors, or a dict of keyword tensors.
        threads: intra-op threads of each session.
        provider: onnxruntime's name of the execution provider.

    Raises:
        SettingError: ``threads``, or what ``compare_calls`` refuses.
        ExportError: a file is missing or damaged, does not run on ``inputs``, or not on ``provider``.
    """
    check_whole_number("threads", threads, 1)
    yield from compare_calls(
        sessions((dense_path, pruned_path), inputs, threads, provider),
        threads=threads,
        provider=provider,
        seconds=seconds,
        rounds=rounds,
        pairs_at_least=pairs_at_least,
        warm_up=warm_up,
        seed=seed,
    )


def sessions(
    paths: tuple[str | os.PathLike[str], str | os.PathLike[str]],
    inputs: object,
    threads: int,
    provider: str = PROVIDER,
) -> tuple[Opener, Opener]:
    """Two ONNX files of one model as what ``compare_calls`` times; arguments and errors as ``compare_latency``."""
    reads: dict[int, list[str]] = {}

    def opened(side: int) -> Call:
        session = open_session(paths[side], threads=threads, provider=provider)
        batch, feed = session_batch(session, inputs)
        reads[side] = list(feed)
        if len(reads) == 2 and reads[0] != reads[1]:
            raise ExportError(
                f"{paths[0]} reads {listing(reads[0])}, {paths[1]} reads {listing(reads[1])}; "
                "give two files of one model."
            )

        def run() -> object:
            try:
                return session.run(None, feed)
            except Exception as error:
                raise ExportError(
                    f"{paths[side]} does not run on these inputs: {reason(error)}. Give inputs like those it was "
                    "exported with."
                ) from error

        return Call(run, len(batch))

    return partial(opened, 0), partial(opened, 1)


def compare_calls(
    openers: tuple[Opener, Opener],
    *,
    threads: int,
    provider: str,
    seconds: float = 4.0,
    rounds: int = 10,
    pairs_at_least: int = 30,
    warm_up: int = 2,
    seed: int = 0,
) -> Iterator[Progress | LatencyReport]:
    """Time two models in turns, and yield Progress and at last the LatencyReport.

    Each round opens both models, warms them up, and times pairs of calls (dense, pruned), (pruned,
    dense), ... The first round lasts ``seconds / rounds``; the others time as many pairs. Nothing else
    runs between two steps, so the caller may stop between any two; errors arise at the first steps.

    Args:
        openers: of the dense and of the pruned model.
        threads, provider: what they run on, for the report.
        seconds: time spent in timed calls, roughly; opening and warming up come on top of it.
        rounds: at least 2; below 8 the interval is too narrow to be trusted.
        pairs_at_least: timed even where ``seconds`` are over, and rounded up to whole rounds.
        warm_up: calls of each newly opened model that are not timed.
        seed: of the bootstrap.

    Raises:
        SettingError: ``seconds``, ``rounds``, ``pairs_at_least`` or ``warm_up`` is out of range.
    """
    for name, value, least in (
        ("rounds", rounds, 2),
        ("pairs_at_least", pairs_at_least, 1),
        ("warm_up", warm_up, 0),
    ):
        check_whole_number(name, value, least)
    check_seconds(seconds)
    measured: list[np.ndarray] = []
    batch = 0
    for number in range(rounds):
        doing = f"measuring latency, round {number + 1} of {rounds}"
        yield Progress(number / rounds, doing)
        calls: dict[int, Callable[[], object]] = {}
        for side in order(number):  # the second one opened finds another memory than the first
            call = openers[side]()
            calls[side], batch = call.run, call.batch
            del call
            yield Progress(number / rounds, doing)
        for side in (0, 1) * warm_up:
            calls[side]()
            yield Progress(number / rounds, doing)
        pairs = len(measured[0]) if measured else None
        least = pairs or math.ceil(pairs_at_least / rounds)
        budget = 0.0 if pairs else seconds / rounds * 1e9  # nanoseconds
        times: list[tuple[int, int]] = []
        spent = 0
        told = time.perf_counter()
        while len(times) < least or (spent < budget and len(times) < _MOST_PAIRS):
            pair = {side: nanoseconds(calls[side]) for side in order(len(times) + number // 2)}
            times.append((pair[0], pair[1]))
            spent += pair[0] + pair[1]
            if time.perf_counter() - told > _REPORT_EVERY:
                within = min(1.0, len(times) / least if pairs else spent / budget)
                yield Progress((number + within) / rounds, doing)
                told = time.perf_counter()
        measured.append(np.array(times, dtype=np.float64))
        calls.clear()  # free this round's memory before the next one opens the models
    yield Progress(1.0, "computing the interval")
    yield _report(np.stack(measured) / 1e6, batch, threads, provider, seed)


def check_seconds(seconds: object) -> None:
    """SettingError unless ``seconds`` is a positive number."""
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise SettingError(f"seconds is {seconds!r}; it must be a positive number, e.g. 4.")


def order(number: int) -> tuple[int, int]:
    """The sides in turn: dense first in every second pair."""
    return (0, 1) if number % 2 == 0 else (1, 0)


def nanoseconds(call: Callable[[], object]) -> int:
    """Wall time of one call."""
    begin = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - begin


def _report(times: np.ndarray, batch: int, threads: int, provider: str, seed: int) -> LatencyReport:
    """The figures of times (rounds, pairs, 2) in milliseconds."""
    flat = times.reshape(-1, 2)
    dense, pruned = (_timing(column, batch) for column in flat.T)
    low, high = ratio_interval(times, seed)
    return LatencyReport(
        batch=batch,
        threads=threads,
        provider=provider,
        pairs=len(flat),
        rounds=len(times),
        dense=dense,
        pruned=pruned,
        ratio=dense.median_ms / pruned.median_ms,
        ratio_low=low,
        ratio_high=high,
    )


def _timing(milliseconds: np.ndarray, batch: int) -> Timing:
    median, p95, p99 = (float(value) for value in np.percentile(milliseconds, (50, 95, 99)))
    return Timing(median, p95, p99, batch / median * 1e3)


def ratio_interval(times: np.ndarray, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """95 % interval of median(dense) / median(pruned) by a bootstrap in two stages.

    Each resample draws rounds with replacement, and within each drawn round blocks of consecutive pairs
    (circular, as long as the square root of the round), so that pairs that share a disturbance stay
    together. The percentile interval, expanded for the small number of rounds (Hesterberg, "What teachers should know
    about the bootstrap", 2015, section 5.3): without that it holds the truth too seldom.

    Args:
        times: (rounds, pairs, 2), dense and pruned, any unit.
        seed: of the draws.
        resamples: number of resamples.
    """
    rounds, pairs, _ = times.shape
    generator = np.random.default_rng(seed)
    length = max(1, round(math.sqrt(pairs)))
    blocks = math.ceil(pairs / length)
    flat = times.reshape(-1, 2)
    ratios = []
    chunk = max(1, _CHUNK // (rounds * pairs))
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        drawn = generator.integers(rounds, size=(count, rounds, 1))
        starts = generator.integers(pairs, size=(count, rounds, blocks, 1))
        within = (starts + np.arange(length)) % pairs
        index = drawn * pairs + within.reshape(count, rounds, -1)[:, :, :pairs]
        middle = np.median(flat[index.reshape(count, -1)], axis=1)
        ratios.append(middle[:, 0] / middle[:, 1])
    tail = _expanded_tail(rounds)
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    return float(low), float(high)


def _expanded_tail(rounds: int) -> float:
    """What to cut off on either side of a bootstrap over so few rounds for an interval of 95 %; 0.025 for many.

    Student's quantile by its expansion in the normal one (Abramowitz & Stegun, 26.7.5).
    """
    normal, degrees = NormalDist(), rounds - 1
    z = normal.inv_cdf(0.975)
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return normal.cdf(-t * math.sqrt(rounds / degrees))

"""Dense against pruned in every setting asked for: precision, provider, batch and threads, and torch beside it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ispasp import cores, plain_files
from ispasp.calibration import Batch
from ispasp.deployment import providers
from ispasp.deployment.cold_start import first_answers, memory
from ispasp.deployment.machine import machine
from ispasp.deployment.opened_run import Measured, OpenedRun, inputs, open_run
from ispasp.deployment.precisions import PRECISIONS, SIDES, file_name
from ispasp.deployment.torch_calls import COMPILE, EAGER, forget_compiled, opener
from ispasp.errors import ExportError, ISpaSPError, SettingError, listing
from ispasp.latency import LatencyReport, Timing, compare_calls, compare_latency, sessions
from ispasp.narrative import plural
from ispasp.progress import part
from ispasp.records import Progress
from ispasp.settings import check_whole_number
from ispasp.store import EXPORT, export_report

FILE = "bench.json"  # in the run's export folder
FORMAT = 1
MOST_BATCH, MOST_THREADS, MOST_SECONDS, MOST_ROWS = 1024, 256, 600, 200

Row = dict[str, Any]


@dataclass(frozen=True, order=True)
class Setting:
    """What one row is measured with: a file of ``precision`` on ``provider``, ``batch`` examples per call, ``threads``.

    Torch runs the run's own models: its rows have precision ``"fp32"`` and ``EAGER`` or ``COMPILE`` for provider.
    """

    provider: str
    precision: str
    batch: int
    threads: int

    def __str__(self) -> str:
        what = [self.precision] * (self.provider not in (EAGER, COMPILE))
        what += [self.provider] * (self.provider != "cpu")
        return ", ".join([f"batch {self.batch}", plural(self.threads, "thread"), *what])


@dataclass(frozen=True)
class BenchSettings:
    """What to measure: every combination of these.

    Attributes:
        batches: examples per call.
        threads: intra-op threads.
        precisions: which exported files.
        providers: short names of onnxruntime's execution providers (``providers.PROVIDERS``).
        seconds: of timed calls per combination, roughly.
        torch_eager, torch_compile: whether torch is measured as well.

    Raises:
        SettingError: a value is unknown or out of range, or there are too many combinations.
    """

    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)
    precisions: tuple[str, ...] = ("fp32",)
    providers: tuple[str, ...] = ("cpu",)
    seconds: float = 4.0
    torch_eager: bool = False
    torch_compile: bool = False

    def __post_init__(self) -> None:
        for name in ("batches", "threads", "precisions", "providers"):
            if not isinstance(values := getattr(self, name), tuple) or not values:
                raise SettingError(f"{name} is {values!r}; give a tuple of at least one value.")
        for batch in self.batches:
            check_whole_number("batch", batch, 1, MOST_BATCH)
        for count in self.threads:
            check_whole_number("threads", count, 1, MOST_THREADS)
        for name, given, known in (
            ("precision", self.precisions, PRECISIONS),
            ("provider", self.providers, tuple(providers.PROVIDERS)),
        ):
            if unknown := [value for value in given if value not in known]:
                raise SettingError(f"Unknown {name} {unknown[0]!r}; choose one of {listing(known)}.")
        if not plain_files.is_number(self.seconds) or not 0 < self.seconds <= MOST_SECONDS:
            raise SettingError(
                f"seconds is {self.seconds!r}; give a number above 0 and up to {MOST_SECONDS}, such as 4."
            )
        for name in ("torch_eager", "torch_compile"):
            if not isinstance(getattr(self, name), bool):
                raise SettingError(f"{name} is {getattr(self, name)!r}; give True or False.")
        if len(self.rows()) > MOST_ROWS:
            raise SettingError(
                f"That makes {len(self.rows())} combinations, {MOST_ROWS} can be measured at once; ask for fewer."
            )

    def rows(self) -> list[Setting]:
        """Every combination once, torch after onnxruntime."""
        torch_rows = [EAGER] * self.torch_eager + [COMPILE] * self.torch_compile
        pairs = [*itertools.product(self.providers, self.precisions), *((one, "fp32") for one in torch_rows)]
        found = (
            Setting(*pair, batch, threads)
            for pair, batch, threads in itertools.product(pairs, self.batches, self.threads)
        )
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class BenchDone:
    """Everything was measured; ``report`` is what ``bench.json`` holds."""

    report: dict[str, Any]


def bench_run(
    path: Path, settings: BenchSettings, *, allow_code: bool = False
) -> Iterator[Progress | BenchDone]:
    """Measure a run's exported models and write ``export/bench.json``, anew after every row.

    A row is a ``LatencyReport`` with its ``precision`` and the provider's short name, ``cold_start_ms``, the time to
    open a session and make its first call, and ``memory_bytes`` that this takes, both of the dense and the pruned
    model; None for torch, and for memory where the system does not tell. ``problem`` is empty, or says why the row
    has no figures. Rows of an earlier measurement stay, but for those measured again and for another machine's.

    Args:
        path: the run's folder.
        settings: what to measure.
        allow_code: whether a Python file that the run names may be run.

    Raises:
        SettingError: the installed onnxruntime lacks a provider.
        ExportError: a precision was not exported, or the run was exported anew meanwhile.
        RunError, ModelError, CalibrationError: the run, its dense model or its data cannot be opened, or the file
            cannot be written.
    """
    for name in settings.providers:
        providers.full_name(name)
    _check_exported(path, settings.precisions)
    exported = Measured(path)
    run = yield from open_run(path, allow_code=allow_code)
    report = _begun(path, settings, run)
    asked = settings.rows()
    for number, setting in enumerate(asked):
        steps = _row(run, setting, settings.seconds)
        row = yield from part(_headed(steps, str(setting)), number / len(asked), (number + 1) / len(asked))
        # Read anew, as another measurement of this run may go on beside this one.
        others = [each for each in _earlier(path, report)["rows"] if _setting(each) != setting]
        report["rows"] = sorted([*others, row], key=_setting)
        exported.write(FILE, report)
    yield Progress(1.0, "finished")
    yield BenchDone(report)


def bench_report(path: Path) -> dict[str, Any] | None:
    """What ``bench_run`` wrote for a run, every row whole; None where there is nothing, or nothing that can be read.

    Rows that are damaged are left out.
    """
    plain = plain_files.read_json(path / EXPORT / FILE)
    if (
        not isinstance(plain, dict)
        or plain.get("format") != FORMAT
        or not isinstance(plain.get("rows"), list)
    ):
        return None
    parts = {name: plain.get(name) for name in ("machine", "settings")}
    notes = plain.get("notes")
    return {
        "format": FORMAT,
        **{name: part if isinstance(part, dict) else {} for name, part in parts.items()},
        "rows": [row for row in plain["rows"] if _whole(row)],
        "notes": [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else [],
    }


def _whole(row: Any) -> bool:
    try:
        setting = plain_files.check_fields(_setting(row))
        known = setting.provider in (*providers.PROVIDERS, EAGER, COMPILE) and setting.precision in PRECISIONS
        within = 1 <= setting.batch <= MOST_BATCH and 1 <= setting.threads <= MOST_THREADS
        if not (known and within and isinstance(row["problem"], str)):
            return False
        if row["problem"]:
            return True
        sides = [plain_files.check_fields(Timing(**row[side])) for side in SIDES]
        given = {field.name: row[field.name] for field in fields(LatencyReport)}
        report = plain_files.check_fields(LatencyReport(**given | dict(zip(SIDES, sides, strict=True))))
        beside = [
            row[name][side] for name in ("cold_start_ms", "memory_bytes") if row[name] for side in SIDES
        ]
        times = [value for timing in sides for value in asdict(timing).values()]
        ratios = [report.ratio, report.ratio_low, report.ratio_high]
        return (
            row["verdict"] == report.verdict
            and all(map(plain_files.is_number, beside))
            and min(*times, *ratios) > 0
            and min(beside, default=0) >= 0  # a process whose memory was larger before shows no growth
        )
    except (KeyError, TypeError, ValueError):
        return False


def _setting(row: Row) -> Setting:
    return Setting(**{field.name: row[field.name] for field in fields(Setting)})


def _check_exported(path: Path, precisions: Sequence[str]) -> None:
    """Raises ExportError unless an attempt was made to export each precision; ``_row`` says what came of it."""
    tried = _variants(path)
    missing = [name for name in precisions if name not in tried]
    if missing:
        raise ExportError(
            f"{path.name} was not exported as {listing(missing)}; export it first, on the page Deploy or by "
            f"python -m ispasp export {path.name} --precision {','.join(dict.fromkeys(['fp32', *missing]))}."
        )


def _variants(path: Path) -> dict[str, str]:
    """The precisions that the run was exported as, each with what was the matter with its files."""
    if (report := export_report(path)) is None:
        return {}
    found = {"fp32": ""}  # also where an earlier version exported, whose report has no variants
    for variant in report["variants"]:
        found[variant["precision"]] = found.get(variant["precision"]) or variant["problem"]
    return found


def _begun(path: Path, settings: BenchSettings, run: OpenedRun) -> dict[str, Any]:
    """The report before the first row: with what was measured earlier on the same machine."""
    report: dict[str, Any] = {"format": FORMAT, "machine": machine(), "settings": asdict(settings)}
    report |= _earlier(path, report)
    notes = []
    if max(settings.threads) > (here := os.cpu_count() or max(settings.threads)):
        notes.append(f"Up to {max(settings.threads)} threads were asked for; this machine has {here} cores.")
    if max(settings.batches) > (examples := sum(map(len, run.evaluation))):
        notes.append(
            f"The evaluation data has {plural(examples, 'example')}; in larger batches they are repeated."
        )
    return report | {"notes": list(dict.fromkeys([*report["notes"], *notes]))}


def _earlier(path: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Rows and notes that were written on the machine of ``report``."""
    earlier = bench_report(path)
    if earlier is None or earlier["machine"] != report["machine"]:
        return {"rows": [], "notes": []}
    return {name: earlier[name] for name in ("rows", "notes")}


def _row(run: OpenedRun, setting: Setting, seconds: float) -> Generator[Progress, None, Row]:
    """Measure one row, whatever comes of it."""
    row: Row = asdict(setting)
    try:
        if problem := _variants(run.path).get(setting.precision, ""):
            raise ExportError(problem)
        measure = _in_torch if setting.provider in (EAGER, COMPILE) else _in_onnxruntime
        measured = yield from measure(run, setting, seconds)
    except ISpaSPError as error:
        return row | {"problem": str(error)}
    return measured | row | {"problem": ""}


def _in_onnxruntime(run: OpenedRun, setting: Setting, seconds: float) -> Generator[Progress, None, Row]:
    dense, pruned = (run.path / EXPORT / file_name(side, setting.precision) for side in SIDES)
    given, provider = inputs(batch_of(run.evaluation, setting.batch)), providers.full_name(setting.provider)
    timed = compare_latency(dense, pruned, given, threads=setting.threads, provider=provider, seconds=seconds)
    report = yield from part(_last(timed), 0.0, 0.8)
    opened = sessions((dense, pruned), given, setting.threads, provider)
    started = yield from part(first_answers(opened), 0.8, 0.9)
    taken = []
    for low, file in ((0.9, dense), (0.95, pruned)):
        taken.append((yield from part(memory(file, given, setting.threads, provider), low, low + 0.05)))
    return report.as_dict() | {
        "cold_start_ms": dict(zip(SIDES, started, strict=True)),
        "memory_bytes": None if None in taken else dict(zip(SIDES, taken, strict=True)),
    }


def _in_torch(run: OpenedRun, setting: Setting, seconds: float) -> Generator[Progress, None, Row]:
    batch, compiled = batch_of(run.evaluation, setting.batch), setting.provider == COMPILE
    with cores.threads(setting.threads):
        try:
            dense, pruned = (opener(model, batch, compiled) for model in (run.dense.model, run.result.model))
            if compiled:
                for side, opened in zip(SIDES, (dense, pruned), strict=True):
                    yield Progress(0.0, f"compiling the {side} model, which may take a minute")
                    opened().run()
            timed = compare_calls(
                (dense, pruned), threads=setting.threads, provider=setting.provider, seconds=seconds
            )
            report = yield from _last(timed)
        finally:
            if compiled:
                forget_compiled()
    return report.as_dict() | {"cold_start_ms": None, "memory_bytes": None}


def batch_of(batches: Sequence[Batch], count: int) -> Batch:
    """The first ``count`` examples, from the start again where there are fewer."""
    parts: list[Batch] = []
    missing = count
    for batch in itertools.cycle(batches):
        parts.append(batch.first(missing))
        missing -= len(parts[-1])
        if not missing:
            break
    return Batch(
        tuple(map(torch.cat, zip(*(part.inputs for part in parts), strict=True))),
        {name: torch.cat([part.keywords[name] for part in parts]) for name in parts[0].keywords},
    )


def _last(steps: Iterator[Progress | LatencyReport]) -> Generator[Progress, None, LatencyReport]:
    """A measurement as a generator that returns its report."""
    for step in steps:
        if isinstance(step, LatencyReport):
            return step
        yield step
    raise AssertionError("the measurement gave no report")


def _headed(steps: Generator[Progress, None, Row], words: str) -> Generator[Progress, None, Row]:
    """The same steps, each saying what it belongs to."""
    try:
        while True:
            step = next(steps)
            yield Progress(step.done, f"{words}: {step.doing}")
    except StopIteration as stop:
        row: Row = stop.value
        return row
    finally:
        steps.close()

"""Where the time of a run's exported models goes, and why: measured once, kept with the export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ispasp import plain_files
from ispasp.deployment import operators, peak
from ispasp.deployment.bench import MOST_BATCH, MOST_SECONDS, MOST_THREADS, batch_of
from ispasp.deployment.by_block import BlockTime, Operator, by_block, side_by_side
from ispasp.deployment.machine import machine
from ispasp.deployment.opened_run import Measured, inputs, open_run
from ispasp.deployment.origins import Origins
from ispasp.deployment.precisions import PRECISIONS, SIDES, file_name
from ispasp.deployment.why import Suggestion, sentences, suggestion
from ispasp.errors import ExportError, SettingError
from ispasp.latency import LatencyReport, Timing, compare_latency
from ispasp.records import Progress
from ispasp.settings import check_whole_number
from ispasp.store import EXPORT

FILE = "profile.json"  # in the run's export folder
FORMAT = 1
INTEGER = ("int8-dynamic", "int8-static")  # the peak in float32 is none of theirs
_ROUNDS = 4  # of the calls without a profile


@dataclass(frozen=True)
class ProfileDone:
    """Everything was measured; ``report`` is what ``profile.json`` holds."""

    report: dict[str, Any]


def profile_run(
    path: Path,
    *,
    batch: int = 1,
    threads: int = 1,
    precision: str = "fp32",
    seconds: float = 4.0,
    allow_code: bool = False,
) -> Iterator[Progress | ProfileDone]:
    """Profile a run's exported models operator by operator on the CPU and write ``export/profile.json``.

    The report holds ``machine`` with its ``peak_gflops``, ``precision``, ``batch``, ``threads``; ``total_ms`` of a
    ``latency`` measured without a profile, which itself takes time; ``quickest_ms`` of all nodes; every ``Operator``;
    every ``BlockTime`` under ``blocks`` and all that belongs to none under ``rest``, which together are the sum of the
    operators' times; ``sentences`` that say where the time goes; and the ``suggestion`` of other channel counts, or
    None.

    Args:
        path: the run's folder.
        batch: examples per call.
        threads: intra-operation threads of onnxruntime.
        precision: which exported files.
        seconds: of timed calls, roughly: half of it with a profile and half without.
        allow_code: whether a Python file that the run names may be run.

    Raises:
        SettingError: a setting is out of range or unknown.
        ExportError: the files are missing or do not run, or the run was exported anew meanwhile.
        RunError, ModelError, CalibrationError: the run, its dense model or its data cannot be opened, or the file
            cannot be written.
    """
    check_whole_number("batch", batch, 1, MOST_BATCH)
    check_whole_number("threads", threads, 1, MOST_THREADS)
    if not plain_files.is_number(seconds) or not 0 < seconds <= MOST_SECONDS:
        raise SettingError(
            f"seconds is {seconds!r}; give a number above 0 and up to {MOST_SECONDS}, such as 4."
        )
    files = _files(path, precision)
    exported = Measured(path)
    run = yield from open_run(path, allow_code=allow_code)
    given = inputs(batch_of(run.evaluation, batch))
    blocks = [event.block for event in run.result.blocks_pruned]
    yield Progress(0.02, "reading the exported files")
    models = (run.dense.model, run.result.model)
    origins = [Origins(file, model) for file, model in zip(_files(path, "fp32"), models, strict=True)]
    here = machine()
    best = _known_peak(path, here, threads)
    if not best:
        for step in peak.measure(threads):
            if isinstance(step, float):
                best = step
            else:
                yield Progress(0.05 + 0.1 * step.done, step.doing)
    for part in operators.measure(files, origins, given, threads, seconds / 2):
        if isinstance(part, Progress):
            yield Progress(0.15 + 0.5 * part.done, part.doing)
        else:
            dense, pruned = part
    dense_file, pruned_file = files
    timed = compare_latency(
        dense_file, pruned_file, given, threads=threads, seconds=seconds / 2, rounds=_ROUNDS
    )
    for told in timed:
        if isinstance(told, Progress):
            yield Progress(0.65 + 0.35 * told.done, told.doing)
        else:
            latency = told
    if precision in INTEGER:
        rows = side_by_side(dense.kernels, pruned.kernels, origins, blocks, batch, None)
    else:
        # Whatever slowed the measurement of the peak down: what an operator reached, the machine can do.
        kernels = (k for k in (*dense.kernels, *pruned.kernels) if k.macs and k.ms)
        best = max([best, *(2 * k.macs / k.ms / 1e6 for k in kernels)])
        rows = side_by_side(dense.kernels, pruned.kernels, origins, blocks, batch, best)
    own, rest = by_block(rows, blocks)
    quickest = min(dense.quickest_ms, pruned.quickest_ms)
    proposed = suggestion(rows, quickest)
    report = {
        "format": FORMAT,
        "machine": here | {"peak_gflops": best},
        "precision": precision,
        "batch": batch,
        "threads": threads,
        "total_ms": {"dense": latency.dense.median_ms, "pruned": latency.pruned.median_ms},
        "latency": latency.as_dict(),
        "quickest_ms": quickest,
        "operators": [asdict(row) for row in rows],
        "blocks": [asdict(block) for block in own],
        "rest": asdict(rest),
        "sentences": sentences(rows, own, rest, latency, quickest),
        "suggestion": None if proposed is None else asdict(proposed),
    }
    exported.write(FILE, report)
    yield Progress(1.0, "finished")
    yield ProfileDone(report)


def profile_report(path: Path) -> dict[str, Any] | None:
    """What ``profile_run`` wrote for a run; None where there is nothing, or nothing that can be read."""
    plain = plain_files.read_json(path / EXPORT / FILE)
    try:
        return plain if _whole(plain) else None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def operator_rows(report: dict[str, Any]) -> list[Operator]:
    """The operators of a report as records."""
    return [_record(Operator, row) for row in report["operators"]]


def block_rows(report: dict[str, Any]) -> list[BlockTime]:
    """The blocks of a report as records, in network order, and at last the rest."""
    return [_record(BlockTime, row) for row in (*report["blocks"], report["rest"])]


def _record(kind: Any, plain: dict[str, Any]) -> Any:
    return plain_files.check_fields(kind(**plain_files.tuples(plain)))


def _whole(plain: Any) -> bool:
    """Whether a report holds what it should; errors mean that it does not."""
    if plain["format"] != FORMAT:
        return False
    operators, blocks = operator_rows(plain), block_rows(plain)
    latency = plain["latency"]
    given = {name: value for name, value in latency.items() if name != "verdict"}
    sides = {side: plain_files.check_fields(Timing(**latency[side])) for side in SIDES}
    plain_files.check_fields(LatencyReport(**given | sides))
    if plain["suggestion"] is not None:
        _record(Suggestion, plain["suggestion"])
    times = [plain["quickest_ms"], plain["machine"]["peak_gflops"], *(plain["total_ms"][s] for s in SIDES)]
    times += [time for row in operators for time in (row.dense_ms, row.pruned_ms)]
    times += [time for row in blocks for time in (row.dense_ms, row.pruned_ms)]
    return (
        all(plain_files.is_number(time) and time >= 0 for time in times)
        and all(isinstance(plain[name], int) and plain[name] > 0 for name in ("batch", "threads"))
        and plain["precision"] in PRECISIONS
        and all(isinstance(sentence, str) for sentence in plain["sentences"])
    )


def _files(path: Path, precision: str) -> tuple[Path, Path]:
    dense, pruned = (path / EXPORT / file_name(side, precision) for side in SIDES)
    for file in (dense, pruned):
        if not file.is_file():
            raise ExportError(
                f"{path.name} has no exported {file.name}; export the run as {precision} first, then profile it."
            )
    return dense, pruned


def _known_peak(path: Path, here: dict[str, Any], threads: int) -> float:
    """What an earlier profile on this machine, with as many threads, found; 0 without one."""
    earlier = profile_report(path)
    if earlier is None or earlier["threads"] != threads:
        return 0.0
    best = earlier["machine"]["peak_gflops"]
    return float(best) if earlier["machine"] == here | {"peak_gflops": best} else 0.0

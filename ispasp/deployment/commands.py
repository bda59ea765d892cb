"""What the commands ``export``, ``bench``, ``profile`` and ``report`` of ``ispasp.cli`` do with their options."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ispasp import store
from ispasp.deployment import exporting
from ispasp.deployment import report as page
from ispasp.deployment.bench import BenchDone, BenchSettings, Row, bench_run
from ispasp.deployment.exporting import ExportDone
from ispasp.deployment.precisions import SIDES
from ispasp.deployment.profile import ProfileDone, block_rows, profile_run
from ispasp.errors import RunError
from ispasp.narrative import percent, significant
from ispasp.paths import expanded, inside
from ispasp.terminal import table, value_of, values_of, watch, write_new


def run_folder(given: str) -> Path:
    """The folder of a run, given itself or by its name in the runs folder.

    Raises:
        RunError: there is neither.
    """
    path = expanded(given, RunError)
    if path.is_dir():
        return path.resolve()  # so that it has a name, as "." has not
    runs = store.default_folder()
    place = inside(runs, given)
    if not place.is_dir():
        raise RunError(f"There is no run {given}, neither as a folder nor in {runs}; give one of the two.")
    return place


def export(options: argparse.Namespace) -> None:
    """Export a run's dense and pruned model, compare them with torch, time them."""
    path = run_folder(options.run)
    steps = exporting.export_run(
        path,
        precisions=values_of("precision", options.precision),
        opset=None if options.opset is None else value_of("opset", options.opset, int),
        seconds=value_of("seconds", options.seconds, float),
        allow_code=True,
    )
    *_, done = watch(steps)
    assert isinstance(done, ExportDone)
    if options.json:
        print(json.dumps(done.report | {"out": str(path / store.EXPORT)}))
        return
    head = ("model", "precision", "size", "opset", "largest difference", "same answer", "passed", "file")
    print(table(head, [_variant(path, variant) for variant in done.report["variants"]]))
    print(f"\nlatency, fp32, batch 1, onnxruntime on the CPU: {done.report['latency']['verdict']}")
    _warn(done.report["notes"])
    _warn(f"{v['side']}, {v['precision']}: {v['problem']}" for v in done.report["variants"] if v["problem"])


def _variant(path: Path, variant: dict[str, Any]) -> tuple[str, ...]:
    parity = variant["parity"]
    size = f"{variant['bytes'] / 1e6:.2f} MB" if variant["path"] else "-"
    opset = str(variant["opset"]) if variant["path"] else "-"
    if parity is None:
        far = ("-", "-", "no")
    else:
        agreement = parity["top1_agreement"]
        same = "-" if agreement is None else percent(agreement)
        difference = parity["max_rel_diff"]
        far = (
            "-" if difference is None else f"{difference:.1e}",
            same,
            "yes" if parity["passed"] else "NO",
        )
    file = str(path / variant["path"]) if variant["path"] else "-"
    return (variant["side"], variant["precision"], size, opset, *far, file)


def bench(options: argparse.Namespace) -> None:
    """Time a run's exported models, dense against pruned."""
    path = run_folder(options.run)
    settings = BenchSettings(
        batches=values_of("batch", options.batch, int),
        threads=values_of("threads", options.threads, int),
        precisions=values_of("precision", options.precision),
        providers=values_of("provider", options.provider),
        seconds=value_of("seconds", options.seconds, float),
        torch_eager=options.eager,
        torch_compile=options.compile,
    )
    *_, done = watch(bench_run(path, settings, allow_code=True))
    assert isinstance(done, BenchDone)
    if options.json:
        print(json.dumps(done.report))
        return
    head = (
        *("provider", "precision", "batch", "threads", "dense ms", "pruned ms", "p95", "p99", "examples/s"),
        *("cold start ms", "memory MB", "pruned is"),
    )
    rows = done.report["rows"]
    print(table(head, [_timed(row) for row in rows]))
    print(
        "(medians; p95, p99 and examples per second of the pruned model; cold start and memory dense / pruned)"
    )
    _warn(done.report["notes"])
    _warn(
        f"{row['provider']}, {row['precision']}, batch {row['batch']}, threads {row['threads']}: {row['problem']}"
        for row in rows
        if row["problem"]
    )


def _timed(row: Row) -> tuple[str, ...]:
    what = (row["provider"], row["precision"], str(row["batch"]), str(row["threads"]))
    if row["problem"]:
        return (*what, *"-------", "not measured")
    dense, pruned = row["dense"], row["pruned"]
    times = (dense["median_ms"], pruned["median_ms"], pruned["p95_ms"], pruned["p99_ms"])
    return (
        *what,
        *map(significant, times),
        f"{pruned['examples_per_second']:,.0f}",
        _both(row["cold_start_ms"], 1),
        _both(row["memory_bytes"], 1e6),
        row["verdict"],
    )


def _both(values: dict[str, float] | None, unit: float) -> str:
    return "-" if values is None else " / ".join(significant(values[side] / unit) for side in SIDES)


def profile(options: argparse.Namespace) -> None:
    """Profile a run's exported models, and say why the pruned one is as fast as it is."""
    steps = profile_run(
        run_folder(options.run),
        batch=value_of("batch", options.batch, int),
        threads=value_of("threads", options.threads, int),
        precision=options.precision,
        seconds=value_of("seconds", options.seconds, float),
        allow_code=True,
    )
    *_, done = watch(steps)
    assert isinstance(done, ProfileDone)
    if options.json:
        print(json.dumps(done.report))
        return
    rows = [
        (
            row.block or "all other layers",
            *map(significant, (row.dense_ms, row.pruned_ms)),
            *(f"{macs:,}" for macs in (row.macs_dense, row.macs_pruned)),
        )
        for row in block_rows(done.report)
    ]
    print(table(("block", "dense ms", "pruned ms", "dense MACs", "pruned MACs"), rows))
    print("\n" + "\n".join(done.report["sentences"]))


def report(options: argparse.Namespace) -> None:
    """Write all that is known about a run as one HTML file."""
    path = run_folder(options.run)
    out = options.out or Path(f"{path.resolve().name}.html")
    content = page.write(path)
    write_new(out, content, "report", options.json)


def _warn(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        print(f"ispasp: {sentence}", file=sys.stderr)

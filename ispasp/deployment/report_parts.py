"""The parts of a report that come from what was measured after a run: files, latency, layers, operators.

Whatever such a file holds may be foreign: a part raises what reading it raises, and the page leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ispasp.deployment import bench_figures, diff_figures, model_diff, operator_figures, profile
from ispasp.deployment.bench import Setting
from ispasp.deployment.model_diff import LayerDiff
from ispasp.deployment.report_page import FAILED, Page
from ispasp.narrative import percent, plural, significant
from ispasp.result_figures import latency_figure

Plain = Mapping[str, Any]
_FOLDED = 30  # rows of a table that is shown at once


def files(page: Page, export: Plain) -> None:
    """Every exported file, and how far it is from torch."""
    rows, told = [], []
    for variant in export["variants"] or _first_variants(export):
        name = f"{variant['side']}, {variant['precision']}"
        parity = variant["parity"] or {}
        if variant["problem"]:
            told.append(f"{name}: {variant['problem']}")
        elif "sentence" in parity:
            told.append(f"{variant['side']}, {parity['sentence']}")
        elif not parity:
            told.append(f"{name}: it was not compared with torch.")
        rows.append(
            {
                "Model": name,
                "File": megabytes(variant["bytes"]) if variant["bytes"] else "–",
                "Opset": str(variant["opset"] or "–"),
                "Largest difference": _scientific(parity.get("max_abs_diff")),
                "Largest relative difference": _scientific(parity.get("max_rel_diff")),
                "Mean difference": _scientific(parity.get("mean_abs_diff")),
                "Same answer": _share(parity.get("top1_agreement")),
                "Accuracy, torch": _share(parity.get("accuracy_torch")),
                "Accuracy, file": _share(parity.get("accuracy_onnx")),
                "Verdict": _verdict(variant, parity),
            }
        )
    page.table("Files, and how far onnxruntime is from torch with each of them", rows)
    page.bullets(told)
    page.bullets(export["notes"])


def _first_variants(export: Plain) -> list[Plain]:
    """Variants of an export that knew single precision alone."""
    return [
        {
            "side": side,
            "precision": "fp32",
            "bytes": export[key]["bytes"],
            "opset": export[key]["opset"],
            "problem": "",
            "parity": export[key],
        }
        for side, key in (("dense", "dense_onnx"), ("pruned", "onnx"))
    ]


def _verdict(variant: Plain, parity: Plain) -> str:
    if not parity:
        return FAILED if variant["path"] else "not made"
    said = parity.get("passed")
    return "passed" if said is True else FAILED if said is False else "–"


def latency(page: Page, measured: Plain) -> None:
    """Times of both models in every setting of ``bench.json``."""
    rows = measured["rows"]
    timed = [row for row in rows if not row.get("problem")]
    labels = [label(row) for row in timed]
    if len(timed) > 1:
        info = bench_figures.ratios_info(labels, timed)
        page.figure(
            "How many times as fast as the dense model the pruned one is, with 95 % intervals",
            partial(bench_figures.ratios_figure, info),
        )
    elif timed:
        page.figure(
            f"Time per batch, {labels[0]}: median, and a whisker to the 95th percentile",
            partial(latency_figure, timed[0]),
        )
    page.table(
        "Time per batch, both models called in turns; p95 and p99 are the 95th and the 99th percentile",
        [_times(row) for row in timed],
    )
    page.table(
        "The first answer: opening the file and calling it once; and the memory that this takes",
        [_first_answer(row) for row in timed if row.get("cold_start_ms")],
    )
    page.bullets(f"{label(row)}: {row['problem']}" for row in rows if row.get("problem"))
    page.bullets(measured["notes"])


def label(row: Plain) -> str:
    """What a row was measured with: ``"batch 1, 1 thread, fp32"``."""
    provider = str(row["provider"]).removesuffix("ExecutionProvider")
    provider = "cpu" if provider == "CPU" else provider
    return str(Setting(provider, str(row.get("precision", "fp32")), row["batch"], row["threads"]))


def verdict(row: Plain) -> str:
    """``"1.62× as fast as the dense model, 95 % interval 1.55 to 1.70: faster"``."""
    said = bench_figures.verdict(row["ratio_low"], row["ratio_high"]).value
    interval = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
    return f"{row['ratio']:.2f}× as fast as the dense model, 95 % interval {interval}: {said}"


def _times(row: Plain) -> dict[str, str]:
    cells = {"Setting": label(row)}
    for key, words in (("median_ms", "median"), ("p95_ms", "p95"), ("p99_ms", "p99")):
        for side in ("dense", "pruned"):
            if key in row[side]:
                cells[f"{side.capitalize()} {words}"] = f"{significant(row[side][key])} ms"
    return cells | {
        "Times as fast": f"{row['ratio']:.2f}×",
        "95 % interval": f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
        "Verdict": bench_figures.verdict(row["ratio_low"], row["ratio_high"]).value,
        "Pairs": f"{row['pairs']:,}",
    }


def _first_answer(row: Plain) -> dict[str, str]:
    cells = {"Setting": label(row)}
    for side in ("dense", "pruned"):
        cells[f"{side.capitalize()} first answer"] = f"{significant(row['cold_start_ms'][side])} ms"
    for side in ("dense", "pruned"):
        memory = row["memory_bytes"]
        cells[f"{side.capitalize()} memory"] = megabytes(memory[side]) if memory else "–"
    return cells


def layers(page: Page, diffs: Sequence[LayerDiff], shares: Mapping[str, float] | None) -> None:
    """What became of every layer.

    Args:
        shares: of the pruned model's time by layer, where that was measured.
    """
    page.figure(
        "Multiply-adds (MACs) of one example by layer, from the input down to the output: the outline is the dense "
        "model, the filled part the pruned one",
        partial(diff_figures.diff_figure, diffs, "macs"),
    )
    rows = [
        {head: f"{cell:,}" if isinstance(cell, int) else cell for head, cell in row.items()}
        for row in model_diff.as_rows(diffs, shares)
    ]
    page.table(
        "Every layer before and after; a weight has outputs × inputs × kernel",
        rows,
        folded=f"Table of all {len(diffs):,} layers" if len(rows) > _FOLDED else "",
    )


def time_by_block(page: Page, report: dict[str, Any]) -> None:
    """Where the time goes, by block, and why."""
    measured = f"batch {report['batch']}, {plural(report['threads'], 'thread')}, {report['precision']}"
    page.text(f"From onnxruntime's profile, {measured}.", "quiet")
    page.bullets(report["sentences"])
    blocks, operators = profile.block_rows(report), profile.operator_rows(report)
    page.figure("Time of one call by block", partial(operator_figures.block_times_figure, blocks))
    page.table(
        "Time of one call by block, the sum over its operators",
        [
            {
                "Block": row.block or "in no block",
                "Dense": f"{significant(row.dense_ms)} ms",
                "Pruned": f"{significant(row.pruned_ms)} ms",
                "MACs dense": f"{row.macs_dense:,}",
                "MACs pruned": f"{row.macs_pruned:,}",
            }
            for row in blocks
        ],
    )
    if operator_figures.peak_info(operators).names:
        page.figure(
            "Heavy operators: the share that they reach of the most that this machine was measured to compute, "
            f"{report['machine']['peak_gflops']:.3g} GFLOP/s",
            partial(operator_figures.peak_figure, operators),
        )


def machine(found: Plain) -> list[dict[str, str]]:
    """Rows about the machine that times hold for."""
    words = {"processor": "Processor", "cores": "Cores", "system": "System"}
    return [
        {"What": words[key], "Value": str(found[key])} for key in words if found.get(key) is not None
    ] + versions(found["versions"])


def versions(found: Plain) -> list[dict[str, str]]:
    """Rows about versions."""
    return [{"What": str(name), "Value": str(version)} for name, version in found.items()]


def megabytes(size: float) -> str:
    """``"1.08 MB"``."""
    return f"{size / 1e6:.2f} MB"


def _scientific(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)

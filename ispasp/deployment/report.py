"""One page about a run for a colleague who has neither the app nor a network: what was done, what came of it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ispasp import display, narrative, store
from ispasp.deployment import bench, model_diff, profile, report_parts
from ispasp.deployment.report_page import Page
from ispasp.errors import ISpaSPError
from ispasp.result import RunRecord, load_record
from ispasp.result_figures import blocks_figure, comparison_figure
from ispasp.run_settings import RunSettings
from ispasp.store import EXPORT
from ispasp.tuning import report as tuning
from ispasp.tuning.request import epochs_made
from ispasp.vocabulary import SHARES, example_word, refit_words, selector_words


class _Found(NamedTuple):
    """What was found out after the run; None where nothing was, or where it cannot be read."""

    export: dict[str, Any] | None
    bench: dict[str, Any] | None
    profile: dict[str, Any] | None


def write(path: Path, *, allow_code: bool = False) -> bytes:
    """A run's report as one HTML file of about 5 MB, most of it plotly.js, which draws its figures without a network.

    What was not exported or measured is said to be missing, and so is what cannot be read.

    Args:
        path: the run's folder.
        allow_code: whether a Python file that the run names may be run, to see what became of the layers of a run
            that was not exported.

    Raises:
        RunError: the run is missing, damaged or foreign.
    """
    record = load_record(path)
    try:
        settings = RunSettings.of(record)
    except ISpaSPError:  # made from Python, or by a version with other models
        settings = None
    about = store.read_about(path)
    page = Page(about["name"] or path.resolve().name)
    found = _Found(store.export_report(path), bench.bench_report(path), profile.profile_report(path))
    _headline(page, record, settings, about["note"], found.export, path.resolve().name)
    _settings(page, record, settings)
    tuning.section(page, record)
    _blocks(page, record)
    _measured(page, path, found, allow_code)
    _machine(page, record, found)
    _repeat(page, path, record, settings)
    return page.html()


def command(settings: RunSettings) -> str:
    """The command that repeats a run; what is as usual is left out."""
    words = ["python", "-m", "ispasp", "prune", settings.model]
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), field.name.replace("_", "-")
        usual = {} if field.name == "keep_by_block" else field.default
        if field.name == "model" or value == usual:
            continue
        if field.name == "keep_by_block":
            for block, keep in value.items():
                words += ["--keep-block", f"{block}={keep!r}"]
        elif value is True:
            words.append(f"--{name}")
        else:
            words += [f"--{name}", ",".join(value) if field.name == "kinds" else str(value)]
    return shlex.join(words)


def _headline(
    page: Page,
    record: RunRecord,
    settings: RunSettings | None,
    note: str,
    export: dict[str, Any] | None,
    run: str,
) -> None:
    report = record.report
    what = record.settings.get("words") or record.settings.get("model") or "a model from Python"
    page.text(f"A pruned model and the dense one that it came from: {what}.")
    page.text(
        f"Run {run}, on {report['device']} in {narrative.duration(report['seconds'])}, finished "
        f"{_moment(report['finished_at'])}.",
        "quiet",
    )
    if note:
        page.text(note, "note")
    page.heading("In short")
    example = example_word(settings.data_source()) if settings else "example"
    page.table("Dense against pruned", _quantities(report, example))
    page.figure("What is left of the dense model", partial(comparison_figure, report))
    if export is not None:
        page.attempt(lambda: page.table("Exported in single precision (FP32)", _exported(export)))
        page.attempt(lambda: page.text(_speed(export["latency"])))
    lines = display.remark_lines(record)
    if lines:
        page.text("What to know about this outcome:")
        page.bullets(lines)


def _moment(text: str) -> str:
    """An ISO 8601 time in words, in its own zone; as it is where it is none."""
    try:
        return f"{datetime.fromisoformat(text):%d %b %Y, %H:%M %Z}".rstrip()
    except ValueError:
        return text


def _quantities(report: Mapping[str, Any], example: str) -> list[dict[str, str]]:
    """Exact figures; their change in words."""
    keys = {
        "Parameters": "params",
        f"MACs per {example}": "macs",
        "Accuracy": "accuracy",
        "Agreement": "agreement",
    }
    rows = []
    for known in narrative.comparisons(report, example):
        key = keys[known.label]
        cells = (known.dense or "–", known.pruned)
        if key in ("params", "macs"):
            cells = (f"{report[f'{key}_before']:,}", f"{report[f'{key}_after']:,}")
        rows.append({"Quantity": known.label, "Dense": cells[0], "Pruned": cells[1], "Change": known.change})
    if report["examples"]:
        rows.append(
            {
                "Quantity": "Examples measured on",
                "Dense": "",
                "Pruned": f"{report['examples']:,}",
                "Change": "" if report["accuracy_after"] is not None else "labels unknown, so no accuracy",
            }
        )
    return rows


def _exported(export: Mapping[str, Any]) -> list[dict[str, str]]:
    files, times = (export["dense_onnx"], export["onnx"]), export["latency"]
    return [
        {
            "Model": side,
            "File": report_parts.megabytes(file["bytes"]),
            f"Median, {report_parts.label(times)}": f"{narrative.significant(times[side]['median_ms'])} ms",
        }
        for side, file in zip(("dense", "pruned"), files, strict=True)
    ]


def _speed(latency: Mapping[str, Any]) -> str:
    return f"Latency of the pruned model in onnxruntime: {report_parts.verdict(latency)}."


def _settings(page: Page, record: RunRecord, settings: RunSettings | None) -> None:
    page.heading("Settings")
    if settings is None:
        shown = {k: v for k, v in record.settings.items() if isinstance(v, (str, int, float))}
        page.table(
            "What the run was asked to do",
            [{"Setting": name, "Value": str(value)} for name, value in shown.items()],
        )
        return
    selector, refit = selector_words(settings.selector), refit_words(settings.reconstruct)
    rows = [
        ("Model", str(settings.model_source()), str(record.settings.get("words", ""))),
        ("Weights", settings.weights or "trained or published", ""),
        ("Data", str(settings.data_source()), ""),
        ("Kept fraction", f"{settings.keep:g}", _shares(settings)),
        ("Kinds of groups", ", ".join(f"{kind}s" for kind in settings.kinds), ""),
        ("Groups are chosen by", selector.title, selector.line),
        ("Re-fit of the next layer", *refit),
        ("Kept groups are multiples of", str(settings.multiple), ""),
        ("Candidates per kept group", f"{settings.candidate_factor:g}", ""),
        ("Most iterations per block", str(settings.iterations), ""),
        ("Hidden sum", settings.hidden_sum, ""),
        ("Batch norms", "measured anew" if settings.recalibrate else "as they were", ""),
        ("Distillation", narrative.plural(settings.distil, "step") if settings.distil else "none", ""),
        ("Fine-tuning", narrative.tuned_words(record.settings) or "none", ""),
        ("Calibration examples", f"{settings.samples:,}", ""),
        ("Evaluation examples", f"at most {settings.evaluation:,}", ""),
        ("Seed", str(settings.seed), ""),
    ]
    page.table(
        "What the run was asked to do",
        [{"Setting": name, "Value": value, "In words": words} for name, value, words in rows],
    )


def _shares(settings: RunSettings) -> str:
    own = ", ".join(f"{block} {keep:g}" for block, keep in settings.keep_by_block.items())
    shared = SHARES.get(settings.allocation, settings.allocation)
    return f"{shared}{f'; but for {own}' if own else ''}"


def _blocks(page: Page, record: RunRecord) -> None:
    page.heading("Blocks")
    done = record.blocks_pruned
    page.figure(
        "What every block lost, in network order: relative squared errors, and the drift from the dense network",
        partial(blocks_figure, done),
    )
    refitted = any(block.error_after is not None for block in done)
    rows = []
    for event in done:
        block = event.block
        row = {
            "Block": block.name,
            "Kept": f"{len(event.selected):,}",
            "of": narrative.plural(block.groups, block.kind),
            "Iterations": str(event.iterations),
            "Residual": narrative.residual(event.relative_residual),
        }
        if refitted:
            errors = (event.error_before, event.error_after)
            before, after = ("–" if value is None else narrative.residual(value) for value in errors)
            row |= {"Error before re-fit": before, "after re-fit": after}
        rows.append(row | {"Drift": narrative.residual(event.drift)})
    page.table("Every pruned block", rows)


def _measured(page: Page, path: Path, found: _Found, allow_code: bool) -> None:
    run = shlex.quote(path.resolve().name)
    page.heading("Layers")
    if problem := page.attempt(lambda: _layers(page, path, found, allow_code)):
        page.text(f"This cannot be shown: {problem}", "bad")
    exporting, measuring, profiling = (
        f"python -m ispasp {what} {run}" for what in ("export", "bench", "profile")
    )
    page.heading("Files and parity")
    _part(page, path, "export.json", found.export, exporting, report_parts.files)
    page.heading("Latency")
    if found.export is None or (path / EXPORT / bench.FILE).is_file():
        _part(page, path, bench.FILE, found.bench, measuring, report_parts.latency)
    else:
        _part(page, path, "export.json", _first_row(found.export), measuring, report_parts.latency)
        page.text("Other batch sizes, threads and precisions were not measured. This does it:", "quiet")
        page.code(measuring)
    page.heading("Where the time goes")
    _part(page, path, profile.FILE, found.profile, profiling, report_parts.time_by_block)


def _first_row(export: Mapping[str, Any]) -> dict[str, Any]:
    """The one measurement that an export makes, as the measurements of ``bench.json`` are."""
    return {"rows": [export["latency"]], "notes": []}


def _layers(page: Page, path: Path, found: _Found, allow_code: bool) -> None:
    diffs = model_diff.read_diff(path) or model_diff.of_saved(path, allow_code=allow_code)
    shares = model_diff.shares(profile.operator_rows(found.profile)) if found.profile else None
    report_parts.layers(page, diffs, shares)


def _part(
    page: Page,
    path: Path,
    file: str,
    found: dict[str, Any] | None,
    how: str,
    fill: Callable[[Page, dict[str, Any]], None],
) -> None:
    """What one file of the run's export folder holds; how to get it where it is not there or cannot be read."""
    if found is not None:
        problem = page.attempt(lambda: fill(page, found))
    elif (path / EXPORT / file).is_file():
        problem = "what it holds is not what ispasp writes"
    else:
        page.text("Not measured. This does it:", "quiet")
        page.code(how)
        return
    if problem:
        page.text(
            f"This cannot be shown: {file} is damaged or foreign ({problem}). This makes it anew:", "bad"
        )
        page.code(how)


def _machine(page: Page, record: RunRecord, found: _Found) -> None:
    page.heading("Machine and versions")
    versions = record.settings.get("versions")
    rows = [{"What": "Device", "Value": record.report["device"]}]
    if threads := record.settings.get("threads"):
        rows.append({"What": "Threads", "Value": str(threads)})
    rows += report_parts.versions(versions) if isinstance(versions, Mapping) else []
    page.table("Where the model was pruned", rows)
    exported, measured = (file["machine"] if file else {} for file in (found.export, found.bench))
    if exported == measured and exported:
        page.attempt(partial(_machine_table, page, "Where it was exported and measured", exported))
        return
    for name, machine in (("Where it was exported", exported), ("Where it was measured", measured)):
        if machine:
            page.attempt(partial(_machine_table, page, name, machine))


def _machine_table(page: Page, name: str, machine: Mapping[str, Any]) -> None:
    page.table(name, report_parts.machine(machine))


def _repeat(page: Page, path: Path, record: RunRecord, settings: RunSettings | None) -> None:
    page.heading("Repeat it")
    if settings is None:
        page.text("This run was made from Python; repeat it from there.")
        return
    page.text("With ispasp installed, from the folder that relative paths start from:")
    for line in tuning.commands(record, command(settings)):
        page.code(line)
    if any(made is not None for made in epochs_made(record.settings)):
        page.text(
            "A fine-tuning that was stopped by hand goes on to its end so; the notebook stops where it did."
        )
    page.text("And to read the saved model:")
    page.code(f"import ispasp\nmodel = ispasp.load({path.name!r}).model")

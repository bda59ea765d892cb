"""What the commands of ``ispasp.cli`` do with their options."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from ispasp import (
    budget,
    budget_tables,
    find_blocks,
    notebook_export,
    processes,
    result,
    runs,
    sensitivity_run,
    store,
    sweeps,
    unfinished,
    zoo,
)
from ispasp.budget import BudgetDone
from ispasp.deployment import exporting
from ispasp.deployment.exporting import ExportDone
from ispasp.errors import RunError, SettingError
from ispasp.narrative import distil_sentence, model_stages, percent, remarks
from ispasp.paths import expanded, inside
from ispasp.records import Finished
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from ispasp.sensitivity_run import SensitivityDone
from ispasp.settings import check_keep
from ispasp.sweeps import RunRefused, SweepSettings
from ispasp.terminal import table, value_of, watch, write_new
from ispasp.tuning import commands as tuning_commands
from ispasp.tuning import runs as tuning_runs
from ispasp.tuning.attempt import FOLDER as TUNING


def _run_settings(options: argparse.Namespace) -> RunSettings:
    by_block = {}
    for given in options.keep_block:
        name, equals, keep = given.partition("=")
        if not equals:
            raise SettingError(f"--keep-block is {given!r}; give BLOCK=KEEP, such as layer1.0.conv1=0.3.")
        by_block[name] = check_keep(value_of(f"keep of block {name}", keep, float), f"keep of block {name}")
    return RunSettings(
        model=options.model,
        keep=value_of("keep", options.keep, float),
        keep_by_block=by_block,
        selector=options.selector,
        reconstruct=options.reconstruct,
        multiple=value_of("multiple", options.multiple, int),
        candidate_factor=value_of("candidate_factor", options.candidate_factor, float),
        iterations=value_of("iterations", options.iterations, int),
        samples=value_of("samples", options.samples, int),
        evaluation=value_of("evaluation", options.evaluation, int),
        seed=value_of("seed", options.seed, int),
        device=options.device,
        recalibrate=options.recalibrate,
        distil=value_of("distil", options.distil, int),
        allocation=options.allocation,
        hidden_sum=options.hidden_sum,
        weights=options.weights,
        data=options.data,
        kinds=tuple(kind.strip() for kind in options.kinds.split(",") if kind.strip()),
    )


def prune(options: argparse.Namespace) -> None:
    """Prune a model, measure it, save it."""
    settings = _run_settings(options)
    if options.budget:
        processes.check_alone("A search within a budget")
        return _budget(options, settings)
    seen = watch(runs.execute(settings, store.default_folder(), options.out, allow_code=True))
    if not processes.here().leads:
        return
    *_, finished, saved = seen
    assert isinstance(finished, Finished) and isinstance(saved, RunSaved)
    report, path = finished.result.report, saved.path
    summary: dict[str, Any] = {
        "model": settings.model,
        "weights": settings.weights,
        "data": str(settings.data_source()),
        "keep": settings.keep,
        "keep_by_block": settings.keep_by_block,
        "selector": settings.selector,
        "reconstruct": settings.reconstruct,
        "allocation": settings.allocation,
        "recalibrate": settings.recalibrate,
        "seed": settings.seed,
        **{name: report[name] for name in ("device", "seconds")},
        **{
            f"{what}_{when}": report[f"{what}_{when}"]
            for what in ("params", "macs", "accuracy")
            for when in ("before", "after")
        },
        "agreement": report["agreement"],
        "distil": report["distil"],
        "blocks": report["blocks"],
        "out": str(path),
    }
    for note in finished.result.settings["notes"]:
        print(f"ispasp: {note}", file=sys.stderr)
    for warning in remarks(report, settings.keep, settings.keep_by_block, settings.allocation):
        print(f"ispasp: {warning}", file=sys.stderr)
    if options.onnx:
        exported = watch(exporting.export_run(path, allow_code=True))[-1]
        assert isinstance(exported, ExportDone)
        summary["onnx"] = exported.report["onnx"] | {"path": str(path / exported.report["onnx"]["path"])}
        summary["latency"] = exported.report["latency"]
    if options.json:
        print(json.dumps(summary))
    else:
        _print_summary(summary)


def sweep(options: argparse.Namespace) -> None:
    """Every keep ratio with every selector and every re-fit, saved as runs."""
    keeps, selectors, reconstructs = (
        [part.strip() for part in str(getattr(options, name)).split(",") if part.strip()]
        for name in ("keep", "selector", "reconstruct")
    )
    if not (keeps and selectors and reconstructs):
        raise SettingError("keep, selector and reconstruct need a value each, several separated by commas.")
    options.keep, options.selector, options.reconstruct = keeps[0], selectors[0], reconstructs[0]
    fractions = tuple(value_of("keep", keep, float) for keep in keeps)
    settings = SweepSettings(_run_settings(options), fractions, tuple(selectors), tuple(reconstructs))
    _report_saved(watch(sweeps.execute(settings, store.default_folder(), allow_code=True)), options.json)


def resume(options: argparse.Namespace) -> None:
    """Go on with what was cut off, or discard it; without a name, list what there is."""
    if options.id is None:
        if options.discard:
            raise SettingError("--discard needs a name; without both, resume lists what was cut off.")
        return _list_cut_off(store.default_folder())
    path, kind = _cut_off(options.id)
    if options.discard:
        processes.check_alone("Discarding")
        kind.discard(path.parent, path.name)
        print(json.dumps({"discarded": path.name}) if options.json else f"{path.name} is discarded")
    elif kind is tuning_runs:
        tuning_commands.resume(path, options.json)
    elif kind is unfinished:
        processes.check_alone("A pruning run that was cut off")
        _report_saved(watch(runs.resume(path.parent, path.name, allow_code=True)), options.json)
    else:
        processes.check_alone("A sweep")
        found = next((one for one in sweeps.unfinished(path.parent) if one.id == path.name), None)
        if found is None:
            raise RunError(
                f"The sweep {path.name} is being worked on, or nobody can read its plan. Stop it first, or discard it: "
                f"{unfinished.command_of(path)} --discard"
            )
        steps = sweeps.execute(found.settings, path.parent, id=found.id, allow_code=True)
        _report_saved(watch(steps), options.json)


def _list_cut_off(folder: Path) -> None:
    cut_off, begun, tunings = unfinished.find(folder), sweeps.unfinished(folder), tuning_runs.find(folder)
    for run in cut_off:
        print(f"{run.run_id}  {run.blocks_done} of {run.blocks_total or 'all'} blocks done")
    for one in begun:
        print(f"{one.id}  sweep, {sum(map(bool, one.finished))} of {len(one.finished)} runs done")
    for each in tunings:
        print(
            f"{each.run_id}  fine-tuning of {each.parent}, {each.epochs_done} of {each.epochs_total} epochs done"
        )
    if not cut_off and not begun and not tunings:
        print(f"ispasp: nothing was cut off in {folder}.", file=sys.stderr)


def _cut_off(given: str) -> tuple[Path, ModuleType]:
    """Where the run or the sweep of a name or a path was to lie, and the module that discards it.

    Raises:
        RunError: nothing of that name was begun and not finished.
    """
    folder, elsewhere = store.default_folder(), expanded(given, RunError)
    for path in [folder / given, elsewhere] if given == elsewhere.name else [elsewhere]:
        if kind := _begun(path):
            return path, kind
    raise RunError(
        f"Nothing called {given} was cut off in {folder}, and nothing at that path: give a name that resume lists, or "
        "the folder that --out named."
    )


def _begun(path: Path) -> ModuleType | None:
    """The module that discards what was begun and was to lie at ``path``; None where nothing was."""
    folder, name = path.parent, inside(path.parent, path.name).name
    for kind, place in ((tuning_runs, TUNING), (unfinished, unfinished.FOLDER)):
        unfinished.begun(folder, place)  # removes what is left of work whose run is saved
        if (folder / place / name).is_dir():
            return kind
    return sweeps if sweeps.is_begun(folder, name) else None


def what_goes_on(options: argparse.Namespace) -> str:
    """How to go on with a command that was interrupted, as the end of a sentence."""
    with contextlib.suppress(RunError, OSError):
        out, name = getattr(options, "out", None), getattr(options, "id", None)
        path = _cut_off(name)[0] if name else out
        if path and _begun(path):
            return f"to go on with it: {unfinished.command_of(path)}"
    return "what can go on is listed by: python -m ispasp resume"


def _report_saved(events: Iterable[Any], as_json: bool) -> None:
    """Print what every saved run amounts to."""
    rows = []
    for event in events:
        if isinstance(event, RunRefused):
            print(f"ispasp: one run was left out. {event.problem}", file=sys.stderr)
        if isinstance(event, RunSaved):
            record = store.open_run(event.path)
            report, settings = record.report, RunSettings.of(record)
            row: dict[str, Any] = {
                name: getattr(settings, name) for name in ("keep", "selector", "reconstruct")
            }
            row |= {
                name: report[name] for name in ("params_after", "macs_after", "accuracy_after", "agreement")
            }
            rows.append(row | {"out": str(event.path)})
    if as_json:
        print(json.dumps({"runs": rows}))
        return
    head = ("keep", "selector", "re-fit", "parameters", "MACs", "accuracy", "agreement", "saved to")
    lines = [
        (
            f"{row['keep']:g}", row["selector"], row["reconstruct"], f"{row['params_after']:,}",
            f"{row['macs_after']:,}", _share(row["accuracy_after"]), _share(row["agreement"]), row["out"],
        )
        for row in rows
    ]  # fmt: skip
    print(table(head, lines))


def _share(value: float | None) -> str:
    return "unknown" if value is None else percent(value)


def sensitivity(options: argparse.Namespace) -> None:
    """What pruning each block alone does to the output."""
    *_, done = watch(sensitivity_run.execute(_run_settings(options), store.default_folder(), allow_code=True))
    assert isinstance(done, SensitivityDone)
    if options.json:
        fields = ("kept", "divergence", "residual", "agreement")
        curves = [
            {"block": curve.block.name, "groups": curve.block.groups} | {f: getattr(curve, f) for f in fields}
            for curve in done.curves
        ]
        print(json.dumps({"curves": curves}))
    else:
        print(budget_tables.sensitivity_table(done.curves, samples=_run_settings(options).samples))


def _budget(options: argparse.Namespace, settings: RunSettings) -> None:
    """Prune to a budget, the uniform ratio of the same cost beside it."""
    if options.out or options.onnx:
        raise SettingError(
            "--budget saves two runs into the runs folder and exports none; leave --out and --onnx out."
        )
    budgets = [budget.parse(text) for text in options.budget]
    *_, done = watch(budget.execute(settings, budgets, store.default_folder(), allow_code=True))
    assert isinstance(done, BudgetDone)
    if options.json:
        print(json.dumps(dataclasses.asdict(done.report)))
    else:
        print(budget_tables.budget_table(done.report))


def notebook(options: argparse.Namespace) -> None:
    """Write a saved run as a notebook that repeats it."""
    content = notebook_export.of_run(options.run)
    out = options.out or Path(f"{options.run.name}.ipynb")
    write_new(out, content, "notebook", options.json)


def _print_summary(summary: dict[str, Any]) -> None:
    def number(value: float | None) -> str:
        return f"{'-':>9}" if value is None else f"{value:>9.3g}"

    refitted = any(block["target"] != "none" for block in summary["blocks"])
    errors = f" {'re-fit':>10} {'before':>9} {'after':>9}" if refitted else ""
    wide = max(24, *(len(block["name"]) for block in summary["blocks"]))
    print(f"{'block':{wide}} {'kept':>11} {'iterations':>10} {'residual':>9}{errors} {'drift':>9}")
    for block in summary["blocks"]:
        kept = f"{block['kept']} of {block['groups']}"
        row = (
            f"{block['name']:{wide}} {kept:>11} {block['iterations']:>10} {block['relative_residual']:>9.4f}"
        )
        if refitted:
            row += f" {block['target']:>10} {number(block['error_before'])} {number(block['error_after'])}"
        print(f"{row} {block['drift']:>9.4f}")
    print()
    stages = model_stages(summary)
    print(f"{'':12}" + "".join(f" {stage:>22}" for stage in stages))
    for name, what in (("params", "parameters"), ("macs", "MACs")):
        sizes = [summary[f"{name}_before"]] + (len(stages) - 1) * [summary[f"{name}_after"]]
        print(f"{what:12}" + "".join(f" {size:>22,}" for size in sizes))
    between = summary["distil"] or {}
    accuracies = [summary["accuracy_before"], between.get("accuracy_before"), summary["accuracy_after"]]
    agreements = [between.get("agreement_before"), summary["agreement"]]
    if len(stages) == 2:
        del accuracies[1], agreements[0]
    print(f"{'accuracy':12}" + "".join(f" {_share(value):>22}" for value in accuracies))
    print(f"{'agreement':12} {'':>22}" + "".join(f" {_share(value):>22}" for value in agreements))
    if said := distil_sentence(summary):
        print(f"\n{said}")
    print(f"\n{summary['seconds']:.1f} s on {summary['device']}; saved to {summary['out']}")
    if "onnx" in summary:
        onnx = summary["onnx"]
        print(f"{onnx['path']}: largest difference from torch {onnx['max_abs_diff']:.1e}")
        print(f"latency, batch of 1, onnxruntime on the CPU: {summary['latency']['verdict']}")


def blocks(options: argparse.Namespace) -> None:
    """What can be pruned in a model."""
    # Which groups there are does not depend on the weights, and those need not be there.
    loaded = result.untrained(options.model, allow_code=True)
    found = find_blocks(loaded.model, loaded.example)
    if options.json:
        print(
            json.dumps(
                {
                    "model": options.model,
                    "blocks": [dataclasses.asdict(block) | {"consumer": block.consumer} for block in found],
                }
            )
        )
        return
    wide = max((len(block.name) for block in found), default=0)
    for block in found:
        says = f"-> {', '.join(block.consumers)}" if block.prunable else f"not prunable: {block.reason}"
        print(f"{block.name:{wide}} {block.groups:>5} {block.kind}s  {says}")


def models(options: argparse.Namespace) -> None:
    """The sample models."""
    cards = [zoo.card(name) for name in zoo.names()]
    if options.json:
        print(json.dumps({"models": [dataclasses.asdict(card) for card in cards]}))
        return
    for card in cards:
        print(
            f"{card.name:20} {card.parameters:>10,} parameters  accuracy {card.accuracy_test:.1%}  {card.data}"
        )

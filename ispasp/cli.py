"""The command line: ``python -m ispasp prune|blocks|models``.

What a script reads goes to standard output; progress and errors go to standard error. The exit
status is 0, or 2 when what was given cannot be used, or 130 when interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ispasp import datasets, find_blocks, models, result, runs, selectors, zoo
from ispasp.errors import ISpaSPError, SettingError
from ispasp.narrative import distil_sentence, model_stages, remarks
from ispasp.records import Event, Finished, Iteration, Progress
from ispasp.run_settings import KINDS, RunSettings
from ispasp.runs import ExportDone, RunSaved
from ispasp.settings import ALLOCATIONS, HIDDEN_SUMS, RECONSTRUCTIONS, check_keep


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
        options.command(options)
    except ISpaSPError as error:
        print(f"ispasp: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ispasp: interrupted; nothing was left half-written.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ispasp", description="Structured pruning with i-SpaSP.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    prune = commands.add_parser("prune", help="prune a model, measure it, save it")
    prune.set_defaults(command=_prune)
    _add_model(prune)
    prune.add_argument(
        "--weights",
        default="",
        metavar="FILE",
        help="a checkpoint: safetensors, or a state dict saved by torch; or random (the published or trained ones)",
    )
    prune.add_argument(
        "--data",
        default="",
        metavar="SOURCE",
        help=f"what to calibrate with and to measure on: {_forms(datasets.KINDS)} (a sample model's own)",
    )
    prune.add_argument(
        "--kinds",
        default=",".join(KINDS),
        help="kinds of groups that are pruned, separated by commas (%(default)s)",
    )
    defaults = {f.name: f.default for f in dataclasses.fields(RunSettings)}
    prune.add_argument(
        "--keep", default=str(defaults["keep"]), help="fraction to keep, above 0 and up to 1 (%(default)s)"
    )
    prune.add_argument(
        "--keep-block",
        action="append",
        default=[],
        metavar="BLOCK=KEEP",
        help="another fraction for one block",
    )
    prune.add_argument(
        "--selector",
        default=defaults["selector"],
        help=f"how groups are chosen: {', '.join(selectors.names())} (%(default)s)",
    )
    prune.add_argument(
        "--reconstruct",
        default=defaults["reconstruct"],
        help=f"what the next layer is re-fitted to, by least squares: {', '.join(RECONSTRUCTIONS)} "
        "(%(default)s; none is the paper's pure selection)",
    )
    prune.add_argument(
        "--allocation",
        default=defaults["allocation"],
        help=f"how --keep is shared out among the blocks: {', '.join(ALLOCATIONS)} (%(default)s; the others keep "
        "more where the network is sensitive, for the same MACs or parameters in all)",
    )
    prune.add_argument(
        "--hidden-sum",
        default=defaults["hidden_sum"],
        help=f"what Algorithm 1 ranks by where activations may be negative: {', '.join(HIDDEN_SUMS)} (%(default)s; "
        "signed is the paper's plain sum)",
    )
    prune.add_argument(
        "--recalibrate",
        action="store_true",
        help="measure the statistics of the batch norms behind a pruned layer anew",
    )
    prune.add_argument(
        "--distil",
        default=str(defaults["distil"]),
        metavar="STEPS",
        help="gradient steps towards the dense model on the unlabelled calibration images; takes minutes "
        "(%(default)s: none)",
    )
    for name, what in (
        ("multiple", "round kept groups to multiples of this; 1 for the paper's exact counts"),
        ("candidate-factor", "candidates per kept group"),
        ("iterations", "most iterations per block"),
        ("samples", "calibration examples"),
        ("evaluation", "examples on which accuracy and agreement are measured, at most"),
        ("seed", "draws the calibration examples"),
    ):
        prune.add_argument(
            f"--{name}", default=str(defaults[name.replace("-", "_")]), help=f"{what} (%(default)s)"
        )
    prune.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (%(default)s)")
    prune.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the run (a new one in the runs folder)"
    )
    prune.add_argument(
        "--onnx",
        action="store_true",
        help="also export to ONNX into the run's folder, compare with torch, measure latency",
    )
    prune.add_argument("--json", action="store_true", help="print one JSON object")

    blocks = commands.add_parser("blocks", help="what can be pruned in a model, and why the rest cannot")
    blocks.set_defaults(command=_blocks)
    _add_model(blocks)
    blocks.add_argument("--json", action="store_true", help="print one JSON object")

    models = commands.add_parser("models", help="the sample models")
    models.set_defaults(command=_models)
    models.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    others = {kind: form for kind, form in models.KINDS.items() if kind != "sample"}
    parser.add_argument("model", help=f"a sample model ({', '.join(zoo.names())}), or {_forms(others)}")


def _forms(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{kind}:{form}" if form else kind for kind, form in kinds.items())


def _number(name: str, text: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        words = "a whole number" if kind is int else "a number"
        raise SettingError(f"{name} is {text!r}; give {words}.") from None


def _run_settings(options: argparse.Namespace) -> RunSettings:
    by_block = {}
    for given in options.keep_block:
        name, equals, keep = given.partition("=")
        if not equals:
            raise SettingError(f"--keep-block is {given!r}; give BLOCK=KEEP, such as layer1.0.conv1=0.3.")
        by_block[name] = check_keep(_number(f"keep of block {name}", keep, float), f"keep of block {name}")
    return RunSettings(
        model=options.model,
        keep=_number("keep", options.keep, float),
        keep_by_block=by_block,
        selector=options.selector,
        reconstruct=options.reconstruct,
        multiple=_number("multiple", options.multiple, int),
        candidate_factor=_number("candidate_factor", options.candidate_factor, float),
        iterations=_number("iterations", options.iterations, int),
        samples=_number("samples", options.samples, int),
        evaluation=_number("evaluation", options.evaluation, int),
        seed=_number("seed", options.seed, int),
        device=options.device,
        recalibrate=options.recalibrate,
        distil=_number("distil", options.distil, int),
        allocation=options.allocation,
        hidden_sum=options.hidden_sum,
        weights=options.weights,
        data=options.data,
        kinds=tuple(kind.strip() for kind in options.kinds.split(",") if kind.strip()),
    )


def _prune(options: argparse.Namespace) -> None:
    settings = _run_settings(options)
    *_, finished, saved = _watch(runs.execute(settings, runs.default_folder(), options.out, allow_code=True))
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
        exported = _watch(runs.export_run(path, allow_code=True))[-1]
        assert isinstance(exported, ExportDone)
        summary["onnx"] = exported.report["onnx"] | {"path": str(path / exported.report["onnx"]["path"])}
        summary["latency"] = exported.report["latency"]
    if options.json:
        print(json.dumps(summary))
    else:
        _print_summary(summary)


def _watch(events: Iterable[Event | RunSaved | ExportDone]) -> list[Event | RunSaved | ExportDone]:
    """Follow a run or an export with a progress bar on standard error; all events but the progress."""
    seen: list[Event | RunSaved | ExportDone] = []
    form = "{percentage:3.0f}% |{bar}| {elapsed}<{remaining} {desc}"
    with tqdm(total=1.0, bar_format=form, file=sys.stderr) as bar:
        for event in events:
            if isinstance(event, Progress):
                bar.set_description_str(event.doing, refresh=False)
                bar.update(max(0.0, event.done - bar.n))
                continue
            seen.append(event)
            if isinstance(event, Iteration):
                text = f"{event.block}, iteration {event.t}, residual {event.relative_residual:.3f}"
                bar.set_description_str(text)
    return seen


def _print_summary(summary: dict[str, Any]) -> None:
    def percent(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.1%}"

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
    print(f"{'accuracy':12}" + "".join(f" {percent(value):>22}" for value in accuracies))
    print(f"{'agreement':12} {'':>22}" + "".join(f" {percent(value):>22}" for value in agreements))
    if said := distil_sentence(summary):
        print(f"\n{said}")
    print(f"\n{summary['seconds']:.1f} s on {summary['device']}; saved to {summary['out']}")
    if "onnx" in summary:
        onnx = summary["onnx"]
        print(f"{onnx['path']}: largest difference from torch {onnx['max_abs_diff']:.1e}")
        print(f"latency, batch of 1, onnxruntime on the CPU: {summary['latency']['verdict']}")


def _blocks(options: argparse.Namespace) -> None:
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


def _models(options: argparse.Namespace) -> None:
    cards = [zoo.card(name) for name in zoo.names()]
    if options.json:
        print(json.dumps({"models": [dataclasses.asdict(card) for card in cards]}))
        return
    for card in cards:
        print(
            f"{card.name:20} {card.parameters:>10,} parameters  accuracy {card.accuracy_test:.1%}  {card.data}"
        )

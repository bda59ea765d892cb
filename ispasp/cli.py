"""The command line: ``python -m ispasp prune|sweep|sensitivity|finetune|resume|export|bench|profile|
report|notebook|blocks|models|theory``.

What a script reads goes to standard output; progress and errors go to standard error. The exit
status is 0, or 2 when what was given cannot be used, or 130 when interrupted. Under ``torchrun`` the
first of the processes writes and prints; the first that fails says why, and all end alike.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from ispasp import commands, datasets, models, processes, selectors, theory_commands, zoo
from ispasp.deployment import commands as deployment
from ispasp.deployment import providers
from ispasp.deployment.precisions import PRECISIONS
from ispasp.errors import ISpaSPError
from ispasp.run_settings import KINDS, RunSettings
from ispasp.settings import ALLOCATIONS, HIDDEN_SUMS, RECONSTRUCTIONS
from ispasp.tuning import commands as tuning


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = argparse.Namespace()
    try:
        options = _parser().parse_args(arguments)
        with processes.joined(getattr(options, "device", "auto")) as group, _heard(group.leads):
            if not options.together:
                processes.check_alone(f"The command {options.name}")
            options.command(options)
    except ISpaSPError as error:
        return _ended(str(error), 2)
    except KeyboardInterrupt:
        return _ended(f"interrupted; nothing was left half-written; {commands.what_goes_on(options)}", 130)
    return 0


@contextlib.contextmanager
def _heard(leads: bool) -> Iterator[None]:
    """Let only the process that leads print."""
    with contextlib.ExitStack() as stack:
        if not leads:
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def _ended(why: str, status: int) -> int:
    if processes.first_to_end():
        print(f"ispasp: {why}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ispasp", description="Structured pruning with i-SpaSP.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, help: str, does: ModuleType = commands, together: bool = False
    ) -> argparse.ArgumentParser:
        command = subparsers.add_parser(name, help=help)
        command.set_defaults(name=name, command=getattr(does, name), together=together)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        return command

    prune = add("prune", "prune a model, measure it, save it", together=True)
    _add_settings(prune)
    prune.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="LIMIT",
        help="in place of --keep: macs=50%%, params=1M, speedup=2 (at batch 1 on this machine) and loss=2 (points of "
        "accuracy, at most), shared out by sensitivity; the largest uniform ratio within it is run beside it",
    )
    prune.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the run (a new one in the runs folder)"
    )
    prune.add_argument(
        "--onnx",
        action="store_true",
        help="also export to ONNX into the run's folder, compare with torch, measure latency",
    )
    sweep = add(
        "sweep",
        "every keep ratio with every selector and re-fit: --keep, --selector, --reconstruct take lists",
    )
    _add_settings(sweep)
    _add_settings(
        add("sensitivity", "what pruning every block alone does to the output, over a grid of ratios")
    )
    finetune = add(
        "finetune", "train a saved run further, and save the result as a new run", tuning, together=True
    )
    _add_run(finetune)
    tuning.add_options(finetune)
    resume = add("resume", "go on with a run, a sweep or a fine-tuning that was cut off", together=True)
    resume.add_argument(
        "id",
        nargs="?",
        metavar="NAME",
        help="its name, or the folder that --out named; without one, all in the runs folder are listed",
    )
    resume.add_argument("--discard", action="store_true", help="remove what there is of it, and do not go on")
    export = add("export", "write a saved run as ONNX files, compare them with torch, time them", deployment)
    _add_run(export)
    _add_precision(export)
    export.add_argument("--opset", metavar="N", help="version of the ONNX operator set (the exporter's own)")
    export.add_argument("--seconds", default="4", help="of timed calls (%(default)s)")
    bench = add("bench", "time a saved run's ONNX files, dense against pruned in turns", deployment)
    _add_run(bench)
    bench.add_argument("--batch", default="1", help="examples per call, separated by commas (%(default)s)")
    bench.add_argument("--threads", default="1", help="threads, separated by commas (%(default)s)")
    _add_precision(bench)
    bench.add_argument(
        "--provider",
        default="cpu",
        help=f"what onnxruntime runs on, separated by commas: {', '.join(providers.PROVIDERS)} (%(default)s)",
    )
    bench.add_argument("--eager", action="store_true", help="time both models in torch as well")
    bench.add_argument("--compile", action="store_true", help="time both models under torch.compile as well")
    bench.add_argument("--seconds", default="4", help="of timed calls per combination (%(default)s)")
    profile = add("profile", "say where the time of a saved run's ONNX files goes, by operator", deployment)
    _add_run(profile)
    profile.add_argument("--batch", default="1", help="examples per call (%(default)s)")
    profile.add_argument("--threads", default="1", help="threads (%(default)s)")
    profile.add_argument("--precision", default="fp32", help=f"{', '.join(PRECISIONS)} (%(default)s)")
    profile.add_argument("--seconds", default="4", help="of timed calls (%(default)s)")
    report = add("report", "write all that is known about a saved run as one HTML file", deployment)
    _add_run(report)
    report.add_argument("--out", type=Path, metavar="FILE", help="the report (RUN.html)")
    notebook = add("notebook", "write a saved run as a notebook that repeats it")
    notebook.add_argument("run", type=Path, help="the run's folder")
    notebook.add_argument("--out", type=Path, metavar="FILE", help="the notebook (RUN.ipynb)")
    _add_model(add("blocks", "what can be pruned in a model, and why the rest cannot"))
    add("models", "the sample models")
    theory_commands.add_options(
        add(
            "theory",
            "how compressible a model's blocks are, and what the paper's theorem makes of it",
            theory_commands,
        )
    )
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """The options that ``RunSettings`` is made of."""
    defaults = {f.name: f.default for f in dataclasses.fields(RunSettings)}
    _add_model(parser)
    parser.add_argument(
        "--weights",
        default="",
        metavar="FILE",
        help="a checkpoint: safetensors, or a state dict saved by torch; or random (the published or trained ones)",
    )
    parser.add_argument(
        "--data",
        default="",
        metavar="SOURCE",
        help=f"what to calibrate with and to measure on: {_forms(datasets.KINDS)} (a sample model's own)",
    )
    parser.add_argument(
        "--kinds",
        default=",".join(KINDS),
        help="kinds of groups that are pruned, separated by commas (%(default)s)",
    )
    parser.add_argument(
        "--keep", default=str(defaults["keep"]), help="fraction to keep, above 0 and up to 1 (%(default)s)"
    )
    parser.add_argument(
        "--keep-block",
        action="append",
        default=[],
        metavar="BLOCK=KEEP",
        help="another fraction for one block",
    )
    parser.add_argument(
        "--selector",
        default=defaults["selector"],
        help=f"how groups are chosen: {', '.join(selectors.names())} (%(default)s)",
    )
    parser.add_argument(
        "--reconstruct",
        default=defaults["reconstruct"],
        help=f"what the next layer is re-fitted to, by least squares: {', '.join(RECONSTRUCTIONS)} "
        "(%(default)s; none is the paper's pure selection)",
    )
    parser.add_argument(
        "--allocation",
        default=defaults["allocation"],
        help=f"how --keep is shared out among the blocks: {', '.join(ALLOCATIONS)} (%(default)s; the others keep "
        "more where the network is sensitive, for the same MACs or parameters in all)",
    )
    parser.add_argument(
        "--hidden-sum",
        default=defaults["hidden_sum"],
        help=f"what Algorithm 1 ranks by where activations may be negative: {', '.join(HIDDEN_SUMS)} (%(default)s; "
        "signed is the paper's plain sum)",
    )
    parser.add_argument(
        "--recalibrate",
        action="store_true",
        help="measure the statistics of the batch norms behind a pruned layer anew",
    )
    parser.add_argument(
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
        parser.add_argument(
            f"--{name}", default=str(defaults[name.replace("-", "_")]), help=f"{what} (%(default)s)"
        )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (%(default)s)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the run's folder, or its name in the runs folder")


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        default="fp32",
        help=f"of the files, separated by commas: {', '.join(PRECISIONS)} (%(default)s)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    others = {kind: form for kind, form in models.KINDS.items() if kind != "sample"}
    parser.add_argument("model", help=f"a sample model ({', '.join(zoo.names())}), or {_forms(others)}")


def _forms(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{kind}:{form}" if form else kind for kind, form in kinds.items())

"""What fine-tuning gives back: dense, pruned, re-fitted, fine-tuned, and the same widths trained from random weights.

    python benchmarks/finetuning.py                            # all three samples on the training data that ship
    python benchmarks/finetuning.py --models cifar10_resnet20 --train zip:cifar10_jpeg.zip
    python benchmarks/finetuning.py --table RESULTS.json --plot docs/finetuning.png      # what was measured before

Every model is pruned at --keep in multiples of 8 by i-SpaSP, its MACs shared out by sensitivity, without a re-fit
("pruned") and with the asymmetric one ("re-fitted"), which is then fine-tuned with --preset. The control has the widths
of the re-fitted model and random weights, and is trained in the same way. All are measured on the shipped 1,000 test
examples, or those that --data brings; the minutes are those of the fine-tuning, measuring included. ``--out`` writes
every epoch as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere

from benchmarks.pictures import write_png
from ispasp import runs
from ispasp.latency_table import device_name
from ispasp.records import Finished
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from ispasp.settings import ALLOCATIONS
from ispasp.tuning import runs as tuning
from ispasp.tuning.records import EpochDone
from ispasp.tuning.request import TuneRequest
from ispasp.tuning.settings import PRESETS

MODELS = ("cifar10_resnet20", "cifar10_mobilenetv2", "nli_bert")
COLOURS = {"pruned": "#0072B2", "random": "#D55E00"}
WORDS = {"pruned": "fine-tuned after pruning", "random": "the same widths from random weights"}


def measured(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures of one model as plain values."""
    asked = {key: getattr(options, key) for key in ("keep", "allocation", "preset")}
    found: dict[str, Any] = {"model": name, **asked, "curves": {}}
    for reconstruct in ("none", "asymmetric"):
        settings = RunSettings(
            name, options.keep, reconstruct=reconstruct, allocation=options.allocation, data=options.data
        )
        finished, path = _done(runs.execute(settings, folder))
        report = finished.result.report
        found[reconstruct] = report["accuracy_after"]
    found |= {key: report[key] for key in ("macs_before", "macs_after", "params_before", "params_after")}
    changes = {key: getattr(options, key) for key in ("epochs",) if getattr(options, key) is not None}
    for start in ("pruned", "random"):
        request = TuneRequest.of_preset(options.preset, changes, train=options.train, start=start)
        began = time.perf_counter()
        finished, _ = _done(tuning.execute(path, request, folder))
        report = finished.result.report
        found[start] = report["accuracy_after"]
        found["dense"], found["examples"] = report["accuracy_before"], report["examples"]
        found[f"minutes_{start}"] = (time.perf_counter() - began) / 60
        found["train_examples"] = report["tuning"]["train_examples"]
        found["curves"][start] = report["tuning"]["curve"]
    return found


def _done(events: Iterator[Any]) -> tuple[Finished, Path]:
    """Go through a run; its result and its folder."""
    finished: Finished | None = None
    for event in events:
        if isinstance(event, EpochDone):
            shown = "" if event.accuracy is None else f", accuracy {100 * event.accuracy:.1f} %"
            say(f"  epoch {event.epoch} of {event.epochs}: held-out loss {event.held_out_loss:.3f}{shown}")
        elif isinstance(event, Finished):
            finished = event
        elif isinstance(event, RunSaved):
            path = event.path
    assert finished is not None
    return finished, path


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """The table."""
    head = (
        "| model | keep | MACs | dense | pruned | re-fitted | fine-tuned | from random weights | training examples "
        "| minutes |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    lines = []
    for one in found:
        shares = " | ".join(
            f"{100 * one[key]:.1f} %" for key in ("dense", "none", "asymmetric", "pruned", "random")
        )
        macs = " -> ".join(f"{one[f'macs_{when}'] / 1e6:.1f} M" for when in ("before", "after"))
        lines.append(
            f"| `{one['model']}` | {one['keep']:g} | {macs} | {shares} | {one['train_examples']:,} "
            f"| {one['minutes_pruned']:.1f} |"
        )
    return "\n".join([head, *lines])


def figure(found: Sequence[dict[str, Any]]) -> go.Figure:
    """Accuracy after every epoch, a panel for each model, with the dense model's as a line."""
    made = make_subplots(1, len(found), subplot_titles=[one["model"] for one in found])
    for column, one in enumerate(found, start=1):
        for start, curve in one["curves"].items():
            values = [100 * epoch["accuracy"] for epoch in curve]
            before = [100 * one["asymmetric"]] if start == "pruned" else []
            made.add_scatter(
                x=list(range(1 - len(before), len(values) + 1)), y=before + values, mode="lines+markers",
                name=WORDS[start], line={"color": COLOURS[start]}, showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
        made.add_hline(y=100 * one["dense"], line={"dash": "dot"}, annotation_text="dense", row=1, col=column)
    made.update_xaxes(title="epochs", rangemode="tozero")
    made.update_yaxes(title="accuracy, %", col=1)
    made.update_layout(
        template="plotly_white",
        width=1200,
        height=400,
        margin={"t": 40, "b": 10, "l": 10, "r": 10},
        legend={"orientation": "h", "y": -0.25},
    )
    return made


def say(words: str) -> None:
    """Progress goes to stderr; stdout carries the table alone."""
    print(words, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", nargs="+", default=list(MODELS), help="sample models")
    made.add_argument("--keep", type=float, default=0.4, help="kept fraction of every block (%(default)s)")
    made.add_argument("--allocation", default="macs", choices=ALLOCATIONS, help="(%(default)s)")
    made.add_argument("--preset", default="quick", choices=sorted(PRESETS), help="(%(default)s)")
    made.add_argument("--epochs", type=int, help="others than the preset's")
    made.add_argument("--data", default="", help="source of calibration and test data (the sample's own)")
    made.add_argument("--train", default="", help="source of training data (the sample's own)")
    made.add_argument("--out", type=Path, help="write everything as JSON")
    made.add_argument("--table", type=Path, help="measure nothing: print what --out wrote")
    made.add_argument("--plot", type=Path, help="draw the curves as a PNG; needs chromium and playwright")
    return made


def main(arguments: Sequence[str]) -> int:
    """Measure, or read what was measured; the exit status."""
    options = parser().parse_args(arguments)
    if options.table:
        said, found = json.loads(options.table.read_text()).values()
    else:
        said = f"{device_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        found = []
        with tempfile.TemporaryDirectory() as folder:
            for name in options.models:
                say(name)
                found.append(measured(name, options, Path(folder)))
                if options.out:
                    plain = {"machine": said, "models": found}
                    options.out.write_text(json.dumps(plain, indent=1) + "\n")
    print(f"{said}\n\n{markdown(found)}")
    if options.plot:
        write_png(figure(found), options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

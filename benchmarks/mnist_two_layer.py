"""The paper's experiment on MNIST: two-layer networks, i-SpaSP against greedy forward selection and others.

    python benchmarks/mnist_two_layer.py                                   # 100 to 10,000 neurons: 5 minutes, 3 GB
    python benchmarks/mnist_two_layer.py --sizes 2000 --keeps 0.4          # one network, half a minute
    python benchmarks/mnist_two_layer.py --source torchvision:MNIST@data   # all of MNIST

It trains networks 784 - d - 10 on the 4,000 shipped training digits, keeps a fraction of their hidden neurons as each
selector chooses, and measures on the 1,000 shipped test digits: with the output layer as it is and re-fitted by least
squares, each before and after fine-tuning. Seconds are processor seconds of one thread, from the stored hidden
representation to the chosen set; evaluated greedy selection, as published, is extrapolated by its exact number of
evaluations where it would take longer than --seconds. ``ispasp.two_layer`` has the experiment itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere

from ispasp.errors import ISpaSPError
from ispasp.records import Progress
from ispasp.two_layer import run
from ispasp.two_layer_figures import EVALUATED, accuracy_info, outcome, time_info
from ispasp.two_layer_records import TwoLayerExperiment, TwoLayerFindings

STATED_NEURONS, STATED_KEEP = 2000, 0.4  # what the last sentences are about, where it was measured


def find(experiment: TwoLayerExperiment) -> TwoLayerFindings:
    """Run the experiment; what is done goes to stderr, stdout carries the report alone."""
    work, told = run(experiment), ""
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            findings: TwoLayerFindings = stop.value
            return findings
        if isinstance(event, Progress) and event.doing != told:
            told = event.doing
            print(f"{event.done:4.0%} {told}", file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A markdown table, all columns to the right."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---:"] * len(head), *rows)]


def accuracy_table(findings: TwoLayerFindings, reconstruct: str, tuned: bool) -> list[str]:
    """A row per size and kept fraction, a column per selector; the best in bold."""
    experiment = findings.experiment
    rows = []
    for size in experiment.sizes:
        info = accuracy_info(findings.networks, findings.points, size, reconstruct, tuned)
        for at, count in enumerate(info.kept):
            best = max(values[at] for values in info.mean.values())
            cells = [
                f"**{values[at]:.1f}**" if values[at] == best else f"{values[at]:.1f}"
                for values in info.mean.values()
            ]
            rows.append([f"{size:,}", f"{count:,}", f"{info.dense:.1f}", *cells])
    return table(["hidden neurons", "kept", "dense", *experiment.selectors], rows)


def time_table(findings: TwoLayerFindings) -> list[str]:
    """A row per size and kept fraction: the seconds of every way to choose, and the factor."""
    experiment = findings.experiment
    rows = []
    for size in experiment.sizes:
        for keep in experiment.keeps:
            info = time_info(findings.points, findings.evaluated, keep)
            seconds = [info.seconds(name, size) for name in experiment.selectors]
            row = [f"{size:,}", f"{keep:g}", *("-" if value is None else f"{value:.4f}" for value in seconds)]
            slow, factor = info.lines.get(EVALUATED), info.factor(size)
            if slow:
                at = slow.neurons.index(size)
                row.append(f"{slow.seconds[at]:,.2f}{' *' if slow.extrapolated[at] else ''}")
                row.append("-" if factor is None else f"{factor:,.0f}")
            rows.append(row)
    head = ["hidden neurons", "keep", *(f"{name}, s" for name in experiment.selectors)]
    return table(head + (["evaluated greedy, s", "evaluated : ispasp"] if findings.evaluated else []), rows)


def markdown(findings: TwoLayerFindings) -> str:
    """All tables, and in sentences what came out."""
    experiment = findings.experiment
    lines = [
        f"784 - d - 10, {findings.training_digits:,} training digits, {experiment.epochs} epochs, "
        f"{min(experiment.samples, findings.training_digits):,} of them to calibrate with, "
        f"{findings.test_digits:,} test digits (standard error of the dense accuracy: {findings.standard_error:.1f} "
        f"points); {len(experiment.seeds)} seed(s); torch {torch.__version__}.",
    ]
    for reconstruct, tuned in dict.fromkeys((p.reconstruct, p.tuned) for p in findings.points):
        way = "output layer re-fitted" if reconstruct != "none" else "output layer as it was"
        after = f", fine-tuned for {experiment.tuning_epochs} epochs" if tuned else ", not fine-tuned"
        lines += ["", f"Accuracy, %, {way}{after}:", "", *accuracy_table(findings, reconstruct, tuned)]
    lines += ["", "Processor seconds to choose the neurons:", "", *time_table(findings)]
    if any(one.extrapolated for one in findings.evaluated):
        lines += [
            "",
            f"`*` extrapolated by the exact number of evaluations, after {experiment.evaluated_seconds:g} s of them.",
        ]
    checked = sorted({one.neurons for one in findings.evaluated if one.equal})
    if checked:
        sizes = ", ".join(f"{size:,}" for size in checked)
        lines += [
            "",
            f"Where all evaluations were made ({sizes} neurons), they chose the neurons that gfs chose.",
        ]
    if wrong := [one for one in findings.evaluated if one.equal is False]:
        lines += ["", f"Evaluated greedy selection and gfs chose different neurons {len(wrong)} times."]
    size = STATED_NEURONS if STATED_NEURONS in experiment.sizes else max(experiment.sizes)
    keep = STATED_KEEP if STATED_KEEP in experiment.keeps else max(experiment.keeps)
    told = outcome(findings.networks, findings.points, findings.evaluated, size, keep)
    return "\n".join([*lines, "", *told])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    usual = TwoLayerExperiment()
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    made.add_argument("--sizes", nargs="+", type=int, default=usual.sizes, help="hidden neurons")
    made.add_argument("--keeps", nargs="+", type=float, default=usual.keeps, help="kept fractions")
    made.add_argument(
        "--seeds", nargs="+", type=int, default=usual.seeds, help="a network of each size for each"
    )
    made.add_argument("--selectors", nargs="+", default=usual.selectors)
    made.add_argument("--samples", type=int, default=usual.samples, help="digits to calibrate with")
    made.add_argument("--epochs", type=int, default=usual.epochs, help="of training")
    made.add_argument(
        "--tuning-epochs", type=int, default=usual.tuning_epochs, help="of fine-tuning; 0 for none"
    )
    made.add_argument(
        "--seconds",
        type=float,
        default=usual.evaluated_seconds,
        help="of evaluated greedy selection each time, before it is extrapolated; 0 leaves it out",
    )
    made.add_argument("--source", default=usual.source, help="where the digits come from")
    made.add_argument("--json", action="store_true", help="print all records as JSON instead of tables")
    return made


def main(arguments: list[str]) -> int:
    """Run the experiment and print what it found; the exit status."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    try:
        findings = find(
            TwoLayerExperiment(
                sizes=tuple(options.sizes),
                keeps=tuple(options.keeps),
                seeds=tuple(options.seeds),
                selectors=tuple(options.selectors),
                samples=options.samples,
                epochs=options.epochs,
                tuning_epochs=options.tuning_epochs,
                evaluated_seconds=options.seconds,
                source=options.source,
            )
        )
    except ISpaSPError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(asdict(findings), indent=2) if options.json else markdown(findings))
    return 1 if any(one.equal is False for one in findings.evaluated) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

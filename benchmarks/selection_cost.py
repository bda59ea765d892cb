"""Seconds to choose the neurons of a two-layer network: i-SpaSP, and greedy forward selection in two ways.

    python benchmarks/selection_cost.py                     # 1,000 to 10,000 hidden neurons, about 2 minutes
    python benchmarks/selection_cost.py --sizes 1000 --seconds 5

The network is that of the paper's section 3, 784 - d - 10 with ReLU and random weights, over 1,280 random
examples. Every side starts from the same stored hidden representation H (1280, d).

- ``ispasp``: statistics and iterations until the fixed point.
- ``gfs`` through Q: the Gram matrix Q of what every neuron gives to the output, and then all s steps on Q.
- evaluated GFS, as published (Ye et al., "Good Subnetworks Provably Exist", ICML 2020, the baseline of the
  paper): in every step each neuron that could be added is added alone, the output layer runs over all
  examples, and the one with the smallest error stays. Selected neurons are told by a mask, so that every
  evaluation costs the same, and s * d - s * (s - 1) / 2 of them are needed (a layer cut down to the selected
  neurons would need about keep / 2 of the multiply-adds, a fifth at keep 0.4). Where they would take longer than
  --seconds, that many seconds of them are timed, and the total is extrapolated by their exact count.

First both ways of greedy selection choose from --check neurons, every evaluation made; exit status 1 when
their sets differ. Seconds are processor seconds of one thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere

from ispasp import selectors
from ispasp.algorithm import SelectorSettings
from ispasp.hidden_layer import HiddenLayer, evaluated_gfs, evaluations_needed
from ispasp.settings import groups_to_keep
from ispasp.statistics import Statistics
from sample_models.architectures import TwoLayerNet

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What choosing ``kept`` of ``neurons`` costs, in processor seconds.

    Attributes:
        ispasp: with ``iterations`` iterations.
        gfs: through Q; ``gram`` of it for the Gram matrix.
        evaluated: greedy selection with ``evaluations`` forward passes, of which ``timed`` were made.
        equal: whether both greedy selections chose the same neurons; None where not all were evaluated.
    """

    neurons: int
    kept: int
    iterations: int
    ispasp: float
    gfs: float
    gram: float
    evaluated: float
    evaluations: int
    timed: int
    equal: bool | None


def two_layers(neurons: int, examples: int, seed: int) -> HiddenLayer:
    """That of a network with random weights, over random examples."""
    torch.manual_seed(seed)
    network = TwoLayerNet(hidden=neurons).eval()
    return HiddenLayer.of(network, torch.randn(examples, 1, 28, 28))


def evaluated(layer: HiddenLayer, kept: int, most_seconds: float = math.inf) -> tuple[list[int], int, float]:
    """Evaluated greedy selection: the neurons in the order added, the evaluations made, and their seconds."""
    work = evaluated_gfs(layer.hidden, layer.consumer.weight, kept, most_seconds)
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return cast(tuple[list[int], int, float], stop.value)


def seconds_of(work: Callable[[], T]) -> tuple[T, float]:
    """What ``work`` returns, and the processor seconds it took."""
    begin = time.process_time()
    result = work()
    return result, time.process_time() - begin


@torch.no_grad()
def measure(neurons: int, options: argparse.Namespace, most_seconds: float) -> Cost:
    """Choose from ``neurons`` neurons in all three ways."""
    layer = two_layers(neurons, options.examples, options.seed)
    kept, settings = groups_to_keep(neurons, options.keep), SelectorSettings()

    def run(name: str, found: Statistics) -> tuple[tuple[int, ...], int]:
        records = list(selectors.get(name)(found, kept, settings))
        return records[-1].selected, records[-1].t

    say(f"{neurons} neurons: ispasp")
    timed_runs = [seconds_of(lambda: run("ispasp", layer.statistics())) for _ in range(3)]
    say(f"{neurons} neurons: gfs through Q")
    found, collecting = seconds_of(layer.statistics)
    _, gram = seconds_of(lambda: found.energy_matrix)
    (greedy, _), steps = seconds_of(lambda: run("gfs", found))
    say(f"{neurons} neurons: evaluated GFS")
    chosen, timed, seconds = evaluated(layer, kept, most_seconds)
    needed = evaluations_needed(neurons, kept)
    return Cost(
        neurons=neurons,
        kept=kept,
        iterations=timed_runs[0][0][1],
        ispasp=statistics.median(seconds for _, seconds in timed_runs),
        gfs=collecting + gram + steps,
        gram=gram,
        evaluated=seconds * needed / timed,
        evaluations=needed,
        timed=timed,
        equal=sorted(chosen) == list(greedy) if timed == needed else None,
    )


def markdown(costs: list[Cost], options: argparse.Namespace) -> str:
    """The table, and under it what was extrapolated."""
    lines = [
        f"784 - d - 10, {options.examples:,} examples, keep {options.keep}, torch {torch.__version__}, processor "
        "seconds of one thread, forward to H not included:",
        "",
        "| hidden neurons | kept | ispasp, s (iterations) | gfs through Q, s | of that Gram matrix, s "
        "| evaluated GFS, s | evaluations timed | gfs through Q : ispasp | evaluated GFS : ispasp "
        "| evaluated GFS : gfs through Q |",
        "|" + "---:|" * 10,
    ]
    for cost in costs:
        whole = cost.timed == cost.evaluations
        timed = (
            f"all {cost.timed:,}" if whole else f"extrapolated from {cost.timed:,} of {cost.evaluations:,}"
        )
        lines.append(
            f"| {cost.neurons:,} | {cost.kept:,} | {cost.ispasp:.3f} ({cost.iterations}) | {cost.gfs:.3f} "
            f"| {cost.gram:.3f} | {cost.evaluated:,.1f} | {timed} | {cost.gfs / cost.ispasp:.1f} "
            f"| {cost.evaluated / cost.ispasp:,.0f} | {cost.evaluated / cost.gfs:,.0f} |"
        )
    checked = [f"{cost.neurons:,}" for cost in costs if cost.equal]
    if checked:
        lines += ["", f"Both greedy selections chose the same neurons of {', '.join(checked)}."]
    return "\n".join(lines)


def say(words: str) -> None:
    """Progress goes to stderr; stdout carries the report alone."""
    print(words, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    made.add_argument(
        "--sizes", nargs="+", type=int, default=[1000, 2000, 5000, 10000], help="hidden neurons"
    )
    made.add_argument("--keep", type=float, default=0.4)
    made.add_argument("--examples", type=int, default=1280)
    made.add_argument("--check", type=int, default=200, help="neurons of which every candidate is evaluated")
    made.add_argument(
        "--seconds", type=float, default=20.0, help="evaluated GFS at each size, before extrapolating"
    )
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--json", action="store_true", help="print a JSON list instead of the table")
    return made


def main(arguments: list[str]) -> int:
    """Measure every size; the exit status."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    measure(options.check, options, most_seconds=0.1)  # warms up
    costs = [measure(options.check, options, math.inf)]
    if costs[0].equal:
        costs += [measure(size, options, options.seconds) for size in options.sizes]
    print(
        json.dumps([asdict(cost) for cost in costs], indent=2) if options.json else markdown(costs, options)
    )
    if not costs[0].equal:
        say(f"gfs through Q and evaluated GFS chose different sets of {options.check} neurons.")
    return 0 if costs[0].equal else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

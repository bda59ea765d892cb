"""What a sweep costs beside a single run: 5 keep ratios x 2 selectors on cifar10_resnet20, 512 images, saved to disk.

    python benchmarks/sweep.py

Single run and sweep alternate; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere

from ispasp import runs, sweeps
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from ispasp.settings import RECONSTRUCTIONS
from ispasp.sweeps import SweepSettings

KEEPS = (0.7, 0.5, 0.4, 0.3, 0.2)
SELECTORS = ("ispasp", "l1")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads\n")
    print(
        f"| re-fit | a single run, keep 0.5 | a sweep of {len(KEEPS) * len(SELECTORS)} runs | times a single run |"
    )
    print("|---|---|---|---|")
    for reconstruct in RECONSTRUCTIONS:
        base = RunSettings("cifar10_resnet20", samples=512, reconstruct=reconstruct, device=options.device)
        sweep = SweepSettings(base, KEEPS, SELECTORS)
        seconds(partial(runs.execute, base), 1)  # warms up
        single, whole = [], []
        for _ in range(options.repeats):
            single.append(seconds(partial(runs.execute, base), 1))
            whole.append(seconds(partial(sweeps.execute, sweep), len(sweep.runs())))
        one, many = median(single), median(whole)
        print(f"| {reconstruct} | {one:.2f} s | {many:.2f} s | {many / one:.2f} |", flush=True)


def seconds(work: Callable[[Path], Iterator[object]], expected: int) -> float:
    """Wall time of a piece of work that saves so many runs."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        saved = sum(isinstance(event, RunSaved) for event in work(Path(folder)))
        assert saved == expected
        return time.perf_counter() - began


if __name__ == "__main__":
    main()

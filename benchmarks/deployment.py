"""What pruning is worth in onnxruntime: dense against pruned file, and what widths that kernels like add to it.

    python benchmarks/deployment.py [--keep 0.4] [--seconds 20] [--models mobilenet_v2 resnet34]

Random weights at 224 x 224, batch norms with the statistics of noise: values that vanish from layer to layer would
take longer to multiply. Every block that can be pruned keeps the same fraction, chosen by Algorithm 1 on noise,
without a re-fit: widths decide about time. Batch 1, one thread. Both files are called in turns (``ispasp.latency``);
the interval is the 95 % one. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import onnxruntime
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere

import ispasp
from benchmarks.parity import random_state
from ispasp import models
from ispasp.latency import LatencyReport, compare_latency
from ispasp.latency_table import device_name
from ispasp.onnx_export import export_onnx

MULTIPLES = {"mobilenet_v2": (1, 8), "resnet34": (8,)}
"""What kept channels are rounded to; 1 leaves the exact counts."""


def rows(name: str, options: argparse.Namespace) -> list[str]:
    """The table's lines of one model, one for each of its ``MULTIPLES``."""
    source = f"torchvision:{name}"
    model = models.load(models.parse(source, models.RANDOM)).model
    model.load_state_dict(random_state(source))
    torch.manual_seed(0)
    noise = torch.randn(4, 3, options.size, options.size)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        dense, pruned = Path(folder) / "dense.onnx", Path(folder) / "pruned.onnx"
        export_onnx(model, noise[:2], dense)
        for multiple in MULTIPLES.get(name, (1, 8)):
            say(f"{name}, multiple {multiple}")
            result = ispasp.prune(model, [noise], options.keep, multiple=multiple)
            export_onnx(result.model, noise[:2], pruned)
            *_, latency = compare_latency(
                dense, pruned, noise[:1], threads=options.threads, seconds=options.seconds
            )
            assert isinstance(latency, LatencyReport)
            lines.append(line(name, multiple, result.report, latency))
    return lines


def line(name: str, multiple: int, report: dict[str, float], latency: LatencyReport) -> str:
    """One line of the table."""
    macs, parameters = (
        " -> ".join(f"{report[f'{what}_{when}'] / 1e6:,.1f} M" for when in ("before", "after"))
        for what in ("macs", "params")
    )
    widths = "exact" if multiple == 1 else f"multiples of {multiple}"
    return (
        f"| `{name}` | {widths} | {macs} | {parameters} | {latency.dense.median_ms:.2f} ms "
        f"| {latency.pruned.median_ms:.2f} ms | {latency.ratio:.2f}x "
        f"[{latency.ratio_low:.2f}, {latency.ratio_high:.2f}] |"
    )


def say(words: str) -> None:
    """Progress goes to stderr; stdout carries the table alone."""
    print(words, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    made.add_argument("--keep", type=float, default=0.4, help="kept fraction of every block (%(default)s)")
    made.add_argument("--models", nargs="+", default=list(MULTIPLES), help="torchvision models")
    made.add_argument("--size", type=int, default=224, help="height and width of the image (%(default)s)")
    made.add_argument("--seconds", type=float, default=20.0, help="of timed calls per line (%(default)s)")
    made.add_argument("--threads", type=int, default=1, help="threads of onnxruntime (%(default)s)")
    return made


def main(arguments: list[str]) -> int:
    """Measure every model; the exit status."""
    options = parser().parse_args(arguments)
    print(
        f"{device_name()}, onnxruntime {onnxruntime.__version__}, batch 1, "
        f"{options.threads} thread{'s' * (options.threads != 1)}, keep {options.keep:g}, "
        f"{options.size} x {options.size}:\n\n"
        "| model | widths | MACs | parameters | dense | pruned | times as fast |\n|---|---|---|---|---:|---:|---|"
    )
    for name in options.models:
        for text in rows(name, options):
            print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

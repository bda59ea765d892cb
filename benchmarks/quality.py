"""What pruning leaves of the sample models, without fine-tuning: selectors x re-fits x keep ratios x seeds.

    python benchmarks/quality.py --images cifar10_jpeg.zip --out results.json       # everything; hours on one core
    python benchmarks/quality.py --models mnist_mlp --samples 384 --out results.json
    python benchmarks/quality.py --table results.json --plot docs/quality.png       # what was measured so far

Every combination is one row: accuracy and agreement with the dense model on the test images, the mean over
the blocks of the relative residual and of the re-fit's error before and after, seconds, and MACs. Rows go to
--out one by one; a run that was cut off continues where it stopped, because rows already there with the same
settings are not measured again.

Each seed draws --samples other calibration images, whatever their class: from all training images with
--images, a zip of cifar10/{train,test}/<class>/*.jpg, as sample_models/train.py reads it (then all test images
of the zip are tested on, unless --shipped-test); else from the 512 that ship. Where there are no more than
--samples, a seed changes only their order and what selectors and distillation draw, and the script says so.
Labels are used by taylor alone.

Tables give the mean over the seeds and, in brackets, the lowest and the highest. Seconds are processor seconds
of the pruning alone, tracing and checking included, so that other work on the machine does not count; rows
also hold the wall time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere

import ispasp
from benchmarks.quality_report import Row, markdown, plot, variant
from ispasp import data, evaluate, selectors, zoo
from ispasp.calibration import as_batch
from ispasp.data import Images
from ispasp.settings import ALLOCATIONS, RECONSTRUCTIONS

KEY = [
    "model",
    "keep",
    "selector",
    "reconstruct",
    "allocation",
    "distil",
    "multiple",
    "seed",
    "samples",
    "images",
    "test_images",
]


class Bench:
    """One sample model with its images, and the dense model's answers to the test images."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.card = zoo.card(name)
        self.model = zoo.load(name)
        whole = options.images is not None and self.card.dataset == "cifar10"
        self.source = "training" if whole else "shipped"
        pool, test = cifar10(options.images) if whole else shipped(self.card.dataset)
        self.pool = pool
        test = shipped(self.card.dataset)[1] if options.shipped_test else test
        self.test = [as_batch(batch) for batch in data.batches(test, self.card.mean, self.card.std, 250)]
        self.test_images = len(test)
        self.samples = min(options.samples, len(pool))
        self.dense = list(evaluate.predictions(self.model, self.test))
        if self.samples == len(pool):
            say(
                f"{name}: all {len(pool)} calibration images are used, so seeds change only their order and draws."
            )

    def calibration(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        """The images that ``seed`` draws, normalised, in batches of 64 with their labels."""
        generator = torch.Generator().manual_seed(seed)
        index = torch.randperm(len(self.pool), generator=generator)[: self.samples]
        chosen = Images(self.pool.images[index], self.pool.labels[index], self.pool.classes)
        return data.batches(chosen, self.card.mean, self.card.std)

    def settings(self) -> Iterator[Row]:
        """The settings of every row asked for, seed by seed."""
        asked = self.options
        for values in itertools.product(
            asked.seeds, asked.keeps, asked.allocation, asked.distil, asked.reconstruct, asked.selectors
        ):
            row = dict(
                zip(["seed", "keep", "allocation", "distil", "reconstruct", "selector"], values, strict=True),
                model=self.name,
                multiple=asked.multiple,
                samples=self.samples,
                images=self.source,
                test_images=self.test_images,
            )
            yield {key: row[key] for key in KEY}

    def measure(self, key: Row) -> Row:
        """Prune with the settings of ``key`` and test what comes out."""
        settings = {name: key[name] for name in KEY[1:8]}
        calibration = self.calibration(key["seed"])
        cpu = time.process_time()
        result = ispasp.prune(self.model, calibration, device="cpu", **settings)
        cpu = time.process_time() - cpu
        assert isinstance(result.model, nn.Module)
        after = list(evaluate.predictions(result.model, self.test))
        compared = evaluate.compare(self.dense, after, self.test)
        assert compared is not None
        blocks = result.report["blocks"]
        return key | {
            "accuracy_dense": compared.accuracy_before,
            "accuracy": compared.accuracy_after,
            "agreement": compared.agreement,
            "relative_residual": mean(block["relative_residual"] for block in blocks),
            "error_before": mean(block["error_before"] for block in blocks),
            "error_after": mean(block["error_after"] for block in blocks),
            "macs_dense": result.report["macs_before"],
            "macs": result.report["macs_after"],
            "kept": [block["kept"] for block in blocks],
            "notes": sum(len(block["notes"]) for block in blocks),
            "seconds": round(result.report["seconds"], 3),
            "cpu_seconds": round(cpu, 3),
            "torch": torch.__version__,
        }


def mean(values: Iterator[float | None]) -> float | None:
    """The mean; None where a value is missing, as the errors are without a re-fit."""
    found = list(values)
    return None if None in found else statistics.fmean(value for value in found if value is not None)


@cache
def shipped(dataset: str) -> tuple[Images, Images]:
    """The calibration and the test images that ship with a sample model."""
    return data.sample_images(dataset, "calibration"), data.sample_images(dataset, "test")


@cache
def cifar10(path: Path) -> tuple[Images, Images]:
    """All training and test images of a zip of ``cifar10/{train,test}/<class>/*.jpg``."""
    from sample_models import train

    parts = train.load_cifar10(path)
    pool, test = (Images(part.images, part.labels, tuple(train.CIFAR_CLASSES)) for part in parts)
    return pool, test


def run(options: argparse.Namespace) -> list[Row]:
    """Measure every row asked for that ``options.out`` does not hold yet; all of its rows."""
    rows = read(options.out) if options.out is not None and options.out.exists() else []
    done = {identity(row) for row in rows}
    benches = [Bench(name, options) for name in options.models]
    missing = [(bench, key) for bench in benches for key in bench.settings() if identity(key) not in done]
    say(f"{len(missing)} rows to measure, {len(rows)} there already.")
    begin = time.perf_counter()
    for number, (bench, key) in enumerate(missing, start=1):
        row = bench.measure(key)
        rows.append(row)
        if options.out is not None:
            write(options.out, rows)
        left = (time.perf_counter() - begin) / number * (len(missing) - number)
        say(
            f"{number}/{len(missing)} {row['model']} keep {row['keep']} {variant(row)} {row['reconstruct']} "
            f"seed {row['seed']}: {row['accuracy']:.1%}, {row['seconds']:.1f} s; about {left / 60:.0f} min left"
        )
    return rows


def read(path: Path) -> list[Row]:
    """The rows of a results file."""
    rows: list[Row] = json.loads(path.read_text())
    return rows


def write(path: Path, rows: Sequence[Row]) -> None:
    """Replace a results file at once, one row per line, so that a cut-off run leaves it whole."""
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def identity(row: Row) -> tuple[Any, ...]:
    """What makes two rows the same measurement."""
    return tuple(row[key] for key in KEY)


def say(words: str) -> None:
    """Progress goes to stderr; stdout carries the table alone."""
    print(words, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    images = [name for name in zoo.names() if zoo.card(name).kind == "image"]
    made.add_argument("--models", nargs="+", choices=images, default=["cifar10_resnet20", "mnist_mlp"])
    made.add_argument("--keeps", nargs="+", type=float, default=[0.7, 0.5, 0.4, 0.3, 0.2])
    made.add_argument("--selectors", nargs="+", choices=selectors.names(), default=selectors.names())
    made.add_argument("--reconstruct", nargs="+", choices=RECONSTRUCTIONS, default=list(RECONSTRUCTIONS))
    made.add_argument("--allocation", nargs="+", choices=ALLOCATIONS, default=["uniform"])
    made.add_argument("--distil", nargs="+", type=int, default=[0], help="gradient steps; 0 for none")
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--samples", type=int, default=512, help="calibration images that a seed draws")
    made.add_argument("--multiple", type=int, default=1, help="kept counts in multiples of this; 1 for exact")
    made.add_argument("--images", type=Path, help="zip of cifar10/{train,test}/<class>/*.jpg to draw from")
    made.add_argument("--shipped-test", action="store_true", help="test on the 1,000 shipped images only")
    made.add_argument("--out", type=Path, help="results file, continued where it exists")
    made.add_argument("--table", nargs="+", type=Path, help="results files to show instead of measuring")
    made.add_argument("--full", action="store_true", help="show every figure of every combination")
    made.add_argument(
        "--plot", type=Path, help="draw accuracy against keep as a PNG; needs chromium and playwright"
    )
    return made


def main(arguments: list[str]) -> int:
    """Measure, or read what was measured; print the table; the exit status."""
    options = parser().parse_args(arguments)
    rows = [row for path in options.table for row in read(path)] if options.table else run(options)
    print(markdown(rows, options.full))
    if options.plot:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

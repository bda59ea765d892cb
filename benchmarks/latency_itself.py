"""How often the latency of a model against itself is called a difference: it should be one time in twenty.

    python benchmarks/latency_itself.py                     # 20 measurements, about a minute
    python benchmarks/latency_itself.py --model mnist_mlp --times 100 --seconds 0.5

Each measurement is the one of the Deploy page and of ``python -m ispasp bench``: both sides are the same file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere

from ispasp import data, zoo
from ispasp.latency import LatencyReport, compare_latency
from ispasp.onnx_export import export_onnx

IMAGES = ("cifar10_resnet20", "cifar10_mobilenetv2", "mnist_mlp")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=IMAGES, default=IMAGES[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    card = zoo.card(options.model)
    [(image, _)] = data.batches(
        data.sample_images(card.dataset, "test").part(torch.tensor([0])), card.mean, card.std
    )
    different, widths = 0, []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(zoo.load(options.model), image, file)
        for seed in range(options.times):
            *_, report = compare_latency(file, file, image, seconds=options.seconds, seed=seed)
            assert isinstance(report, LatencyReport)
            different += not report.ratio_low <= 1 <= report.ratio_high
            widths.append(report.ratio_high - report.ratio_low)
            print(
                f"  {report.ratio:.3f} ({report.ratio_low:.3f} to {report.ratio_high:.3f})", file=sys.stderr
            )
    width = torch.tensor(widths).median()
    print(
        f"{options.model} against itself, {options.times} measurements of {options.seconds:g} s: {different} called "
        f"different; the interval is {width:.3f} wide in the median."
    )


if __name__ == "__main__":
    main()

"""What the least-squares re-fit of a whole ResNet34 costs, in dense forward passes over the same images.

    python benchmarks/reconstruction_cost.py

torchvision's ResNet34 with random weights and batch-norm statistics of these images, 64 images of 224x224 in
batches of 16, keep 0.4, exact counts, selector ispasp. The dense pass is measured before and after each run;
a ratio is within that run.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torchvision  # type: ignore[import-untyped]

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere

import ispasp
from ispasp.settings import RECONSTRUCTIONS

BATCH = 16


@torch.inference_mode()
def dense_seconds(model: torch.nn.Module, images: torch.Tensor) -> float:
    began = time.perf_counter()
    for batch in images.split(BATCH):
        model(batch)
    return time.perf_counter() - began


def main() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet34()
    images = torch.randn(64, 3, 224, 224)
    with torch.no_grad():
        model(images[:BATCH])
    model.eval()
    ispasp.prune(model, [images[:2]], 0.4, multiple=1)  # imports and first use of torch.export
    passes = [dense_seconds(model, images)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for reconstruct in RECONSTRUCTIONS:
        began = time.perf_counter()
        result = ispasp.prune(model, images.split(BATCH), 0.4, reconstruct=reconstruct, multiple=1)
        seconds = time.perf_counter() - began
        passes.append(dense_seconds(model, images))
        dense = (passes[-1] + passes[-2]) / 2
        print(f"{reconstruct:10} {seconds:6.1f} s = {seconds / dense:4.2f} dense passes of {dense:.2f} s")
    for event in result.blocks_pruned:
        print(
            f"  {event.block.name:16} {event.block.groups:4} channels {event.seconds:5.2f} s, "
            f"error {event.error_before:.4f} -> {event.error_after:.4f} ({event.target})"
        )


if __name__ == "__main__":
    main()

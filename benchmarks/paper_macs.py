"""MACs of ResNet34 and MobileNetV2 at the paper's keep ratios, beside the paper's figures (Wolfe & Kyrillidis, 2022).

    python benchmarks/paper_macs.py

Which groups are kept does not change the count, so the first ones are, of random weights. Two counters:

* **ours** (``ispasp.evaluate.count_macs``): multiply-adds of convolutions and matrix products;
* **with batch norms**: the same, and 2 for every number that leaves a batch norm, as some counters have it.

The paper names the blocks of one setting per network. For the others the script prints the sets of blocks that
were tried.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models  # type: ignore[import-untyped]

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere

from ispasp import evaluate, surgery
from ispasp.blocks import find_blocks
from ispasp.calibration import as_batch
from ispasp.records import Block
from ispasp.settings import groups_to_keep

STAGES = {1: 3, 2: 4, 3: 6, 4: 3}  # blocks in the stages of ResNet34
PAPER_BLOCKS = (6, 9, 10, 12, 13)  # of MobileNetV2's features


def resnet34_plan(keep: float, skip_first: Sequence[int], skip_last: bool) -> dict[str, float]:
    """Keep ratio per block of stages 1 to 3, where stage 4 stays whole.

    Args:
        keep: the ratio.
        skip_first: stages whose first block stays whole.
        skip_last: whether the last block of every stage does.
    """
    return {
        f"layer{stage}.{number}.conv1": keep
        for stage in (1, 2, 3)
        for number in range(stage in skip_first, STAGES[stage] - skip_last)
    }


def mobilenet_plan(keep: float, features: Sequence[int]) -> dict[str, float]:
    return {f"features.{number}.conv.0.0": keep for number in features}


ROWS: list[tuple[str, str, dict[str, float], str]] = [
    ("resnet34", "dense", {}, "3.68 G"),
    (
        "resnet34",
        "keep 0.4, stages 1-3, without first and last block of a stage",
        resnet34_plan(0.4, (1, 2, 3), True),
        "2.69 G",
    ),
    (
        "resnet34",
        "keep 0.4, stages 1-3, without the blocks that downsample",
        resnet34_plan(0.4, (2, 3), False),
        "2.13 G",
    ),
    ("mobilenet_v2", "dense", {}, "314 M"),
    (
        "mobilenet_v2",
        "keep 0.3, features 6, 9, 10, 12, 13",
        mobilenet_plan(0.3, PAPER_BLOCKS),
        "260 M",
    ),
    (
        "mobilenet_v2",
        "keep 0.4, features 5, 6, 8, 9, 10, 12, 13",
        mobilenet_plan(0.4, (5, 6, 8, 9, 10, 12, 13)),
        "(242 M)",
    ),
    (
        "mobilenet_v2",
        "keep 0.3, features 5, 6, 8, 9, 10, 12, 13",
        mobilenet_plan(0.3, (5, 6, 8, 9, 10, 12, 13)),
        "(242 M)",
    ),
    (
        "mobilenet_v2",
        "keep 0.3, features 3, 5, 6, 8, 9, 10, 12, 13",
        mobilenet_plan(0.3, (3, 5, 6, 8, 9, 10, 12, 13)),
        "(220 M)",
    ),
]


def batch_norms(model: nn.Module, image: Tensor) -> int:
    """Operations of the batch norms for one image: a multiplication and an addition per number."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.BatchNorm2d):
            total += 2 * output.numel()

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def sliced(model: nn.Module, blocks: Sequence[Block], plan: Mapping[str, float]) -> nn.Module:
    """A copy with the first groups of every block in ``plan``.

    Raises:
        KeyError: a block of the plan is not prunable.
    """
    by_name = {block.name: block for block in blocks if block.prunable}
    made = copy.deepcopy(model)
    for name, keep in plan.items():
        surgery.slice_block(made, by_name[name], range(groups_to_keep(by_name[name].groups, keep)))
    return made


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    image = torch.zeros(1, 3, 224, 224)
    found: dict[str, tuple[nn.Module, list[Block]]] = {}
    print("| network | blocks | paper | ours | with batch norms |\n|---|---|---:|---:|---:|")
    for name, words, plan, paper in ROWS:
        if name not in found:
            model = models.get_model(name, weights=None).eval()
            found[name] = model, find_blocks(model, torch.zeros(2, 3, 64, 64))
        made = sliced(*found[name], plan)
        ours = evaluate.count_macs(made, as_batch(image))
        every = ours + batch_norms(made, image)
        print(f"| {name} | {words} | {paper} | {ours / 1e6:,.1f} M | {every / 1e6:,.1f} M |")


if __name__ == "__main__":
    main()

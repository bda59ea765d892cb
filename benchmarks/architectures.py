"""What can be pruned in well-known architectures, and what is left when every block keeps the same share.

    python benchmarks/architectures.py [--keep 0.4] [--models resnet34 vit_b_16 ...]

Random weights; selection and slicing by Algorithm 1 on noise, so that only counts and sizes mean anything. Every
row has been through the check that the sliced model computes what the masked one does.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere

import ispasp
from ispasp.errors import ISpaSPError
from ispasp.models import load, parse

MODELS = (
    *("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "mobilenet_v2", "mobilenet_v3_small"),
    *("efficientnet_b0", "vgg16_bn", "densenet121", "convnext_tiny", "vit_b_16", "swin_t"),
    *("shufflenet_v2_x1_0", "regnet_y_400mf"),
)


def row(name: str, keep: float) -> str:
    """One line of the table."""
    loaded = load(parse(f"torchvision:{name}", "random"))
    torch.manual_seed(0)
    noise = torch.randn(4, *loaded.example.tensors[0].shape[1:])
    blocks = ispasp.find_blocks(loaded.model, loaded.example.inputs)
    kinds = Counter(block.kind for block in blocks if block.prunable)
    gates = sum(bool(block.gates) for block in blocks)
    report = ispasp.prune(loaded.model, [noise], keep, multiple=1).report
    found = ", ".join(f"{count} of {kind}s" for kind, count in kinds.items())
    found += f" ({gates} with a gate)" if gates else ""
    sizes = [f"{report[key] / 1e6:,.1f} M" for key in ("params_before", "params_after")]
    macs = [f"{report[key] / 1e9:.2f} G" for key in ("macs_before", "macs_after")]
    return f"| `{name}` | {found} | {len(blocks) - sum(kinds.values())} | {' -> '.join(sizes)} | {' -> '.join(macs)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=float, default=0.4, help="kept fraction of every block (%(default)s)")
    parser.add_argument("--models", nargs="+", default=MODELS, help="torchvision models")
    options = parser.parse_args()
    print("| model | blocks | layers refused | parameters | MACs |\n|---|---|---:|---:|---:|")
    for name in options.models:
        try:
            print(row(name, options.keep), flush=True)
        except ISpaSPError as error:
            print(f"| `{name}` | {error} | | | |", flush=True)


if __name__ == "__main__":
    main()

"""How far exported files are from torch: every precision, dense and pruned at keep 0.5, as the product exports them.

    python benchmarks/parity.py             # the sample models, over 1,000 evaluation examples
    python benchmarks/parity.py --large     # and resnet34, mobilenet_v2, vit_b_16, over 32 images of noise

The large models have random weights, batch norms with the statistics of the noise, and no head that is all 0: their
differences mean something, their answers do not. Exit status 1 when a
file in single precision fails, or cannot be made.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere

from ispasp import models, runs, zoo
from ispasp.deployment.exporting import ExportDone, export_run
from ispasp.deployment.precisions import PRECISIONS
from ispasp.errors import ISpaSPError
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved

LARGE = ("torchvision:resnet34", "torchvision:mobilenet_v2", "torchvision:vit_b_16")


def settings_of(model: str, keep: float, examples: int, folder: Path) -> RunSettings:
    """The run that is exported; noise where the model brings no data, and then few images of it."""
    if model in zoo.names():
        return RunSettings(model, keep, evaluation=examples, device="cpu")
    weights, few = folder / "weights.safetensors", min(examples, 32)
    save_file(random_state(model), weights)
    return RunSettings(
        model, keep, samples=few, evaluation=few, device="cpu", weights=str(weights), data="noise"
    )


@torch.no_grad()
def random_state(model: str) -> dict[str, Tensor]:
    """Random weights with which the outputs are neither 0 nor vanishing."""
    torch.manual_seed(0)
    loaded = models.load(models.parse(model, models.RANDOM))
    for module in loaded.model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average over all batches
    loaded.model.train()(torch.randn(16, *loaded.example.tensors[0].shape[1:]))
    return loaded.model.state_dict()


def variants(model: str, keep: float, examples: int, precisions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Prune, export, and what the export says of every file."""
    with tempfile.TemporaryDirectory() as folder:
        for saved in runs.execute(settings_of(model, keep, examples, Path(folder)), Path(folder)):
            if isinstance(saved, RunSaved):
                for step in export_run(saved.path, precisions=tuple(precisions), seconds=0.1):
                    if isinstance(step, ExportDone):
                        yield from step.report["variants"]


def row(model: str, variant: dict[str, Any]) -> str:
    """One line of the table."""
    start = f"| {model} | {variant['side']} | {variant['precision']} |"
    if not (parity := variant["parity"]):
        return f"{start} {variant['problem']} | | | | | |"
    small = [_or_dash(parity[key], "{:.1e}") for key in ("max_rel_diff", "mean_abs_diff")]
    shares = [
        _or_dash(parity[key], "{:.1%}") for key in ("top1_agreement", "accuracy_torch", "accuracy_onnx")
    ]
    return f"{start} {' | '.join([*small, *shares, 'passed' if parity['passed'] else '**failed**'])} |"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=zoo.names(), help="as in a run (the sample models)")
    parser.add_argument("--large", action="store_true", help=f"add {', '.join(LARGE)}")
    parser.add_argument("--keep", type=float, default=0.5, help="kept fraction of every block (%(default)s)")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--examples", type=int, default=1000, help="evaluation examples (%(default)s)")
    options = parser.parse_args(arguments)
    print(
        "| model | side | precision | largest relative | mean absolute | same answer | torch | onnxruntime | |"
    )
    print("|---|---|---|---:|---:|---:|---:|---:|---|", flush=True)
    status = 0
    for model in [*options.models, *(LARGE if options.large else ())]:
        try:
            for variant in variants(model, options.keep, options.examples, options.precisions):
                print(row(model, variant), flush=True)
                if variant["precision"] == "fp32" and not (variant["parity"] or {}).get("passed"):
                    status = 1
        except ISpaSPError as error:
            print(f"| {model} | {error} | | | | | | | |", flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())

"""A budget against the largest uniform keep ratio within it, and a speedup asked for and measured.

    python benchmarks/budget.py                              # 50 % of the MACs, three seeds; 2x at batch 1
    python benchmarks/budget.py --budgets macs=30% params=40% --seeds 0
    python benchmarks/budget.py --data zip:cifar10_jpeg.zip --samples 512 --evaluation 4000

Each seed draws --samples calibration images, of the 512 that ship where no --data are given; accuracy is top-1 on
up to --evaluation test images. Nothing is fine-tuned. The speedup is measured by onnxruntime at batch 1 with one
thread, so nothing else should run meanwhile; where it cannot be reached, the row says why.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere

from ispasp import budget
from ispasp.budget import BudgetDone, BudgetReport
from ispasp.budget_report import Side
from ispasp.errors import SettingError
from ispasp.run_settings import RunSettings


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="cifar10_resnet20")
    parser.add_argument("--data", default="", help="as in ispasp prune --data (the model's own)")
    parser.add_argument("--budgets", nargs="*", default=["macs=50%"], help="%(default)s")
    parser.add_argument("--speedups", nargs="*", default=["speedup=2"], help="%(default)s, first seed only")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="%(default)s")
    for name, value in (("samples", 384), ("evaluation", 1000), ("multiple", 8)):
        parser.add_argument(f"--{name}", type=int, default=value, help="%(default)s")
    parser.add_argument("--selector", default="ispasp")
    options = parser.parse_args(arguments)
    asked = [(text, seed) for text in options.budgets for seed in options.seeds]
    asked += [(text, options.seeds[0]) for text in options.speedups]
    print(
        f"`{options.model}`, selector {options.selector}, asymmetric re-fit, {options.samples} calibration images.\n"
    )
    print(
        "| asked | seed | MACs | accuracy | speedup | uniform keep | its MACs | accuracy | speedup | counts |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for text, seed in asked:
            settings = RunSettings(
                options.model,
                data=options.data,
                seed=seed,
                samples=options.samples,
                evaluation=options.evaluation,
                multiple=options.multiple,
                selector=options.selector,
            )
            print(row(text, seed, settings, Path(folder)), flush=True)


def row(text: str, seed: int, settings: RunSettings, folder: Path) -> str:
    """One budget as a line of the table."""
    try:
        for event in budget.execute(settings, [budget.parse(text)], folder):
            if isinstance(event, BudgetDone):
                return f"| {text} | {seed} | {cells(event.report)} |"
    except SettingError as error:
        return f"| {text} | {seed} | {error} |"
    raise AssertionError("a budget ends with its report")


def cells(report: BudgetReport) -> str:
    """What both runs came to; the same twice where both keep the same."""
    other = report.uniform or report.budget
    counts = ", ".join(map(str, report.budget.counts))
    return f"{measured(report.budget)} | {other.keep:g} | {measured(other)} | {counts}"


def measured(side: Side) -> str:
    found = side.measured
    accuracy = "-" if found["accuracy"] is None else f"{found['accuracy']:.1%}"
    speedup = "-" if found["speedup"] is None else f"{found['speedup']:.2f}x"
    return f"{(found['macs'] or 0) / 1e6:.2f} M | {accuracy} | {speedup}"


if __name__ == "__main__":
    main()

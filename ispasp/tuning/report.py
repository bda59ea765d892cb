"""A run's fine-tunings in its HTML report, and the commands that repeat them."""

from __future__ import annotations

import shlex
from functools import partial

from ispasp import narrative
from ispasp.deployment.report_page import Page
from ispasp.result import RunRecord
from ispasp.tuning.figures import curves_figure, report_info
from ispasp.tuning.request import STARTS, TuneRequest, epochs_made, history
from ispasp.tuning.settings import PRESET_WORDS


def section(page: Page, record: RunRecord) -> None:
    """What was done and what came of it; nothing where the run was only pruned."""
    tuning = record.report.get("tuning")
    if not tuning:
        return
    page.heading("Fine-tuning")
    page.text(narrative.tuned_sentence(record.report))
    if tuning["curve"]:
        page.figure(
            "Accuracy and loss, epoch by epoch, beside the dense model and what it was before",
            partial(curves_figure, report_info(record.report)),
        )
    rows = []
    for request, made in zip(history(record.settings), epochs_made(record.settings), strict=True):
        settings = request.settings
        epochs = str(settings.epochs)
        if request.by_block:
            epochs = f"{settings.after_block} after each block, {epochs} at the end"
        changed = ", ".join(f"{name} {value}" for name, value in request.changed.items())
        rows.append(
            {
                "Preset": request.preset,
                "In words": PRESET_WORDS[request.preset],
                "Changed": changed or "nothing",
                "Epochs": epochs if made is None else f"{epochs}; ended early, after {made}",
                "From": "the dense model" if request.by_block else STARTS[request.start],
                "Training data": request.train or "the run's own source",
            }
        )
    page.table("What it was asked to do, the last one last", rows)
    if not tuning["held_out_examples"]:
        return
    examples, held = f"{tuning['train_examples']:,}", f"{tuning['held_out_examples']:,}"
    how = [
        *([f"in {tuning['processes']} processes"] if tuning["processes"] > 1 else []),
        *([f"forward passes in {tuning['precision']}"] if tuning["precision"] else []),
    ]
    told = f"Of {examples} training examples {held} were held out and chose the best epoch"
    page.text(f"{', '.join([told, *how])}.", "quiet")


def commands(record: RunRecord, prune: str) -> list[str]:
    """The commands that repeat a run: ``prune`` to prune it, and one for every fine-tuning."""
    requests = history(record.settings)
    folders = ["pruned", *(f"tuned-{number}" for number in range(1, len(requests) + 1))]
    steps = zip(folders, folders[1:], requests, strict=False)
    return [f"{prune} --out pruned", *(command(*step) for step in steps)] if requests else [prune]


def command(run: str, out: str, request: TuneRequest) -> str:
    """The command of one fine-tuning; what is as in its preset is left out."""
    words = ["python", "-m", "ispasp", "finetune", run, "--preset", request.preset]
    for name, value in request.changed.items():
        if name == "augment":
            words += [] if value else ["--plain"]
        elif value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--train", request.train] if request.train else []
    words += ["--train-examples", str(request.train_examples)] if request.train_examples else []
    words += ["--from", request.start] if request.start != "pruned" else []
    words += ["--device", request.device] if request.device != "auto" else []
    return shlex.join([*words, "--out", out])

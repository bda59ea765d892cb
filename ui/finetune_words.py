"""What the Fine-tune page calls things, and every term of it that explains itself on hover."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ispasp.narrative import ordinal, percent, plural
from ispasp.tuning.request import TuneRequest

PRESETS = {"quick": "Quick", "paper": "As in the paper", "distil": "Distil, no labels"}
"""Titles of the presets."""

WHAT = {
    "quick": "Trains the whole pruned model on labelled examples: half of the loss leads to the labels, half towards "
    "the dense model. The weights of the best epoch are kept. On a CPU the sample models take from a minute (digits) "
    "to a quarter of an hour or more (pictures, texts).",
    "paper": "Begins with the dense model again, prunes block after block to the counts of this run and trains after "
    "each, then trains for long at the end. What the paper does: for a GPU, or for a night.",
    "distil": "Leads the pruned model towards the dense one: what its stages and its output give is to become the "
    "same. No label is looked at, so any examples of the right kind will do.",
}
"""What each preset does, in plain words."""

STARTS = {"pruned": "the pruned weights", "random": "random weights (control)"}
PRECISIONS = {"auto": "as the GPU can", "fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}
OPTIMISERS = {"auto": "auto", "sgd": "SGD", "adamw": "AdamW"}

HELP = {
    "run": "Finished runs, newest first; those that were fine-tuned can be fine-tuned further. The choice is in the "
    "address, so that this page can be shared.",
    "open": "Look at every step of this run.",
    "deploy": "Export this run in several precisions, check the files, and measure them.",
    "preset": "Where the finer settings begin. Each can be changed below.",
    "data": "What it trains on. The test examples on which accuracy is measured are never among them.",
    "examples": "How many training examples at most; empty takes all there are. Fewer are quicker, and gain less.",
    "start_button": "Train with the settings above; Ctrl+Enter does the same. The run stays as it is, the result is a "
    "new one. It goes on when this page is left.",
    "epochs": "Passes over the training examples at the end. 0 for none, where there are epochs after each block.",
    "after_block": "Epochs after each block that is pruned. Above 0 it begins with the dense model again and prunes it "
    "block after block, as the paper does with 1. At 0 the groups of the run stay.",
    "optimiser": "What turns gradients into steps. SGD (with Nesterov momentum) for convolutions with batch norms, "
    "AdamW for transformers; auto takes the one that fits.",
    "rate": "How large the steps are at most. Too large and the loss grows without end: then it stops by itself and "
    "keeps the best weights. Empty: 0.05 with SGD; with AdamW one over the square root of the number of parameters.",
    "batch": "Examples per step.",
    "smoothing": "Share of the target that all classes get alike, from 0 to 0.9. The paper uses 0.1.",
    "distil": "Share of the loss, from 0 to 1, that leads towards the dense model; the rest leads to the labels. 1 "
    "looks at no label.",
    "decay": "Pulls weights towards zero a little at each step; never norms and biases. Empty: 0.0005 with SGD, 0.01 "
    "with AdamW.",
    "patience": "Epochs without a lower held-out loss after which it ends by itself; 0 for never.",
    "held_out": "Share of the training examples that is never trained on. The loss on them chooses the epoch whose "
    "weights are kept.",
    "precision": "Of the forward passes, on a GPU. The weights stay in single precision.",
    "begin": "Random weights of the same shape are the control: they show how much of the result the pruned weights "
    "bring along, and how much is mere training.",
    "device": "Where the work runs. 'auto' takes CUDA, then Apple's MPS, then the CPU.",
    "seed": "Of everything random: which examples are held out, their order, how they are mirrored and shifted. The "
    "same seed gives the same result.",
    "loss": "What training makes small. Training: mean over an epoch, on examples that are mirrored and shifted where "
    "the model is used to that. Held out: afterwards, on examples that are never trained on; it chooses the best "
    "epoch.",
    "accuracy": "On the test examples, after each epoch, for you to see: it decides nothing. Dense: the model before "
    "pruning. Before: this run.",
    "agreement": "For how many test examples the answer is that of the dense model. The data have no labels that fit, "
    "so accuracy is unknown.",
    "tunings": "Every fine-tuning of this run, newest first.",
    "further": "Take the result as the run to fine-tune.",
    "compare": "See the run before and after side by side: answers, classes, layers.",
    "curve": "One line per epoch: losses, accuracy, agreement, learning rate, seconds.",
    "resume": "Go on from the last finished epoch. The result is that of a fine-tuning without a break.",
    "discard": "Remove what there is of this fine-tuning. The run it began with stays.",
}


def gained(report: Mapping[str, Any], before: float | None) -> str:
    """``"63.2 % → **83.1 %**, dense 84.4 %; best epoch 14 of 15"``; agreement where accuracy is unknown.

    Args:
        report: of a run that was fine-tuned.
        before: accuracy (or agreement) before, on the same examples; None where that is unknown.
    """
    tuning = report["tuning"]
    after, dense = report["accuracy_after"], report["accuracy_before"]
    if after is None:
        said = "same answer as the dense model: " + _change(before, report["agreement"])
    else:
        said = _change(before, after) + ("" if dense is None else f", dense {percent(dense)}")
    if not tuning["after_block"] and not tuning["best_epoch"]:
        said += "; no epoch was better than before"
    elif tuning["best_epoch"]:
        of = tuning["curve"][-1]["epochs"] if tuning["curve"] else tuning["epochs_done"]
        said += f"; best epoch {tuning['best_epoch']} of {of}"
    return said


def _change(before: float | None, after: float | None) -> str:
    then = f"**{percent(after)}**" if after is not None else "unknown"
    return then if before is None else f"{percent(before)} → {then}"


def amount(request: TuneRequest, blocks: int, examples: int | None, unit: str) -> str:
    """``"15 epochs over 5,000 images, a tenth of them held out."``

    Args:
        request: what is asked for.
        blocks: that are pruned anew, where that is asked for.
        examples: that there are to train on; None where that is not known yet.
        unit: what an example is.
    """
    settings = request.settings
    said = plural(settings.epochs, "epoch")
    if request.by_block:
        after = f"{plural(settings.after_block, 'epoch')} after each of {plural(blocks, 'block')}"
        said = f"{after}, then {settings.epochs:,}" if settings.epochs else after
    over = "the training data" if examples is None else plural(examples, unit)
    return f"{said} over {over}, {100 * settings.held_out:g} % held out."


def best_words(tuning: Mapping[str, Any]) -> str | None:
    """Which epoch is kept, for a table; None where no epochs were made at the end."""
    if not tuning["curve"] or tuning["curve"][-1]["stage"]:
        return None
    return ordinal(tuning["best_epoch"]) if tuning["best_epoch"] else "none was better"


def time_words(seconds: float) -> str:
    """``"about 6 min"``: an estimate promises no seconds."""
    if seconds < 90:
        return f"about {max(1.0, seconds):.0f} s"
    minutes = seconds / 60
    return f"about {minutes:.0f} min" if minutes < 90 else f"about {minutes / 60:.1f} h"

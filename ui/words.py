"""Every term that explains itself on hover, and settings in words, in one place."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any
from zoneinfo import ZoneInfo

import streamlit as st

from ispasp.vocabulary import SelectorWords, Way

HELP = {
    "model": "The trained network to prune. The sample models come with the app, and nothing is downloaded for "
    "them. Your own: any classifier of torchvision, a Hugging Face folder or name, and, where the app was started "
    "with ISPASP_ALLOW_CODE=1, a Python function.",
    "architecture": "A classification model of torchvision, by name; type to search. Its images are prepared as "
    "its published weights want it.",
    "hub_name": "A folder that save_pretrained wrote (config.json and model.safetensors), or a model's name on the "
    "Hugging Face hub, which is fetched when it is read. No code that comes with it is run.",
    "python_model": "A function that returns (model, example inputs). The file is run, in this app's process.",
    "python_data": "A function that returns batches, or a pair of them: to calibrate, and to evaluate. The file is "
    "run, in this app's process.",
    "read_model": "Read the model now, to see its blocks before the run. It may be fetched from the network, and a "
    "Python file is run.",
    "weights": "Where the trained numbers come from. A checkpoint is a safetensors file or a state dict saved by "
    "torch, of this very architecture; nothing in it is ever run. Random weights show sizes and speed alone.",
    "upload": "It is kept in the runs folder of this machine, named by its content. Up to 2 GB; larger files are "
    "given by their path.",
    "path": "A path on the machine that runs this app.",
    "data_set": "As torchvision keeps it: MNIST and CIFAR-10 are fetched into the folder where they are absent, "
    "ImageNet has to lie there with its val folder.",
    "use_sample": "The CIFAR-10 images that come with the app, enlarged to what the model reads.",
    "use_noise": "Random inputs: a quick look at sizes and speed. Which groups stay means nothing then.",
    "data": "Calibration data: the groups are chosen by what they do to these examples. Only the selector called "
    "Taylor looks at labels. Accuracy is measured on up to 1,000 other examples, and is unknown where there are no "
    "labels that fit the model.",
    "kinds": "What may be removed: channels of convolutions, neurons of linear layers, heads of attention.",
    "hidden_sum": "The hidden sum, by which Algorithm 1 ranks the candidates, is the paper's for activations that "
    "are never negative (ReLU). Behind GELU or in attention they may be, and a plain sum lets positive and negative "
    "values cancel out: absolute adds their sizes, signed is the paper's sum as it stands.",
    "keep": "The kept fraction of every block's groups (channels, neurons or attention heads), above 0 and up to 1. "
    "0.5 keeps half of them.",
    "blocks": "A block is a layer whose outputs can be removed (the producer) and the layer that reads them "
    "(the consumer). Give single blocks a keep ratio of their own; empty means the common one.",
    "selector": "How the groups that stay are chosen, block by block. i-SpaSP is the paper's Algorithm 1; the others "
    "are there to compare it with.",
    "reconstruct": "What happens to the weights of the layer that reads the kept groups (the consumer): a re-fit "
    "finds, in closed form, the ones that come closest to the output wanted. No label, no gradient step.",
    "distil": "Afterwards, train the pruned network towards the dense one on the calibration data, without labels. "
    "It has progress and can be stopped; what it gives is never worse on these than what it was given.",
    "recalibrate": "Measure the running statistics of the batch norms behind a pruned layer anew, on the pruned "
    "network.",
    "allocation": "What the keep ratio means for single blocks. By sensitivity, the run first measures how much the "
    "network's answer moves when one block alone is pruned, then keeps more where that is much and less elsewhere, "
    "for no more MACs or parameters in all than the same ratio everywhere would cost.",
    "candidate_factor": "c in Algorithm 1: c times as many groups as will be kept are compared in each iteration. "
    "The paper uses 2. i-SpaSP and CoSaMP use it.",
    "iterations": "T in Algorithm 1: the most iterations per block. It stops earlier, with the same result, "
    "once the selected set repeats. The paper uses 20. i-SpaSP and CoSaMP use it.",
    "multiple": "Kept groups are rounded to a multiple of this. Fast kernels like multiples of 8; "
    "1 gives the paper's exact counts. A head of attention is many features at once, so "
    "heads are usually counted one by one.",
    "samples": "How many calibration examples are used. More give steadier choices and take longer.",
    "evaluation": "On how many examples accuracy and agreement are measured, at most. They are never among the "
    "calibration samples. Fewer save time with large models.",
    "seed": "Decides which calibration examples are drawn, and whatever else is random. "
    "The same seed gives the same run.",
    "device": "Where the work runs. 'auto' takes CUDA, then Apple's MPS, then the CPU.",
    "step": "Go on by one iteration of the selector, then stand still.",
    "run": "Prune every block to the end. Ctrl+Enter does the same.",
    "pause": "Stand still after the event under way. Step and Run go on from there.",
    "stop": "End this job within one iteration. Nothing is saved.",
    "stop_export": "End the export after the step under way. Nothing of it is kept; the run stays.",
    "follow": "Look at the block that is being pruned, and move on with the work.",
    "parameters": "Trained numbers in the model.",
    "macs": "Multiply-accumulate operations for one example: one multiplication and one addition each.",
    "accuracy": "Share of the test examples whose most likely class is the right one; the dense and the pruned model "
    "were measured on the same ones. Unknown where the labels are.",
    "accuracy_own": "Measured by the run, where the data have labels that fit the model's classes.",
    "accuracy_card": "Share of all the test examples whose most likely class is the right one, measured when the "
    "model was trained. A run measures on the 1,000 of them that come with the app, so its dense figure may be "
    "a little different.",
    "agreement": "Share of the test examples for which the pruned and the dense model give the same answer, "
    "right or wrong.",
    "map": "One square per group and one band per iteration. Click a square to look into that group.",
    "residual": "How far the block's output is from what it was with all groups, on the calibration data: "
    "squared error over squared size. 0 is no change, 1 as if the block were gone.",
    "refit": "The error is that of the block's output against what the re-fit aims at, on the calibration data: "
    "squared error over squared size. Symmetric aims at what the dense layer makes of the pruned network's values, "
    "asymmetric at what it gives in the dense network, so that its error before the re-fit also holds what earlier "
    "blocks lost.",
    "drift": "Error of the block's output against the dense network: this block's own and that of every block "
    "before it.",
    "group": "A group is one unit that can be removed: a channel of a convolution, a neuron of a linear layer, "
    "a head of attention.",
    "onnx": "A file that onnxruntime and most other inference engines can run, for any batch size.",
    "export_again": "Writes both files in FP32 anew and times them. What was made of this run on Deploy, other "
    "precisions and measurements, goes.",
    "more_in_deploy": "Other precisions (FP16, INT8), more settings for the latency, a profile that says where "
    "the time goes, and a report of it all.",
    "finetune": "Train this run to win accuracy back, with labels or towards the dense model. The result is a run of "
    "its own.",
    "parity": "The largest difference between the outputs of onnxruntime and of torch on the same examples.",
    "latency": "Time for one batch in onnxruntime, dense and pruned measured in turns so that other load hits both. "
    "95 % of the batches were at least as fast as the second figure.",
}

DATASETS = {"cifar10": "CIFAR-10", "mnist": "MNIST digits", "nli": "Sentence pairs"}

MODEL_KINDS = {
    "torchvision": "torchvision model …",
    "huggingface": "Hugging Face model …",
    "python": "Python function …",
}
"""What is chosen in place of a sample model."""

_RANDOM, _FILE = "random, untrained", "a checkpoint file …"
WEIGHTS = {
    "sample": {"": "trained, with the app", "random": _RANDOM, "file": _FILE},
    "torchvision": {"": "published", "random": _RANDOM, "file": _FILE},
    "huggingface": {"": "those of the model", "random": _RANDOM, "file": _FILE},
    "python": {"": "those it comes with", "file": _FILE},
}
"""Choices of weights by kind of model."""

_DATA_KINDS = {
    "folder": "a folder of images …",
    "zip": "a zip of images …",
    "torchvision": "a torchvision set …",
    "pairs": "a file of sentence pairs …",
    "noise": "noise",
    "python": "Python function …",
    "sample:cifar10": "CIFAR-10 sample images",
    "sample:mnist": "MNIST sample digits",
    "sample:nli": "sample sentence pairs",
}

KINDS = {"channel": "channels", "neuron": "neurons", "head": "attention heads"}
HIDDEN_SUMS = {"absolute": "absolute values", "signed": "signed, as in the paper"}

SETTINGS = {
    "model": "model",
    "weights": "weights",
    "data": "data",
    "keep": "keep",
    "keep_by_block": "per block",
    "selector": "selector",
    "reconstruct": "re-fit",
    "candidate_factor": "candidates ×",
    "iterations": "iterations",
    "multiple": "multiple",
    "allocation": "allocation",
    "kinds": "only",
    "hidden_sum": "hidden sum",
    "recalibrate": "recalibration",
    "distil": "distillation steps",
    "samples": "samples",
    "evaluation": "tested on",
    "seed": "seed",
    "device": "device",
}


def data_words(kind: str) -> str:
    """What a choice of data is called."""
    return _DATA_KINDS.get(kind, kind)


def source_words(text: object) -> str:
    """A source of a model or of data, short enough for a list: ``"torchvision:resnet18"``, ``"folder:…/photos"``."""
    kind, colon, name = str(text).partition(":")
    if not colon:
        return _file_words(kind)
    first, at, folder = name.rpartition("@")
    return f"{kind}:{first}{at}{_file_words(folder)}"


def _file_words(path: str) -> str:
    """The end of a path; of an upload, the beginning of the number that it is kept under."""
    parts = PurePath(path).parts
    if ".uploads" in parts:
        return f"upload {parts[-1][:8]}{PurePath(path).suffix}"
    return path if len(parts) <= 2 else f"…/{parts[-1]}"


def escaped(text: str) -> str:
    """Words from a file or an address, so that nothing in them is taken for Markdown."""
    return re.sub(r"([\\`*\[\]<>$~])", r"\\\1", text)


def score_help(words: SelectorWords, panels: int, signed: bool = False, hidden_sum: str = "absolute") -> str:
    """What the bars under the map show, for this selector.

    Args:
        panels: how many scores are shown.
        signed: whether the block's activations may be negative.
        hidden_sum: how such ones are summed.
    """
    score = words.score[0].upper() + words.score[1:]
    if signed and words.score == "hidden sum":
        more = (
            "They may be negative here, so their absolute values are summed."
            if hidden_sum == "absolute"
            else "They may be negative here, and cancel out in the paper's plain sum."
        )
        words = words._replace(score_means=f"{words.score_means}. {more}".removesuffix("."))
    if words.way in (Way.ADDS, Way.REMOVES):
        return f"{score}: {words.score_means}."
    line = "Dotted line: the smallest value that was enough."
    if panels == 1:
        return f"{score}: {words.score_means}. It decides which groups stay. {line}"
    return (
        f"Importance: {words.importance_means}; it makes the candidates. {score}: {words.score_means}; "
        f"it decides among the candidates. {line}"
    )


def _said(key: str, value: Any) -> str:
    """A setting's value in words."""
    if key in ("model", "weights", "data"):
        return escaped(source_words(value)) if value else "the usual"
    return _value(value)


def _same(first: Any, second: Any) -> bool:
    """Lists come back from disk where tuples were."""
    plain = [
        sorted(one) if isinstance(one, Sequence) and not isinstance(one, str) else one
        for one in (first, second)
    ]
    return bool(plain[0] == plain[1])


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return " and ".join(KINDS.get(one, str(one)) for one in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {keep:g}" for name, keep in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting_words(shown: Mapping[str, Any], above: Mapping[str, Any]) -> list[str]:
    """What differs, as ``"multiple 1 (above: 8)"``; settings that one of them does not have are left out."""
    return [
        f"{label} {_said(key, shown[key])} (above: {_said(key, above[key])})"
        for key, label in SETTINGS.items()
        if key in shown and key in above and not _same(shown[key], above[key])
    ]


def unusual_words(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """``"multiple 1"`` for every setting that is not the usual one."""
    return [
        f"{label} {_said(key, settings[key])}"
        for key, label in SETTINGS.items()
        if key in settings and key in usual and not _same(settings[key], usual[key])
    ]


def lineage_words(kind: str, id: str) -> str:
    """``"sweep 1f3a, 23 Nov 15:04"``: by the end of its id and, where the id says it, when it was begun.

    The time is on the visitor's clock.
    """
    words = f"{kind} {id[-4:]}"
    try:
        moment = datetime.strptime(id.rpartition("-")[0], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return words
    zone = st.context.timezone
    return f"{words}, {moment.astimezone(ZoneInfo(zone) if isinstance(zone, str) else UTC):%d %b %H:%M}"


def moment(text: str) -> str:
    """An ISO 8601 time on the visitor's clock: ``"23 Nov 2026, 15:04"``; a dash where it is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return "–"
    zone = st.context.timezone
    if zone and found.tzinfo:
        found = found.astimezone(ZoneInfo(zone))
    return found.strftime("%d %b %Y, %H:%M")

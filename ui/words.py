"""Every term that explains itself on hover, and settings in words, in one place."""

from collections.abc import Mapping
from typing import Any

from ispasp.vocabulary import SelectorWords, Way

HELP = {
    "model": "The trained network to prune. Its weights come with the app; nothing is downloaded.",
    "data": "Calibration images: the groups are chosen by what they do to these. They come with the app, "
    "only the selector called Taylor looks at their labels. Accuracy is measured on 1,000 other images.",
    "keep": "The kept fraction of every block's groups (channels or neurons), above 0 and up to 1. "
    "0.5 keeps half of them.",
    "blocks": "A block is a layer whose outputs can be removed (the producer) and the layer that reads them "
    "(the consumer). Give single blocks a keep ratio of their own; empty means the common one.",
    "selector": "How the groups that stay are chosen, block by block. i-SpaSP is the paper's Algorithm 1; the others "
    "are there to compare it with.",
    "reconstruct": "What happens to the weights of the layer that reads the kept groups (the consumer): a re-fit "
    "finds, in closed form, the ones that come closest to the output wanted. No label, no gradient step.",
    "distil": "Afterwards, train the pruned network towards the dense one on the calibration images, without labels. "
    "It has progress and can be stopped; what it gives is never worse on these images than what it was given.",
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
    "1 gives the paper's exact counts.",
    "samples": "How many calibration images are used. More give steadier choices and take longer.",
    "seed": "Decides which calibration images are drawn, and whatever else is random. "
    "The same seed gives the same run.",
    "device": "Where the work runs. 'auto' takes CUDA, then Apple's MPS, then the CPU.",
    "step": "Go on by one iteration of the selector, then stand still.",
    "run": "Prune every block to the end. Ctrl+Enter does the same.",
    "pause": "Stand still after the event under way. Step and Run go on from there.",
    "stop": "End this job within one iteration. Nothing is saved.",
    "stop_export": "End the export after the step under way. Nothing of it is kept; the run stays.",
    "follow": "Look at the block that is being pruned, and move on with the work.",
    "parameters": "Trained numbers in the model.",
    "macs": "Multiply-accumulate operations for one image: one multiplication and one addition each.",
    "accuracy": "Share of the 1,000 test images that come with the app whose most likely class is the right "
    "one; the dense and the pruned model were measured on the same images.",
    "accuracy_card": "Share of all the test images whose most likely class is the right one, measured when the "
    "model was trained. A run measures on the 1,000 of them that come with the app, so its dense figure may be "
    "a little different.",
    "agreement": "Share of the 1,000 test images for which the pruned and the dense model give the same answer, "
    "right or wrong.",
    "map": "One square per group and one band per iteration. Click a square to look into that group.",
    "residual": "How far the block's output is from what it was with all groups, on the calibration images: "
    "squared error over squared size. 0 is no change, 1 as if the block were gone.",
    "refit": "The error is that of the block's output against what the re-fit aims at, on the calibration images: "
    "squared error over squared size. Symmetric aims at what the dense layer makes of the pruned network's values, "
    "asymmetric at what it gives in the dense network, so that its error before the re-fit also holds what earlier "
    "blocks lost.",
    "drift": "Error of the block's output against the dense network: this block's own and that of every block "
    "before it.",
    "group": "A group is one unit that can be removed: a channel of a convolution, a neuron of a linear layer.",
    "onnx": "A file that onnxruntime and most other inference engines can run, for any batch size.",
    "parity": "The largest difference between the outputs of onnxruntime and of torch on the same images.",
    "latency": "Time for one batch in onnxruntime, dense and pruned measured in turns so that other load hits both. "
    "95 % of the batches were at least as fast as the second figure.",
}

DATASETS = {"cifar10": "CIFAR-10", "mnist": "MNIST digits"}

SETTINGS = {
    "model": "model",
    "keep": "keep",
    "keep_by_block": "per block",
    "selector": "selector",
    "reconstruct": "re-fit",
    "candidate_factor": "candidates ×",
    "iterations": "iterations",
    "multiple": "multiple",
    "allocation": "allocation",
    "recalibrate": "recalibration",
    "distil": "distillation steps",
    "samples": "samples",
    "seed": "seed",
    "device": "device",
}


def score_help(words: SelectorWords, panels: int) -> str:
    """What the bars under the map show, for this selector."""
    score = words.score[0].upper() + words.score[1:]
    if words.way in (Way.ADDS, Way.REMOVES):
        return f"{score}: {words.score_means}."
    line = "Dotted line: the smallest value that was enough."
    if panels == 1:
        return f"{score}: {words.score_means}. It decides which groups stay. {line}"
    return (
        f"Importance: {words.importance_means}; it makes the candidates. {score}: {words.score_means}; "
        f"it decides among the candidates. {line}"
    )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {keep:g}" for name, keep in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting_words(shown: Mapping[str, Any], above: Mapping[str, Any]) -> list[str]:
    """What differs, as ``"multiple 1 (above: 8)"``; settings that one of them does not have are left out."""
    return [
        f"{label} {_value(shown[key])} (above: {_value(above[key])})"
        for key, label in SETTINGS.items()
        if key in shown and key in above and shown[key] != above[key]
    ]


def unusual_words(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """``"multiple 1"`` for every setting that is not the usual one."""
    return [
        f"{label} {_value(settings[key])}"
        for key, label in SETTINGS.items()
        if key in settings and key in usual and settings[key] != usual[key]
    ]

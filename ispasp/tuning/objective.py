"""What training leads to: the outputs of the dense model, labels, or a share of each.

Towards the dense model, over N examples:

    mean over points p of  sum ||dense_p - pruned_p||^2 / sum ||dense_p||^2   +   0.1 KL(dense || pruned)

where the points are the outputs of residual blocks and stages (inner modules that have modules of their own and give
tensors of one shape in both models) and of the model itself, and KL is the mean over examples of the divergence of the
two softmax outputs at temperature 2. No label enters. docs/experiments.md tells what else was tried.

Towards the labels: the mean over examples of the cross-entropy.

Both are averaged over an example's own predictions where it has several (tokens, pixels); padding does not count.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ispasp import evaluate, padding
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError, ModelError

TEMPERATURE = 2.0
DIVERGENCE_WEIGHT = 0.1
OUTPUT = ""  # the point that is the model's own output
IGNORED = -100  # the label of what does not count, as torch and transformers have it


class Points:
    """What the inner modules of one model gave in its last forward call."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._seen: dict[str, Tensor] = {}
        self._hooks = [
            module.register_forward_hook(functools.partial(self._keep, name))
            for name, module in model.named_modules()
            if name and any(True for _ in module.children())
        ]

    def _keep(self, name: str, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, (tuple, list)) and output:
            output = output[0]
        # A stage gives what its last block gave: that counts once. A module called again counts again.
        if not isinstance(output, Tensor) or any(output is known for known in self._seen.values()):
            return
        call = sum(1 for known in self._seen if known.partition("#")[0] == name)
        self._seen[f"{name}#{call}"] = output

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Floating-point outputs by name of the inner module, and the model's own as ``OUTPUT``."""
        self._seen = {}
        copied = batch.copy()  # a model may overwrite its inputs
        output = evaluate.first_tensor(self.model(*copied.inputs, **copied.keywords))
        seen, self._seen = self._seen, {}
        inner = {name: v for name, v in seen.items() if v.is_floating_point() and v is not output}
        return {**inner, OUTPUT: output}

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


@dataclass
class Sums:
    """What the objective is made from, summed over examples.

    Attributes:
        errors: squared differences, by point.
        energies: squared norms of the dense model's outputs, by point.
        divergence: of the outputs' distributions.
        examples: how many.
    """

    errors: dict[str, float] = field(default_factory=dict)
    energies: dict[str, float] = field(default_factory=dict)
    divergence: float = 0.0
    examples: int = 0


class Distance:
    """How far a model is from the dense one, by the objective of this module.

    Attributes:
        pruned, dense: the two models' points.
        energies: squared norms of the dense model's outputs over ``examples`` examples, by point, which errors are
            divided by; ``settle`` sets them.
    """

    def __init__(self, pruned: nn.Module, dense: nn.Module) -> None:
        self.pruned, self.dense = Points(pruned), Points(dense)
        self.energies: dict[str, float] = {}
        self.examples = 0

    def close(self) -> None:
        """Take all hooks off the models."""
        self.pruned.close()
        self.dense.close()

    @torch.no_grad()
    def measure(self, batch: Batch, got: dict[str, Tensor], sums: Sums) -> None:
        """Add what a batch contributes to ``sums``; ``got`` are the pruned model's points on it."""
        found, part = self.compare(batch, got, sums.energies)
        for name, error in found.items():
            sums.errors[name] = sums.errors.get(name, 0.0) + error.item()
        sums.divergence += part.item()
        sums.examples += len(batch)

    def settle(self, sums: Sums) -> float:
        """The objective over all examples of ``sums``, whose energies are from now on what errors are divided by."""
        self.energies = {name: energy for name, energy in sums.energies.items() if energy > 0}
        self.examples = sums.examples
        relative = [sums.errors[name] / energy for name, energy in self.energies.items()]
        return sum(relative) / max(1, len(relative)) + DIVERGENCE_WEIGHT * sums.divergence / sums.examples

    def loss(self, batch: Batch, got: dict[str, Tensor]) -> Tensor:
        """The objective's part of these examples, summed over them, with gradients."""
        errors, divergence = self.compare(batch, got)
        terms = [error / self.energies[name] for name, error in errors.items() if name in self.energies]
        return sum(terms) * self.examples / max(1, len(terms)) + DIVERGENCE_WEIGHT * divergence

    def compare(
        self, batch: Batch, got: dict[str, Tensor], energies: dict[str, float] | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Squared errors of the points and the divergence of the outputs, summed over the examples.

        Args:
            batch: n examples.
            got: the pruned model's points on them.
            energies: where given, the dense model's squared norms are added to it.

        Raises:
            ModelError: the models' outputs differ in shape or are no floating-point numbers.
        """
        with torch.no_grad():
            wanted = self.dense(batch)
        mask = batch.mask
        padded = padding.rows(mask, got[OUTPUT]) is not None
        wanted, got = (
            {name: padding.counted(mask, value) for name, value in values.items()} for values in (wanted, got)
        )
        target, output = wanted[OUTPUT], got[OUTPUT]
        if output.shape != target.shape or not output.is_floating_point():
            raise ModelError(
                f"The pruned model gives {tuple(output.shape)} {output.dtype}, the dense one "
                f"{tuple(target.shape)} {target.dtype}; give a model and the one that was pruned from it."
            )
        shared = [name for name, value in got.items() if name in wanted and wanted[name].shape == value.shape]
        if energies is not None:
            for name in shared:
                energy = wanted[name].float().square().sum().item()
                energies[name] = energies.get(name, 0.0) + energy
        errors = {name: (got[name].float() - wanted[name].float()).square().sum() for name in shared}
        classes = evaluate.class_dimension(output)
        if classes is None:  # a number per example, not a distribution
            return errors, output.new_zeros(())
        log_p, log_q = ((v.float() / TEMPERATURE).log_softmax(classes) for v in (target, output))
        if mask is None or not padded:
            predictions = max(1, output.numel() // output.shape[classes] // len(batch))
            return errors, F.kl_div(log_q, log_p, reduction="sum", log_target=True) / predictions
        divergences = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(classes)
        tokens = mask.sum(1)
        return errors, (divergences / tokens.repeat_interleave(tokens)).sum()


def label_loss(output: Tensor, batch: Batch, smoothing: float) -> Tensor:
    """Cross-entropy with the labels, summed over the examples; of several predictions of an example, their mean.

    Padding tokens (``Batch.mask``) and labels of -100 do not count.

    Args:
        output: logits (N, classes), (N, tokens, classes) or (N, classes, h, w).
        batch: N examples with labels (N,), (N, tokens) or (N, h, w).
        smoothing: share of the target that all classes get alike.

    Raises:
        CalibrationError: there are no labels, or they are not for such an output.
    """
    labels, classes = batch.labels, evaluate.class_dimension(output)
    logits = output if classes is None else output.movedim(classes, 1)
    places = (*logits.shape[:1], *logits.shape[2:])
    if classes is None or labels is None or labels.is_floating_point() or labels.shape != places:
        given = "no labels" if labels is None else f"labels of {tuple(labels.shape)} {labels.dtype}"
        raise CalibrationError(
            f"The training data has {given} for a model that gives {tuple(output.shape)}; give one class number per "
            'prediction, or train without labels (preset "distil").'
        )
    labels = labels.long()
    if batch.mask is not None and batch.mask.shape == labels.shape:
        labels = labels.masked_fill(~batch.mask, IGNORED)
    losses = F.cross_entropy(
        logits.float(), labels, ignore_index=IGNORED, label_smoothing=smoothing, reduction="none"
    )
    counts = (labels != IGNORED).reshape(len(labels), -1).sum(1).clamp(min=1)
    return (losses.reshape(len(labels), -1).sum(1) / counts).sum()


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse class numbers that the model does not have, which would break a GPU's whole process.

    Raises:
        CalibrationError: there is one.
    """
    labels = labels.long()  # 156 is -100 in eight bits
    wrong = (labels != IGNORED) & ((labels < 0) | (labels >= classes))
    if bool(wrong.any()):
        raise CalibrationError(
            f"The training data has the label {int(labels[wrong][0])}, but the model has {classes} classes; give class "
            f"numbers from 0 to {classes - 1}."
        )

"""First-order Taylor importance: how much the labelled loss would change without each group.

Molchanov et al. (CVPR 2019): put a gate of one on each group; the squared derivative of the loss in that
gate, per example, is the expected squared change of the loss when the gate closes, to first order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ispasp import processes
from ispasp.calibration import Batch
from ispasp.device import widest_float
from ispasp.errors import CalibrationError
from ispasp.graph import CONVOLUTIONS, Traced
from ispasp.records import Block
from ispasp.stream import Stream


def scores(traced: Traced, blocks: Sequence[Block], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The importance of every group of ``blocks`` in the dense network: one forward and backward per batch.

    score_g = sum over examples of (sum over positions and the group's features of H_g * dL/dH_g)^2, where L
    is the cross-entropy of the model's first output with the labels.

    Args:
        traced: the model; it is not changed.
        blocks: of this model.
        batches: inputs and labels, on the model's device.

    Returns:
        (d,) float64 per block name.

    Raises:
        CalibrationError: a batch has no labels, labels outside 0 to classes - 1 or as many labels as it has
            examples, or the first output is not (N, classes).
    """
    for number, batch in enumerate(batches, start=1):
        _check_labels(batch, number)
    totals: dict[str, Tensor] = {}
    for number, batch in enumerate(batches, start=1):
        for name, part in _batch_scores(traced, blocks, batch, number).items():
            totals[name] = totals[name] + part if name in totals else part
    return {name: processes.total(value) for name, value in totals.items()}


def _batch_scores(traced: Traced, blocks: Sequence[Block], batch: Batch, number: int) -> dict[str, Tensor]:
    hidden_of = {block.hidden: block for block in blocks}
    # In-place operations may overwrite the inputs.
    stream = Stream(traced, [batch.copy()])
    watched: dict[str, Tensor] = {}
    with torch.enable_grad():
        for node in traced.nodes:
            if node.op == "call_function":
                value = stream.compute(node, 0)
                if node.name in hidden_of:
                    value = _watch(value)
                    watched[node.name] = value
                stream.values[node] = [value]
            if node.op != "output":
                stream.free(node)
        loss = _loss(stream.outputs(0), batch, number)
        gradients: Sequence[Tensor | None] = [None] * len(watched)
        if loss.requires_grad:  # it does not where no block leads to the logits
            gradients = torch.autograd.grad(loss, list(watched.values()), allow_unused=True)
    nodes = {node.name: node for node in traced.nodes}
    result = {}
    for (name, hidden), gradient in zip(watched.items(), gradients, strict=True):
        block = hidden_of[name]
        dim = 1 if nodes[block.reads[0]].target in CONVOLUTIONS else -1
        sizes = nodes[name].meta["val"].shape
        batch_dim = next((d for d, size in enumerate(sizes) if not isinstance(size, int)), 0)
        result[block.name] = _squared_gates(hidden, gradient, block, dim, batch_dim, len(batch))
    return result


def _watch(hidden: Tensor) -> Tensor:
    """``hidden`` such that a gradient in it can be taken."""
    # The first block's past has no gradient: parameters are detached.
    return hidden if hidden.requires_grad else hidden.detach().clone().requires_grad_()


def _squared_gates(
    hidden: Tensor, gradient: Tensor | None, block: Block, dim: int, batch_dim: int, examples: int
) -> Tensor:
    """(d,): the squared derivative in each group's gate, summed over the examples.

    Features lie along ``dim``, examples along ``batch_dim``.
    """
    wide = widest_float(hidden.device)
    if gradient is None:
        return torch.zeros(block.groups, dtype=wide, device=hidden.device)
    single = torch.promote_types(hidden.dtype, torch.float32)
    product = (hidden.detach().to(single) * gradient.to(single)).movedim((batch_dim, dim), (0, -1))
    if block.tokens_first and product.ndim == 2:
        product = product.unflatten(0, (-1, examples)).transpose(0, 1)
    # Windows of a picture may come as examples of their own; they follow one another.
    per_example = product.reshape(examples, -1, block.groups, block.group_size)
    return per_example.sum((1, 3), dtype=wide).square().sum(0)


def _loss(outputs: Sequence[Tensor], batch: Batch, number: int) -> Tensor:
    """The cross-entropy, summed over the examples so that each has the gradient of its own loss."""
    logits = outputs[0] if outputs else torch.empty(0)
    if logits.ndim != 2 or len(logits) != len(batch) or not logits.is_floating_point():
        raise CalibrationError(
            f"Selector taylor needs a classifier: the model's first output is {tuple(logits.shape)} for "
            f"{len(batch)} examples, not (examples, classes); choose another selector."
        )
    labels = batch.labels
    assert labels is not None
    low, high, classes = int(labels.min()), int(labels.max()), logits.shape[1]
    if low < 0 or high >= classes:
        raise CalibrationError(
            f"Batch {number} of the calibration data has labels from {low} to {high}, the model {classes} "
            f"classes; selector taylor needs labels from 0 to {classes - 1}."
        )
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), labels.long().to(logits.device), reduction="sum")


def _check_labels(batch: Batch, number: int) -> None:
    if batch.labels is None:
        raise CalibrationError(
            f"Batch {number} of the calibration data has no labels, which selector taylor needs; give batches "
            "of (inputs, labels), or choose a selector that needs none, such as ispasp."
        )
    if batch.labels.ndim != 1 or len(batch.labels) != len(batch):
        raise CalibrationError(
            f"Batch {number} of the calibration data has labels of shape {tuple(batch.labels.shape)} for "
            f"{len(batch)} examples; selector taylor needs one whole number per example."
        )

"""The dense model with dropped groups zeroed where they are read: an oracle that shares no code with the package."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

import ispasp


def kept_features(event: ispasp.records.BlockPruned, size: int) -> Tensor:
    """1 at the features of the kept groups, ``size`` of each, else 0."""
    kept = torch.zeros(event.block.groups)
    kept[list(event.selected)] = 1
    return kept.repeat_interleave(size)


def masked_twin(model: nn.Module, result: ispasp.PruneResult) -> nn.Module:
    """A copy of the dense ``model`` whose gates and consumers see zeros in place of dropped groups.

    ``nn.MultiheadAttention`` uses its output projection functionally, so that no hook on it would run: the
    columns of its weight are zeroed instead, which is the same.
    """
    twin = copy.deepcopy(model).eval()
    for event in result.blocks_pruned:
        for cut in event.block.cuts:
            if cut.role not in ("gate", "consumer"):
                continue
            mask, module = kept_features(event, cut.size), twin.get_submodule(cut.module)
            if isinstance(twin.get_submodule(cut.module.rpartition(".")[0]), nn.MultiheadAttention):
                module.weight.data.mul_(mask)
            else:
                module.register_forward_pre_hook(_zero(mask.view(-1, 1, 1) if _convolves(module) else mask))
    return twin


def _convolves(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def _zero(mask: Tensor):  # type: ignore[no-untyped-def]
    return lambda module, inputs: (inputs[0] * mask, *inputs[1:])


def parameters_left(model: nn.Module, result: ispasp.PruneResult) -> int:
    """How many parameters the cuts leave, by their rows and columns."""
    rows, columns = {}, {}
    for event in result.blocks_pruned:
        for cut in event.block.cuts:
            along = rows if cut.role in ("producer", "rider") else columns
            along[cut.module] = len(event.selected) * cut.size * cut.repeats
    total = 0
    for name, parameter in model.named_parameters():
        module, sizes = name.rpartition(".")[0], list(parameter.shape)
        sizes[0] = rows.get(module, sizes[0])
        if parameter.ndim > 1:
            sizes[1] = columns.get(module, sizes[1])
        total += math.prod(sizes)
    return total


@torch.no_grad()
def difference(expected: Tensor, got: Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    return float((expected - got).abs().max() / expected.abs().max())

"""Try a block out where the graph cannot tell whether its forward fits fewer groups.

A view in the graph has numbers where the forward may have asked for the size (``b, c = x.shape``, which adapts) or may
have written it down (which does not).
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ispasp import evaluate, surgery
from ispasp.calibration import Batch
from ispasp.errors import SurgeryError
from ispasp.records import Block


def fits(block: Block, model: nn.Module, example: Batch) -> bool:
    """Whether the model, sliced to half of the block's groups, gives what it gives with the others masked."""
    kept = range(max(1, block.groups // 2))
    masked, sliced = copy.deepcopy(model), copy.deepcopy(model)
    try:
        _mask(masked, block, len(kept))
        surgery.slice_block(sliced, block, kept)
        surgery.check_equal(_outputs(masked, example), _outputs(sliced, example))
    # Whatever a forward raises where sizes do not fit, among others.
    except (SurgeryError, RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return False
    return True


@torch.no_grad()
def _mask(model: nn.Module, block: Block, kept: int) -> None:
    """Let whatever reads the groups read the first ``kept`` alone, in place."""
    for cut in block.cuts:
        if cut.role in ("consumer", "gate"):
            cast(Tensor, model.get_submodule(cut.module).weight)[:, kept * cut.size :] = 0


def _outputs(model: nn.Module, example: Batch) -> list[Tensor]:
    outputs = pytree.tree_leaves(evaluate.forward(model, example))
    return [leaf for leaf in outputs if isinstance(leaf, Tensor)]

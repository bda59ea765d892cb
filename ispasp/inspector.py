"""What one group of a model looks like."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ispasp.errors import SettingError
from ispasp.records import Block
from ispasp.surgery import entries


def group_filters(model: nn.Module, block: Block, group: int) -> NDArray[np.float32]:
    """The first producer's weights that make one group of the dense model.

    Args:
        model: the dense model.
        block: one of its prunable blocks.
        group: index from 0.

    Returns:
        (channels in, kernel height, kernel width) for a channel, (features,) for a neuron, (rows, features) for
        what has several rows: an attention head, where one module makes queries, keys and values all of these.

    Raises:
        SettingError: the model has no such block, or the block has no such group.
    """
    if not 0 <= group < block.groups:
        raise SettingError(f"Block {block.name} has groups 0 to {block.groups - 1}, not {group}.")
    cut = block.cuts[0]
    try:
        module = model.get_submodule(cut.module)
    except AttributeError:
        module = nn.Identity()
    weight = getattr(module, "in_proj_weight", None)
    weight = getattr(module, "weight", None) if weight is None else weight
    if not isinstance(weight, Tensor) or len(weight) != cut.repeats * block.groups * cut.size:
        raise SettingError(
            f"The model has no layer {cut.module!r} of {block.groups} groups: it is another one."
        )
    rows = weight.detach().index_select(0, entries(torch.tensor([group]), block.groups, cut))
    filters = rows.float().numpy().copy()
    return filters[0] if len(filters) == 1 else filters.reshape(len(filters), -1)

"""What one group of a sample model looks like."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ispasp import zoo
from ispasp.errors import SettingError


@lru_cache(maxsize=4)
def _model(name: str) -> nn.Module:
    return zoo.load(name)


def group_filters(model: str, block: str, group: int) -> NDArray[np.float32]:
    """The producer's weights that make one group of the dense model.

    Args:
        model: a sample model's name.
        block: the block's name, which is its producer's.
        group: index from 0.

    Returns:
        (channels in, kernel height, kernel width) for a convolution, (features,) for a linear layer.

    Raises:
        ModelError: unknown model.
        SettingError: unknown block, or the block has no such group.
    """
    try:
        layer = _model(model).get_submodule(block)
    except AttributeError:
        layer = nn.Identity()
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):
        raise SettingError(f"{model} has no block {block!r}; see python -m ispasp blocks {model}.")
    weight = layer.weight
    if not 0 <= group < len(weight):
        raise SettingError(f"Block {block} has groups 0 to {len(weight) - 1}, not {group}.")
    return weight[group].detach().numpy().copy()

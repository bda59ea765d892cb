"""What a layer reads and what it gives, one row per output position."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def patch_matrix(layer: nn.Module, hidden: Tensor) -> Tensor:
    """What ``layer`` reads, one row per output position, columns as in ``layer.weight.flatten(1)``."""
    if isinstance(layer, nn.Conv2d):
        rows = F.unfold(hidden, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        return rows.transpose(1, 2).reshape(-1, rows.shape[1])
    return hidden.reshape(-1, hidden.shape[-1])


def output_rows(layer: nn.Module, output: Tensor) -> Tensor:
    last = output.movedim(1, -1) if isinstance(layer, nn.Conv2d) else output
    return last.reshape(-1, last.shape[-1])

"""Batch norms that normalise by the batch of all processes together, so that N processes train as one does."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ispasp import processes


def share_statistics(model: nn.Module) -> None:
    """Have the model's batch norms, in place, sum their statistics over the processes while they train."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.forward = functools.partial(normalised, module)  # type: ignore[method-assign]


def normalised(norm: _BatchNorm, values: Tensor) -> Tensor:
    """What ``norm`` gives for its part of a batch: torch.nn.SyncBatchNorm, on the CPU, too.

    Args:
        norm: in training mode; in eval mode it does what it always does.
        values: (n, C, ...) of this process; n may differ between processes, and is not 0.
    """
    if not norm.training:
        return type(norm).forward(norm, values)
    others = [0, *range(2, values.ndim)]
    shape = (1, -1, *(1 for _ in others[1:]))
    single = values.float() if values.dtype.itemsize < 4 else values
    size = single.new_tensor([values.numel() / values.shape[1]])
    sums = processes.summed(torch.cat([single.sum(others), size]))
    size, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
    centred = single - mean.view(shape)
    # A second sum, because the difference of two large ones would lose the variance's last digits.
    variance = processes.summed(centred.square().sum(others)) / size
    _follow(norm, mean.detach(), variance.detach() * size / (size - 1).clamp(min=1))
    result = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        result = result * norm.weight.view(shape) + norm.bias.view(shape)
    return result.to(values.dtype)


@torch.no_grad()
def _follow(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards these, as torch's batch norms do."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), share)
    norm.running_var.lerp_(variance.to(norm.running_var), share)

"""Slice pruned groups out of an ``nn.Module``, check the result, and rebuild it from saved tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ispasp.blocks import features
from ispasp.errors import RunError, SurgeryError
from ispasp.records import Block


def slice_block(model: nn.Module, block: Block, selected: Sequence[int]) -> None:
    """Remove every group but ``selected`` from the block's producer, riders and consumers, in place."""
    groups = torch.tensor(list(selected))
    producer = model.get_submodule(block.name)
    _keep(producer, groups, dim=0)
    for name in block.riders:
        _keep(model.get_submodule(name), groups, dim=0)
    for name in dict.fromkeys(block.consumers):
        _keep(model.get_submodule(name), features(groups, block.group_size), dim=1)


def _keep(module: nn.Module, index: Tensor, dim: int) -> None:
    """Keep ``index`` along ``dim`` of the weight; along dimension 0 also of everything else it has."""
    for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if value.ndim > dim and (dim == 0 or name == "weight"):
            _assign(module, name, value.detach().index_select(dim, index.to(value.device)))
    _update_sizes(module)


def _assign(module: nn.Module, name: str, value: Tensor) -> None:
    old = getattr(module, name)
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value.clone(), requires_grad=old.requires_grad)
    setattr(module, name, value)


def _update_sizes(module: nn.Module) -> None:
    """Make the sizes that a layer states about itself those of its weight."""
    if isinstance(module, nn.Conv2d):
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.weight is not None:
        module.num_features = module.weight.shape[0]


def check_equal(masked: Tensor, sliced: Tensor, tolerance: float = 1e-4) -> float:
    """The largest difference between two outputs, relative to the largest masked output.

    Raises:
        SurgeryError: it is above ``tolerance``, or the shapes differ.
    """
    if masked.shape != sliced.shape:
        raise SurgeryError(
            f"The sliced model returns {tuple(sliced.shape)}, the masked model {tuple(masked.shape)}; nothing was kept."
        )
    scale = masked.abs().max().item() or 1.0
    difference = (masked - sliced).abs().max().item() / scale
    if not difference <= tolerance:
        raise SurgeryError(
            f"The sliced model differs from the masked model by {difference:.1e} of the output's scale "
            f"(allowed: {tolerance:.0e}); please report this model, its blocks were not found correctly."
        )
    return difference


def rebuild(model: nn.Module, saved: Mapping[str, Tensor]) -> nn.Module:
    """Give a dense model the widths and weights of a saved pruned one, in place, strictly.

    Args:
        model: the dense architecture, freshly built.
        saved: the pruned model's state dict; tensors may be narrower than the model's.

    Raises:
        RunError: names are missing or unexpected, or a tensor cannot belong to this architecture;
            the message names the first three.
    """
    own = model.state_dict()
    wrong = [f"missing {name}" for name in own if name not in saved]
    wrong += [f"unexpected {name}" for name in saved if name not in own]
    for name, value in saved.items():
        if name in own and (
            own[name].ndim != value.ndim
            or own[name].dtype != value.dtype
            or any(new > old for new, old in zip(value.shape, own[name].shape, strict=True))
        ):
            wrong.append(
                f"{name} is {tuple(value.shape)} {value.dtype}, at most {tuple(own[name].shape)} fits"
            )
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise RunError(
            f"The saved weights do not belong to this {type(model).__name__}: {'; '.join(wrong[:3])}{more}. "
            "Give the architecture that was pruned."
        )
    for name, module in model.named_modules():
        for leaf, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            target = saved.get(f"{name}.{leaf}" if name else leaf)
            if target is not None and target.shape != value.shape:
                _assign(module, leaf, torch.empty_like(target, device=value.device))
        _update_sizes(module)
    model.load_state_dict(dict(saved), strict=True)
    return model.eval()

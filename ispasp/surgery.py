"""Slice pruned groups out of an ``nn.Module``, check the result, and rebuild it from saved tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ispasp.attention import SlicedAttention
from ispasp.errors import RunError, SurgeryError, listing
from ispasp.layouts import features
from ispasp.records import Block, BlockPruned, Cut


def slice_block(model: nn.Module, block: Block, selected: Sequence[int]) -> None:
    """Remove every group but ``selected`` from all modules that the block cuts, in place."""
    groups = torch.tensor(list(selected))
    for cut in dict.fromkeys(block.cuts):
        module = model.get_submodule(cut.module)
        if isinstance(module, nn.MultiheadAttention):
            parent, _, name = cut.module.rpartition(".")
            setattr(model.get_submodule(parent), name, SlicedAttention(module, selected))
            _forgo_nested_tensors(model, parent)
        else:
            outputs = cut.role in ("producer", "rider")
            width = cast(Tensor, module.weight).shape[0 if outputs else 1]
            if width != block.groups * cut.size * cut.repeats:
                raise IndexError(f"{cut.module} has {width} entries, not {block.groups} groups of {cut.size}")
            _keep(module, entries(groups, block.groups, cut), dim=0 if outputs else 1)


def _forgo_nested_tensors(model: nn.Module, name: str) -> None:
    """Keep the transformer around a layer from packing padded examples in a way that only its own attention reads."""
    while name:
        module = model.get_submodule(name)
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        name = name.rpartition(".")[0]
    if isinstance(model, nn.TransformerEncoder):
        model.use_nested_tensor = False


def entries(groups: Tensor, total: int, cut: Cut) -> Tensor:
    """Indices of the module's outputs or inputs that belong to ``groups`` (s,) of ``total``, in order."""
    once = features(groups, cut.size)
    return torch.cat([once + repeat * total * cut.size for repeat in range(cut.repeats)])


def _keep(module: nn.Module, index: Tensor, dim: int) -> None:
    """Keep ``index`` along ``dim`` of the weight; along dimension 0 also of bias and statistics."""
    for name in ("weight", "bias", "running_mean", "running_var") if dim == 0 else ("weight",):
        value = getattr(module, name, None)
        if isinstance(value, Tensor):
            kept = value.detach().index_select(dim, index.to(value.device))
            parameter = isinstance(value, nn.Parameter)
            setattr(module, name, nn.Parameter(kept, value.requires_grad) if parameter else kept)
    weight = cast(Tensor, module.weight)
    if isinstance(module, nn.Conv2d):
        depthwise = module.groups > 1
        module.out_channels, module.in_channels = len(weight), len(weight) if depthwise else weight.shape[1]
        module.groups = len(weight) if depthwise else 1
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        module.num_features = len(weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)


@torch.no_grad()
def refit(model: nn.Module, name: str, weight: Tensor, intercept: Tensor | None, home: str) -> None:
    """Give the sliced consumer ``name`` new weights, in place, and the intercept (outputs,) to ``home``.

    ``home`` is the consumer itself, which has a bias, or the batch norm that alone reads it.
    """
    consumer = model.get_submodule(name)
    cast(Tensor, consumer.weight).copy_(weight)
    if intercept is None:
        return
    if home == name:
        cast(Tensor, consumer.bias).add_(intercept)
    else:
        cast(Tensor, model.get_submodule(home).running_mean).sub_(intercept)


@torch.no_grad()
def recalibrate(model: nn.Module, name: str, shift: Tensor, variance: Tensor) -> None:
    """Move the running mean of a batch norm by ``shift`` (channels,), in place, and set its variance.

    A shift, because the mean may already hold an intercept of the consumer before it.
    """
    norm = model.get_submodule(name)
    cast(Tensor, norm.running_mean).add_(shift)
    cast(Tensor, norm.running_var).copy_(variance)


def tolerance(value: Tensor) -> float:
    """How far masked and sliced outputs may differ, relative to the output's scale.

    1e-4 in single precision; four times the precision of the arithmetic where that is coarser: half
    types, and TensorFloat-32, which CUDA uses for convolutions by default.
    """
    precision = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    if value.is_cuda and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32):
        precision = max(precision, 2.0**-10)
    return max(1e-4, 4 * precision)


def check_equal(masked: Sequence[Tensor], sliced: Sequence[Tensor]) -> None:
    """Compare every output of the masked and the sliced model.

    Infinities, such as those of masked classes, must be the same in both; NaN never passes.

    Raises:
        SurgeryError: shapes differ, or values by more than ``tolerance`` of the largest finite masked output.
    """
    if [value.shape for value in masked] != [value.shape for value in sliced]:
        raise SurgeryError(
            f"The sliced model returns {listing(tuple(v.shape) for v in sliced)}, the masked model "
            f"{listing(tuple(v.shape) for v in masked)}; nothing was kept."
        )
    for expected, got in zip(masked, sliced, strict=True):
        wanted, found = expected.double(), got.double()
        finite = wanted.isfinite()
        if not torch.equal(wanted[~finite], found[~finite]) or not bool(found[finite].isfinite().all()):
            raise SurgeryError(
                "The sliced model differs from the masked model in values that are not finite, so nothing was "
                "kept; check the model's weights and the scale of the calibration data."
            )
        scale = wanted.where(finite, 0.0).abs().max().item() or 1.0
        difference = (wanted - found).where(finite, 0.0).abs().max().item() / scale
        if not difference <= tolerance(expected):
            raise SurgeryError(
                f"The sliced model differs from the masked model by {difference:.1e} of the output's scale "
                f"(allowed: {tolerance(expected):.0e}), so nothing was kept: its forward depends on the width "
                "of a pruned layer. Prune other blocks (blocks=...), and please report this model."
            )


def rebuild(model: nn.Module, pruned: Sequence[BlockPruned], saved: Mapping[str, Tensor]) -> nn.Module:
    """Slice a dense model as a saved run was sliced, and load its weights, strictly; in place.

    Args:
        model: the dense architecture, freshly built.
        pruned: what the run removed.
        saved: the pruned model's state dict.

    Raises:
        RunError: names or shapes do not fit (the message names the first three), or a value is not finite.
    """
    try:
        for event in pruned:
            slice_block(model, event.block, event.selected)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(
            f"The run does not belong to this {type(model).__name__} ({error}). Give the architecture that was pruned."
        ) from error
    own = model.state_dict()
    wrong = [f"missing {name}" for name in own if name not in saved]
    wrong += [f"unexpected {name}" for name in saved if name not in own]
    for name, value in saved.items():
        if name in own and (own[name].shape, own[name].dtype) != (value.shape, value.dtype):
            wrong.append(
                f"{name} is {tuple(value.shape)} {value.dtype} in place of {tuple(own[name].shape)} {own[name].dtype}"
            )
        elif bool(value.isnan().any()):
            wrong.append(f"{name} holds NaN")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise RunError(
            f"The saved weights do not belong to this {type(model).__name__}: {'; '.join(wrong[:3])}{more}. "
            "Give the architecture that was pruned."
        )
    model.load_state_dict(dict(saved), strict=True)
    return model.eval()

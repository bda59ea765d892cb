"""The optimiser of a fine-tuning: which parameters decay, how its rate moves, and its state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ispasp import processes
from ispasp.errors import ModelError, listing
from ispasp.tuning.settings import TuneSettings

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The model's parameters that are not frozen: those that decay, and those that do not.

    Matrices and kernels decay; norms, biases and every other vector do not.

    Raises:
        ModelError: all are frozen, or there are none.
    """
    of_norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ModelError(
            f"{type(model).__name__} has no parameters to train; give a model with parameters that are not all frozen "
            "(requires_grad)."
        )
    decays = [p.ndim > 1 and id(p) not in of_norms for p in trained]
    return [
        {"params": [p for p, yes in zip(trained, decays, strict=True) if yes], "weight_decay": weight_decay},
        {"params": [p for p, yes in zip(trained, decays, strict=True) if not yes], "weight_decay": 0.0},
    ]


def make(model: nn.Module, settings: TuneSettings) -> torch.optim.Optimizer:
    """The optimiser of ``settings``, which are resolved, for the model's parameters.

    Raises:
        ModelError: as ``groups``.
    """
    assert settings.learning_rate is not None and settings.weight_decay is not None
    parameters = groups(model, settings.weight_decay)
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.learning_rate)
    momentum = settings.momentum
    return torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=momentum, nesterov=momentum > 0)


def rate(settings: TuneSettings, stage: str, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0 over all epochs of a stage.

    It climbs in a straight line during the warm-up, and then falls as half a cosine towards zero. After a block
    (``stage``) it stays up, as in the published code: the training goes on after the next block.
    """
    assert settings.learning_rate is not None
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / (warm + 1)
    if stage:
        return settings.learning_rate
    return settings.learning_rate * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


def summed_gradients(optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """``loss`` summed over all processes; the gradients are summed with it, in place and in one exchange.

    A parameter that no process has a gradient for keeps none, so that it does not decay either.
    """
    if processes.here().size == 1:
        return loss
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    there = loss.new_tensor([float(p.grad is not None) for p in parameters])
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    sums = processes.summed(torch.cat([loss.view(1), there, *parts]))
    there, flat = sums[1 : 1 + len(parts)] > 0, sums[1 + len(parts) :].split(list(map(len, parts)))
    for parameter, anywhere, gradient in zip(parameters, there.tolist(), flat, strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter) if anywhere else None
    return sums[0]


def state_of(optimiser: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's tensors by their own name and the parameter's, as ``"momentum_buffer/fc.weight"``; on the CPU."""
    return {
        f"{key}/{name}": value.detach().to("cpu", copy=True).contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore(optimiser: torch.optim.Optimizer, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put the optimiser where ``state_of`` found it.

    Raises:
        KeyError, RuntimeError: the state is of another model.
    """
    parameters = dict(model.named_parameters())
    for both, value in state.items():
        key, _, name = both.partition("/")
        parameter = parameters[name]
        # Adam counts its steps on the CPU; the rest lies and is laid out as the parameter is.
        whole = torch.empty_like(parameter.detach()) if key != "step" else torch.zeros(())
        optimiser.state[parameter][key] = whole.copy_(value)
    names = (
        {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimiser, torch.optim.AdamW) else {"momentum_buffer"}
    )
    for kept in optimiser.state.values():
        if kept.keys() != names:
            raise RuntimeError(f"the optimiser has {listing(kept)} and not {listing(names)}")


def restore_scale(scaler: torch.amp.GradScaler, state: Mapping[str, float]) -> None:
    """Put the loss's scale where ``state``, its ``state_dict``, was taken; it is empty where none is used.

    Raises:
        RuntimeError: it is something else.
    """
    if [(name, type(value)) for name, value in scaler.state_dict().items()] != [
        (name, type(value)) for name, value in state.items()
    ]:
        raise RuntimeError(f"the loss's scale is {dict(state)}")
    if state:
        scaler.load_state_dict(dict(state))

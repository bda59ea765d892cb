"""Dense and pruned model in torch, eager and compiled, as what ``ispasp.latency.compare_calls`` times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ispasp.calibration import Batch
from ispasp.errors import ExportError
from ispasp.latency import Call, Opener
from ispasp.parity import cpu_copy, plain, reason

EAGER, COMPILE = "torch-eager", "torch-compile"  # stand where a provider's name stands for onnxruntime


def opener(model: nn.Module, batch: Batch, compiled: bool = False) -> Opener:
    """``model`` in evaluation mode, float32 and on the CPU, with one batch; what is compiled is compiled by its first
    call, for the number of threads that torch has then.

    To open it again is to move its weights: the compiled code stays.

    Raises:
        ExportError: the model cannot be copied; or, by the call itself, it cannot be compiled or run.
    """
    ready = cpu_copy(model)
    arguments = tuple(map(plain, batch.inputs))
    keywords = {name: plain(value) for name, value in batch.keywords.items()}
    forward: Callable[..., Any] = torch.compile(ready, dynamic=False) if compiled else ready

    def run() -> object:
        try:
            with torch.inference_mode():
                return forward(*arguments, **keywords)
        except Exception as error:
            what = "torch.compile cannot compile or run" if compiled else "torch cannot run"
            raise ExportError(f"{what} this model: {reason(error)[:300]}.") from error

    def opened() -> Call:
        for tensor in (*ready.parameters(), *ready.buffers()):
            tensor.data = tensor.data.clone()
        return Call(run, len(batch))

    return opened


def forget_compiled() -> None:
    """Make room for what is compiled next: of one forward method torch keeps only a few versions."""
    torch.compiler.reset()

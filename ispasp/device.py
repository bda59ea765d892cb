"""Which device the work runs on, and what it is called."""

from __future__ import annotations

import platform

import torch

from ispasp import processes
from ispasp.errors import DeviceError, listing


def available() -> list[str]:
    """Names of the devices found here, best first; always ends with ``"cpu"``."""
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def pick(name: str | torch.device = "auto") -> torch.device:
    """The device called ``name``; ``"auto"`` picks CUDA, then MPS, then the CPU.

    Of several GPUs, ``"auto"`` and ``"cuda"`` mean the first, or this process's own (``ispasp.processes``).

    Raises:
        DeviceError: the name is unknown, or no such device is here.
    """
    found = available()
    own = f"cuda:{processes.here().device_index}"
    if str(name) == "auto":
        return torch.device(own if own in found else found[0])
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise DeviceError(f"Unknown device {name!r}: choose auto or one of {listing(found)}.") from None
    wanted = own if str(device) == "cuda" else str(device)
    if wanted not in found:
        raise DeviceError(f"Device {name!s} is not here: choose auto or one of {listing(found)}.")
    return torch.device(wanted)


def describe(device: torch.device) -> str:
    """The device's name for people, e.g. ``"NVIDIA H100 80GB HBM3"`` or ``"CPU (2 threads)"``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.processor() or platform.machine()})"
    threads = torch.get_num_threads()
    return f"CPU ({threads} thread{'s' if threads != 1 else ''})"


def widest_float(device: torch.device) -> torch.dtype:
    """The type in which sums are taken: float64, except on MPS, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64

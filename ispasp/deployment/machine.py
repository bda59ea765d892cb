"""The machine that figures hold for."""

from __future__ import annotations

import os
import platform
from typing import Any

import onnxruntime

from ispasp.latency_table import device_name
from ispasp.reports import versions


def machine() -> dict[str, Any]:
    """Processor, its cores, the system, and versions of what was measured with; equal where times can be compared."""
    return {
        "processor": device_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        "versions": versions() | {"onnxruntime": onnxruntime.__version__},
    }

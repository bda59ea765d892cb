"""What a run tells in plain values, ready for JSON."""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ispasp.records import BlockPruned


def versions() -> dict[str, str]:
    """Of what the result depends on, where installed."""
    from ispasp import __version__  # the package itself, which imports this module first

    found = {"ispasp": __version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def block(event: BlockPruned) -> dict[str, Any]:
    """One block's part of the report."""
    return {
        "name": event.block.name,
        "groups": event.block.groups,
        "kept": len(event.selected),
        "iterations": event.iterations,
        "relative_residual": event.relative_residual,
        "drift": event.drift,
        "selected": list(event.selected),
        "target": event.target,
        "error_before": event.error_before,
        "error_after": event.error_after,
        "notes": list(event.notes),
    }

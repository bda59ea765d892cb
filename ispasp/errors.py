"""Every error that a user can cause or mend. Each message says what was given, what is accepted, what to do."""

from __future__ import annotations

from collections.abc import Iterable


class ISpaSPError(Exception):
    """Root of all errors raised on purpose by this package."""


class SettingError(ISpaSPError):
    """A setting is out of its range or unknown: keep, selector, multiple, samples, ..."""


class ModelError(ISpaSPError):
    """A model is unknown, cannot be traced, or has nothing that can be pruned."""


class CalibrationError(ISpaSPError):
    """Calibration or evaluation data is empty, of the wrong shape or type, or not finite."""


class NoLabelsError(CalibrationError):
    """Training data have no labels, and some are asked for."""


class DeviceError(ISpaSPError):
    """The device asked for is absent or unknown."""


class SurgeryError(ISpaSPError):
    """The sliced model does not compute what the masked model computes."""


class RunError(ISpaSPError):
    """A saved run is missing, damaged, or foreign, or a folder cannot be written."""


class UnderWorkError(RunError):
    """A process works on this run or sweep now."""


class ProcessError(RunError):
    """Another process of the same launch has ended or stands still, or the launch is incomplete."""


class ExportError(ISpaSPError):
    """ONNX export failed, or the exported file does not load or does not agree with torch."""


def listing(names: Iterable[object]) -> str:
    """Join names for a message: ``"a, b and c"``; ``"none"`` when empty."""
    words = [str(name) for name in names]
    if len(words) <= 1:
        return words[0] if words else "none"
    return f"{', '.join(words[:-1])} and {words[-1]}"

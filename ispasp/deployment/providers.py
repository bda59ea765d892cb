"""What onnxruntime can run a model on here: its execution providers, under short names."""

from __future__ import annotations

import onnxruntime

from ispasp.errors import SettingError, listing

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
"""Short names, and onnxruntime's."""


def installed() -> tuple[str, ...]:
    """Short names of the providers that the installed onnxruntime was built with; whether one loads shows when a
    session is opened (``ispasp.parity.open_session``)."""
    built = onnxruntime.get_available_providers()
    return tuple(name for name, full in PROVIDERS.items() if full in built)


def full_name(name: str) -> str:
    """onnxruntime's name of a provider.

    Raises:
        SettingError: there is no such provider, or the installed onnxruntime was built without it.
    """
    if name not in PROVIDERS:
        raise SettingError(f"Unknown provider {name!r}; choose one of {listing(PROVIDERS)}.")
    if name not in (here := installed()):
        raise SettingError(
            f"The installed onnxruntime has no provider {name!r}, only {listing(here)}; choose one of these, or "
            "install an onnxruntime that was built with it."
        )
    return PROVIDERS[name]

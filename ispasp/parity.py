"""onnxruntime against torch: load an ONNX file, give it a batch, compare the outputs."""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from ispasp.calibration import Batch
from ispasp.errors import CalibrationError, ExportError, SettingError, listing

PROVIDER = "CPUExecutionProvider"
_PROTOBUF_LIMIT = 2**31 - 2**24  # bytes: an ONNX file ends at 2 GiB; some room for the graph itself


@dataclass(frozen=True)
class Parity:
    """How far onnxruntime's output is from torch's, both in float32 on the CPU.

    Attributes:
        max_abs_diff: largest absolute difference over all outputs and examples.
        max_rel_diff: for each output its largest absolute difference over the largest absolute value
            that torch gives for it, both over all examples; then the largest over the outputs.
        top1_agreement: fraction of examples, in [0, 1], with the same largest class in the first output;
            None where that output is not (N, classes) with two classes or more.
        examples: number of examples compared.
    """

    max_abs_diff: float
    max_rel_diff: float
    top1_agreement: float | None
    examples: int


def check_parity(
    model: nn.Module, path: str | os.PathLike[str], batches: Iterable[object], tolerance: float = 1e-4
) -> Parity:
    """Run ``batches`` through torch and through the ONNX file at ``path`` and compare, in float32 on the CPU.

    Args:
        model: compared in evaluation mode; a copy is used and the model stays as it was.
        batches: an iterable of inputs (a tensor, a tuple of tensors, or a dict of keyword tensors), each
            alone or as ``(inputs, labels)``; labels are ignored.
        tolerance: largest ``max_rel_diff`` accepted.

    Raises:
        SettingError: ``tolerance`` is not a positive number.
        CalibrationError: ``batches`` is empty.
        ExportError: the file is missing or damaged, does not run on a batch, gives a value that is not
            finite, or differs by more than ``tolerance``.
    """
    check_tolerance(tolerance)
    return compare(cpu_copy(model), Path(path), batches, tolerance)


def check_tolerance(tolerance: float) -> None:
    """SettingError unless ``tolerance`` is a positive number."""
    if not isinstance(tolerance, int | float) or not 0 < tolerance < math.inf:
        raise SettingError(f"tolerance is {tolerance!r}; it must be a positive number, e.g. 1e-4.")


def cpu_copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32 and evaluation mode.

    Always a copy: tracing swaps parameters for a moment, and another thread may be using the model.

    Raises:
        ExportError: it is not a module, does not fit into one ONNX file, or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise ExportError(f"model is a {type(model).__name__}; give the torch.nn.Module itself.")
    values = [*model.parameters(), *model.buffers()]
    size = sum(v.numel() * (4 if v.is_floating_point() else v.element_size()) for v in values)
    if size > _PROTOBUF_LIMIT:
        raise ExportError(
            f"The weights take {size / 2**30:.1f} GiB; one ONNX file holds 2. Prune the model further."
        )
    try:
        return copy.deepcopy(model).cpu().float().eval()
    except Exception as error:
        raise ExportError(
            f"The model cannot be copied to the CPU: {reason(error)}. "
            "Clear what it kept from earlier forward calls."
        ) from error


def plain(tensor: Tensor) -> Tensor:
    """The tensor on the CPU; floating point becomes float32."""
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor


def open_session(
    path: str | os.PathLike[str], *, threads: int = 1, deterministic: bool = False
) -> onnxruntime.InferenceSession:
    """Load an ONNX file for the CPU with ``threads`` intra-op threads; ExportError if missing or damaged."""
    if not Path(path).is_file():
        raise ExportError(f"There is no ONNX file at {path}. Export the model first.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = deterministic
    options.log_severity_level = 3  # errors only: warnings would reach the terminal past Python's streams
    # Idle threads of one session would otherwise keep spinning and slow the next session down.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as error:
        raise ExportError(
            f"{path} is not an ONNX file that onnxruntime can load: {reason(error)}. Export the model again."
        ) from error


def session_batch(session: onnxruntime.InferenceSession, given: object) -> tuple[Batch, dict[str, object]]:
    """One batch as arguments for torch and as named arrays for ``session``, which says how many inputs
    there are; what comes after them, such as labels, is left out. ExportError if it does not fit."""
    names = [entry.name for entry in session.get_inputs()]
    if isinstance(given, list | tuple) and given and not isinstance(given[0], Tensor):
        given = given[0]  # ((a, b), labels) or ({...}, labels)
    if isinstance(given, Batch):
        given = given.keywords or given.inputs
    if isinstance(given, Mapping):
        named = {name: given[name] for name in names if name in given}
    else:
        values = [given] if isinstance(given, Tensor) else given if isinstance(given, list | tuple) else ()
        named = dict(zip(names, values, strict=False))
    if len(named) < len(names) or not all(
        isinstance(value, Tensor) and value.ndim for value in named.values()
    ):
        raise ExportError(
            f"A {type(given).__name__} does not fit the ONNX file, which reads {listing(names)}; give a tensor, "
            "a tuple of tensors or a dict with these names, alone or as (inputs, labels)."
        )
    tensors = {name: plain(value) for name, value in named.items()}
    batch = Batch((), tensors) if isinstance(given, Mapping) else Batch(tuple(tensors.values()), {})
    return batch, {name: value.numpy() for name, value in tensors.items()}


def leaves(value: object) -> list[Tensor]:
    """The tensors in a model's output, in order; tuples, lists and dicts may be nested."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [leaf for item in inner for leaf in leaves(item)]


def compare(model: nn.Module, path: Path, batches: Iterable[object], tolerance: float) -> Parity:
    """`check_parity` on a model that is ready: on the CPU, in float32 and evaluation mode."""
    session = open_session(path, deterministic=True)
    scores: list[tuple[float, float]] = []  # per output: largest difference, largest value
    examples = agreed = 0
    classes = True
    for given in batches:
        batch, feed = session_batch(session, given)
        try:
            found = [torch.from_numpy(value).double() for value in session.run(None, feed)]
            with torch.no_grad():
                expected = [value.double() for value in leaves(model(*batch.inputs, **batch.keywords))]
        except Exception as error:
            raise ExportError(
                f"A batch of {len(batch)} does not run: {reason(error)}. Give batches like the example inputs."
            ) from error
        shapes, wanted = [tuple(v.shape) for v in found], [tuple(v.shape) for v in expected]
        if shapes != wanted:
            raise ExportError(
                f"onnxruntime gives outputs of shape {shapes}, torch {wanted}. Do not use this file."
            )
        for engine, outputs in (("torch", expected), ("onnxruntime", found)):
            if not all(bool(value.isfinite().all()) for value in outputs):
                raise ExportError(
                    f"The output of {engine} has NaN or infinity. Check the inputs and the weights."
                )
        if not len(batch):
            continue
        now = [
            (float((f - e).abs().max()), float(e.abs().max())) for f, e in zip(found, expected, strict=True)
        ]
        scores = [(max(a, c), max(b, d)) for (a, b), (c, d) in zip(scores or now, now, strict=True)]
        examples += len(batch)
        classes = classes and found[0].ndim == 2 and found[0].shape[1] > 1
        agreed += int((found[0].argmax(1) == expected[0].argmax(1)).sum()) if classes else 0
    if not examples:
        raise CalibrationError(
            "The batches for the parity hold no example; give at least one batch of one example."
        )
    absolute = max(difference for difference, _ in scores)
    relative = max(d / largest if largest else math.inf if d else 0.0 for d, largest in scores)
    agreement = agreed / examples if classes else None
    if relative > tolerance:
        classified = "" if agreement is None else f", top-1 agreement {agreement:.4f}"
        raise ExportError(
            f"onnxruntime and torch disagree over {examples} examples: largest absolute difference "
            f"{absolute:.3g}, relative {relative:.3g}, accepted {tolerance:g}{classified}. "
            "Do not use this file; report the model."
        )
    return Parity(absolute, relative, agreement, examples)


def reason(error: BaseException) -> str:
    """The first line of the first cause, without terminal colours and without its closing full stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(getattr(error, "strerror", None) or error)).strip()
    return text.splitlines()[0].rstrip(".: ") if text else type(error).__name__

"""Export a model to one self-contained ONNX file, and prove that onnxruntime computes what torch computes."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from ispasp.calibration import Batch
from ispasp.errors import ExportError, SettingError, listing
from ispasp.graph import exclusive
from ispasp.parity import Parity, check_parity, check_tolerance, compare, cpu_copy, leaves, plain, reason

__all__ = ["Inputs", "OnnxReport", "Parity", "check_parity", "export_onnx"]

Inputs = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]


@dataclass(frozen=True)
class OnnxReport:
    """The file that was written, and how far it is from torch.

    Attributes:
        path: the file.
        bytes: its size.
        opset: version of the standard ONNX operator set that it needs.
        seconds: wall time of export, check and parity together.
        max_abs_diff, max_rel_diff, top1_agreement, examples: as in `Parity`.
    """

    path: str
    bytes: int
    opset: int
    seconds: float
    max_abs_diff: float
    max_rel_diff: float
    top1_agreement: float | None
    examples: int

    def as_dict(self) -> dict[str, object]:
        """All fields, ready for JSON."""
        return asdict(self)


def export_onnx(
    model: nn.Module,
    example_inputs: Inputs,
    path: str | os.PathLike[str],
    *,
    batches: Iterable[object] | None = None,
    tolerance: float = 1e-4,
) -> OnnxReport:
    """Write ``model`` in evaluation mode and float32 as ONNX with a dynamic batch axis, and check it.

    A copy is exported: the caller's model stays on its device, with its weights and training flags. The
    file appears under ``path`` only after ``onnx.checker`` accepted it and the parity held; a file that
    was there before stays until then. Takes seconds; a process exports one model at a time.

    Args:
        model: any module that torch.export can trace.
        example_inputs: a tensor, a tuple of positional tensors, or a dict of keyword tensors. The first
            axis of each is the batch; the others are fixed to the sizes seen here. A single positional
            tensor becomes the input ``input``, several take the names of forward's parameters; a single
            output becomes ``logits``.
        path: ends in ``.onnx``; its folder exists.
        batches: inputs for the parity, as in `check_parity`. Default: the example inputs, and the same
            with the first example once more at the end, which is another batch size.
        tolerance: largest ``max_rel_diff`` accepted.

    Raises:
        SettingError: ``path`` does not end in ``.onnx``, or ``tolerance`` is not a positive number.
        CalibrationError: ``batches`` is empty.
        ExportError: the folder is missing or not writable, the model cannot be exported, or the file does
            not load or does not agree with torch.
    """
    begin = time.perf_counter()
    check_tolerance(tolerance)
    if not isinstance(path, str | os.PathLike) or Path(path).suffix.lower() != ".onnx":
        raise SettingError(f"path is {str(path)!r}; the file name must end in .onnx, e.g. model.onnx.")
    target = Path(path)
    ready = cpu_copy(model)
    example = _example(ready, example_inputs)
    names, outputs = _names(ready, example)
    with _reserved(target) as part:
        proto = _proto(ready, example, names, outputs)
        try:
            part.write_bytes(proto.SerializeToString())
        except OSError as error:
            raise ExportError(
                f"{target} cannot be written: {reason(error)}. Choose another folder."
            ) from error
        try:
            onnx.checker.check_model(str(part), full_check=True)
        except Exception as error:
            raise ExportError(
                f"The exported file is not valid ONNX: {reason(error)}. Report the model."
            ) from error
        parity = compare(ready, part, [example, _longer(example)] if batches is None else batches, tolerance)
        size = part.stat().st_size
    return OnnxReport(
        path=str(target),
        bytes=size,
        opset=next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")),
        seconds=time.perf_counter() - begin,
        **asdict(parity),
    )


def _example(model: nn.Module, given: Inputs) -> Batch:
    """The example inputs, checked; keywords in the order of forward's parameters, so that the file's
    inputs have that order too and positional batches fit both."""
    keywords = dict(given) if isinstance(given, Mapping) else {}
    positional = (
        [given] if isinstance(given, Tensor) else list(given) if isinstance(given, list | tuple) else []
    )
    values = [*positional, *keywords.values()]
    if not values or not all(isinstance(value, Tensor) and value.ndim for value in values):
        raise ExportError(
            f"example_inputs is a {type(given).__name__}; give a tensor, a tuple of tensors or a dict of "
            "tensors, each with the batch as its first axis."
        )
    sizes = {value.shape[0] for value in values}
    if len(sizes) > 1 or 0 in sizes:
        raise ExportError(
            f"example_inputs have batch sizes {listing(sorted(sizes))}; give one size of 1 or more."
        )
    order = list(inspect.signature(model.forward).parameters)
    names = sorted(keywords, key=lambda name: order.index(name) if name in order else len(order))
    return Batch(tuple(plain(value) for value in positional), {name: plain(keywords[name]) for name in names})


def _longer(batch: Batch) -> Batch:
    """The batch with its first example once more at the end."""

    def longer(value: Tensor) -> Tensor:
        return torch.cat([value, value[:1]])

    return Batch(
        tuple(map(longer, batch.inputs)), {name: longer(value) for name, value in batch.keywords.items()}
    )


def _names(model: nn.Module, example: Batch) -> tuple[list[str], list[str]]:
    """Names of inputs and outputs. Runs the model, so that a wrong example fails before the slow export."""
    try:
        with torch.no_grad():
            outputs = leaves(model(*example.inputs, **example.keywords))
    except Exception as error:
        shapes = listing(tuple(value.shape) for value in example.tensors)
        raise ExportError(
            f"The model does not run on example_inputs of shape {shapes}: {reason(error)}. "
            "Give inputs that fit it."
        ) from error
    if not outputs:
        raise ExportError("The model returns no tensor; export needs at least one output tensor.")
    parameters = inspect.signature(model.forward).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    count = len(example.inputs)
    names = known[:count] if len(known) >= count else [f"input_{i}" for i in range(count)]
    if count == 1 and not example.keywords:
        names = ["input"]
    return [*names, *example.keywords], ["logits"] if len(outputs) == 1 else []


@contextlib.contextmanager
def _reserved(target: Path) -> Iterator[Path]:
    """A temporary file next to ``target`` that takes its place on success and is gone on failure.

    It is created before the slow export: the one sure test that the folder can be written.
    """
    if target.is_dir():
        raise ExportError(f"{target} is a folder; give the name of a file in it.")
    part = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.open("xb").close()
    except OSError as error:
        raise ExportError(
            f"The folder {target.parent} cannot be written: {reason(error)}. Create it, or choose another."
        ) from error
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _proto(model: nn.Module, example: Batch, names: list[str], outputs: list[str]) -> onnx.ModelProto:
    if len(example) == 1:
        example = _longer(example)  # attention traced with one example is fixed to one
    axes = {0: "batch"}
    try:
        with exclusive(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            program = torch.onnx.export(
                model,
                example.inputs,
                kwargs=example.keywords,
                input_names=names,
                output_names=outputs or None,
                dynamic_shapes=dict.fromkeys(example.keywords, axes) or tuple(axes for _ in example.inputs),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            assert program is not None  # it is only for the older exporter
            proto = program.model_proto
    except Exception as error:
        raise ExportError(
            f"The model cannot be exported to ONNX: {reason(error)}. Rewrite that part of forward with tensor "
            "operations that depend neither on the values nor on one batch size."
        ) from error
    graph = proto.graph
    for part in (
        proto,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.initializer,
        *graph.input,
        *graph.output,
    ):
        del part.metadata_props[:]  # the exporter's debug notes: source lines, with paths of this machine
    return proto

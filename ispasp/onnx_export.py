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

from ispasp import quiet
from ispasp.calibration import Batch
from ispasp.errors import ExportError, SettingError, listing
from ispasp.graph import exclusive
from ispasp.parity import Parity, check_parity, check_tolerance, compare, cpu_copy, leaves, plain, reason

__all__ = ["OPSETS", "Inputs", "OnnxReport", "Parity", "check_opset", "check_parity", "export_onnx"]

Inputs = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]

OPSETS = range(18, 24)
"""What can be asked for: the exporter writes 18, and fails to convert it to less; onnxruntime 1.23 reads up to 23."""


@dataclass(frozen=True)
class OnnxReport:
    """The file that was written, and how far it is from torch.

    Attributes:
        path: the file.
        bytes: its size.
        opset: version of the standard ONNX operator set that it needs.
        seconds: wall time of export, check and parity together.
        max_abs_diff, max_rel_diff, top1_agreement, examples: as in `Parity`.
        note: a sentence about what was asked for and could not be had; else empty.
    """

    path: str
    bytes: int
    opset: int
    seconds: float
    max_abs_diff: float
    max_rel_diff: float
    top1_agreement: float | None
    examples: int
    note: str = ""

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
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
    dynamic_length: bool = False,
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
        opset: version of the standard operator set to write, one of ``OPSETS``; None for the exporter's own choice.
        metadata: written into the file, by name.
        dynamic_length: whether token inputs, integers (N, length) of one length, may have any length in the
            file. Where that cannot be had, the length is fixed and the report's ``note`` says so.

    Raises:
        SettingError: ``path`` does not end in ``.onnx``, ``tolerance`` is not a positive number, or ``opset`` is
            none that can be written.
        CalibrationError: ``batches`` is empty.
        ExportError: the folder is missing or not writable, the model cannot be exported, or the file does
            not load or does not agree with torch.
    """
    begin = time.perf_counter()
    check_tolerance(tolerance)
    check_opset(opset)
    if not isinstance(path, str | os.PathLike) or Path(path).suffix.lower() != ".onnx":
        raise SettingError(f"path is {str(path)!r}; the file name must end in .onnx, e.g. model.onnx.")
    target = Path(path)
    ready = cpu_copy(model)
    example = _example(ready, example_inputs)
    names, outputs = _names(ready, example)
    length = _length(example) if dynamic_length else 0
    note = ""
    with reserved(target) as part:
        try:
            proto = _proto(ready, example, names, outputs, length, opset)
            _write(proto, metadata or {}, part, target)
            if length:
                compare(ready, part, [_shorter(example, length // 2)], tolerance)
        except ExportError as error:
            if not length:
                raise
            note = f"The file reads texts of {length} tokens only; another length cannot be exported: {error}"
            proto = _proto(ready, example, names, outputs, 0, opset)
            _write(proto, metadata or {}, part, target)
        parity = compare(ready, part, [example, _longer(example)] if batches is None else batches, tolerance)
        size = part.stat().st_size
    return OnnxReport(
        path=str(target),
        bytes=size,
        opset=opset_of(proto),
        seconds=time.perf_counter() - begin,
        note=note,
        **asdict(parity),
    )


def check_opset(opset: int | None) -> None:
    """SettingError unless ``opset`` is None or one of ``OPSETS``."""
    if opset is not None and (isinstance(opset, bool) or not isinstance(opset, int) or opset not in OPSETS):
        raise SettingError(
            f"opset is {opset!r}; give a whole number from {OPSETS[0]} to {OPSETS[-1]}, or none at all."
        )


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of the standard operator set that a model needs."""
    return next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


def _write(proto: onnx.ModelProto, metadata: Mapping[str, str], part: Path, target: Path) -> None:
    onnx.helper.set_model_props(proto, dict(metadata))
    try:
        part.write_bytes(proto.SerializeToString())
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {reason(error)}. Choose another folder.") from error
    try:
        onnx.checker.check_model(str(part), full_check=True)
    except Exception as error:
        raise ExportError(
            f"The exported file is not valid ONNX: {reason(error)}. Report the model."
        ) from error


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


def _is_tokens(value: Tensor) -> bool:
    """Whether an input has a number for each token of a text."""
    return value.ndim == 2 and not value.is_floating_point()


def _length(example: Batch) -> int:
    """How many tokens the texts have; 0 where there are none, or so few that tracing takes their number for fixed."""
    lengths = {value.shape[1] for value in example.tensors if _is_tokens(value)}
    return length if len(lengths) == 1 and (length := lengths.pop()) > 1 else 0


def _shorter(batch: Batch, length: int) -> Batch:
    """The batch with the first ``length`` tokens of every text."""

    def shorter(value: Tensor) -> Tensor:
        return value[:, :length] if _is_tokens(value) else value

    return Batch(
        tuple(map(shorter, batch.inputs)), {name: shorter(value) for name, value in batch.keywords.items()}
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
def reserved(target: Path) -> Iterator[Path]:
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


def _proto(
    model: nn.Module, example: Batch, names: list[str], outputs: list[str], length: int, opset: int | None
) -> onnx.ModelProto:
    if len(example) == 1:
        example = _longer(example)  # attention traced with one example is fixed to one

    def axes(value: Tensor) -> dict[int, str]:
        return {0: "batch", 1: "length"} if length and _is_tokens(value) else {0: "batch"}

    quiet_output = contextlib.redirect_stdout(io.StringIO())
    try:
        with exclusive(), quiet.libraries(), quiet_output, torch.no_grad():
            program = torch.onnx.export(
                model,
                example.inputs,
                kwargs=example.keywords,
                input_names=names,
                output_names=outputs or None,
                dynamic_shapes={name: axes(value) for name, value in example.keywords.items()}
                or tuple(map(axes, example.inputs)),
                opset_version=opset,
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
    if opset not in (None, opset_of(proto)):
        raise ExportError(
            f"The model cannot be written in opset {opset}, only in {opset_of(proto)}. Ask for that one, or none."
        )
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

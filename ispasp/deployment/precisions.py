"""An ONNX file in another precision, by onnxruntime's own tools.

What these tools do with the exporter's graphs, as tried with onnxruntime 1.23 and 1.32; remarks on speed are rough,
from 1.32 on one x86 processor:

- ``fp16``: half the size, not faster there: kernels that lack it compute in float32 between two casts.
- ``int8-dynamic``: weights in 8 bits, scales of the activations found in each call. Matrix products (MatMul, Gemm) and
  embeddings (Gather) only: with ``ConvInteger``, which a convolution would become, the sample networks took about ten
  times as long as in float32.
- ``int8-static``: weights and activations in 8 bits, scales of the activations from the calibration data, as pairs of
  QuantizeLinear and DequantizeLinear that onnxruntime fuses with what lies between. Activations without sign: with
  sign, convolutions took several times as long. Sums in 16 bits can saturate on x86 processors without VNNI, so that
  parity should be measured where the file will run. Networks with layer normalization keep all but products,
  convolutions and embeddings in float: the additive mask of attention, of the size of the largest float, would take
  every step of its scale (agreement on the sample BERT 0.30 with all operators, 0.99 with these).

Weights have a scale per output channel. ``quant_pre_process`` is not called: the exporter has folded constants and
batch norms already, and it changed neither operators nor agreement.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from ispasp import quiet
from ispasp.errors import ExportError, SettingError, listing
from ispasp.onnx_export import reserved
from ispasp.parity import open_session, reason

PRECISIONS = ("fp32", "fp16", "int8-dynamic", "int8-static")
SIDES = ("dense", "pruned")
PRECISION_KEY = "ispasp.precision"  # of a file's metadata

_PRODUCTS = ["MatMul", "Gemm", "Gather"]
_INT8 = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)

Feed = dict[str, object]
"""One array for each input, by its name."""


@dataclass(frozen=True)
class Variant:
    """A model in some precision.

    Attributes:
        side: one of ``SIDES``.
        precision: one of ``PRECISIONS``.
        path: the file, from the run's folder on; empty where it could not be made.
        bytes: its size; 0 without a file.
        opset: version of the standard ONNX operator set that it needs; 0 without a file.
        problem: why there is no file; empty where there is one.
        parity: a ``ParityReport`` in plain values; None without a file.
    """

    side: str
    precision: str
    path: str = ""
    bytes: int = 0
    opset: int = 0
    problem: str = ""
    parity: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def file_name(side: str, precision: str) -> str:
    """``"model.onnx"`` for the pruned model in FP32, ``"dense-int8-static.onnx"``, ...

    Raises:
        SettingError: there is no such side or precision.
    """
    for what, value, known in (("side", side, SIDES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise SettingError(f"Unknown {what} {value!r}; choose one of {listing(known)}.")
    stem = "dense" if side == "dense" else "model"
    return f"{stem}.onnx" if precision == "fp32" else f"{stem}-{precision}.onnx"


def convert(source: Path, target: Path, precision: str, feeds: Iterable[Feed] = ()) -> None:
    """Write the FP32 file ``source`` in another precision to ``target``; inputs and outputs keep their types.

    Takes seconds; ``target`` appears when ``onnx.checker`` and onnxruntime accept it. The metadata stays, but for
    the precision.

    Args:
        source: as ``export_onnx`` writes it.
        target: in a folder that exists.
        precision: one of ``PRECISIONS`` but ``"fp32"``.
        feeds: batches of inputs by name, for ``"int8-static"``; what it raises is passed on.

    Raises:
        SettingError: there is no such precision.
        ExportError: it cannot be converted, or ``target`` cannot be written.
    """
    if precision not in PRECISIONS[1:]:
        raise SettingError(
            f"{precision!r} is no precision to convert to; choose one of {listing(PRECISIONS[1:])}."
        )
    # Its own warnings would reach the terminal past Python's streams.
    onnxruntime.set_default_logger_severity(3)
    with reserved(target) as part, quiet.libraries():
        given = _Feeds(feeds)
        try:
            proto = onnx.load(source)
            inputs = _types(proto)
            # Weights are described there as well, which fails when the tools transpose them (onnxruntime 1.23).
            del proto.graph.value_info[:]
            proto = _half(proto) if precision == "fp16" else _quantized(proto, part, precision, given)
        except Exception as error:
            if given.error is not None:
                raise given.error from error
            raise ExportError(
                f"The model cannot be converted to {precision}: {reason(error)}. Use another precision."
            ) from error
        if precision != "fp16" and not any(value.data_type in _INT8 for value in proto.graph.initializer):
            what = "matrix product with fixed weights" if precision == "int8-dynamic" else "layer"
            raise ExportError(
                f"The model has no {what} that {precision} could quantize. Use another precision."
            )
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        onnx.helper.set_model_props(proto, metadata | {PRECISION_KEY: precision})
        try:
            part.write_bytes(proto.SerializeToString())
            onnx.checker.check_model(str(part), full_check=True)
        except Exception as error:
            raise ExportError(
                f"The model in {precision} is not valid ONNX: {reason(error)}. Use another precision."
            ) from error
        _opens_elsewhere(part, precision)
        open_session(part)
        if _types(proto) != inputs:
            raise ExportError(
                f"The model in {precision} reads or gives other types than in FP32. Use another precision."
            )


def _opens_elsewhere(path: Path, precision: str) -> None:
    """Open the file in a process of its own first: a vision transformer in half precision ends the whole process
    (onnxruntime 1.32, in its NchwcTransformer).

    Raises:
        ExportError: that process did not survive it.
    """
    opening = (
        "import sys, onnxruntime as ort; ort.set_default_logger_severity(4); "
        "ort.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", opening, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if done.returncode < 0 or done.returncode > 255:  # a signal; on Windows an exception code
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} crashes when it opens the model in {precision} on the CPU, here "
            "and wherever else that is done. Use another precision, or another version of onnxruntime."
        )


def _half(proto: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = OnnxModel(convert_float_to_float16(proto, keep_io_types=True))
    model.topological_sort()  # the casts of the inputs stand last, which the checker refuses
    return model.model


def _quantized(proto: onnx.ModelProto, file: Path, precision: str, feeds: _Feeds) -> onnx.ModelProto:
    """In 8 bits, by way of ``file``."""
    # Imported late: these take a second, which nothing but a conversion needs.
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    if precision == "int8-dynamic":
        quantize_dynamic(
            proto, file, op_types_to_quantize=_PRODUCTS, per_channel=True, weight_type=QuantType.QInt8
        )
    else:
        normalized = any(node.op_type == "LayerNormalization" for node in proto.graph.node)
        quantize_static(
            proto,
            file,
            feeds,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_PRODUCTS, "Conv"] if normalized else None,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return onnx.load(file)


class _Feeds:
    """Batches, one after another, as onnxruntime's calibration asks for them (a ``CalibrationDataReader``).

    Attributes:
        error: what ``feeds`` raised; the calibration might wrap it.
    """

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self.left: Iterator[Feed] = iter(feeds)
        self.error: BaseException | None = None

    def get_next(self) -> Feed | None:
        try:
            return next(self.left, None)
        except BaseException as error:
            self.error = error
            raise


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    """The element type of every input and output."""
    return {
        value.name: value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)
    }

"""How long each layer takes at each width: measured in onnxruntime, one tiny model per layer and width.

Kernels are built for certain widths, so that time does not fall in proportion to the multiply-adds; a table knows
what a formula cannot (as in NetAdapt, Yang et al., ECCV 2018). What a call takes that computes nothing is measured
beside it and taken off. Operations between the layers are part of no entry: they make up the rest of the model, which
is taken to cost the same at any width.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import fx

from ispasp import allocation, plain_files
from ispasp.allocation import Costly, Layer, Shares
from ispasp.graph import CONSUMERS, CONVOLUTIONS, Traced
from ispasp.layouts import shape_of
from ispasp.parity import PROVIDER, open_session, session_batch
from ispasp.records import Block, Progress

FOLDER = ".latency"  # in the runs folder
FORMAT = 1
MOST_WIDTHS = 5  # measured per block; between two of them time is taken to be straight
SECONDS = 0.15  # of timed calls per width
LEAST_ROUNDS = 7
OPSET = 17
LEAST_SHARE = 0.05  # of a layer's call is its own, whatever a call takes that computes nothing


@dataclass(frozen=True)
class Operation:
    """One convolution or linear layer as it meets one example.

    Attributes:
        kind: ``"conv"``, ``"depthwise"`` or ``"linear"``.
        inputs, outputs: features at full width.
        size: (height, width) of what a convolution reads; (rows,) of a linear layer's input.
        kernel, strides, pads, dilations: of a convolution, as in ONNX.
    """

    kind: str
    inputs: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()

    def key(self, inputs: int, outputs: int) -> str:
        """What is measured, in words; equal for what takes equally long."""
        words = [self.kind, f"{inputs} to {outputs}", f"size {'x'.join(map(str, self.size))}"]
        for name in ("kernel", "strides", "pads", "dilations"):
            if values := getattr(self, name):
                words.append(f"{name} {'x'.join(map(str, values))}")
        return ", ".join(words)

    def proto(self, inputs: int, outputs: int) -> bytes:
        """An ONNX model of this layer alone, with random weights, for a batch of one."""
        generator = np.random.default_rng(0)

        def constant(name: str, *shape: int) -> TensorProto:
            return numpy_helper.from_array(generator.standard_normal(shape, dtype=np.float32), name)

        bias = constant("bias", outputs)
        if self.kind == "linear":
            rows = self.size[0]
            shape = [1, inputs] if rows == 1 else [1, rows, inputs]
            weight = constant("weight", inputs, outputs)
            if rows == 1:
                nodes = [helper.make_node("Gemm", ["input", "weight", "bias"], ["output"])]
            else:
                nodes = [
                    helper.make_node("MatMul", ["input", "weight"], ["product"]),
                    helper.make_node("Add", ["product", "bias"], ["output"]),
                ]
        else:
            shape = [1, inputs, *self.size]
            groups = outputs if self.kind == "depthwise" else 1
            weight = constant("weight", outputs, inputs // groups, *self.kernel)
            nodes = [
                helper.make_node(
                    "Conv",
                    ["input", "weight", "bias"],
                    ["output"],
                    kernel_shape=self.kernel,
                    strides=self.strides,
                    pads=self.pads,
                    dilations=self.dilations,
                    group=groups,
                )
            ]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "layer",
            [value("input", TensorProto.FLOAT, shape)],
            [value("output", TensorProto.FLOAT, None)],
            [weight, bias],
        )
        return _whole(graph)


@dataclass(frozen=True)
class Narrowed:
    """A layer that blocks narrow: what it does, and the block behind its outputs and its inputs, see ``Costly``."""

    operation: Operation
    produces: int | None
    consumes: int | None


@dataclass(frozen=True)
class TimedLayer:
    """A layer's time in milliseconds over the kept shares of the blocks that narrow it.

    Attributes:
        produces, consumes: as in ``Costly``.
        produced, consumed: rising shares at which it was measured; (1,) where there is no block.
        milliseconds: (len(produced), len(consumed)).
    """

    produces: int | None
    consumes: int | None
    produced: Shares
    consumed: Shares
    milliseconds: NDArray[np.float64]

    def at(self, produced: Shares, consumed: Shares) -> Shares:
        """Straight between what was measured, in both directions; at the ends, what was measured there."""
        times = np.pad(self.milliseconds, (0, 1), mode="edge")  # so that every place has a next one
        (row, down), (column, along) = _between(self.produced, produced), _between(self.consumed, consumed)
        upper = times[row, column] * (1 - along) + times[row, column + 1] * along
        lower = times[row + 1, column] * (1 - along) + times[row + 1, column + 1] * along
        result: Shares = upper * (1 - down) + lower * down
        return result


def _between(grid: Shares, at: Shares) -> tuple[NDArray[np.int64], Shares]:
    """The place in ``grid`` just below each value, and how far it is to the next, in [0, 1]."""
    place = np.interp(at, grid, np.arange(len(grid)))
    low = np.floor(place).astype(np.int64)
    return low, place - low


def narrowed(traced: Traced, blocks: Sequence[Block]) -> list[Narrowed]:
    """Every convolution and linear layer that some block narrows, in the order in which they run."""
    produced, consumed = allocation.owners(blocks)
    found = []
    for node in traced.nodes:
        weight = node.args[1] if node.target in CONSUMERS else None
        if not isinstance(weight, fx.Node) or weight not in traced.fixed:
            continue
        name = str(weight.target).rpartition(".")[0]
        if name in produced or name in consumed:
            operation = _operation(node, traced, traced.fixed[weight])
            found.append(Narrowed(operation, produced.get(name), consumed.get(name)))
    return found


def _operation(node: fx.Node, traced: Traced, weight: torch.Tensor) -> Operation:
    outputs, inputs = weight.shape[:2]
    if node.target not in CONVOLUTIONS:
        return Operation("linear", inputs, outputs, (traced.per_example(node) // outputs,))
    _, _, _, stride, padding, dilation, groups, *_ = (*node.args, *(None,) * 7)[:7]
    kernel = tuple(weight.shape[2:])
    strides, dilations = _pair(stride, 1), _pair(dilation, 1)
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilations, strict=True)]
        first = [size // 2 for size in total]
        pads = (*first, *(size - begin for size, begin in zip(total, first, strict=True)))
    else:
        pads = _pair(padding, 0) * 2
    source = node.args[0]
    assert isinstance(source, fx.Node)
    size = tuple(int(length) for length in shape_of(source)[2:])
    depthwise = isinstance(groups, int) and groups > 1
    kind = "depthwise" if depthwise else "conv"
    return Operation(kind, outputs if depthwise else inputs, outputs, size, kernel, strides, pads, dilations)


def _pair(value: object, default: int) -> tuple[int, int]:
    if isinstance(value, (list, tuple)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value)) if isinstance(value, int) else (default, default)


def measure(
    traced: Traced,
    blocks: Sequence[Block],
    multiple: int,
    dense: Path,
    inputs: object,
    runs_folder: Path,
    threads: int = 1,
) -> Generator[Progress, None, list[Costly]]:
    """The whole model's time as parts for ``allocation.solve``, in milliseconds per example at batch 1.

    What was measured before with as many threads, the same onnxruntime and the same processor is read from
    ``runs_folder/.latency``; what is measured now is added to it, layer by layer, so that a cancelled measurement goes
    on where it stopped. The last part is fixed: what the dense model takes beyond the sum of its layers, at least 0.

    Args:
        traced: the dense model.
        blocks: what may be pruned, in network order.
        multiple: as in pruning.
        dense: the dense model as an ONNX file.
        inputs: one example for it.
        runs_folder: where runs are kept.
        threads: intra-operation threads of onnxruntime.

    Raises:
        RunError: the table cannot be written.
        ExportError: the dense file does not run on ``inputs``.
    """
    path = runs_folder / FOLDER / f"{_place(threads)}.json"
    known = _read(path, threads)
    counts = [_some(each) for each in allocation.choices(blocks, multiple)]
    found: list[Costly] = []
    layers = narrowed(traced, blocks)
    for number, layer in enumerate(layers):
        operation = layer.operation
        now = Progress(
            number / (len(layers) + 1), f"measuring how long layer {number + 1} of {len(layers)} takes"
        )
        yield now
        produced, consumed = (
            np.ones(1) if index is None else np.array(counts[index]) / blocks[index].groups
            for index in (layer.produces, layer.consumes)
        )
        widths = [[_widths(operation, float(p), float(c)) for c in consumed] for p in produced]
        missing = sorted({pair for row in widths for pair in row if operation.key(*pair) not in known})
        if missing:
            for step in _timed([_nothing(), *(operation.proto(*pair) for pair in missing)], threads):
                if step is None:
                    yield now
                    continue
                call, *times = step
                for pair, time_of in zip(missing, times, strict=True):
                    known[operation.key(*pair)] = max(time_of - call, LEAST_SHARE * time_of)
            plain_files.write_json(path, _header(threads) | {"milliseconds": known})
        table = np.array([[known[operation.key(*pair)] for pair in row] for row in widths])
        found.append(TimedLayer(layer.produces, layer.consumes, produced, consumed, table))
    yield Progress(len(layers) / (len(layers) + 1), "measuring how long the dense model takes")
    whole = _dense(dense, inputs, threads)
    rest = whole - allocation.cost(found, blocks, [block.groups for block in blocks])
    return [*found, Layer(max(0.0, rest), None, None)]


def _some(counts: Sequence[int]) -> tuple[int, ...]:
    """At most ``MOST_WIDTHS`` of rising counts, evenly spaced, the first and the last among them."""
    if len(counts) <= MOST_WIDTHS:
        return tuple(counts)
    return tuple(counts[round(at)] for at in np.linspace(0, len(counts) - 1, MOST_WIDTHS))


def _widths(operation: Operation, produced: float, consumed: float) -> tuple[int, int]:
    """Inputs and outputs at the kept shares."""
    outputs = round(operation.outputs * produced)
    return (outputs if operation.kind == "depthwise" else round(operation.inputs * consumed)), outputs


def _nothing() -> bytes:
    """An ONNX model that does nothing."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["output"])],
        "nothing",
        [value("input", TensorProto.FLOAT, [1, 1])],
        [value("output", TensorProto.FLOAT, [1, 1])],
    )
    return _whole(graph)


def _whole(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 8
    return onnx.shape_inference.infer_shapes(model).SerializeToString()


def _timed(protos: Sequence[bytes], threads: int) -> Iterator[list[float] | None]:
    """The median milliseconds of a call of each model, called in turns; None while it goes on."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    sessions = []
    for proto in protos:
        session = onnxruntime.InferenceSession(proto, options, providers=[PROVIDER])
        shape = session.get_inputs()[0].shape
        feed = {"input": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
        sessions.append((session, feed))
        session.run(None, feed)
        yield None
    times: list[list[float]] = [[] for _ in sessions]
    begun = time.perf_counter()
    told = begun
    while len(times[0]) < LEAST_ROUNDS or time.perf_counter() - begun < SECONDS * len(sessions):
        for own, (session, feed) in zip(times, sessions, strict=True):
            own.append(_call(session, feed))
        if time.perf_counter() - told > 0.05:
            told = time.perf_counter()
            yield None
    yield [statistics.median(own) for own in times]


def _call(session: Any, feed: dict[str, Any]) -> float:
    """Milliseconds of one call."""
    begin = time.perf_counter_ns()
    session.run(None, feed)
    return (time.perf_counter_ns() - begin) / 1e6


def _dense(path: Path, inputs: object, threads: int) -> float:
    """The median milliseconds of a call of the dense model, over half a second at least."""
    session = open_session(path, threads=threads)
    _, feed = session_batch(session, inputs)
    session.run(None, feed)
    times: list[float] = []
    while len(times) < LEAST_ROUNDS or sum(times) < 500:
        times.append(_call(session, feed))
    return statistics.median(times)


def device_name() -> str:
    """The processor, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _header(threads: int) -> dict[str, Any]:
    """What times hold for."""
    return {
        "format": FORMAT,
        "device": device_name(),
        "onnxruntime": onnxruntime.__version__,
        "threads": threads,
    }


def _place(threads: int) -> str:
    return hashlib.sha256(json.dumps(_header(threads), sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path, threads: int) -> dict[str, float]:
    """What is on disk; nothing where there is no table, or a damaged one."""
    plain = plain_files.read_json(path)
    if not isinstance(plain, dict) or {**plain, "milliseconds": 0} != {**_header(threads), "milliseconds": 0}:
        return {}
    times = plain.get("milliseconds")
    if not isinstance(times, dict):
        return {}
    return {key: float(ms) for key, ms in times.items() if plain_files.is_number(ms) and 0 < ms < 1e9}

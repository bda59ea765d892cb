"""The most multiply-adds per second that onnxruntime reaches on this machine: a large product of matrices."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ispasp.parity import PROVIDER
from ispasp.records import Progress

SIZE = 1024  # rows and columns of both matrices: large enough that only the products count
SECONDS = 0.5
LEAST_CALLS = 5


def measure(threads: int) -> Iterator[Progress | float]:
    """Yield Progress, and at last GFLOP/s in float32, two FLOPs per multiply-add, of the fastest call in half a second.

    The fastest, not the median: other programs only ever make a call slower.

    Args:
        threads: intra-operation threads.
    """
    doing = "measuring what the machine can do at most"
    yield Progress(0.0, doing)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_product(), options, providers=[PROVIDER])
    feed = {"input": np.random.default_rng(1).standard_normal((SIZE, SIZE), dtype=np.float32)}
    session.run(None, feed)
    best = float("inf")
    calls = 0
    begun = time.perf_counter()
    while calls < LEAST_CALLS or time.perf_counter() - begun < SECONDS:
        begin = time.perf_counter()
        session.run(None, feed)
        best = min(best, time.perf_counter() - begin)
        calls += 1
        yield Progress(min(1.0, (time.perf_counter() - begun) / SECONDS), doing)
    yield 2 * SIZE**3 / best / 1e9


def _product() -> bytes:
    """An ONNX model of one matrix product with a constant."""
    value = helper.make_tensor_value_info
    constant = np.random.default_rng(0).standard_normal((SIZE, SIZE), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["output"])],
        "product",
        [value("input", TensorProto.FLOAT, [SIZE, SIZE])],
        [value("output", TensorProto.FLOAT, [SIZE, SIZE])],
        [numpy_helper.from_array(constant, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return bytes(model.SerializeToString())

"""How long every operator of an exported model takes, and which layer of the torch model it comes from.

onnxruntime fuses nodes, renames them and moves weights into layouts of its own before it runs a file. What it runs
is read from the optimised graph that it writes on request; every node of it is traced to a layer through the names of
its initializers, its own name and those of its outputs, which go back to names in the exported FP32 file (``origins``).
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime

from ispasp.deployment.origins import Origins, first, read_graph, spread
from ispasp.errors import ExportError
from ispasp.latency import order
from ispasp.parity import PROVIDER, reason, session_batch
from ispasp.records import Progress

ROUNDS = 3  # sessions opened anew: where its weights lie shifts the time of a session
WARM_UP = 2
LEAST_CALLS = 5  # per round and model
MOST_EVENTS = 6_000  # per profile, about 5 MB: read in a quarter of a second
_REPORT_EVERY = 0.05  # seconds between two Progress records
_OPTIMISED = "optimised.onnx"
_BLOCKED = "com.microsoft.nchwc"  # onnxruntime's operators on channels in blocks of 8 or 16
_BYTES = {"double": 8, "int64": 8, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1, "bool": 1}  # others: 4


@dataclass(frozen=True)
class Kernel:
    """What onnxruntime runs of one layer by one operator: mostly one node, in attention several.

    Attributes:
        layer: qualified module name; empty where no layer comes before it.
        op_type: the operator, without what tells a fused one from a plain one: ``"Conv"``, ``"MatMul"``, ``"Reorder"``;
            ``"MatMul of activations"`` where neither factor is a weight.
        nodes: how many nodes.
        ms: median time per call, in milliseconds.
        macs: multiply-adds per call; 0 for what multiplies no matrices.
        moved: bytes of the activations that are read and written.
        blocked: whether all of it runs on channels in onnxruntime's blocked layout.
        channels: outputs of a convolution as it runs, filled up to whole blocks; 0 for what is none in that layout.
    """

    layer: str
    op_type: str
    nodes: int
    ms: float
    macs: int
    moved: int
    blocked: bool
    channels: int = 0


@dataclass(frozen=True)
class Measured:
    """The kernels of a file in the order in which they first run, and the median milliseconds of its quickest node."""

    kernels: tuple[Kernel, ...]
    quickest_ms: float


@dataclass(frozen=True)
class _Place:
    """What the optimised graph says about a node; see ``Kernel``. ``reads``: which inputs are no constants."""

    layer: str
    reads: tuple[int, ...] = ()
    weighted: bool = False
    blocked: bool = False
    transposed: bool = False  # of the first factor of a product
    channels_last: bool = False


def measure(
    paths: Sequence[Path], origins: Sequence[Origins], inputs: object, threads: int, seconds: float
) -> Iterator[Progress | tuple[Measured, Measured]]:
    """Profile a dense and a pruned file in turns on the CPU; yields Progress and at last what both take.

    Args:
        paths: dense and pruned file.
        origins: of the FP32 file of each.
        inputs: one batch for both.
        threads: intra-operation threads.
        seconds: time spent in profiled calls, roughly; opening and warming up come on top of it.

    Raises:
        ExportError: a file does not load or does not run on ``inputs``.
    """
    found = tuple(_Side(each) for each in origins)
    with tempfile.TemporaryDirectory(prefix="ispasp-", ignore_cleanup_errors=True) as name:
        for number in range(ROUNDS):
            doing = f"profiling operators, round {number + 1} of {ROUNDS}"
            calls: dict[int, Callable[[], object]] = {}
            sessions: dict[int, onnxruntime.InferenceSession] = {}
            for side in order(number):
                yield Progress(number / ROUNDS, doing)
                sessions[side] = _open(paths[side], threads, Path(name))
                # Anew in each round: names of changes of layout differ from session to session.
                found[side].read_graph(Path(name) / _OPTIMISED)
                calls[side] = _call(sessions[side], inputs, paths[side])
            most = MOST_EVENTS // max(1, *(len(side.places) for side in found))
            for within in _called(calls, most, seconds / ROUNDS):
                yield Progress((number + within) / ROUNDS, doing)
            calls.clear()
            for number_of, session in sessions.items():
                file = Path(session.end_profiling())
                found[number_of].read_profile(file)
                file.unlink()
                yield Progress((number + 1) / ROUNDS, doing)
            sessions.clear()
    dense, pruned = (side.measured() for side in found)
    yield dense, pruned


def _called(calls: Mapping[int, Callable[[], object]], most: int, seconds: float) -> Iterator[float]:
    """Call both in turns, first to warm up, then until the time is over; says now and then how far it is."""
    for side in (0, 1) * WARM_UP:
        calls[side]()
        yield 0.0
    begun = told = time.perf_counter()
    done = 0
    while done < LEAST_CALLS or (done < most and time.perf_counter() - begun < seconds):
        for side in order(done):
            calls[side]()
        done += 1
        if (now := time.perf_counter()) - told > _REPORT_EVERY:
            told = now
            yield min(1.0, max((now - begun) / seconds, done / max(most, LEAST_CALLS)))


def _open(path: Path, threads: int, folder: Path) -> onnxruntime.InferenceSession:
    """A session that profiles its calls to a file in ``folder`` and writes its graph there, the weights apart."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / path.stem)
    options.optimized_model_filepath = str(folder / _OPTIMISED)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as error:
        raise ExportError(
            f"{path} is not an ONNX file that onnxruntime can load: {reason(error)}. Export the model again."
        ) from error


def _call(session: onnxruntime.InferenceSession, inputs: object, path: Path) -> Callable[[], object]:
    _, feed = session_batch(session, inputs)

    def call() -> object:
        try:
            return session.run(None, feed)
        except Exception as error:
            raise ExportError(
                f"{path} does not run on the run's data: {reason(error)}. Export the model again."
            ) from error

    return call


class _Facts(NamedTuple):
    """What does not change from call to call; see ``Kernel``."""

    macs: int
    moved: int
    blocked: bool
    channels: int


class _Side:
    """One of the two files over all rounds."""

    def __init__(self, origins: Origins) -> None:
        self.origins = origins
        self.places: dict[str, _Place] = {}
        self.runs: list[Counter[tuple[str, str]]] = []  # microseconds by layer and operator, of every call
        self.nodes: dict[tuple[str, str], list[_Facts]] = {}
        self.quickest = math.inf

    def read_graph(self, path: Path) -> None:
        self.places = _places(read_graph(path), self.origins)

    def read_profile(self, file: Path) -> None:
        """Add the calls of a session to those that were read before; the first few warmed it up."""
        calls: list[Counter[str]] = [Counter()]
        details: dict[str, Any] = {}
        for event in json.loads(file.read_text()):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"].removesuffix("_kernel_time")
                calls[-1][name] += event["dur"]
                details.setdefault(name, event["args"])
            elif event["name"] == "model_run":  # follows the nodes of its call
                calls.append(Counter())
        calls = calls[WARM_UP:-1]
        nodes: dict[tuple[str, str], list[_Facts]] = {}
        keys = {}
        before = _Place("")
        for name, args in details.items():
            # A node that the graph has under no name is taken to belong where the one run before it does.
            place = before = self.places.get(name, _Place(before.layer))
            keys[name] = (place.layer, _operator(args["op_name"], place))
            nodes.setdefault(keys[name], []).append(self._facts(place, args))
        self.nodes = self.nodes or nodes
        for call in calls:
            sums: Counter[tuple[str, str]] = Counter()
            for name, spent in call.items():
                sums[keys[name]] += spent
            self.runs.append(sums)
        medians = (float(np.median([call[name] for call in calls])) for name in keys)
        self.quickest = min(self.quickest, *medians)

    def _facts(self, place: _Place, args: Mapping[str, Any]) -> _Facts:
        reads, writes = (_shapes(args.get(key, [])) for key in ("input_type_shape", "output_type_shape"))
        moved = [reads[index] for index in place.reads if index < len(reads)] + writes
        macs = _macs(args["op_name"], place, self.origins.weights.get(place.layer, ()), reads, writes)
        channels = writes[0][1][1] if place.blocked and args["op_name"] == "Conv" and writes else 0
        return _Facts(macs, sum(size * math.prod(shape) for size, shape in moved), place.blocked, channels)

    def measured(self) -> Measured:
        kernels = []
        for (layer, operator), facts in self.nodes.items():
            spent = float(np.median([run[layer, operator] for run in self.runs])) / 1e3
            macs, moved, blocked, channels = zip(*facts, strict=True)
            sums = (sum(macs), sum(moved), all(blocked), max(channels))
            kernels.append(Kernel(layer, operator, len(facts), spent, *sums))
        return Measured(tuple(kernels), self.quickest / 1e3)


def _operator(name: str, place: _Place) -> str:
    name = name.removeprefix("Fused")
    if name in ("ReorderInput", "ReorderOutput"):
        return "Reorder"
    return f"{name} of activations" if "MatMul" in name and not place.weighted else name


_Values = list[tuple[int, list[int]]]
"""Bytes per element and shape of each."""


def _shapes(listed: Iterable[Mapping[str, list[int]]]) -> _Values:
    return [(_BYTES.get(kind, 4), shape) for entry in listed for kind, shape in entry.items()]


def _macs(op: str, place: _Place, weight: tuple[int, ...], reads: _Values, writes: _Values) -> int:
    """Multiply-adds of a node, from the layer's weight, not from one that was padded for a layout."""
    if not reads or not writes:
        return 0
    (_, first), (_, out) = reads[0], writes[0]
    if "Conv" in op and len(weight) > 2:
        where = first if "Transpose" in op else out
        size = where[1:-1] if place.channels_last else where[2:]
        return math.prod(weight) * where[0] * math.prod(size)
    if "MatMul" in op or "Gemm" in op:
        if place.weighted:
            return math.prod(weight) * math.prod(out[:-1]) if len(weight) == 2 else 0
        return math.prod(out) * first[-2 if place.transposed else -1]
    return 0


def _places(graph: onnx.GraphProto, origins: Origins) -> dict[str, _Place]:
    """Where every node of the optimised graph belongs, by its name."""
    initializers = {tensor.name: len(tensor.dims) for tensor in graph.initializer}

    def known(node: onnx.NodeProto) -> str:
        own = [name for name in node.input if name in initializers]
        results = (origins.of_result(name) for name in (node.name, *node.output))
        return first(origins.of_initializer(name) for name in own) or first(results)

    found = {}
    for node, layer in zip(graph.node, spread(graph, known), strict=True):
        weighted = any(initializers.get(name, 0) > 1 for name in node.input)
        on = {entry.name for entry in node.attribute if entry.i}
        # An input that is left out has no shape in a profile.
        given = [name for name in node.input if name]
        reads = tuple(index for index, name in enumerate(given) if name not in initializers)
        found[node.name] = _Place(
            layer, reads, weighted, node.domain == _BLOCKED, "transA" in on, "channels_last" in on
        )
    return found

"""The table of latencies: what is measured, how it is interpolated, and that it is kept."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ispasp import allocation, latency_table
from ispasp.allocation import Costly
from ispasp.blocks import find
from ispasp.calibration import as_batch
from ispasp.graph import Traced, trace
from ispasp.latency_table import Operation, TimedLayer
from ispasp.records import Block, Progress


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "SECONDS", 0.001)


def small() -> tuple[nn.Module, Tensor]:
    """A depthwise convolution in the first block, tokens in the last."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding="valid"),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.ReLU(),
        nn.Conv2d(32, 48, (1, 3), padding="same"),
        nn.Flatten(2),
        nn.Linear(49, 24),
        nn.ReLU(),
        nn.Linear(24, 5),
        nn.Flatten(),
        nn.Linear(48 * 5, 4),
    ).eval(), torch.randn(2, 3, 16, 16)


def prepared(model: nn.Module, example: Tensor) -> tuple[Traced, list[Block]]:
    traced = trace(model, as_batch(example))
    return traced, [block for block in find(traced) if block.prunable]


def drained(steps: Generator[Progress, None, Any]) -> Any:
    while True:
        try:
            assert 0 <= next(steps).done <= 1
        except StopIteration as stop:
            return stop.value


def test_tiny_models_compute_what_the_layers_do() -> None:
    model, example = small()
    traced, blocks = prepared(model, example)
    layers = latency_table.narrowed(traced, blocks)
    assert [layer.operation.kind for layer in layers] == ["conv", "depthwise", "conv", "linear", "linear"]
    assert [(layer.produces, layer.consumes) for layer in layers] == [
        (0, None),
        (0, None),
        (None, 0),
        (1, None),
        (None, 1),
    ]
    values, seen = example[:1], []
    for part in model:
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            seen.append((part, values))
        values = part(values)
    for layer, (part, given) in zip(layers, seen, strict=False):
        operation = layer.operation
        proto = operation.proto(operation.inputs, operation.outputs)
        session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
        assert list(session.get_inputs()[0].shape) == list(given.shape)
        weights = {name: torch.from_numpy(value) for name, value in _constants(proto).items()}
        with torch.no_grad():
            if isinstance(part, nn.Conv2d):
                expected = F.conv2d(
                    given,
                    weights["weight"],
                    weights["bias"],
                    part.stride,
                    part.padding,
                    part.dilation,
                    part.groups,
                )
            else:
                expected = given @ weights["weight"] + weights["bias"]
        (found,) = session.run(None, {"input": given.detach().numpy()})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def _constants(proto: bytes) -> dict[str, np.ndarray]:
    import onnx

    graph = onnx.load_from_string(proto).graph
    return {value.name: onnx.numpy_helper.to_array(value).copy() for value in graph.initializer}


def test_every_width_of_a_layer_runs() -> None:
    for operation in (
        Operation("conv", 16, 24, (8, 8), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
        Operation("linear", 16, 24, (1,)),
    ):
        times = [
            step for step in latency_table._timed([operation.proto(8, 24), operation.proto(16, 8)], 1) if step
        ]
        assert len(times) == 1 and len(times[0]) == 2 and min(times[0]) > 0
        assert operation.key(8, 24) != operation.key(16, 8)


def test_times_are_straight_between_the_measured_widths() -> None:
    layer = TimedLayer(
        0, 1, np.array([0.25, 1.0]), np.array([0.5, 0.75, 1.0]), np.array([[1.0, 2, 3], [4, 8, 16]])
    )
    one = np.ones(())
    assert layer.at(one, one) == 16 and layer.at(one * 0.25, one * 0.5) == 1
    assert layer.at(one * 0.1, one * 0.75) == 2  # no less than what was measured
    assert layer.at(one * 0.625, one * 0.875) == pytest.approx((2 + 3 + 8 + 16) / 4)
    table = layer.at(np.array([0.25, 1.0])[:, None], np.array([0.5, 0.75, 1.0])[None, :])
    np.testing.assert_allclose(table, layer.milliseconds)
    blocks = [Block("a", 8), Block("b", 16)]
    costs: list[Costly] = [layer, allocation.Layer(0.5, None, None)]
    terms = allocation.terms(costs, blocks, [(2, 8), (8, 16)])
    assert {term.blocks: term.cost.tolist() for term in terms} == {(): 0.5, (0, 1): [[1, 3], [4, 16]]}


def test_a_table_is_measured_once_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model, example = small()
    traced, blocks = prepared(model, example)
    dense = tmp_path / "dense.onnx"
    dense.write_bytes(Operation("conv", 3, 8, (16, 16), (3, 3), (1, 1), (0,) * 4, (1, 1)).proto(3, 8))
    given = (traced, blocks, 8, dense, example[:1], tmp_path)
    steps = latency_table.measure(*given)
    while "layer 3" not in next(steps).doing:
        pass
    steps.close()
    (path,) = (tmp_path / latency_table.FOLDER).iterdir()
    begun = json.loads(path.read_text())["milliseconds"]
    assert len(begun) == 8  # four widths of the first layer, four of the second
    model_parts = drained(latency_table.measure(*given))
    whole = json.loads(path.read_text())
    assert whole["milliseconds"].items() >= begun.items() and whole["threads"] == 1
    counts = [block.groups for block in blocks]
    layers = allocation.cost(model_parts[:-1], blocks, counts)
    assert allocation.cost(model_parts, blocks, counts) == pytest.approx(layers + model_parts[-1].cost)
    before = path.stat().st_mtime_ns
    again = drained(latency_table.measure(*given))
    assert path.stat().st_mtime_ns == before
    for first, second in zip(model_parts[:-1], again[:-1], strict=True):
        np.testing.assert_array_equal(first.milliseconds, second.milliseconds)
    path.write_text("{")
    drained(latency_table.measure(*given))
    assert json.loads(path.read_text())["milliseconds"].keys() == whole["milliseconds"].keys()


@pytest.mark.parametrize(
    "times", [None, [], {"a": "1", "b": True, "c": -1.0, "d": None, "e": 1e300, "f": 10**400}]
)
def test_a_damaged_table_holds_nothing(tmp_path: Path, times: object) -> None:
    path = tmp_path / "table.json"
    header = latency_table._header(1)
    path.write_text(json.dumps(header | {"milliseconds": {"layer": 0.5}}))
    assert latency_table._read(path, 1) == {"layer": 0.5}
    for plain in (header | {"milliseconds": times}, header):  # the second says nothing of times
        path.write_text(json.dumps(plain))
        assert latency_table._read(path, 1) == {}
    path.write_text("[" * 100_000)
    assert latency_table._read(path, 1) == {}

"""Which layer of a torch model the names in its exported file come from.

In the FP32 file an initializer has the name of a torch parameter, or, where the exporter has folded it into a
transposed copy, its values. Vectors of equal values are kept once (biases of 0 in an untrained model): such a one says
nothing about the nodes that read it. A node without weights (activation, addition, softmax, change of layout)
belongs to the layer that comes before it in the graph.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from ispasp.errors import ExportError
from ispasp.parity import reason

_DECORATION = re.compile(r"^(fused |InsertedPrecisionFreeCast_)+")


class Origins:
    """Which layer the names in an exported FP32 file belong to.

    Args:
        path: the file.
        model: what it was exported from.

    Attributes:
        weights: shape of the weight of every layer, see ``weight_shape``.

    Raises:
        ExportError: the file cannot be read.
    """

    def __init__(self, path: Path, model: nn.Module) -> None:
        graph = read_graph(path)
        self.weights = {
            name: shape for name, module in model.named_modules() if (shape := weight_shape(module))
        }
        modules = {name for name, _ in model.named_modules() if name}
        contents = _contents(model)
        self._initializers: dict[str, str] = {}
        reads = Counter(name for node in graph.node for name in node.input)
        for tensor in graph.initializer:
            if len(tensor.dims) < 2 and reads[tensor.name] > 1:
                continue
            layer = _innermost(tensor.name, modules)
            if not layer and len(tensor.dims) == 2:
                layer = contents.get(_digest(numpy_helper.to_array(tensor)), "")
            if layer:
                self._initializers[tensor.name] = layer
        layers = spread(graph, lambda node: first(self._initializers.get(name, "") for name in node.input))
        self._results: dict[str, str] = {}
        for node, layer in zip(graph.node, layers, strict=True):
            if layer:
                self._results |= dict.fromkeys((node.name, *node.output), layer)

    def of_initializer(self, name: str) -> str:
        """The layer of an initializer of the file, or of one made from it, such as ``fc.weight_quantized``; empty
        without one. The scale of an activation in 8 bits is none, though its name begins with the activation's."""
        return _longest(name, self._initializers)

    def of_result(self, name: str) -> str:
        """The layer of a node or of what it gives, or of what was made from it, such as ``relu_1_nchwc``."""
        return _longest(name, self._results)


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """Shape of the weight of a layer, (outputs, inputs, ...) for convolutions and linear layers; empty without one."""
    own = [p for p in module.parameters(recurse=False) if p.ndim > 1]
    return tuple(own[0].shape) if own else ()


def spread(graph: onnx.GraphProto, known: Callable[[onnx.NodeProto], str]) -> list[str]:
    """The layer of every node: what is known about it, else that of the last of the nodes that it reads."""
    made: dict[str, tuple[int, str]] = {}
    found = []
    for index, node in enumerate(graph.node):
        before = [made[name] for name in node.input if name in made and made[name][1]]
        layer = known(node) or max(before, default=(0, ""))[1]
        made |= dict.fromkeys(node.output, (index, layer))
        found.append(layer)
    return found


def read_graph(path: Path) -> onnx.GraphProto:
    try:
        return onnx.load(path, load_external_data=False).graph
    except Exception as error:
        raise ExportError(
            f"{path} is not an ONNX file that can be read: {reason(error)}. Export the model again."
        ) from error


def first(names: Iterable[str]) -> str:
    """The first that is not empty."""
    return next(filter(None, names), "")


def _longest(name: str, known: Mapping[str, str]) -> str:
    """What is known under the longest part of ``name``, from its start up to one of its separators."""
    name = _DECORATION.sub("", name)
    ends = [len(name), *(found.start() for found in reversed(list(re.finditer(r"[^0-9A-Za-z]", name))))]
    return first(known.get(name[:end], "") for end in ends)


def _innermost(parameter: str, modules: set[str]) -> str:
    """The module that a parameter's name begins with."""
    name = parameter
    while name := name.rpartition(".")[0]:
        if name in modules:
            return name
    return ""


def _contents(model: nn.Module) -> dict[str, str]:
    """The layer by the values of its matrices, as they are and transposed."""
    found: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            matrix = parameter.detach().cpu().float().numpy()
            for values in (matrix, matrix.T):
                found.setdefault(_digest(values), name.rpartition(".")[0])
    return found


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(f"{values.shape}".encode() + np.ascontiguousarray(values).tobytes()).hexdigest()

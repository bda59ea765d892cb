"""Trace a model into one graph of operations.

``torch.export`` keeps operations whole (convolution, batch norm, linear) and names parameters after
their modules, so that what is learnt about the graph can be carried back to the ``nn.Module``.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from ispasp.calibration import Batch
from ispasp.errors import ModelError

aten = torch.ops.aten
CONVOLUTIONS = {aten.conv2d.default, aten.conv2d.padding}
CONSUMERS = {*CONVOLUTIONS, aten.linear.default}


_TRACING = threading.Lock()


@dataclass(frozen=True)
class Traced:
    """A model as a list of operations in execution order.

    Attributes:
        model: the traced module, in eval mode; parameters are looked up in it by name.
        nodes: placeholders, operations and the output, in execution order.
        fixed: parameter, buffer or constant of every ``get_attr`` node.
        last_used: for each node, the nodes whose values nobody reads afterwards.
        example: what it was traced on, two examples or more.
    """

    model: nn.Module
    nodes: tuple[fx.Node, ...]
    fixed: dict[fx.Node, Tensor]
    last_used: dict[fx.Node, tuple[fx.Node, ...]]
    example: Batch

    def is_batch(self, size: Any, times: int = 1) -> bool:
        """Whether a size in the graph is the number of examples, times a number."""
        if isinstance(size, int):
            return False
        inputs = [node.meta["val"].shape[0] for node in self.nodes if node.op == "placeholder"]
        return any(size.node.expr == times * one.node.expr for one in inputs if not isinstance(one, int))

    def per_example(self, node: fx.Node) -> int:
        """How many numbers the value of ``node`` has for each example."""
        sizes = [size if isinstance(size, int) else size.node.expr for size in node.meta["val"].shape]
        whole = sympy.sympify(sympy.prod(sizes))
        return int(whole.subs(dict.fromkeys(whole.free_symbols, 1)))

    def live_bytes(self) -> int:
        """Memory of all values of one example, at the point of the execution where that is largest."""
        live: dict[fx.Node, int] = {}
        most = 0
        for node in self.nodes:
            value = node.meta.get("val")
            if isinstance(value, Tensor) and node not in self.fixed:
                live[node] = self.per_example(node) * value.element_size()
            most = max(most, sum(live.values()))
            for dead in self.last_used.get(node, ()):
                live.pop(dead, None)
        return most

    def cost(self, node: fx.Node) -> float:
        """Rough work of one node for one example, in multiply-adds; used for progress only."""
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, Tensor):
            return 0.0
        elements = float(math.prod(size for size in value.shape[1:] if isinstance(size, int)))
        if node.target in CONSUMERS:
            weight = node.args[1]
            if isinstance(weight, fx.Node) and weight in self.fixed:
                elements *= self.fixed[weight][0].numel()
        return elements


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Trace or count alone: both change the state of the whole process.

    Attention's fast path is off meanwhile, because it hides a transformer layer's operations in a
    single one.
    """
    with _TRACING:
        fastpath = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)


def trace(model: nn.Module, example: Batch) -> Traced:
    """Trace ``model`` on ``example``, with a dynamic batch dimension.

    The model must be in eval mode and on the device of the example.

    Raises:
        ModelError: torch.export cannot trace it (the message carries the cause's first line), or it
            takes one batch size only.
    """
    # One example would be specialised into a constant batch size.
    if len(example) == 1:
        example = Batch(
            tuple(torch.cat([t, t]) for t in example.inputs),
            {name: torch.cat([t, t]) for name, t in example.keywords.items()},
        )
    # A batch has positional or keyword inputs, never both (see ispasp.calibration).
    shapes: Any = {name: {0: Dim.AUTO} for name in example.keywords}
    shapes = shapes or tuple({0: Dim.AUTO} for _ in example.inputs)
    parameters = inspect.signature(model.forward).parameters.values()
    for parameter in parameters:  # forward(self, *inputs): all that is left over goes by that name
        if parameter.kind is parameter.VAR_POSITIONAL and isinstance(shapes, tuple):
            shapes = {parameter.name: shapes}
            break
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and isinstance(shapes, tuple):
            break
    try:
        with exclusive(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(
                model,
                example.inputs,
                example.keywords,
                dynamic_shapes=shapes,
            )
    except Exception as error:  # torch.export raises many types; all of them mean the same to a user
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{type(model).__name__} cannot be traced by torch.export on inputs of shape "
            f"{', '.join(str(tuple(t.shape)) for t in example.tensors)}: {cause}. "
            "Give inputs that its forward accepts; data-dependent control flow must be removed."
        ) from error
    module = exported.module()
    nodes = tuple(
        node
        for node in module.graph.nodes
        # torch.export adds a call that checks input shapes; calibration.read has done that.
        if not (node.op == "call_module" and node.target == "_guards_fn")
    )
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    fixed = {
        node: named[node.target] if node.target in named else _attribute(module, node.target)
        for node in nodes
        if node.op == "get_attr"
    }
    if any(not isinstance(value, Tensor) for value in fixed.values()):
        raise ModelError(
            f"{type(model).__name__} switches gradients or autocast inside its forward, or branches there; "
            "move that out of forward."
        )
    placeholders = [node for node in nodes if node.op == "placeholder"]
    size = placeholders[0].meta["val"].shape[0] if placeholders else None
    # len() in a forward makes the size of the example part of the graph.
    if size is not None and (isinstance(size, int) or size.node.expr.is_number):
        raise ModelError(
            f"{type(model).__name__} only takes batches of {size}; its forward must take any batch size, "
            "for example by x.flatten(1) in place of x.view(N, -1)."
        )
    return Traced(
        model=model,
        nodes=tuple(node for node in nodes if node.op != "get_attr"),
        fixed=fixed,
        last_used=last_used(nodes),
        example=example.first(2),
    )


def _attribute(module: nn.Module, name: str) -> Tensor:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def last_used(
    nodes: tuple[fx.Node, ...], longer: Mapping[fx.Node, Collection[fx.Node]] | None = None
) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """For each node, the nodes whose values nobody reads afterwards.

    Args:
        nodes: in execution order.
        longer: other nodes that a node reads, besides its operands.
    """
    seen: set[fx.Node] = set()
    freed: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in reversed(nodes):
        reads = (*node.all_input_nodes, *(longer or {}).get(node, ()), node)
        operands = {n for n in reads if n.op != "get_attr" and n.op != "output"}
        freed[node] = tuple(operands - seen)
        seen |= operands
    return freed


def descendants(source: fx.Node) -> set[fx.Node]:
    """Every node that is computed from ``source``, itself included."""
    return _reached(source, lambda node: node.users)


def ancestors(result: fx.Node) -> set[fx.Node]:
    """Every node that ``result`` is computed from, itself included."""
    return _reached(result, lambda node: node.all_input_nodes)


def _reached(start: fx.Node, neighbours: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    queue = [start]
    while queue:
        node = queue.pop()
        if node not in found:
            found.add(node)
            queue.extend(neighbours(node))
    return found

"""Execute a traced model node by node over all calibration batches in step.

Two streams run side by side: the dense network and the one pruned so far. Each value is freed after
its last use, so memory holds what is live at one point of the network, however deep it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ispasp.blocks import features
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError
from ispasp.graph import Traced
from ispasp.records import Block


class Stream:
    """Values of one execution, one per batch and live node.

    Attributes:
        values: for each live node, its value in every batch.
        fixed: the parameter, buffer or constant of each ``get_attr`` node; a pruned stream
            replaces consumers' weights here.
    """

    def __init__(self, traced: Traced, batches: Sequence[Batch]) -> None:
        self.traced = traced
        self.count = len(batches)
        self.fixed: dict[fx.Node, Tensor] = {node: value.detach() for node, value in traced.fixed.items()}
        self.values: dict[fx.Node, list[Any]] = {}
        placeholders = [node for node in traced.nodes if node.op == "placeholder"]
        given = len(batches[0].tensors)
        if len(placeholders) != given:
            raise CalibrationError(f"The model takes {len(placeholders)} inputs, each batch has {given}.")
        for number, node in enumerate(placeholders):
            self.values[node] = [batch.tensors[number] for batch in batches]

    @torch.no_grad()
    def run(self, node: fx.Node) -> Iterator[None]:
        """Execute ``node`` batch by batch; yields after each so that the caller may stop."""
        if node.op != "call_function":
            return
        operation: Callable[..., Any] = node.target  # type: ignore[assignment]
        results = []
        for number in range(self.count):

            def value(argument: fx.Node, number: int = number) -> Any:
                return self.fixed[argument] if argument in self.fixed else self.values[argument][number]

            results.append(operation(*fx.map_arg(node.args, value), **fx.map_arg(node.kwargs, value)))
            yield
        self.values[node] = results

    def free(self, node: fx.Node) -> None:
        """Let go of every value that nobody reads after ``node``."""
        for dead in self.traced.last_used[node]:
            self.values.pop(dead, None)

    def fork(self) -> Stream:
        """A second stream from here on. Values are copied, because operations may work in place."""
        twin = Stream.__new__(Stream)
        twin.traced, twin.count, twin.fixed = self.traced, self.count, dict(self.fixed)
        twin.values = {
            node: pytree.tree_map_only(Tensor, torch.clone, values) for node, values in self.values.items()
        }
        return twin

    @torch.no_grad()
    def narrow(self, hidden: fx.Node, weights: Sequence[fx.Node], dim: int, index: Tensor) -> None:
        """Keep only the features ``index`` of a hidden representation and of its consumers' weights."""
        self.values[hidden] = [value.index_select(dim, index) for value in self.values[hidden]]
        for weight in weights:
            self.fixed[weight] = self.fixed[weight].index_select(1, index)

    def outputs(self) -> list[Tensor]:
        """The model's first output tensor, in every batch."""
        node = next(node for node in self.traced.nodes if node.op == "output")
        leaves = [leaf for leaf in pytree.tree_leaves(node.args) if isinstance(leaf, fx.Node)]
        return self.values[leaves[0]]


@torch.no_grad()
def masked_forward(traced: Traced, batch: Batch, kept: Mapping[str, tuple[Block, Tensor]]) -> Tensor:
    """The model's first output with pruned groups set to zero instead of removed.

    Args:
        kept: for the node name of each hidden representation, its block and the kept groups.
    """
    stream = Stream(traced, [batch.to(batch.tensors[0].device)])
    for node in traced.nodes:
        for _ in stream.run(node):
            pass
        if node.name in kept:
            block, groups = kept[node.name]
            value = stream.values[node][0]
            mask = torch.zeros(block.groups * block.group_size, dtype=value.dtype, device=value.device)
            mask[features(groups, block.group_size)] = 1
            # Groups lie along the last dimension, or along 1 before spatial dimensions.
            stream.values[node] = [value * (mask.view(-1, 1, 1) if value.ndim == 4 else mask)]
        if node.op != "output":
            stream.free(node)
    return stream.outputs()[0]

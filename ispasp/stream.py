"""Execute a traced model from one block to the next over all calibration batches.

Two streams run side by side: the dense network, over a few examples, and the one pruned so far, over
all; targets taken from the dense network need it over all examples too. In the pruned stream
every producer has its full width and every pruned consumer's output is replaced by what the kept groups
give, so it computes what the network with masked groups computes. Each value is freed after its last
use: memory holds what is live at one point of the network, however deep it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ispasp import processes
from ispasp.calibration import Batch
from ispasp.device import widest_float
from ispasp.errors import CalibrationError
from ispasp.graph import Traced

# A channel whose variance falls to this share counts as constant on the calibration data.
CONSTANT_BELOW = 1e-6


class Stream:
    """Values of one execution, one per batch and live node.

    Attributes:
        batches: number of examples of each batch.
        values: for each live node, its value in every batch.
        ready: values that a node was given before it came up.
        narrowed: what a pruned consumer makes of its input, all groups of it.
        masks: for each batch, (N, T) bool, true at tokens that are no padding; None where all count.
        fixed: the parameter, buffer or constant of each ``get_attr`` node.
    """

    def __init__(self, traced: Traced, batches: Sequence[Batch]) -> None:
        self.traced = traced
        self.batches = [len(batch) for batch in batches]
        # Buffers may be changed by the forward pass; each stream has its own.
        self.fixed: dict[fx.Node, Tensor] = {
            node: value.detach() if isinstance(value, nn.Parameter) else value.clone()
            for node, value in traced.fixed.items()
        }
        self.buffers = {node for node, value in traced.fixed.items() if not isinstance(value, nn.Parameter)}
        self.values: dict[fx.Node, list[Any]] = {}
        self.ready: dict[fx.Node, list[Tensor]] = {}
        self.narrowed: dict[fx.Node, Callable[[Tensor], Tensor]] = {}
        self.masks = [batch.mask for batch in batches]
        placeholders = [node for node in traced.nodes if node.op == "placeholder"]
        given = len(batches[0].tensors)
        if len(placeholders) != given:
            raise CalibrationError(f"The model takes {len(placeholders)} inputs, each batch has {given}.")
        for number, node in enumerate(placeholders):
            self.values[node] = [batch.tensors[number] for batch in batches]

    @torch.no_grad()
    def advance(
        self, nodes: Sequence[fx.Node], held: Collection[fx.Node] = ()
    ) -> Iterator[tuple[fx.Node, int]]:
        """Execute ``nodes`` for one batch after the other, letting go of each value after its last use.

        A batch's values stay in the processor's caches that way. What a node in ``held`` is the last to use stays until
        ``free`` is called for it. Yields each node and the number of the batch, so that the caller may stop.
        """
        given = {node for node in nodes if node in self.ready}
        for node in given:
            self.values[node] = list(self.ready.pop(node))
        for number in range(len(self.batches)):
            for node in nodes:
                if node.op == "call_function" and node not in given:
                    if number == 0:
                        self.values[node] = [None] * len(self.batches)
                    self.values[node][number] = self.compute(node, number)
                yield node, number
                if node in held or node.op == "output":
                    continue
                for dead in self.traced.last_used[node]:
                    if dead in self.values:
                        self.values[dead][number] = None
        for node in nodes:
            if node not in held and node.op != "output":
                self.free(node)

    @torch.no_grad()
    def recompute(self, node: fx.Node) -> None:
        """Execute one operation over all batches, anew; everything stays."""
        self.values[node] = [self.compute(node, number) for number in range(len(self.batches))]

    def compute(self, node: fx.Node, batch: int) -> Any:
        """What the operation ``node`` gives for one batch, in the caller's gradient mode."""

        def value(argument: fx.Node) -> Any:
            return self.fixed[argument] if argument in self.fixed else self.values[argument][batch]

        if node in self.narrowed:
            return self.narrowed[node](value(node.args[0]))  # type: ignore[arg-type]
        operation: Callable[..., Any] = node.target  # type: ignore[assignment]
        return operation(*fx.map_arg(node.args, value), **fx.map_arg(node.kwargs, value))

    def free(self, node: fx.Node) -> None:
        """Let go of every value that nobody reads after ``node``."""
        for dead in self.traced.last_used[node]:
            self.values.pop(dead, None)

    def replace(self, node: fx.Node, results: list[Tensor]) -> None:
        """Give ``node`` these values, one per batch; it is not executed when it comes up."""
        self.ready[node] = results

    @torch.no_grad()
    def recalibrate(self, norm: fx.Node) -> tuple[Tensor, Tensor] | None:
        """Give a batch norm the statistics of its own input over all batches.

        Returns how far the mean moved, and the new variance, (channels,) each; None, and nothing is changed,
        where there is no more than one position. A channel that is constant on the data keeps its variance:
        dividing by almost nothing would blow up every other input.
        """
        value, _, _, mean, variance, *_ = norm.args
        inputs = self._without_padding(self.values[value])  # type: ignore[index]
        rest = [d for d in range(inputs[0].ndim) if d != 1]
        wide = widest_float(inputs[0].device)
        count = processes.total_number(sum(batch[:, 0].numel() for batch in inputs))
        if count < 2:
            return None
        sums = torch.stack([batch.sum(rest, dtype=wide) for batch in inputs]).sum(0)
        new_mean = processes.total(sums) / count
        shape = [1, -1] + [1] * (len(rest) - 1)
        squares = torch.zeros_like(new_mean)
        for batch in inputs:
            single = batch.to(torch.promote_types(batch.dtype, torch.float32))  # squares leave half precision
            squares += (single - new_mean.to(single.dtype).view(shape)).square().sum(rest, dtype=wide)
        old_mean, old_variance = self.fixed[mean], self.fixed[variance]  # type: ignore[index]
        self.fixed[mean] = new_mean.to(old_mean.dtype)  # type: ignore[index]
        new_variance = (processes.total(squares) / count).to(old_variance.dtype)
        usable = new_variance.isfinite() & (new_variance > CONSTANT_BELOW * old_variance)
        self.fixed[variance] = torch.where(usable, new_variance, old_variance)  # type: ignore[index]
        return self.fixed[mean] - old_mean, self.fixed[variance]  # type: ignore[index]

    def _without_padding(self, values: list[Tensor]) -> list[Tensor]:
        """Values (N, C, T) without the tokens that are padding, (P, C); other values as they are."""
        shapes = [(value.shape[0], value.shape[-1]) for value in values]
        masked = any(mask is not None and mask.shape == s for mask, s in zip(self.masks, shapes, strict=True))
        if not masked or values[0].ndim != 3:
            return values
        rows = [value.movedim(1, 2) for value in values]
        return [
            row.flatten(0, 1) if mask is None else row[mask]
            for row, mask in zip(rows, self.masks, strict=True)
        ]

    def fork(self) -> Stream:
        """A stream that goes on from here on its own, with copies of all live values.

        Values that share memory, such as a view and its base, still do so in the copy: an operation in
        place must reach both.
        """
        storages: dict[int, torch.UntypedStorage] = {}

        def own(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in storages:
                storages[storage.data_ptr()] = storage.clone()
            blank = torch.empty(0, dtype=value.dtype, device=value.device)
            return blank.set_(
                storages[storage.data_ptr()], value.storage_offset(), value.shape, value.stride()
            )

        other = copy.copy(self)
        # Parameters are the model's; buffers are each stream's own.
        own_buffers = {n: own(v) for n, v in self.fixed.items() if n in self.buffers}
        other.fixed, other.ready, other.narrowed = self.fixed | own_buffers, {}, dict(self.narrowed)
        other.values = pytree.tree_map_only(Tensor, own, self.values)
        return other

    def outputs(self, batch: int) -> list[Tensor]:
        """Every tensor that the model returns for one batch, in order."""
        node = next(node for node in self.traced.nodes if node.op == "output")
        leaves = [leaf for leaf in pytree.tree_leaves(node.args) if isinstance(leaf, fx.Node)]
        found = [self.fixed[leaf] if leaf in self.fixed else self.values[leaf][batch] for leaf in leaves]
        return [value for value in found if isinstance(value, Tensor)]

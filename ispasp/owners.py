"""Which module owns the weight of an operation, so that it can be sliced."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn

from ispasp.graph import Traced
from ispasp.layouts import RefusedError


class Owners:
    """Which module owns the weight of an operation, where exactly one does."""

    def __init__(self, traced: Traced) -> None:
        self.model = traced.model
        self.fixed = traced.fixed
        self.names = {node: str(node.target) for node in traced.fixed}
        self.uses = Counter(id(traced.fixed[node]) for node in traced.fixed for _ in node.users)
        self.holders = Counter(id(p) for _, p in traced.model.named_parameters(remove_duplicate=False))

    def layer(self, node: fx.Node) -> tuple[str, nn.Module]:
        """Name and module of a convolution or linear operation.

        Raises:
            RefusedError: the weight is computed, functional, shared, or in a module of another kind; or the
                bias is not that module's.
        """
        weight = node.args[1]
        if not isinstance(weight, fx.Node) or weight not in self.names:
            raise RefusedError("its weight is computed by the model, not a parameter that can be sliced")
        name, module = self.module(weight, (nn.Conv2d, nn.Linear))
        bias = node.args[2] if len(node.args) > 2 else None
        if bias is not None and self.name(bias) != f"{self.names[weight].removesuffix('weight')}bias":
            raise RefusedError(f"the bias added to {name} is not that layer's own parameter")
        return name, module

    def name(self, value: object) -> str:
        """The name of a parameter, buffer or constant; empty for anything else."""
        return self.names.get(value, "") if isinstance(value, fx.Node) else ""

    def module(self, weight: fx.Node, kinds: tuple[type[nn.Module], ...]) -> tuple[str, nn.Module]:
        path, _, leaf = self.names[weight].rpartition(".")
        module = self.model.get_submodule(path)
        if not isinstance(module, kinds) or leaf != "weight":
            raise RefusedError(
                f"its weight {self.names[weight]} is used functionally, "
                "not through nn.Conv2d, nn.Linear or a batch norm"
            )
        for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if self.uses[id(tensor)] > 1 or self.holders[id(tensor)] > 1:
                raise RefusedError(f"its {leaf} ({path}.{leaf}) is shared (tied) with another use")
        return path, module

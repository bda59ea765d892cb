"""``nn.MultiheadAttention``: its heads as a block, and the module that takes its place with fewer heads.

Its forward writes the number of heads and features into views, so that a general walk could not tell whether
fewer would fit. What it computes is known from its class, however: the heads do not meet before the output
projection.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ispasp.errors import ModelError
from ispasp.graph import CONSUMERS, Traced
from ispasp.layouts import RefusedError, shape_of, tokens_first
from ispasp.owners import Owners
from ispasp.records import Block, Cut

_INPUTS = "in_proj_weight"
_OUTPUT = "out_proj"


def find(producer: fx.Node, traced: Traced, owners: Owners) -> Block | None:
    """The heads of the ``nn.MultiheadAttention`` whose input projection is ``producer``; None for other layers.

    Raises:
        RefusedError: it is used in a way in which heads cannot be removed.
    """
    path, _, leaf = owners.name(producer.args[1]).rpartition(".")
    module = traced.model.get_submodule(path) if leaf == _INPUTS else None
    if not isinstance(module, nn.MultiheadAttention):
        return None
    if type(module) is not nn.MultiheadAttention:
        raise RefusedError(
            f"{type(module).__name__} changes nn.MultiheadAttention in ways that are not known"
        )
    if module.bias_k is not None or module.add_zero_attn:
        raise RefusedError("its attention adds keys and values of its own")
    for parameter in (module.in_proj_weight, module.in_proj_bias):
        if parameter is not None and (owners.uses[id(parameter)] != 1 or owners.holders[id(parameter)] != 1):
            raise RefusedError("its input projection is shared (tied) with another use")
    consumer = _output_projection(producer, f"{path}.{_OUTPUT}.weight", path, owners)
    if any(
        _masks_heads(node, path, module.num_heads, traced) for node in traced.nodes if _inside(node, path)
    ):
        raise RefusedError("attention has a mask or bias of its own for every head")
    owners.layer(consumer)
    size = module.head_dim
    return Block(
        name=path,
        groups=module.num_heads,
        group_size=size,
        kind="head",
        prunable=True,
        cuts=(Cut(path, "producer", size, repeats=3), Cut(f"{path}.{_OUTPUT}", "consumer", size)),
        hidden=str(consumer.args[0]),
        reads=(consumer.name,),
        signed=True,
        tokens_first=tokens_first(consumer.args[0], traced),  # type: ignore[arg-type]
    )


def _output_projection(producer: fx.Node, weight: str, path: str, owners: Owners) -> fx.Node:
    """The one layer at which all that comes from ``producer`` ends."""
    found: set[fx.Node] = set()
    seen, queue = {producer}, [producer]
    while queue:
        for user in queue.pop().users:
            if user.target in CONSUMERS and owners.name(user.args[1]) == weight:
                found.add(user)
            elif user not in seen:
                if user.op == "output" or not _inside(user, path):
                    raise RefusedError("its attention weights are used outside of it")
                seen.add(user)
                queue.append(user)
    if len(found) != 1:
        raise RefusedError("its heads do not end in its own output projection")
    (consumer,) = found
    if len(consumer.args[0].users) != 1 or consumer.args[0] not in seen:  # type: ignore[union-attr]
        raise RefusedError("its hidden representation is also used elsewhere")
    return consumer


def _masks_heads(node: fx.Node, path: str, heads: int, traced: Traced) -> bool:
    """Whether ``node`` reads a value from outside of the module that has (N * heads, T, T) numbers."""
    return any(
        len(shape := shape_of(other)) == 3 and traced.is_batch(shape[0], heads)
        for other in node.all_input_nodes
        if isinstance(other.meta.get("val"), Tensor) and not _inside(other, path)
    )


def _inside(node: fx.Node, path: str) -> bool:
    """Whether a node was traced within the module ``path``."""
    stack = node.meta.get("nn_module_stack") or {}
    return any(
        name.removeprefix("L['self'].").removeprefix("L['self']") == path for name, _ in stack.values()
    )


class SlicedAttention(nn.Module):
    """Self-attention with some of the heads of an ``nn.MultiheadAttention``; parameters have the same names.

    The forward takes the same arguments. It gives no attention weights, and what a block in use cannot need is
    refused: other keys and values, unbatched input, a mask of its own for every head.
    """

    def __init__(self, whole: nn.MultiheadAttention, heads: Sequence[int]) -> None:
        super().__init__()
        index = torch.tensor(list(heads), device=whole.in_proj_weight.device)
        size = whole.head_dim
        rows = (index[:, None] * size + torch.arange(size, device=index.device)).flatten()
        rows = torch.cat([rows + part * whole.embed_dim for part in range(3)])
        self.num_heads = len(index)
        self.head_dim = size
        self.batch_first = whole.batch_first
        self.dropout = whole.dropout
        self.in_proj_weight = _rows_of(whole.in_proj_weight, rows)
        self.in_proj_bias = None if whole.in_proj_bias is None else _rows_of(whole.in_proj_bias, rows)
        self.out_proj = whole.out_proj
        self._qkv_same_embed_dim = False  # keeps transformer layers from a fast path that reads embed_dim
        self.train(whole.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``: (N, T, E), or (T, N, E) unless batch_first; attention weights are None.

        Raises:
            ModelError: the input is not one batch of sequences, or causal attention is asked for without its mask.
        """
        if query.ndim != 3 or key is not query or value is not query or (is_causal and attn_mask is None):
            raise ModelError(
                "Pruned attention reads one batch (N, T, E) as queries, keys and values, with a mask where it is "
                "causal; give it that, or leave this block out of the pruning (blocks=...)."
            )
        x = query if self.batch_first else query.transpose(0, 1)
        parts = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        mask = _added(attn_mask, q) if attn_mask is not None else None
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q)[:, None, None, :]
            mask = padding if mask is None else mask + padding
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(heads.transpose(1, 2).flatten(2))
        return out if self.batch_first else out.transpose(0, 1), None


def _rows_of(parameter: Tensor, rows: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(0, rows), parameter.requires_grad)


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as what is added to the scores: -inf where a bool mask is True, as ``nn.MultiheadAttention`` has it."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))

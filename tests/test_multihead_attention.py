"""``nn.MultiheadAttention``: heads are removed where that can be done, and refused with the reason elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ispasp
from ispasp.attention import SlicedAttention
from ispasp.graph import exclusive
from tests.hooks import difference, masked_twin


class Attending(nn.Module):
    """Self-attention whose ``way`` of using ``nn.MultiheadAttention`` does not allow to remove heads."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        kind = type("Own", (nn.MultiheadAttention,), {}) if way == "subclass" else nn.MultiheadAttention
        self.attention = kind(8, 4, batch_first=True, add_zero_attn=way == "zero", add_bias_kv=way == "bias")
        if way == "tied":
            self.other = nn.Linear(8, 24)
            self.other.weight = self.attention.in_proj_weight

    def forward(self, x: Tensor) -> Any:
        mask = x.new_zeros(1, 5, 5).expand(x.shape[0] * 4, 5, 5) if self.way == "masks" else None
        out, weights = self.attention(x, x, x, attn_mask=mask, need_weights=self.way == "weights")
        if self.way == "weights":
            return out, weights
        if self.way == "parameter":
            return out + self.attention.in_proj_bias.sum()
        return out * out.mean(-1, keepdim=True)


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("subclass", "changes nn.MultiheadAttention"),
        ("zero", "adds keys and values of its own"),
        ("bias", "adds keys and values of its own"),
        ("weights", "attention weights are used outside"),
        ("masks", "for every head"),
        ("parameter", "shared (tied)"),
        ("tied", "shared (tied)"),
    ],
)
def test_multihead_attention_used_in_other_ways_is_refused(way: str, reason: str) -> None:
    first = ispasp.find_blocks(Attending(way).eval(), torch.randn(6, 5, 8))[0]
    assert not first.prunable
    assert reason in first.reason


class Layer(nn.Module):
    """A transformer layer over (N, T, 8), whose inner order is tokens first unless ``batch_first``."""

    def __init__(self, batch_first: bool, norm_first: bool = False, stack: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=batch_first, norm_first=norm_first)
        self.layer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first) if stack else layer
        self.batch_first = batch_first

    def forward(self, src: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        x = src if self.batch_first else src.transpose(0, 1)
        out = self.layer(x, src_key_padding_mask=src_key_padding_mask)
        return out if self.batch_first else out.transpose(0, 1)


def padded() -> dict[str, Tensor]:
    lengths = torch.tensor([5, 3, 1, 4, 5, 2])
    return {
        "src": torch.randn(6, 5, 8),
        "src_key_padding_mask": torch.arange(5) >= lengths[:, None],
    }


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
def test_heads_and_neurons_of_a_transformer_layer(
    batch_first: bool, norm_first: bool, with_mask: bool
) -> None:
    net = Layer(batch_first, norm_first).eval()
    given = padded() if with_mask else {"src": torch.randn(6, 5, 8)}
    result = ispasp.prune(net, [given], keep=0.5, multiple=1, device="cpu")
    names = [event.block.name for event in result.blocks_pruned]
    assert names == ["layer.self_attn", "layer.linear1"]
    assert isinstance(result.model.layer.self_attn, SlicedAttention)
    assert result.model.layer.self_attn.in_proj_weight.shape == (12, 8)
    assert not any(module.training for module in result.model.modules())
    with torch.no_grad():
        torch.backends.mha.set_fastpath_enabled(False)  # it gives zeros at padding
        with exclusive():  # torch's fast path hands nested tensors on, which hooks cannot mask
            expected = masked_twin(net, result)(**given)
        torch.backends.mha.set_fastpath_enabled(True)
        assert difference(expected, result.model(**given)) <= 1e-4


def test_the_sliced_attention_drops_out_in_training_alone() -> None:
    net = Layer(batch_first=True).eval()
    data = torch.randn(6, 5, 8)
    model = ispasp.prune(net, [data], keep=0.5, multiple=1, device="cpu").model
    with torch.no_grad():
        assert torch.equal(model(data), model(data))
        model.train()
        assert not torch.equal(
            model.layer.self_attn(data, data, data)[0], model.layer.self_attn(data, data, data)[0]
        )


@pytest.mark.parametrize("blocks", [None, ["layer.layers.0.linear1"], ["layer.layers.1.self_attn"]])
def test_a_stack_with_padding_is_pruned_whatever_path_torch_takes(blocks: list[str] | None) -> None:
    net, given = Layer(batch_first=True, stack=True).eval(), padded()
    result = ispasp.prune(net, [given], keep=0.5, multiple=1, device="cpu", blocks=blocks)
    counts = ~given["src_key_padding_mask"]
    with torch.no_grad():
        with exclusive():  # torch's fast path hands nested tensors on, which hooks cannot mask
            expected = masked_twin(net, result)(**given)
        got = result.model(**given)[:, : expected.shape[1]]
    assert difference(expected[counts], got[counts]) <= 1e-4


def test_attention_over_another_sequence_is_refused() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, other := torch.tanh(x), other, need_weights=False)[0]

    blocks = ispasp.find_blocks(Cross().eval(), torch.randn(6, 5, 8))
    assert not any(block.prunable for block in blocks)
    assert "computed by the model" in blocks[0].reason


@pytest.mark.parametrize("bias", [True, False])
def test_masks_of_all_kinds_reach_the_sliced_heads(bias: bool) -> None:
    whole = nn.MultiheadAttention(8, 4, bias=bias, batch_first=True).eval()
    x, causal = torch.randn(6, 5, 8), torch.ones(5, 5).triu(1).bool()
    sliced = SlicedAttention(whole, range(4)).eval()
    for mask in (None, causal, torch.randn(5, 5)):
        for padding in (None, padded()["src_key_padding_mask"]):
            if padding is not None and mask is not None and mask.dtype != torch.bool:
                padding = torch.zeros(6, 5).masked_fill(padding, float("-inf"))
            with torch.no_grad():
                expected = whole(x, x, x, key_padding_mask=padding, attn_mask=mask, need_weights=False)[0]
                got = sliced(x, x, x, key_padding_mask=padding, attn_mask=mask)[0]
            assert torch.allclose(expected, got, atol=1e-6)

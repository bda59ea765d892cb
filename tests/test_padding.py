"""Padding tokens stay out of every statistic: whatever they hold, nothing that is decided or reported changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ispasp
from ispasp import selectors
from ispasp.padding import mask_of

LENGTHS = torch.tensor([[7, 3, 5, 1, 6], [2, 7, 1, 4, 4]])  # of the examples of two batches of seven tokens
MASKS = [torch.arange(7) < lengths[:, None] for lengths in LENGTHS]


class Tokens(nn.Module):
    """Three layers over each token alone; gives the mean over the tokens that count, (N, 3)."""

    def __init__(self, bend: Any = F.gelu) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 10)
        self.third = nn.Linear(10, 3)
        self.bend = bend

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.third(self.bend(self.second(self.bend(self.first(tokens)))))
        counts = attention_mask.to(x.dtype)[..., None]
        return (x * counts).sum(1) / counts.sum(1)


class Gated(Tokens):
    """The same with a gate on the hidden representation of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(12, 3), nn.Linear(3, 12)
        self.bend = lambda h: (
            h * torch.sigmoid(self.excite(self.squeeze(h).relu())) if h.shape[-1] == 12 else h.relu()
        )


class Flattened(Tokens):
    """The same, but the tokens of all examples in one list while they pass the layers."""

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.third(self.bend(self.second(self.bend(self.first(tokens.flatten(0, 1))))))
        counts = attention_mask.to(x.dtype)[..., None]
        return (x.unflatten(0, (-1, 7)) * counts).sum(1) / counts.sum(1)


def padded(fill: float, kind: torch.dtype = torch.long) -> list[dict[str, Tensor]]:
    """Labelled batches whose padding tokens hold ``fill`` times noise, which is large."""
    draw = torch.Generator().manual_seed(3)
    batches = []
    for mask in MASKS:
        tokens, noise = (torch.randn(5, 7, 6, generator=draw) for _ in range(2))
        tokens = torch.where(mask[..., None], tokens, fill * noise)
        labels = torch.randint(0, 3, (5,), generator=draw)
        batches.append({"tokens": tokens, "attention_mask": mask.to(kind), "labels": labels})
    return batches


def near(one: float | None, other: float | None, tolerance: float) -> None:
    """Errors are None where nothing was re-fitted."""
    assert (one is None) == (other is None)
    assert one is None or one == pytest.approx(other, rel=tolerance, abs=tolerance)


def same(one: ispasp.PruneResult, other: ispasp.PruneResult, tolerance: float = 0.0) -> None:
    """Every number that was decided by, or says something about the data, is the same."""
    close = {"rtol": tolerance, "atol": tolerance * 10}
    assert len(one.trace) == len(other.trace)
    for a, b in zip(one.trace, other.trace, strict=True):
        assert (a.block, a.t, a.selected, a.candidates) == (b.block, b.t, b.selected, b.candidates)
        for name in ("importance", "hidden_sum", "score"):
            assert torch.allclose(getattr(a, name), getattr(b, name), **close), name
        assert (a.residual, a.relative_residual) == pytest.approx(
            (b.residual, b.relative_residual), rel=tolerance
        )
    for c, d in zip(one.blocks_pruned, other.blocks_pruned, strict=True):
        for name in ("drift", "relative_residual", "error_before", "error_after"):
            near(getattr(c, name), getattr(d, name), tolerance)
    for name, value in one.model.state_dict().items():
        assert torch.allclose(value, other.model.state_dict()[name], **close), name


@pytest.mark.parametrize("selector", selectors.names())
@pytest.mark.parametrize("target", ["none", "asymmetric"])
def test_what_padding_holds_changes_nothing(selector: str, target: str) -> None:
    net = Tokens().eval()
    options: dict[str, Any] = {"selector": selector, "reconstruct": target, "multiple": 1, "device": "cpu"}
    zeros, noise = (ispasp.prune(net, padded(fill), 0.4, **options) for fill in (0.0, 100.0))
    same(zeros, noise)


@pytest.mark.parametrize("kind", [Gated, Flattened])
@pytest.mark.parametrize("target", ["none", "symmetric", "asymmetric"])
def test_nor_behind_a_gate_or_in_one_list(kind: type[nn.Module], target: str) -> None:
    net = kind().eval()
    zeros, noise = (
        ispasp.prune(net, padded(fill), 0.4, reconstruct=target, multiple=1, device="cpu")
        for fill in (0.0, 100.0)
    )
    same(zeros, noise, 1e-6)


@pytest.mark.parametrize("kind", [torch.bool, torch.int32, torch.float32])
def test_a_mask_may_have_any_type(kind: torch.dtype) -> None:
    net = Tokens().eval()
    zeros, noise = (
        ispasp.prune(net, padded(fill, kind), 0.4, multiple=1, device="cpu") for fill in (0.0, 100.0)
    )
    same(zeros, noise)


@pytest.mark.parametrize("allocation", ["macs", "params"])
def test_nor_does_it_change_how_a_budget_is_shared_out(allocation: str) -> None:
    net = Tokens().eval()
    zeros, noise = (
        ispasp.prune(net, padded(fill), 0.4, allocation=allocation, multiple=1, device="cpu")
        for fill in (0.0, 100.0)
    )
    assert zeros.started == noise.started
    same(zeros, noise, 1e-6)


@pytest.mark.parametrize("selector", [name for name in selectors.names() if name != "taylor"])
@pytest.mark.parametrize("target", ["none", "symmetric"])
def test_it_is_as_if_the_padding_were_not_there(selector: str, target: str) -> None:
    """Every token as an example of its own: the same statistics, since nothing mixes tokens."""
    net = Tokens().eval()
    batches = padded(100.0)
    tokens = torch.cat([batch["tokens"][batch["attention_mask"].bool()] for batch in batches])[:, None]
    alone = [{"tokens": tokens, "attention_mask": torch.ones(len(tokens), 1).long()}]
    options: dict[str, Any] = {"selector": selector, "reconstruct": target, "multiple": 1, "device": "cpu"}
    with_padding = ispasp.prune(net, batches, 0.4, **options)
    without = ispasp.prune(net, alone, 0.4, **options)
    for a, b in zip(with_padding.trace, without.trace, strict=True):
        assert a.selected == b.selected
        assert torch.allclose(a.hidden_sum, b.hidden_sum, rtol=1e-5)
        assert torch.allclose(a.importance, b.importance, rtol=1e-4, atol=1e-4)
        assert a.residual == pytest.approx(b.residual, rel=1e-5)
    for name, value in with_padding.model.state_dict().items():
        assert torch.allclose(value, without.model.state_dict()[name], atol=1e-4), name
    for c, d in zip(with_padding.blocks_pruned, without.blocks_pruned, strict=True):
        near(c.error_after, d.error_after, 1e-4)


def test_the_hidden_sum_is_that_of_the_tokens_that_count() -> None:
    net, batches = Tokens(torch.relu).eval(), padded(100.0)
    result = ispasp.prune(net, batches, {"first": 0.5}, multiple=1, device="cpu")
    with torch.no_grad():
        values = [torch.relu(net.first(b["tokens"]))[b["attention_mask"].bool()] for b in batches]
    assert torch.allclose(result.trace[0].hidden_sum, torch.cat(values).double().sum(0), rtol=1e-5)


def test_one_token_that_counts_is_enough() -> None:
    tokens, mask = torch.randn(4, 7, 6), torch.zeros(4, 7).long()
    mask[0, 0] = 1
    batch = {"tokens": tokens, "attention_mask": mask}
    alone = {"tokens": tokens[:1, :1], "attention_mask": torch.ones(1, 1).long()}
    for target in ("none", "symmetric"):
        options: dict[str, Any] = {"reconstruct": target, "multiple": 1, "device": "cpu"}
        one = ispasp.prune(PerToken().eval(), [batch], 0.5, **options)
        two = ispasp.prune(PerToken().eval(), [alone], 0.5, **options)
        assert [step.selected for step in one.trace] == [step.selected for step in two.trace]
        assert torch.allclose(one.trace[0].hidden_sum, two.trace[0].hidden_sum, rtol=1e-5)


class PerToken(Tokens):
    """As ``Tokens``, but gives every token's values; always the same weights."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.normal_(generator=torch.Generator().manual_seed(number))

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.third(self.bend(self.second(self.bend(self.first(tokens)))))
        return x * attention_mask[..., None]


def test_masks_say_what_counts_in_opposite_senses() -> None:
    counts = MASKS[0]
    for name, given in (
        ("attention_mask", counts.long()),
        ("key_padding_mask", ~counts),
        ("src_key_padding_mask", ~counts),
    ):
        found = mask_of({name: given})
        assert found is not None and torch.equal(found, counts), name
    assert mask_of({"attention_mask": torch.ones(5, 7)}) is None
    assert mask_of({"key_padding_mask": torch.zeros(5, 7).bool()}) is None


class Encoder(nn.Module):
    """A transformer layer over (N, T, 8), inside tokens first unless ``batch_first``; gives (N, 3)."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 4, 16, dropout=0.0, batch_first=batch_first)
        self.head, self.batch_first = nn.Linear(8, 3), batch_first

    def forward(self, src: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        x = src if self.batch_first else src.transpose(0, 1)
        x = self.layer(x, src_key_padding_mask=src_key_padding_mask)
        x = x if self.batch_first else x.transpose(0, 1)
        counts = (~src_key_padding_mask).to(x.dtype)[..., None]
        return self.head((x * counts).sum(1) / counts.sum(1))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("tokens", [6, 9])
@pytest.mark.parametrize("target", ["none", "asymmetric"])
def test_a_transformer_layer(batch_first: bool, tokens: int, target: str) -> None:
    """Also with as many tokens as examples, where the two could be taken for one another."""
    net = Encoder(batch_first).eval()
    padding = torch.arange(tokens) >= torch.tensor([6, 2, 3, 1, 5, 4])[:, None]
    source, noise = torch.randn(2, 6, tokens, 8)
    results = []
    for fill in (0.0, 30.0):
        given = torch.where(padding[..., None], fill * noise, source)
        batch = {"src": given, "src_key_padding_mask": padding}
        results.append(ispasp.prune(net, [batch], 0.5, multiple=1, reconstruct=target, device="cpu"))
    assert [event.block.kind for event in results[0].blocks_pruned] == ["head", "neuron"]
    same(*results, 1e-4)


@pytest.mark.parametrize("selector", ["ispasp", "obs", "taylor", "gfs"])
def test_more_padding_changes_nothing_in_bert(selector: str) -> None:
    transformers = pytest.importorskip("transformers")
    widths = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    net = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=40, **widths)).eval()
    tokens, mask = torch.randint(1, 40, (5, 7)), MASKS[0].long()
    results = []
    for more in (0, 6):
        batch = {
            "input_ids": F.pad(tokens, (0, more)),
            "attention_mask": F.pad(mask, (0, more)),
            "labels": torch.tensor([0, 1, 1, 0, 1]),
        }
        options: dict[str, Any] = {"selector": selector, "reconstruct": "asymmetric", "multiple": 1}
        results.append(ispasp.prune(net, [batch], 0.5, device="cpu", **options))
    assert [event.block.kind for event in results[0].blocks_pruned] == ["head", "neuron"] * 2 + ["neuron"]
    for a, b in zip(results[0].trace, results[1].trace, strict=True):
        assert a.selected == b.selected
        assert torch.allclose(a.hidden_sum, b.hidden_sum, rtol=1e-4)
        assert a.residual == pytest.approx(b.residual, rel=1e-3, abs=1e-6)
    for name, value in results[0].model.state_dict().items():
        assert torch.allclose(value, results[1].model.state_dict()[name], atol=1e-5), name


class Maps(nn.Module):
    """Convolutions over tokens (N, 7, 6), with as many channels as there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 7, 1), nn.Conv2d(7, 2, 1)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(tokens.unsqueeze(1)))) * attention_mask[:, None, :, None]


def test_channels_are_not_taken_for_tokens() -> None:
    """Every channel counts; the hidden sum is that of whole maps."""
    net, batches = Maps().eval(), padded(1.0)
    result = ispasp.prune(net, batches, 0.5, multiple=1, device="cpu")
    with torch.no_grad():
        maps = torch.cat([torch.relu(net.first(batch["tokens"].unsqueeze(1))) for batch in batches])
    assert torch.allclose(result.trace[0].hidden_sum, maps.double().sum((0, 2, 3)), rtol=1e-5)

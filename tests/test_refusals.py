"""Adversarial small networks: refused with the reason, or pruned right; never wrongly and never a crash."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ispasp
from ispasp.errors import ISpaSPError, ModelError
from tests.random_networks import RandomNetwork
from tests.small_networks import (
    SHAPES,
    Case,
    check,
    first_block,
    gate,
    gated,
    heads,
    hidden,
    merged,
    parameter,
    qkv,
)


def attend(m: Any, x: Tensor, mask: Tensor | None = None, count: int = -1) -> Tensor:
    q, k, v = (heads(layer(x), count) for layer in (m.first, m.k, m.v))
    return F.scaled_dot_product_attention(q, k, v, mask)


def eager(m: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    q, k, v = (heads(layer(x)) for layer in (m.first, m.k, m.v))
    return merged(torch.softmax(change(q @ k.transpose(-1, -2)), -1) @ v)


def shared_queries(m: Any, x: Tensor) -> Tensor:
    q, k = heads(m.first(x)), heads(m.k(x))
    return m.second(merged(F.scaled_dot_product_attention(q, k, k, enable_gqa=True)))


def in_place_gate(m: Any, x: Tensor) -> Tensor:
    h = hidden(m, x)
    h.mul_(gated(m, h))
    return m.second(h)


def gate_of_what_is_changed(m: Any, x: Tensor) -> Tensor:
    h = torch.tanh(m.first(x))
    weights = gated(m, h)
    return m.second(h.relu_() * weights)


def in_place_before_the_gate_is_applied(m: Any, x: Tensor) -> Tensor:
    h = F.silu(m.first(x))
    weights = gated(m, h)
    h.mul_(2.0)
    return m.second(h * weights)


def shuffled(m: Any, x: Tensor) -> Tensor:
    return m.second(hidden(m, x).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))


def twice(m: Any, x: Tensor) -> Tensor:
    h = hidden(m, x)
    return m.second(h) * m.second(h)


def recurrent(m: Any, x: Tensor) -> Tensor:
    h = hidden(m, x)
    for _ in range(2):
        h = torch.relu(m.loop(h))
    return m.second(h)


def tied_norm(m: Any, x: Tensor) -> Tensor:
    return m.second(torch.relu(m.norm(m.first(x)))) + m.third(torch.relu(m.norm(m.other(x))))


MIXED = "mixed with other dimensions"
WRITTEN = "written into forward"
CASES = {
    "tied bias": Case(lambda m, x: m.second(hidden(m, x)) + m.first.bias.sum(), "is shared (tied)"),
    "tied norm": Case(
        tied_norm,
        "is shared (tied)",
        more=lambda: {"norm": nn.BatchNorm1d(8), "other": nn.Linear(6, 8), "third": nn.Linear(8, 6)},
    ),
    "weight reused transposed": Case(
        lambda m, x: m.second(hidden(m, x)) @ m.second.weight, "shared (tied)", hidden=6
    ),
    "weight norm": Case(
        lambda m, x: m.second(torch.relu(m.normed(hidden(m, x)))),
        "computed by the model",
        more=lambda: {"normed": nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))},
    ),
    "two groups": Case(
        lambda m, x: m.second(torch.relu(m.mid(hidden(m, x)))),
        "not depthwise",
        "pictures",
        more=lambda: {"mid": nn.Conv2d(8, 8, 1, groups=2)},
    ),
    "depthwise with a multiplier": Case(
        lambda m, x: m.second(torch.relu(m.mid(hidden(m, x)))),
        "not depthwise",
        "pictures",
        out=16,
        more=lambda: {"mid": nn.Conv2d(8, 16, 3, groups=8)},
    ),
    "returned in a dict": Case(
        lambda m, x: {"y": m.second(h := hidden(m, x)), "h": h.detach()}, "the model returns it"
    ),
    "softmax": Case(lambda m, x: m.second(hidden(m, x).softmax(1)), "softmax mixes its groups", "pictures"),
    "functional": Case(
        lambda m, x: m.second(torch.relu(F.linear(hidden(m, x), m.own))),
        "used functionally",
        more=parameter(8, 8),
    ),
    "matrix of its own": Case(
        lambda m, x: m.second(hidden(m, x) @ m.own), "a matrix product mixes", more=parameter(8, 8)
    ),
    "multiplied by a parameter": Case(
        lambda m, x: m.second(hidden(m, x) * m.own),
        "parameter or buffer of the model's own",
        more=parameter(8),
    ),
    "divided by a parameter": Case(
        lambda m, x: m.second(hidden(m, x) / m.own), "together with another value", more=parameter(8)
    ),
    "added to a parameter": Case(
        lambda m, x: m.second(hidden(m, x) + m.own),
        "added to another value",
        "pictures",
        more=parameter(8, 1, 1),
    ),
    "multiplied by the input": Case(
        lambda m, x: m.second(torch.relu(m.first(x)) * x), "no layer of the model makes", hidden=6
    ),
    "multiplied by numbers made on the way": Case(
        lambda m, x: m.second(hidden(m, x) * torch.arange(8)[None]), "cannot be narrowed alike"
    ),
    "group norm": Case(
        lambda m, x: m.second(torch.relu(m.norm(m.first(x)))),
        "group norm mixes",
        "pictures",
        more=lambda: {"norm": nn.GroupNorm(2, 8)},
    ),
    "layer norm": Case(
        lambda m, x: m.second(m.norm(hidden(m, x))),
        "layer norm mixes",
        "tokens",
        more=lambda: {"norm": nn.LayerNorm(8)},
    ),
    "gate used elsewhere": Case(
        lambda m, x: m.second((h := hidden(m, x)) * (g := gated(m, h))) + g.sum(-1, keepdim=True),
        "its groups are averaged or summed up",
        more=gate,
    ),
    "inside of a gate used elsewhere": Case(
        lambda m, x: m.second((h := hidden(m, x)) * m.excite(t := torch.relu(m.squeeze(h)))) + t.mean(),
        "a gate on its groups is also used elsewhere",
        more=gate,
    ),
    "gate in place": Case(in_place_gate, "in place", more=gate),
    "concatenated": Case(lambda m, x: m.second(torch.cat([hidden(m, x), x], -1)), "concatenated", out=14),
    "shared queries": Case(
        shared_queries, "share keys and values", "tokens", more=lambda: {"k": nn.Linear(6, 4)}
    ),
    "one key for all heads": Case(
        lambda m, x: m.second(merged(heads(m.first(x)) @ m.k(x).transpose(1, 2)[:, None] @ m.v(x)[:, None])),
        "cannot be narrowed alike",
        "tokens",
        more=lambda: {"k": nn.Linear(6, 2), "v": nn.Linear(6, 2)},
        out=8,
    ),
    "mask for every head": Case(
        lambda m, x: m.second(merged(attend(m, x, m.own))),
        "of its own for every head",
        "tokens",
        more=lambda: qkv() | parameter(1, 4, 5, 5)(),
    ),
    "bias for every head": Case(
        lambda m, x: m.second(eager(m, x, lambda scores: scores + m.own)),
        "added to another value",
        "tokens",
        more=lambda: qkv() | parameter(4, 5, 5)(),
    ),
    "temperature for every head": Case(
        lambda m, x: m.second(eager(m, x, lambda scores: scores * m.own)),
        "parameter or buffer",
        "tokens",
        more=lambda: qkv() | parameter(4, 1, 1)(),
    ),
    "softmax over the heads": Case(
        lambda m, x: m.second(eager(m, x, lambda scores: scores.softmax(1))),
        "softmax mixes",
        "tokens",
        more=qkv,
    ),
    "head count in forward": Case(
        lambda m, x: m.second(merged(attend(m, x, count=4))), WRITTEN, "tokens", more=qkv
    ),
    "view with its size": Case(lambda m, x: m.second(hidden(m, x).view(-1, 8)), WRITTEN, "tokens"),
    "split with sizes": Case(
        lambda m, x: m.second(torch.mul(*torch.relu(m.first(x)).split(4, -1))), WRITTEN, out=4
    ),
    "shuffled": Case(shuffled, MIXED, "pictures"),
    "times itself transposed": Case(
        lambda m, x: m.second((h := hidden(m, x)) @ h.transpose(1, 2) @ h), "a matrix product mixes", "tokens"
    ),
    "attention over the channels": Case(
        lambda m, x: m.second(F.scaled_dot_product_attention(h := hidden(m, x), h, h)),
        "attention mixes its groups",
        "tokens",
    ),
    "summed": Case(
        lambda m, x: m.second((h := hidden(m, x)) / h.sum(1, keepdim=True)), "averaged or summed up"
    ),
    "averaged over everything": Case(
        lambda m, x: m.second((h := hidden(m, x)) * h.mean(dim=(), keepdim=True)), "averaged or summed up"
    ),
    "averaged over None": Case(
        lambda m, x: m.second((h := hidden(m, x)) * h.mean(dim=None, keepdim=True)), "averaged or summed up"
    ),
    "sorted": Case(lambda m, x: m.second(hidden(m, x).sort(-1)[0]), "not known to keep groups apart"),
    "largest": Case(lambda m, x: m.second(hidden(m, x).topk(8)[0]), "not known to keep groups apart"),
    "cumulated": Case(lambda m, x: m.second(hidden(m, x).cumsum(-1)), "not known to keep groups apart"),
    "rolled": Case(lambda m, x: m.second(hidden(m, x).roll(1, -1)), "not known to keep groups apart"),
    "flipped": Case(lambda m, x: m.second(hidden(m, x).flip(-1)), "not known to keep groups apart"),
    "indexed": Case(
        lambda m, x: m.second(hidden(m, x)[:, [1, 0, 2, 3, 4, 5, 6, 7]]), "not known to keep groups apart"
    ),
    "gathered": Case(
        lambda m, x: m.second((h := hidden(m, x)).gather(1, h.argsort(1))), "not known to keep groups apart"
    ),
    "picked out": Case(lambda m, x: m.second(h := hidden(m, x)) * h[:, :1], "not known to keep groups apart"),
    "einsum": Case(
        lambda m, x: m.second(torch.einsum("nd,de->ne", hidden(m, x), m.own)),
        "not known",
        more=parameter(8, 8),
    ),
    "consumer used twice": Case(twice, "shared (tied)"),
    "producers added": Case(
        lambda m, x: m.second(torch.relu(m.first(x) + m.other(x))),
        "added to another value",
        more=lambda: {"other": nn.Linear(6, 8)},
    ),
    "recurrent": Case(recurrent, "shared (tied)", more=lambda: {"loop": nn.Linear(8, 8)}),
    "meets a sorted value": Case(
        lambda m, x: m.second(torch.sigmoid(m.first(x)) * m.other(x).sort(-1)[0]),
        "cannot be narrowed alike",
        more=lambda: {"other": nn.Linear(6, 8)},
    ),
    "meets a part split off": Case(
        lambda m, x: m.second(torch.sigmoid(m.first(x)) * m.other(x).split([8, 2], -1)[0]),
        "cannot be narrowed alike",
        more=lambda: {"other": nn.Linear(6, 10)},
    ),
    "position outside of the batch": Case(
        lambda m, x: m.second(hidden(m, x) * torch.sigmoid(m.other(m.own))),
        "spreads it over more dimensions",
        "tokens",
        more=lambda: parameter(5, 4)() | {"other": nn.Linear(4, 8)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_with_the_reason(name: str) -> None:
    case = CASES[name]
    data = torch.randn(SHAPES[case.data])
    net = case.net()
    net(data)  # it does run
    block = first_block(net, data)
    assert not block.prunable
    assert case.reason in block.reason
    check(net, data)


RIGHT = {
    "one neuron gates all": Case(
        lambda m, x: m.second(torch.sigmoid(m.one(x)) * hidden(m, x)),
        "",
        more=lambda: {"one": nn.Linear(6, 1)},
    ),
    "one map gates all channels": Case(
        lambda m, x: m.second(hidden(m, x) * torch.sigmoid(m.one(x))),
        "",
        "pictures",
        more=lambda: {"one": nn.Conv2d(3, 1, 1)},
    ),
    "changed in place after the gate was computed": Case(gate_of_what_is_changed, "", more=gate),
    "scaled in place after the gate was computed": Case(in_place_before_the_gate_is_applied, "", more=gate),
    "a convolution over the heads": Case(
        lambda m, x: m.second(merged(m.talk(heads(m.first(x)) @ heads(m.k(x)).mT) @ heads(m.v(x)))),
        "",
        "tokens",
        more=lambda: qkv() | {"talk": nn.Conv2d(4, 4, 1)},
    ),
    "keys made of queries": Case(
        lambda m, x: m.second(
            merged(F.scaled_dot_product_attention(heads(q := m.first(x)), heads(m.back(q)), heads(m.v(x))))
        ),
        "",
        "tokens",
        more=lambda: qkv() | {"back": nn.Linear(8, 8)},
    ),
    "negative after a ReLU": Case(lambda m, x: m.second(hidden(m, x) * -1.0), ""),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("reconstruct", ["none", "asymmetric"])
def test_what_looks_dangerous_but_can_be_pruned_is_pruned_right_or_refused(
    name: str, reconstruct: str
) -> None:
    net, data = RIGHT[name].net(), torch.randn(SHAPES[RIGHT[name].data])
    assert sum(block.prunable for block in ispasp.find_blocks(net, data)) >= (reconstruct == "none")
    if reconstruct == "none":
        check(net, data)
    else:
        ispasp.prune(net, [data], keep=0.5, multiple=1, device="cpu", reconstruct=reconstruct)


def test_a_hidden_representation_that_may_be_negative_is_known_as_such() -> None:
    case = RIGHT["negative after a ReLU"]
    assert first_block(case.net(), torch.randn(SHAPES["vectors"])).signed


@pytest.fixture
def at_most_15_seconds() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("it does not end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(15)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("at_most_15_seconds")
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_chunks_that_are_not_halves(parts: int) -> None:
    case = Case(lambda m, x: m.second(torch.relu(m.first(x)).chunk(parts, -1)[0]), "", out=-(-8 // parts))
    check(case.net(), torch.randn(20, 6))


def test_a_width_that_forward_computes_with_is_refused_before_anything_is_given_away() -> None:
    case = Case(lambda m, x: m.second(h := hidden(m, x)) / h.shape[1], "")
    with pytest.raises(ISpaSPError, match="its forward depends on the width of a pruned layer"):
        ispasp.prune(case.net(), [torch.randn(20, 6)], keep=0.5, multiple=1, device="cpu")


def test_control_flow_that_depends_on_the_data_is_named() -> None:
    case = Case(lambda m, x: m.second(h if (h := hidden(m, x)).sum() > 0 else -h), "")
    with pytest.raises(ModelError, match="cannot be traced by torch.export"):
        ispasp.find_blocks(case.net(), torch.randn(20, 6))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.relu(x) * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Rolled(Doubled):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.relu(x).roll(1, -1)


def test_functions_with_a_gradient_of_their_own_are_seen_through() -> None:
    data = torch.randn(20, 6)
    result = check(Case(lambda m, x: m.second(Doubled.apply(m.first(x))), "").net(), data)
    assert result is not None and result.model.second.weight.shape == (6, 4)
    assert check(Case(lambda m, x: m.second(Rolled.apply(m.first(x))), "").net(), data) is None


@pytest.mark.parametrize("seed", range(30))
def test_random_networks_are_pruned_right_or_refused(seed: int) -> None:
    """The short version; 380 other seeds were run when this was written."""
    torch.manual_seed(seed)
    net = RandomNetwork(seed, pictures=seed % 2 == 1).eval()
    check(net, net.example, selector="l1")

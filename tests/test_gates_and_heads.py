"""Riders, gates, gated layers and attention heads: what is cut, what is selected, and what is re-fitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ispasp
from ispasp import reconstruct, selectors
from tests import oracle
from tests.conftest import settle_batch_norm
from tests.hooks import difference, masked_twin, parameters_left
from tests.small_networks import (
    SHAPES,
    Case,
    Net,
    check,
    first_block,
    gate,
    gated,
    heads,
    hidden,
    merged,
    qkv,
)


def convolutions() -> dict[str, Any]:
    return {"squeeze": nn.Conv2d(8, 4, 1), "excite": nn.Conv2d(4, 8, 1)}


def depthwise(stride: int = 1, norm: bool = False) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "depth": nn.Conv2d(8, 8, 3, stride, 1, groups=8, bias=not norm),
        "norm": nn.BatchNorm2d(8) if norm else nn.Identity(),
    }


def through_depth(m: Any, x: Tensor) -> Tensor:
    return torch.relu(m.norm(m.depth(hidden(m, x))))


def excited(m: Any, h: Tensor, bend: Callable[[Tensor], Tensor] = torch.sigmoid) -> Tensor:
    return h * bend(m.excite(torch.relu_(m.squeeze(h.mean((2, 3), keepdim=True)))))


def by_linear(m: Any, h: Tensor, shaped: Callable[[Tensor], Tensor]) -> Tensor:
    return h * shaped(gated(m, F.adaptive_avg_pool2d(h, 1).flatten(1)))


def attended(m: Any, x: Tensor) -> Tensor:
    return merged(F.scaled_dot_product_attention(*(heads(layer(x)) for layer in (m.first, m.k, m.v))))


def eager(m: Any, x: Tensor) -> Tensor:
    n, t, _ = x.shape
    q, k, v = (layer(x).view(n, t, -1, 2).permute(0, 2, 1, 3) for layer in (m.first, m.k, m.v))
    scores = q @ k.transpose(-1, -2) / 2**0.5 + x.new_zeros(1, 1, t, t).masked_fill(~m.seen, -1e9)
    return (F.dropout(scores.softmax(-1), 0.1, m.training) @ v).transpose(1, 2).reshape(n, t, -1)


def seen() -> dict[str, Any]:
    return qkv() | {"seen": torch.ones(5, 5).tril().bool()}


def fused(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.first(x).chunk(3, -1)
    return merged(F.scaled_dot_product_attention(heads(q), heads(k), heads(v)))


# What second reads, in place of a reason the modules cut beside first and second, and the group size.
CASES = {
    "depthwise": (Case(through_depth, "depth", "pictures", more=depthwise()), 1),
    "depthwise, norm": (Case(through_depth, "depth norm", "pictures", more=depthwise(norm=True)), 1),
    "depthwise, stride": (Case(through_depth, "depth", "pictures", more=depthwise(2)), 1),
    "depthwise, squeeze-excitation": (
        Case(
            lambda m, x: excited(m, through_depth(m, x)),
            "depth norm squeeze excite",
            "pictures",
            more=lambda: depthwise(norm=True)() | convolutions(),
        ),
        1,
    ),
    "gate of convolutions": (
        Case(lambda m, x: excited(m, hidden(m, x)), "squeeze excite", "pictures", more=convolutions),
        1,
    ),
    "gate with hardsigmoid": (
        Case(
            lambda m, x: excited(m, F.silu(m.first(x)), lambda g: F.hardsigmoid(g, inplace=True)),
            "squeeze excite",
            "pictures",
            more=convolutions,
        ),
        1,
    ),
    "gate of linear layers, unsqueezed": (
        Case(
            lambda m, x: by_linear(m, hidden(m, x), lambda g: g.unsqueeze(-1).unsqueeze(-1)),
            "squeeze excite",
            "pictures",
            more=gate,
        ),
        1,
    ),
    "gate of linear layers, unflattened": (
        Case(
            lambda m, x: by_linear(m, hidden(m, x), lambda g: g.unflatten(1, (-1, 1, 1))),
            "squeeze excite",
            "pictures",
            more=gate,
        ),
        1,
    ),
    "swiglu": (
        Case(lambda m, x: F.silu(m.first(x)) * m.up(x), "up", "tokens", more=lambda: {"up": nn.Linear(6, 8)}),
        1,
    ),
    "swiglu, fused": (
        Case(
            lambda m, x: F.silu((both := m.first(x).chunk(2, -1))[0]) * both[1],
            "",
            "tokens",
            hidden=16,
            out=8,
        ),
        1,
    ),
    "glu": (Case(lambda m, x: F.glu(m.first(x)), "", "tokens", hidden=16, out=8), 1),
    "gelu": (Case(lambda m, x: F.gelu(m.first(x)), "", "tokens"), 1),
    "prelu": (
        Case(lambda m, x: m.bend(m.first(x)), "bend", "pictures", more=lambda: {"bend": nn.PReLU(8, 0.3)}),
        1,
    ),
    "heads": (Case(attended, "k v", "tokens", more=qkv), 2),
    "heads, eager with a mask": (Case(eager, "k v", "tokens", more=seen), 2),
    "heads, fused": (Case(fused, "", "tokens", hidden=24, out=8), 2),
}
each = pytest.mark.parametrize("name", CASES)


def network(name: str) -> tuple[Any, Tensor, str, int]:
    """A network of the table, its data, the modules that are cut as well, and the group size."""
    case, size = CASES[name]
    data = torch.randn(SHAPES[case.data])
    net = Case(lambda m, x: m.second(case.run(m, x)), "", case.data, case.hidden, case.out, case.more).net()
    settle_batch_norm(net, [data])
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    return net, data, case.reason, size


def read_by(net: nn.Module, name: str, data: Tensor) -> Tensor:
    """What the layer ``name`` reads."""
    found: list[Tensor] = []
    handle = net.get_submodule(name).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        net(data)
    handle.remove()
    return found[0]


@each
def test_all_that_belongs_together_is_cut_together(name: str) -> None:
    net, data, modules, size = network(name)
    block = first_block(net, data)
    assert (block.prunable, block.group_size, block.groups) == (True, size, 8 // size)
    assert {cut.module for cut in block.cuts} == {"first", "second", *modules.split()}
    assert block.kind == ("head" if size > 1 else "channel" if data.ndim == 4 else "neuron")
    result = check(net, data)
    assert result is not None
    assert result.report["params_after"] == parameters_left(net, result)
    # The inner layer of a gate is a block of its own.
    inner = {block.name for block in result.started.blocks} - {"first"}
    assert inner == ({"squeeze"} if "squeeze" in modules else set())


def sets_by_autograd(
    values: Tensor, layer: nn.Module, s: int, size: int, absolute: bool
) -> list[tuple[int, ...]]:
    """Algorithm 1's selected sets in three iterations, ranked by the sum of H or of its absolute values."""
    axis = 1 if values.ndim == 4 else -1
    wide, double = values.double(), nn.Module.double(layer)
    bias, layer.bias = layer.bias, None

    def per_group(map_: Tensor) -> Tensor:
        return map_.movedim(axis, 0).flatten(1).sum(1).view(-1, size).sum(1)

    score = per_group(wide.abs() if absolute else wide)
    chosen: list[int] = []
    sets = []
    for _ in range(3):
        keep = torch.zeros(len(score)).double()
        keep[chosen] = 1
        mask = keep.repeat_interleave(size).view((-1, 1, 1) if axis == 1 else (-1,))
        given = wide.clone().requires_grad_()
        lost = double(given) - double(wide * mask).detach()
        importance = per_group(torch.autograd.grad(0.5 * lost.square().sum(), given)[0])
        candidates = importance.topk(min(len(score), 2 * s)).indices.tolist()
        among = sorted({*chosen, *candidates}, key=lambda group: -float(score[group]))
        chosen = sorted(among[:s])
        sets.append(tuple(chosen))
    layer.bias = bias
    nn.Module.float(layer)
    return sets


@each
@pytest.mark.parametrize("hidden_sum", ["absolute", "signed"])
def test_the_sets_are_those_of_algorithm_1_on_what_the_consumer_reads(name: str, hidden_sum: str) -> None:
    net, data, _, size = network(name)
    values, s = read_by(net, "second", data), 3 if size == 1 else 1
    result = ispasp.prune(
        net, [data], {"first": (s + 0.01) * size / 8}, multiple=1, hidden_sum=hidden_sum, device="cpu"
    )
    got = [iteration.selected for iteration in result.trace]
    absolute = hidden_sum == "absolute"
    assert got[:3] == sets_by_autograd(values, net.second, s, size, absolute)[: len(got[:3])]
    steps = oracle.algorithm_one(values, net.second, s, group_size=size)
    assert torch.allclose(result.trace[0].importance, steps[0].importance, rtol=1e-4, atol=1e-3)
    if not absolute or bool((values >= 0).all()):
        assert got == [step.selected for step in steps[: len(got)]]
        assert torch.allclose(result.trace[0].hidden_sum, steps[0].hidden_sum, rtol=1e-4, atol=1e-3)
    assert result.trace[-1].residual == pytest.approx(
        oracle.residual(values, net.second, got[-1], size), rel=1e-4
    )


def rows(layer: nn.Module, values: Tensor) -> Tensor:
    """What a 1x1 convolution or linear layer reads or gives, one row per position."""
    last = values.movedim(1, -1) if isinstance(layer, nn.Conv2d) else values
    return last.reshape(-1, last.shape[-1])


def least_squares(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (outputs, inputs) and bias (outputs,) of the best affine map."""
    ones = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    solution = torch.linalg.lstsq(ones, targets).solution
    return solution[:-1].T, solution[-1]


@each
@pytest.mark.parametrize("target", ["symmetric", "asymmetric"])
def test_the_refit_is_that_of_lstsq(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct, "ridge_for", lambda *_: 0.0)
    net, data, _, _ = network(name)
    net, data = net.double(), data.double()
    result = ispasp.prune(net, [data], {"first": 0.5}, multiple=1, reconstruct=target, device="cpu")
    (event,) = result.blocks_pruned
    with torch.no_grad():
        weight, bias = least_squares(
            rows(net.second, read_by(result.model, "second", data)), rows(net.second, net(data))
        )
    assert torch.allclose(result.model.second.weight.flatten(1), weight, atol=1e-6)
    assert torch.allclose(result.model.second.bias, bias, atol=1e-6)
    assert event.error_after <= event.error_before
    with torch.no_grad():
        energy = (net(data) - net.second.bias.view((-1, 1, 1) if data.ndim == 4 else (-1,))).square().sum()
        lost = (net(data) - result.model(data)).square().sum() / energy
        before = (net(data) - masked_twin(net, result)(data)).square().sum() / energy
    assert event.error_after == pytest.approx(lost.item(), rel=1e-6)
    assert event.error_before == pytest.approx(before.item(), rel=1e-6)


class Residual(nn.Module):
    """Two layers each in two blocks, scaled and moved on the way to the sum."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.inner = nn.ModuleList(nn.Linear(6, 16) for _ in range(2))
        self.outer = nn.ModuleList(nn.Linear(16, 6) for _ in range(2))
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5 if way == "permuted" else torch.rand(6) + 0.5)

    def part(self, number: int, x: Tensor) -> Tensor:
        out = x.permute(0, 2, 3, 1) if self.way == "permuted" else x
        out = self.outer[number](torch.relu(self.inner[number](out)))
        out = out.permute(0, 3, 1, 2) if self.way == "permuted" else out
        return out if self.way == "plain" else self.scale * out

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.part(0, x)
        return x + self.part(1, x)


@pytest.mark.parametrize("way", ["plain", "scaled", "permuted"])
def test_the_asymmetric_target_is_the_dense_sum(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct, "ridge_for", lambda *_: 0.0)
    net = Residual(way).double().eval()
    data = torch.randn((12, 6, 3, 3) if way == "permuted" else (90, 6)).double()
    pruned = ispasp.prune(net, [data], 0.4, multiple=1, reconstruct="asymmetric", device="cpu")
    assert [event.target for event in pruned.blocks_pruned] == ["asymmetric"] * 2

    def last(x: Tensor) -> Tensor:
        return (x.permute(0, 2, 3, 1) if way == "permuted" else x).reshape(-1, 6)

    with torch.no_grad():
        shortcut = pruned.model.part(0, data) + data
        wanted = net(data) - shortcut
        inputs = read_by(pruned.model, "outer.1", data).reshape(-1, 6)
        weight, bias = least_squares(inputs, last(wanted if way == "plain" else wanted / net.scale))
    assert torch.allclose(pruned.model.outer[1].weight, weight, atol=1e-6)
    assert torch.allclose(pruned.model.outer[1].bias, bias, atol=1e-6)


class Classifier(nn.Module):
    """Attention, a gated layer and a gate over tokens (N, 5, 8); gives (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True, dropout=0.5)
        self.gate, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(24, 8)
        self.squeeze, self.excite, self.head = nn.Linear(24, 4), nn.Linear(4, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        h = F.silu(self.gate(x)) * self.up(x)
        h = h * torch.sigmoid(self.excite(torch.relu(self.squeeze(h))))
        return self.head((x + self.down(h)).mean(1))


@pytest.mark.parametrize("selector", selectors.names())
def test_every_selector_runs_on_heads_and_gates(selector: str) -> None:
    net, data = Classifier().eval(), torch.randn(12, 5, 8)
    batch = (data, torch.randint(0, 3, (12,)))
    result = ispasp.prune(net, [batch], 0.5, selector=selector, multiple=1, device="cpu")
    assert [event.block.name for event in result.blocks_pruned] == ["attention", "squeeze", "gate"]
    with torch.no_grad():
        assert difference(masked_twin(net, result)(data), result.model(data)) <= 1e-4
    assert not any(module.training for module in result.model.modules())


@pytest.mark.parametrize("budget", ["macs", "params"])
def test_a_shared_out_budget_costs_no_more_than_the_uniform_one(budget: str) -> None:
    net, data = Classifier().eval(), torch.randn(12, 5, 8)
    uniform = ispasp.prune(net, [data], 0.5, multiple=1, device="cpu")
    shared = ispasp.prune(net, [data], 0.5, multiple=1, allocation=budget, device="cpu")
    assert shared.report[f"{budget}_after"] <= uniform.report[f"{budget}_after"]


@pytest.mark.parametrize("linear_reads", [True, False])
def test_the_sample_of_a_hidden_representation_has_its_groups_first(linear_reads: bool) -> None:
    """(n, d, h, w), or (n, d, size, h, w) of heads, whichever dimension the layers around it use."""
    if linear_reads:
        parts, order = {"first": nn.Conv2d(3, 8, 1), "second": nn.Linear(8, 2)}, (0, 2, 3, 1)
    else:
        parts, order = {"first": nn.Linear(5, 8), "second": nn.Conv2d(8, 2, 1)}, (0, 3, 1, 2)
    net = Net(lambda m, x: m.second(torch.relu(m.first(x)).permute(order)), **parts).eval()
    data = torch.randn((4, 3, 6, 5) if linear_reads else (4, 6, 7, 5))
    (started,) = ispasp.prune(net, [data], 0.5, multiple=1, device="cpu").blocks_started
    assert started.sample.shape == ((2, 8, 6, 5) if linear_reads else (2, 8, 6, 7))


def test_heads_made_of_convolutions() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(1, (-1, 2)).flatten(3).transpose(2, 3) for layer in (m.first, m.k, m.v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return m.second(out.flatten(1, 2).unflatten(2, (5, 5)))

    parts = {name: nn.Conv2d(3, 8, 1) for name in ("first", "k", "v")}
    net = Net(run, **parts, second=nn.Conv2d(8, 2, 1)).eval()
    result = check(net, torch.randn(4, 3, 5, 5))
    assert result is not None
    assert result.blocks_started[0].sample.shape == (2, 4, 2, 5, 5)


def test_values_computed_before_queries_are_part_of_the_same_block() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        v, q, k = (heads(layer(x)) for layer in (m.first, m.q, m.k))
        return m.second(merged(torch.softmax(q @ k.transpose(-1, -2), -1) @ v))

    parts = {name: nn.Linear(6, 8) for name in ("first", "q", "k")}
    net, data = Net(run, **parts, second=nn.Linear(8, 6)).eval(), torch.randn(4, 5, 6)
    assert set(first_block(net, data).producers) == {"first", "q", "k"}
    check(net, data)

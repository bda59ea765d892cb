"""Every selector against brute force, and all of them against what a selector must never do."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ispasp import gram, selectors, statistics, taylor
from ispasp.algorithm import SelectorSettings
from ispasp.blocks import find
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError, SettingError
from ispasp.graph import trace
from ispasp.records import Block, Iteration
from ispasp.residual import Consumer
from ispasp.statistics import Statistics
from tests import oracle
from tests.test_gram import materialised

SETTINGS = SelectorSettings()
NEEDS_NO_LABELS = [name for name in selectors.names() if name != "taylor"]

NETWORKS = {
    "two layers": (lambda: oracle.two_layer_network(6, 14, 5, seed=1), (6,)),
    "3x3": (lambda: oracle.convolution_network(2, 8, 5, seed=1), (2, 6, 6)),
    "stride": (lambda: oracle.convolution_network(2, 8, 5, seed=1, stride=2, padding=0), (2, 7, 6)),
    "flatten": (lambda: oracle.flattening_network(2, 8, 5, side=4, seed=1), (2, 4, 4)),
}


class TwoHeads(nn.Module):
    """A hidden representation that two layers read."""

    def __init__(self, first: nn.Module, heads: list[nn.Module]) -> None:
        super().__init__()
        self.first, self.heads = first, nn.ModuleList(heads)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        hidden = F.relu(self.first(x))
        return tuple(head(hidden) for head in self.heads)


def the_block(network: nn.Module, inputs: Tensor) -> tuple[Block, list[Consumer], Tensor]:
    """The network's only prunable block, what reads it, and its producer's weight."""
    traced = trace(network.eval(), Batch((inputs,), {}))
    (block,) = [block for block in find(traced) if block.prunable]
    nodes = {node.name: node for node in traced.nodes}
    reads = [nodes[name] for name in block.reads]
    consumers = [Consumer(read, traced.fixed[read.args[1]].detach()) for read in reads]  # type: ignore[index]
    producer = network.get_submodule(block.name).weight
    assert isinstance(producer, Tensor)
    return block, consumers, producer


def collected(network: nn.Module, inputs: Tensor, hidden: Tensor) -> tuple[Statistics, int]:
    """Statistics of the network's only prunable block, and its group size."""
    block, consumers, producer = the_block(network, inputs)
    return statistics.collect(block, consumers, thirds(hidden), producer), block.group_size


def thirds(hidden: Tensor) -> list[Tensor]:
    return list(hidden.split(math.ceil(len(hidden) / 3)))


@functools.cache
def known(name: str) -> tuple[nn.Sequential, Block, list[Consumer], Tensor]:
    """One of ``NETWORKS``, traced once."""
    make, shape = NETWORKS[name]
    network = make()
    return network, *the_block(network, torch.randn(2, *shape))


def gathered(name: str, examples: int = 40) -> tuple[Statistics, int, Tensor, nn.Module]:
    network, block, consumers, producer = known(name)
    torch.manual_seed(0)
    hidden, consumer = oracle.hidden_and_consumer(network, torch.randn(examples, *NETWORKS[name][1]))
    found = statistics.collect(block, consumers, thirds(hidden), producer)
    return found, block.group_size, hidden, consumer


def two_heads(kind: str) -> tuple[Statistics, Tensor, list[nn.Module]]:
    found, hidden, heads = traced_heads(kind)
    return anew(found), hidden, heads


@functools.cache
def traced_heads(kind: str) -> tuple[Statistics, Tensor, list[nn.Module]]:
    torch.manual_seed(3)
    first: nn.Module
    heads: list[nn.Module]
    if kind == "linear":
        first, heads, inputs = nn.Linear(6, 10), [nn.Linear(10, 4), nn.Linear(10, 7)], torch.randn(40, 6)
    else:
        first, inputs = nn.Conv2d(2, 6, 3, padding=1), torch.randn(12, 2, 6, 6)
        heads = [nn.Conv2d(6, 4, 1), nn.Conv2d(6, 7, 3, padding=1)]
    network = TwoHeads(first, heads)
    with torch.no_grad():
        hidden = F.relu(first(inputs))
    return collected(network, inputs, hidden)[0], hidden, heads


def run(name: str, found: Statistics, kept: int, settings: SelectorSettings = SETTINGS) -> list[Iteration]:
    return list(selectors.get(name)(found, kept, settings))


def check(records: list[Iteration], found: Statistics, kept: int) -> None:
    """What holds for the records of every selector."""
    assert 1 <= len(records) <= 32
    previous: tuple[int, ...] | None = None
    for number, record in enumerate(records, start=1):
        assert record.t == number
        for values in (record.importance, record.score, record.hidden_sum):
            assert values.shape == (found.groups,)
            assert values.dtype == torch.float64
            assert bool(values.isfinite().all())
        for groups in (record.candidates, record.selected, record.added, record.dropped):
            assert list(groups) == sorted(set(groups))
            assert all(0 <= group < found.groups for group in groups)
        if previous is not None:
            assert set(record.added) == set(record.selected) - set(previous)
            assert set(record.dropped) == set(previous) - set(record.selected)
        assert math.isfinite(record.residual)
        assert record.residual >= 0
        previous = record.selected
    assert len(records[-1].selected) == kept
    assert records[-1].converged
    assert not any(record.converged for record in records[:-1])


@pytest.mark.parametrize("selector", selectors.names())
@pytest.mark.parametrize("network", NETWORKS)
def test_every_selector_keeps_s_groups_and_tells_the_exact_residual(selector: str, network: str) -> None:
    found, group_size, hidden, consumer = gathered(network)
    object.__setattr__(found, "taylor", torch.rand(found.groups, dtype=torch.float64))
    again = anew(found)
    for kept in (1, 3, found.groups // 2, found.groups):
        records = run(selector, found, kept)
        check(records, found, kept)
        for record in records:
            direct = oracle.residual(hidden, consumer, record.selected, group_size)
            assert record.residual == pytest.approx(direct, rel=1e-3, abs=1e-9)
        assert run(selector, again, kept) == records  # seconds and tensors are not compared
    assert records[-1].residual == 0


def anew(found: Statistics) -> Statistics:
    """The same statistics, taken anew."""
    return statistics.collect(found.block, found.consumers, found.hidden, found.producer, found.taylor)


@pytest.mark.parametrize("selector", NEEDS_NO_LABELS)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_several_consumers(selector: str, kind: str) -> None:
    found, hidden, heads = two_heads(kind)
    for kept in (1, 3, found.groups):
        records = run(selector, found, kept)
        check(records, found, kept)
        direct = oracle.residual(hidden, heads, records[-1].selected)
        assert records[-1].residual == pytest.approx(direct, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("selector", NEEDS_NO_LABELS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("dead", [3, 100])
def test_dead_groups_and_few_positions_never_give_nan(selector: str, network: str, dead: int) -> None:
    """Two examples of a fully or half dead block: the Gram matrix is singular whatever one does."""
    model, block, consumers, producer = known(network)
    hidden, consumer = oracle.hidden_and_consumer(model, torch.randn(2, *NETWORKS[network][1]))
    dim = -1 if hidden.ndim == 2 else 1
    hidden = hidden.clone()
    hidden.narrow(dim, 0, min(hidden.shape[dim], 3 * max(1, hidden.shape[dim] // 14))).zero_()
    if dead == 100:
        hidden.zero_()
    found, group_size = statistics.collect(block, consumers, [hidden], producer), block.group_size
    for kept in (1, found.groups // 2, found.groups):
        records = run(selector, found, kept)
        check(records, found, kept)
        direct = oracle.residual(hidden, consumer, records[-1].selected, group_size)
        assert records[-1].residual == pytest.approx(direct, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("selector", ["ispasp", "ispasp-contribution", "cosamp", "gfs", "obs", "activation"])
def test_all_zero_scores_keep_the_lower_groups(selector: str) -> None:
    _, block, (consumer,), producer = known("two layers")
    same = dataclasses.replace(consumer, weight=torch.ones_like(consumer.weight))
    found = statistics.collect(block, [same], [torch.zeros(10, 14)], producer)
    assert run(selector, found, 4)[-1].selected == (0, 1, 2, 3)


def test_names_describe_themselves_and_unknown_ones_are_refused() -> None:
    assert selectors.names()[0] == "ispasp"
    for name in selectors.names():
        assert selectors.describe(name).endswith(".") or selectors.describe(name).endswith(").")
        assert len(selectors.describe(name)) < 110
    with pytest.raises(SettingError, match="Unknown selector 'best'; choose one of ispasp, "):
        selectors.get("best")


# ------------------------------------------------------------------------------------------- contribution


@pytest.mark.parametrize("network", NETWORKS)
def test_contribution_is_what_a_group_alone_gives(network: str) -> None:
    found, group_size, hidden, consumer = gathered(network)
    everything = set(range(found.groups))
    direct = [
        oracle.residual(hidden, consumer, sorted(everything - {g}), group_size) ** 0.5 for g in everything
    ]
    assert torch.allclose(found.contribution, torch.tensor(direct, dtype=torch.float64), rtol=1e-4)
    assert torch.allclose(found.contribution, found.energy_matrix.diagonal().sqrt(), rtol=1e-4)
    for record in run("ispasp-contribution", found, 3):
        assert torch.equal(record.score, found.contribution)
    first_time = run("ispasp", found, 3)[0]
    assert torch.equal(first_time.importance, run("ispasp-contribution", found, 3)[0].importance)
    assert torch.equal(first_time.score, first_time.hidden_sum)


def test_contribution_adds_squares_over_consumers() -> None:
    found, hidden, heads = two_heads("convolution")
    direct = [
        oracle.residual(hidden, heads, [h for h in range(found.groups) if h != g]) ** 0.5
        for g in range(found.groups)
    ]
    assert torch.allclose(found.contribution, torch.tensor(direct, dtype=torch.float64), rtol=1e-4)


# ---------------------------------------------------------------------------------------------------- gfs


def evaluated_gfs(
    hidden: Tensor, consumers: nn.Module | list[nn.Module], kept: int, groups: int, group_size: int
) -> list[int]:
    """Greedy forward selection, every candidate evaluated by a forward pass; groups in the order added."""
    order: list[int] = []
    for _ in range(kept):
        rest = [group for group in range(groups) if group not in order]
        order.append(min(rest, key=lambda g: oracle.residual(hidden, consumers, [*order, g], group_size)))
    return order


@pytest.mark.parametrize("network", NETWORKS)
def test_gfs_through_q_equals_evaluated_gfs(network: str) -> None:
    found, group_size, hidden, consumer = gathered(network)
    order = evaluated_gfs(hidden, consumer, found.groups, found.groups, group_size)
    records = run("gfs", found, found.groups)
    assert [record.candidates for record in records] == [(group,) for group in order]
    for number, record in enumerate(records, start=1):
        assert record.selected == tuple(sorted(order[:number]))
        before = oracle.residual(hidden, consumer, order[: number - 1], group_size)
        for group in set(range(found.groups)) - set(order[: number - 1]):
            after = oracle.residual(hidden, consumer, [*order[: number - 1], group], group_size)
            gain = float(record.importance[group])
            assert gain == pytest.approx(before - after, rel=1e-3, abs=1e-4 * before + 1e-6)
        assert float(record.importance[order[: number - 1]].abs().sum()) == 0


def test_gfs_with_several_consumers_equals_evaluated_gfs() -> None:
    for kind in ("linear", "convolution"):
        found, hidden, heads = two_heads(kind)
        order = evaluated_gfs(hidden, heads, 5, found.groups, 1)
        assert [record.candidates for record in run("gfs", found, 5)] == [(group,) for group in order]


def test_long_runs_are_shown_in_32_records() -> None:
    network, inputs = oracle.two_layer_network(8, 200, 5, seed=0), torch.randn(300, 8)
    hidden, consumer = oracle.hidden_and_consumer(network, inputs)
    found, _ = collected(network, inputs, hidden)
    forward = run("gfs", found, 70)
    check(forward, found, 70)
    assert len(forward) == 32
    assert [len(record.candidates) for record in forward] == [len(record.added) for record in forward]
    assert {len(record.added) for record in forward} == {2, 3}
    assert sorted(evaluated_gfs(hidden, consumer, 6, 200, 1)) == list(forward[2].selected)[:6]
    backward = run("obs", found, 70)
    check(backward, found, 70)
    assert len(backward) == 32
    assert backward[0].added == ()
    assert {len(record.dropped) for record in backward} == {4, 5}
    assert all(record.candidates == record.dropped for record in backward)


# ---------------------------------------------------------------------------------------------------- obs


def best_error(
    hidden: Tensor, layers: list[nn.Module], selected: list[int], size_of: dict[int, int]
) -> float:
    """||A(H) - what the selected groups give||^2 with their weights re-fitted by least squares, no intercept."""
    total = 0.0
    for number, layer in enumerate(layers):
        rows, size = materialised(layer, hidden), size_of[number]
        assert isinstance(layer.weight, Tensor)
        target = rows @ layer.weight.detach().double().flatten(1).T
        columns = torch.tensor([g * size + i for g in selected for i in range(size)], dtype=torch.int64)
        x = rows[:, columns]
        solution = torch.linalg.lstsq(x, target, driver="gelsd").solution
        total += float((target - x @ solution).square().sum())
    return total


@pytest.mark.parametrize("network", [*NETWORKS, "two heads"])
def test_obs_cost_is_the_real_increase_of_the_least_squares_error(network: str) -> None:
    if network == "two heads":
        found, hidden, layers = two_heads("convolution")
    else:
        found, _, hidden, consumer = gathered(network, examples=60)
        layers = [consumer]
    sizes = dict(enumerate(found.patch_sizes))
    everything = range(found.groups)
    (one,) = run("obs", found, found.groups - 1)
    errors = [best_error(hidden, layers, [h for h in everything if h != g], sizes) for g in everything]
    assert one.added == ()
    assert len(one.dropped) == 1
    assert set(everything) - set(one.selected) == {errors.index(min(errors))}
    # The ridge costs a little, which shows where a group is dead.
    assert one.importance.tolist() == pytest.approx(errors, rel=1e-3, abs=1e-5 * max(errors))
    # Later steps: each removal is the best one given those before, and costs what it says.
    records = run("obs", found, 2)
    left, error = list(everything), 0.0
    for record in records:
        tried = {g: best_error(hidden, layers, [h for h in left if h != g], sizes) for g in left}
        assert record.candidates == (min(tried, key=lambda g: tried[g]),)
        for group, after in tried.items():
            assert float(record.importance[group]) == pytest.approx(
                after - error, rel=1e-2, abs=1e-4 * max(tried.values())
            )
        left = [g for g in left if g not in record.candidates]
        error = tried[record.candidates[0]]


def test_obs_catches_up_and_compacts_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    found, *_ = gathered("3x3")
    expected = run("obs", found, 1)
    for pending, compact in itertools.product((1, 20, 1000), (0.0, 0.5, 1.0)):
        monkeypatch.setattr("ispasp.obs.MOST_PENDING", pending)
        monkeypatch.setattr("ispasp.obs.COMPACT_BELOW", compact)
        records = run("obs", found, 1)
        assert records == expected
        for ours, theirs in zip(records, expected, strict=True):
            assert torch.allclose(ours.score, theirs.score, rtol=1e-6)


# ------------------------------------------------------------------------------------------------- cosamp


def planted(seed: int) -> tuple[Statistics, tuple[int, ...]]:
    """Only 6 of 40 neurons are read, none of them much: small activations, large weights. The rest is loud."""
    torch.manual_seed(seed)
    network, inputs = oracle.two_layer_network(30, 40, 8, seed), torch.randn(400, 30)
    support = tuple(sorted(torch.randperm(40)[:6].tolist()))
    with torch.no_grad():
        network[2].weight[:, [g for g in range(40) if g not in support]] = 0
        network[0].weight[list(support)] *= 0.1
        network[0].bias[list(support)] *= 0.1
    hidden, _ = oracle.hidden_and_consumer(network, inputs)
    return collected(network, inputs, hidden)[0], support


@pytest.mark.parametrize("seed", range(5))
def test_cosamp_recovers_a_planted_support_where_the_hidden_sum_does_not(seed: int) -> None:
    found, support = planted(seed)
    records = run("cosamp", found, 6)
    check(records, found, 6)
    assert records[-1].selected == support
    assert records[-1].relative_residual == pytest.approx(0, abs=1e-10)
    assert run("ispasp", found, 6)[-1].selected != support


@pytest.mark.parametrize("network", [*NETWORKS, "two heads"])
def test_cosamp_ends_with_its_best_set_and_scores_are_least_squares(network: str) -> None:
    if network == "two heads":
        found, hidden, layers = two_heads("convolution")
    else:
        found, _, hidden, consumer = gathered(network, examples=60)
        layers = [consumer]
    sizes = dict(enumerate(found.patch_sizes))
    for kept in (2, 3):
        records = run("cosamp", found, kept)
        errors = [best_error(hidden, layers, list(record.selected), sizes) for record in records]
        assert errors == sorted(errors, reverse=True)
        first = records[0]
        projected = first_projections(hidden, layers, sizes, found.groups)
        assert first.importance.tolist() == pytest.approx(projected, rel=1e-3)
        outside = set(range(found.groups)) - set(first.candidates)
        assert float(first.score[sorted(outside)].abs().sum()) == 0
        merged = sorted(set(first.candidates))
        assert first.score[merged].tolist() == pytest.approx(
            refitted_norms(hidden, layers, sizes, merged), rel=1e-2
        )


def first_projections(
    hidden: Tensor, layers: list[nn.Module], sizes: dict[int, int], groups: int
) -> list[float]:
    """||P_g T||_F per group, P_g the projection on the group's columns, T the output; squares added up."""
    total = torch.zeros(groups, dtype=torch.float64)
    for number, layer in enumerate(layers):
        rows, size = materialised(layer, hidden), sizes[number]
        assert isinstance(layer.weight, Tensor)
        target = rows @ layer.weight.detach().double().flatten(1).T
        for group in range(groups):
            x = rows[:, group * size : (group + 1) * size]
            total[group] += (x @ torch.linalg.lstsq(x, target, driver="gelsd").solution).square().sum()
    return total.sqrt().tolist()


def refitted_norms(
    hidden: Tensor, layers: list[nn.Module], sizes: dict[int, int], merged: list[int]
) -> list[float]:
    """||X_g W'_g||_F of each of the merged groups, W' the least-squares weights on them."""
    total = torch.zeros(len(merged), dtype=torch.float64)
    for number, layer in enumerate(layers):
        rows, size = materialised(layer, hidden), sizes[number]
        assert isinstance(layer.weight, Tensor)
        target = rows @ layer.weight.detach().double().flatten(1).T
        columns = [g * size + i for g in merged for i in range(size)]
        solution = torch.linalg.lstsq(rows[:, columns], target, driver="gelsd").solution
        for place, group in enumerate(merged):
            part = slice(place * size, (place + 1) * size)
            total[place] += (rows[:, group * size : (group + 1) * size] @ solution[part]).square().sum()
    return total.sqrt().tolist()


# ------------------------------------------------------------------------------------------------ rankings


def test_rankings_are_what_they_say() -> None:
    found, _, hidden, _ = gathered("3x3")
    weight = found.producer.double().flatten(1)
    expected = {
        "l1": weight.abs().sum(1),
        "l2": weight.square().sum(1).sqrt(),
        "activation": hidden.double().square().mean((0, 2, 3)).sqrt(),
    }
    for name, score in expected.items():
        (record,) = run(name, found, 3)
        assert torch.allclose(record.score, score, rtol=1e-5)
        assert torch.equal(record.score, record.importance)
        assert set(record.selected) == set(score.topk(3).indices.tolist())


def test_activation_is_the_root_mean_square_over_features_of_a_group() -> None:
    found, group_size, hidden, _ = gathered("flatten")
    (record,) = run("activation", found, 3)
    expected = hidden.double().view(len(hidden), -1, group_size).square().mean((0, 2)).sqrt()
    assert torch.allclose(record.score, expected, rtol=1e-5)


def test_random_follows_seed_and_block() -> None:
    found, *_ = gathered("two layers")
    draws = [run("random", found, 5, SelectorSettings(seed=seed))[0].score for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    other = dataclasses.replace(found, block=dataclasses.replace(found.block, name="another"))
    assert not torch.equal(draws[0], run("random", other, 5)[0].score)
    # The same on every machine and in every process.
    assert draws[0][:2].tolist() == pytest.approx([0.5405552453610556, 0.9537615170137381])


@pytest.mark.parametrize("fault", ["H is too large to square", "A(H) is", "H holds NaN", "W holds infinity"])
@pytest.mark.parametrize("name", ["two layers", "3x3"])
def test_values_that_no_selector_could_rank_are_refused(name: str, fault: str) -> None:
    """Without that, gfs kept fewer groups than asked, and others a residual of NaN."""
    _, block, consumers, producer = known(name)
    found, _, hidden, _ = gathered(name)
    weight = consumers[0].weight.clone()
    if fault.startswith("H is"):
        hidden = hidden * 1e25
    elif fault.startswith("A(H)"):
        hidden, weight = hidden * 1e15, weight * 1e15
    elif fault.startswith("H holds"):
        hidden = hidden.clone()
        hidden[7].view(-1)[3] = math.nan
    else:
        weight.view(-1)[3] = math.inf
    with pytest.raises(CalibrationError, match="NaN, infinite or too large to square"):
        statistics.collect(
            block, [dataclasses.replace(consumers[0], weight=weight)], thirds(hidden), producer
        )
    large = statistics.collect(block, consumers, thirds(found.hidden[0] * 1e15), producer)
    for selector in ("gfs", "ispasp", "random"):
        check(run(selector, large, 3), large, 3)


def test_selectors_that_need_a_gram_say_so_when_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "MOST_GRAM_BYTES", 64)
    for name in selectors.names():
        found, *_ = gathered("3x3")
        object.__setattr__(found, "taylor", torch.rand(found.groups, dtype=torch.float64))
        if name in ("gfs", "obs", "cosamp"):
            with pytest.raises(SettingError, match="A Gram matrix of 72 features"):
                run(name, found, 3)
        else:
            check(run(name, found, 3), found, 3)


# ------------------------------------------------------------------------------------------------- taylor


class Residual(nn.Module):
    """Two residual blocks with in-place activations and additions, as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.a1, self.n1, self.a2 = (
            nn.Conv2d(4, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 4, 3, padding=1),
        )
        self.b1, self.b2 = nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        out = self.a2(self.relu(self.n1(self.a1(x))))
        out += x
        x = self.relu(out)
        out = self.b2(self.relu(self.b1(x)))
        out += x
        x = self.relu(out)
        return self.head(x.mean((2, 3)))


class Plain(nn.Module):
    """Two convolutions and two linear layers; the flatten makes groups of four features."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.f1, self.f2 = nn.Linear(6 * 4, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c2(F.relu(self.c1(x)))), 2).flatten(1)
        return self.f2(torch.tanh(self.f1(x)))


class Tokens(nn.Module):
    """A feed-forward block over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.f1, self.f2, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.f2(F.gelu(self.f1(x)))).mean(1))


TAUGHT = {"plain": (Plain, (2, 4, 4)), "residual": (Residual, (2, 5, 5)), "tokens": (Tokens, (5, 4))}


def gated(model: nn.Module, name: str, groups: int, x: Tensor, label: Tensor) -> Tensor:
    """The derivative of one example's loss in gates on the groups of ``name``, by autograd through hooks.

    The gates multiply the consumer's weight, group by group: the same as gates on what it reads.
    """
    gate = torch.ones(groups, dtype=torch.float64, requires_grad=True)
    consumer = model.get_submodule(name)
    weight = consumer.weight.detach()
    spread = gate.repeat_interleave(weight.shape[1] // groups).view(1, -1, *[1] * (weight.ndim - 2))
    with torch.enable_grad():
        logits = torch.func.functional_call(model, {f"{name}.weight": weight * spread}, (x[None],))
        loss = F.cross_entropy(logits, label[None])
    return torch.autograd.grad(loss, gate)[0]


@pytest.mark.parametrize("name", TAUGHT)
def test_taylor_equals_explicit_gates_one_example_at_a_time(name: str) -> None:
    make, shape = TAUGHT[name]
    model, inputs, labels = make().eval(), torch.randn(9, *shape), torch.randint(3, (9,))
    before = inputs.clone()
    batches = [Batch((inputs[:4],), {}, labels[:4]), Batch((inputs[4:],), {}, labels[4:])]
    traced = trace(model, batches[0])
    blocks = [block for block in find(traced) if block.prunable]
    assert len(blocks) == {"plain": 3, "residual": 2, "tokens": 1}[name]
    with torch.no_grad():  # as the pruner calls it
        found = taylor.scores(traced, blocks, batches)
    assert torch.equal(inputs, before)
    assert list(found) == [block.name for block in blocks]
    wide = make().double().eval()
    wide.load_state_dict(model.state_dict())
    for block in blocks:
        gates = [
            gated(wide, block.consumer, block.groups, x.double(), label)
            for x, label in zip(inputs, labels, strict=True)
        ]
        expected = torch.stack(gates).square().sum(0)
        assert found[block.name].dtype == torch.float64
        assert torch.allclose(found[block.name], expected, rtol=1e-3, atol=1e-7 * float(expected.max()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_taylor_agrees_with_finite_differences() -> None:
    """The loss at gates slightly off one, one example."""
    model, x, label = Plain().double().eval(), torch.randn(1, 2, 4, 4).double(), torch.tensor([2])
    traced = trace(model, Batch((x,), {}, label))
    block = next(block for block in find(traced) if block.prunable)
    found = taylor.scores(traced, [block], [Batch((x,), {}, label)])[block.name]
    step = 1e-5
    for group in range(block.groups):
        losses = []
        for gate in (1 + step, 1 - step):
            weight = model.c2.weight.detach().clone()
            weight[:, group] *= gate
            logits = torch.func.functional_call(model, {"c2.weight": weight}, (x,))
            losses.append(F.cross_entropy(logits, label).item())
        slope = (losses[0] - losses[1]) / (2 * step)
        assert float(found[group]) == pytest.approx(slope**2, rel=1e-4, abs=1e-12)


def test_taylor_refuses_data_without_fitting_labels() -> None:
    model, x = Plain().eval(), torch.randn(4, 2, 4, 4)
    traced = trace(model, Batch((x,), {}))
    blocks = [block for block in find(traced) if block.prunable]

    def scores(labels: Tensor | None, graph: object = traced) -> None:
        taylor.scores(graph, blocks, [Batch((x,), {}, labels)])  # type: ignore[arg-type]

    with pytest.raises(CalibrationError, match="Batch 1 .* has no labels, which selector taylor needs"):
        scores(None)
    with pytest.raises(CalibrationError, match="labels from -1 to 7, the model 3 classes; .* from 0 to 2"):
        scores(torch.tensor([0, -1, 2, 7]))
    with pytest.raises(CalibrationError, match=r"labels of shape \(3,\) for 4 examples"):
        scores(torch.tensor([0, 1, 2]))
    segments = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()
    graph = trace(segments, Batch((x,), {}))
    blocks = [block for block in find(graph) if block.prunable]
    with pytest.raises(CalibrationError, match=r"first output is \(4, 3, 2, 2\) for 4 examples"):
        scores(torch.tensor([0, 1, 2, 0]), graph)


def test_taylor_selector_needs_the_scores() -> None:
    found, *_ = gathered("two layers")
    with pytest.raises(SettingError, match="needs labels with the calibration data"):
        run("taylor", found, 3)
    object.__setattr__(found, "taylor", torch.arange(14, dtype=torch.float64))
    assert run("taylor", found, 3)[0].selected == (11, 12, 13)

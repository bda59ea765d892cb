"""Every selector against what a selector must never do, and the rankings against their definitions."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from ispasp import gram, selectors, statistics
from ispasp.algorithm import SelectorSettings
from ispasp.errors import CalibrationError, SettingError
from tests import oracle
from tests.selector_networks import NETWORKS, anew, check, gathered, known, run, thirds, two_heads

NEEDS_NO_LABELS = [name for name in selectors.names() if name != "taylor"]


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


# -------------------------------------------------------------------------------------------- contribution


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

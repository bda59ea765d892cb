"""Sharing one budget out among the blocks, and the sensitivities it rests on."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

import ispasp
from ispasp import allocation, calibration, evaluate, sensitivity, surgery, zoo
from ispasp.allocation import Layer
from ispasp.blocks import find
from ispasp.calibration import as_batch
from ispasp.errors import SettingError
from ispasp.graph import trace
from ispasp.records import Block, Finished, Started
from ispasp.sensitivity import Curve
from ispasp.settings import PruneSettings
from tests import oracle


@pytest.fixture
def chain() -> tuple[nn.Module, list[Tensor]]:
    """Three blocks in a row, each layer consumer and producer in turn; two batches."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    ).eval()
    with torch.no_grad():
        model[-1].weight *= 20
    return model, [torch.randn(24, 3, 6, 6), torch.randn(8, 3, 6, 6)]


@pytest.mark.parametrize("reconstruct", ["none", "symmetric"])
def test_a_sensitivity_is_the_divergence_of_the_model_with_one_block_pruned(
    reconstruct: str, chain: tuple[nn.Module, list[Tensor]]
) -> None:
    model, batches = chain
    data = torch.cat(batches)
    read = calibration.read(batches)
    traced = trace(model, read[0])
    blocks = [block for block in ispasp.find_blocks(model, batches[0]) if block.prunable]
    settings = PruneSettings(reconstruct=reconstruct, multiple=1)
    measuring = sensitivity.measure(traced, blocks, read, settings, {})
    with pytest.raises(StopIteration) as stop:
        while True:
            assert next(measuring).done < 1
    curves = stop.value.value
    assert [curve.block for curve in curves] == blocks
    with torch.no_grad():
        dense = F.log_softmax(model(data), -1)
        for curve in curves:
            assert curve.kept[-1] == curve.block.groups and curve.divergence[-1] == 0
            assert [curve.at(kept) for kept in curve.kept] == pytest.approx(curve.divergence)
            for kept, divergence in zip(curve.kept[:-1], curve.divergence, strict=False):
                keep = {curve.block.name: kept / curve.block.groups}
                pruned = ispasp.prune(model, batches, keep, reconstruct=reconstruct, multiple=1).model
                expected = F.kl_div(
                    F.log_softmax(pruned(data), -1), dense, log_target=True, reduction="batchmean"
                )
                assert divergence == pytest.approx(expected.item(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("budget", ["macs", "params"])
def test_layers_cost_what_the_sliced_model_costs(budget: str, chain: tuple[nn.Module, list[Tensor]]) -> None:
    model, batches = chain
    read = calibration.read(batches)
    traced = trace(model, read[0])
    blocks = [block for block in ispasp.find_blocks(model, batches[0]) if block.prunable]
    layers = allocation.layers(traced, blocks, budget)
    keep = {block.name: kept / block.groups for block, kept in zip(blocks, (3, 5, 9), strict=True)}
    pruned = ispasp.prune(model, batches, keep, multiple=1).model
    cost = allocation.cost(layers, blocks, (3, 5, 9))
    counted = evaluate.count_macs(pruned, read[0]) if budget == "macs" else evaluate.count_parameters(pruned)
    assert cost == pytest.approx(counted, rel=1e-12)


def curve(groups: int, scale: float) -> Curve:
    """A divergence that falls as the square of what is left out."""
    kept = tuple(range(1, groups + 1))
    return Curve(Block(f"b{scale}", groups), kept, tuple(scale * (1 - k / groups) ** 2 for k in kept))


def separate(curves: list[Curve]) -> list[Layer]:
    return [
        Layer(cost * c.block.groups, i, None)
        for i, (cost, c) in enumerate(zip((7.0, 11.0, 5.0), curves, strict=True))
    ]


def in_a_row(curves: list[Curve]) -> list[Layer]:
    """Every layer but the first and last between two blocks, whose widths multiply."""
    return [
        Layer(30.0, 0, None),
        Layer(90.0, 1, 0),
        Layer(50.0, 2, 1),
        Layer(20.0, None, 2),
        Layer(3.0, None, None),
    ]


@pytest.mark.parametrize("network", [separate, in_a_row])
def test_no_other_counts_of_three_blocks_lose_less(network: Callable[[list[Curve]], list[Layer]]) -> None:
    """Against exhaustive search over every allocation."""
    curves = [curve(10, 1.0), curve(8, 5.0), curve(12, 0.3)]
    blocks, layers = [c.block for c in curves], network(curves)
    every = list(itertools.product(*(range(1, c.block.groups + 1) for c in curves)))

    def loss(counts: tuple[int, ...] | list[int]) -> float:
        return sum(c.at(count) for c, count in zip(curves, counts, strict=True))

    for keep in (0.2, 0.3, 0.5, 0.7, 0.9):
        found = allocation.share_out(curves, layers, keep, multiple=1)
        budget = allocation.cost(layers, blocks, allocation.uniform(blocks, keep, 1)) * (1 + 1e-9)
        best = min(loss(counts) for counts in every if allocation.cost(layers, blocks, counts) <= budget)
        assert allocation.cost(layers, blocks, found) <= budget
        assert loss(found) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("groups", [(64, 32, 16), (6, 100, 40), (8, 8, 8)])
def test_one_ratio_for_all_is_the_largest_within_the_budget(groups: tuple[int, ...]) -> None:
    blocks = [Block(f"b{i}", d) for i, d in enumerate(groups)]
    layers = [Layer(10.0, 0, None), Layer(20.0, 1, 0), Layer(5.0, None, 2)]
    for multiple, share in itertools.product((1, 8), (0.3, 0.5, 0.8)):
        fewest = allocation.cost(layers, blocks, allocation.uniform(blocks, 1e-3, multiple))
        budget = max(fewest, share * 35.0)
        keep = allocation.uniform_within(layers, blocks, budget, multiple)
        assert allocation.cost(layers, blocks, allocation.uniform(blocks, keep, multiple)) <= budget
        larger = [n / 1000 for n in range(1, 1001) if n / 1000 > keep]
        counts = allocation.uniform(blocks, keep, multiple)
        assert all(
            allocation.uniform(blocks, other, multiple) == counts
            or allocation.cost(layers, blocks, allocation.uniform(blocks, other, multiple)) > budget
            for other in larger
        )
    with pytest.raises(SettingError, match="No single keep ratio"):
        allocation.uniform_within(layers, blocks, 1e-3, 8)


def test_a_wide_block_has_evenly_spaced_choices_and_the_uniform_one() -> None:
    wide, small = allocation.choices([Block("a", 4096), Block("b", 5)], 8, also=(2040, 2))
    assert len(wide) <= allocation.MOST_CHOICES + 1 and {8, 2040, 4096} <= set(wide)
    assert all(count % 8 == 0 for count in wide) and small == (1, 2, 3, 4, 5)


def test_counts_are_multiples_and_blocks_too_small_for_them_are_exact() -> None:
    curves = [curve(64, 1.0), curve(40, 2.0), curve(6, 0.1)]
    layers = [Layer(float(c.block.groups), i, None) for i, c in enumerate(curves)]
    counts = allocation.share_out(curves, layers, 0.5, multiple=8)
    assert counts[0] % 8 == 0 and counts[1] % 8 == 0 and 1 <= counts[2] <= 6
    assert all(1 <= count <= c.block.groups for count, c in zip(counts, curves, strict=True))


def test_keeping_everything_shares_out_everything() -> None:
    curves = [curve(10, 1.0), curve(9, 2.0)]
    layers = [Layer(1.0, 0, None), Layer(1.0, 1, 0)]
    assert allocation.share_out(curves, layers, 1.0, multiple=8) == [10, 9]


def test_a_run_costs_no_more_than_the_uniform_one_and_repeats(chain: tuple[nn.Module, list[Tensor]]) -> None:
    model, batches = chain
    options = {"reconstruct": "asymmetric", "multiple": 1, "allocation": "macs"}
    uniform = ispasp.prune(model, batches, 0.5, reconstruct="asymmetric", multiple=1)
    events = list(ispasp.iterate(model, batches, 0.5, **options))
    assert isinstance(events[-1], Finished)
    result = events[-1].result
    assert result.report["macs_after"] <= uniform.report["macs_after"]
    started = next(event for event in events if isinstance(event, Started))
    assert started.keep_groups == tuple(len(event.selected) for event in result.blocks_pruned)
    assert result.settings["allocation"] == "macs"
    again = ispasp.prune(model, batches, 0.5, **options)
    assert [e.selected for e in again.blocks_pruned] == [e.selected for e in result.blocks_pruned]
    done = [event.done for event in events if isinstance(event, ispasp.Progress)]
    assert done == sorted(done) and done[-1] == 1.0


def test_an_mlp_reads_the_same(chain: tuple[nn.Module, list[Tensor]]) -> None:
    network = oracle.two_layer_network(6, 20, 4, seed=0)
    result = ispasp.prune(network, [torch.randn(50, 6)], 0.5, multiple=1, allocation="params")
    assert result.started.keep_groups == (10,)  # one block has nobody to share with


def test_what_cannot_be_shared_out_is_refused(chain: tuple[nn.Module, list[Tensor]]) -> None:
    model, batches = chain
    with pytest.raises(SettingError, match="keep is given per block"):
        ispasp.iterate(model, batches, {"0": 0.5}, allocation="macs")
    with pytest.raises(SettingError, match="choose one of uniform, macs and params"):
        ispasp.iterate(model, batches, 0.5, allocation="latency")


def models_of_every_kind() -> list[tuple[nn.Module, Tensor]]:
    """Attention's products, whose share the heads decide; tokens that come before examples; gates and depthwise
    convolutions; and an operation that no block reaches and no layer is."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return [
        (models.VisionTransformer(32, 8, 1, 4, 16, 32, num_classes=5), torch.randn(4, 3, 32, 32)),
        (nn.Sequential(layer, nn.Flatten(), nn.Linear(16 * 7, 3)), torch.randn(4, 7, 16)),
        (models.mobilenet_v3_small(weights=None), torch.randn(2, 3, 64, 64)),
        (zoo.build("cifar10_mobilenetv2"), torch.randn(2, 3, 32, 32)),
        (
            nn.Sequential(nn.Conv1d(4, 6, 3), nn.Flatten(), nn.Linear(60, 16), nn.ReLU(), nn.Linear(16, 5)),
            torch.randn(2, 4, 12),
        ),
    ]


@pytest.mark.parametrize("number", range(5))
def test_what_pruning_leaves_costs_what_was_predicted(number: int) -> None:
    model, example = models_of_every_kind()[number]
    traced = trace(model.eval(), as_batch(example))
    blocks = [block for block in find(traced) if block.prunable]
    counts = [max(1, block.groups // 3) for block in blocks]
    macs, params = (allocation.layers(traced, blocks, budget) for budget in ("macs", "params"))
    whole = [block.groups for block in blocks]
    assert allocation.cost(macs, blocks, whole) == evaluate.count_macs(model, as_batch(example))
    assert allocation.cost(params, blocks, whole) == evaluate.count_parameters(model)
    for kind in {block.kind for block in blocks}:
        index = next(i for i, block in enumerate(blocks) if block.kind == kind)
        assert any(layer.produces == index for layer in macs)
    sliced = copy.deepcopy(model)
    for block, count in zip(blocks, counts, strict=True):
        surgery.slice_block(sliced, block, range(count))
    predicted = allocation.cost(params, blocks, counts)
    assert predicted == pytest.approx(evaluate.count_parameters(sliced), rel=1e-12)
    predicted = allocation.cost(macs, blocks, counts)
    assert predicted == pytest.approx(evaluate.count_macs(sliced, as_batch(example)), rel=1e-12)

"""Figures of profiles: assertions on the info and on what the figure is made of, never on pixels."""

from __future__ import annotations

import numpy as np
import pytest

from ispasp.deployment import operator_figures as figures
from ispasp.deployment.by_block import BlockTime
from tests.small_profiles import operator, plain


def times(count: int) -> list[BlockTime]:
    """Blocks in network order and the rest."""
    own = [BlockTime(f"layer{i}.conv1", 2.0 + i, 1.0 + i, 4, 2, (f"layer{i}.conv1",)) for i in range(count)]
    return [*own, BlockTime(None, 0.5, 0.4, 1, 1, ("head",))]


def test_blocks_stand_in_network_order_and_the_rest_comes_last() -> None:
    info = figures.block_times_info(times(3))
    assert info.names == ("layer0.conv1", "layer1.conv1", "layer2.conv1", figures.REST)
    assert info.dense == pytest.approx([2, 3, 4, 0.5]) and info.pruned == pytest.approx([1, 2, 3, 0.4])
    dense, pruned = figures.block_times_figure(times(3)).data
    assert (dense.name, pruned.name) == ("dense", "pruned")
    assert tuple(dense.y) == info.names and tuple(pruned.x) == tuple(info.pruned)


@pytest.mark.parametrize("count", [1, 9, 40])
@pytest.mark.parametrize("dark", [False, True])
def test_every_block_has_a_row_with_its_name(count: int, dark: bool) -> None:
    figure = figures.block_times_figure(times(count), dark)
    assert figure.layout.yaxis.dtick == 1 and figure.layout.yaxis.autorange == "reversed"
    assert figure.layout.height >= 24 * (count + 1)
    light = figures.block_times_figure(times(count), not dark)
    assert figure.data[1].marker.color != light.data[1].marker.color


def test_peak_figure_shows_the_operators_that_multiply() -> None:
    product = operator("a", 0.2, 0.1, op_type="MatMul of activations", shape_dense=(), shape_pruned=())
    operators = [operator("a", 1.0, 0.4), product, plain("a", "Relu", 9.0, 9.0), operator("b", 2.0, 0.0)]
    info = figures.peak_info(operators)
    assert info.names == ("a", "a · MatMul of activations", "b")
    assert info.dense == pytest.approx([0.08, 0.4, 0.04])  # of 100 GFLOP/s
    assert info.pruned[:2] == pytest.approx([0.1, 0.4]) and np.isnan(info.pruned[2])
    assert info.hover[0] == ("4 M MACs, 1 ms, 8 GFLOP/s", "2 M MACs, 0.4 ms, 10 GFLOP/s")
    lines, dense, pruned = figures.peak_figure(operators).data
    assert tuple(dense.y) == info.names and tuple(pruned.x)[:2] == pytest.approx(info.pruned[:2])
    assert np.isnan(lines.x[2::3]).all() and lines.x[0] == pytest.approx(0.08)


def test_peak_figure_keeps_the_longest_in_the_order_in_which_they_run() -> None:
    operators = [operator(f"layer{i}", 1.0 + i % 50, 0.5) for i in range(100)]
    info = figures.peak_info(operators)
    assert len(info.names) == figures.MOST_OPERATORS
    numbers = [int(name.removeprefix("layer")) for name in info.names]
    assert numbers == sorted(numbers) and min(number % 50 for number in numbers) == 38
    assert figures.peak_figure(operators, dark=True).layout.height >= 24 * len(info.names)


def test_nothing_to_show_is_an_empty_figure() -> None:
    assert figures.peak_info([plain("a", "Relu", 1.0, 1.0)]).names == ()
    assert len(figures.peak_figure([]).data[1].x) == 0

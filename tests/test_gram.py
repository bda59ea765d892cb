"""Gram matrices against patches that are unfolded in another way: by a convolution with one-hot kernels."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ispasp import gram
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError, SettingError
from ispasp.graph import CONSUMERS, trace
from ispasp.residual import Consumer

CONSUMERS_OF_8 = {
    "linear": (lambda: nn.Linear(8, 5), (8,)),
    "tokens": (lambda: nn.Linear(8, 5), (3, 8)),
    "1x1": (lambda: nn.Conv2d(8, 5, 1), (8, 5, 6)),
    "1x1 stride 2": (lambda: nn.Conv2d(8, 5, 1, stride=2, bias=False), (8, 5, 6)),
    "3x3": (lambda: nn.Conv2d(8, 5, 3, padding=1), (8, 5, 6)),
    "no padding": (lambda: nn.Conv2d(8, 5, 3), (8, 5, 6)),
    "stride": (lambda: nn.Conv2d(8, 5, 3, stride=(2, 1), padding=(0, 1)), (8, 7, 6)),
    "dilation": (lambda: nn.Conv2d(8, 5, 3, padding=2, dilation=2), (8, 6, 6)),
    "2x3": (lambda: nn.Conv2d(8, 5, (2, 3), padding=(1, 0), dilation=(1, 2)), (8, 6, 7)),
    "same": (lambda: nn.Conv2d(8, 5, 3, padding="same"), (8, 6, 6)),
    "same, even, dilated": (lambda: nn.Conv2d(8, 5, (4, 2), padding="same", dilation=(1, 3)), (8, 6, 7)),
    "valid": (lambda: nn.Conv2d(8, 5, 3, padding="valid"), (8, 6, 6)),
}


@functools.cache
def known(name: str) -> tuple[nn.Module, Consumer, tuple[int, ...]]:
    """One of ``CONSUMERS_OF_8``, traced once, and the shape of an example."""
    make, shape = CONSUMERS_OF_8[name]
    layer = make()
    return layer, consumer_of(layer, torch.randn(2, *shape)), shape


def consumer_of(layer: nn.Module, hidden: Tensor) -> Consumer:
    traced = trace(nn.Sequential(nn.ReLU(), layer).eval(), Batch((hidden,), {}))
    (node,) = [node for node in traced.nodes if node.target in CONSUMERS]
    return Consumer(node, layer.weight.detach())


def materialised(layer: nn.Module, hidden: Tensor) -> Tensor:
    """What the layer reads, (positions, f) float64."""
    hidden = hidden.double()
    if isinstance(layer, nn.Linear):
        return hidden.reshape(-1, hidden.shape[-1])
    assert isinstance(layer, nn.Conv2d)
    f = layer.weight[0].numel()
    one_hot = torch.eye(f, dtype=torch.float64).view(f, *layer.weight.shape[1:])
    read = F.conv2d(hidden, one_hot, None, layer.stride, layer.padding, layer.dilation)
    return read.movedim(1, -1).reshape(-1, f)


@pytest.mark.parametrize("name", CONSUMERS_OF_8)
def test_gram_equals_materialised_patches(name: str) -> None:
    layer, consumer, shape = known(name)
    hidden = torch.randn(11, *shape).relu()
    rows = materialised(layer, hidden)
    found = gram.collect(consumer, list(hidden.split(4)))
    assert found.positions == len(rows)
    assert torch.allclose(found.matrix, rows.T @ rows, rtol=1e-5, atol=1e-4)
    assert torch.allclose(found.sums, rows.sum(0), rtol=1e-5, atol=1e-4)
    assert torch.equal(found.matrix, found.matrix.T)
    index = torch.tensor([1, 4, 5])
    part = found.part(index)
    assert torch.allclose(part.matrix, rows[:, index].T @ rows[:, index], rtol=1e-5, atol=1e-4)

    weight = gram.weight_matrix(consumer)
    output = consumer(hidden.double(), consumer.weight.double())
    if isinstance(layer, nn.Conv2d):
        output = output.movedim(1, -1)
    assert torch.allclose(rows @ weight, output.reshape(-1, 5), atol=1e-9)


@pytest.mark.parametrize("name", CONSUMERS_OF_8)
def test_patches_come_in_parts_that_say_whose_they_are(name: str) -> None:
    layer, consumer, shape = known(name)
    hidden = torch.randn(7, *shape)
    rows = materialised(layer, hidden)
    parts = list(gram.patches(consumer, hidden, most_bytes=2 * rows[: len(rows) // 7].numel() * 4))
    assert [examples.stop - examples.start for _, examples in parts] == [2, 2, 2, 1]
    assert torch.allclose(torch.cat([part for part, _ in parts]).double(), rows, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "group_size"), [*((name, 1) for name in CONSUMERS_OF_8), ("linear", 2), ("tokens", 4)]
)
def test_energies_and_blocks_equal_what_groups_give_alone(name: str, group_size: int) -> None:
    layer, consumer, shape = known(name)
    hidden = torch.randn(9, *shape).relu()
    rows = materialised(layer, hidden)
    size = gram.patch_size(consumer, group_size)
    groups, weight = 8 // group_size, gram.weight_matrix(consumer)
    alone = [rows[:, g * size : (g + 1) * size] @ weight[g * size : (g + 1) * size] for g in range(groups)]
    expected = torch.stack([torch.stack([(a * b).sum() for b in alone]) for a in alone])
    found = gram.energy_matrix(gram.collect(consumer, [hidden]), weight, size)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    blocks = gram.collect_blocks(consumer, list(hidden.split(4)), size)
    assert torch.allclose(blocks, gram.diagonal_blocks(rows.T @ rows, size), rtol=1e-4, atol=1e-4)
    assert torch.allclose(gram.block_energies(blocks, weight), expected.diagonal(), rtol=1e-4, atol=1e-4)


def test_stripes_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, hidden = nn.Conv2d(8, 5, 3, padding=1), torch.randn(6, 8, 5, 6)
    consumer = consumer_of(layer, hidden)
    whole = gram.collect(consumer, [hidden])
    energies = gram.energy_matrix(whole, gram.weight_matrix(consumer), 9)
    monkeypatch.setattr(gram, "STRIPE", 25)
    striped = gram.collect(consumer, [hidden])
    assert torch.allclose(striped.matrix, whole.matrix, rtol=1e-5, atol=1e-4)
    assert torch.equal(striped.matrix, striped.matrix.T)
    assert torch.allclose(gram.energy_matrix(striped, gram.weight_matrix(consumer), 9), energies, atol=1e-3)


def test_a_gram_that_does_not_fit_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gram.fits(11_585)
    assert not gram.fits(11_586)
    layer, hidden = nn.Linear(8, 5), torch.randn(6, 8)
    monkeypatch.setattr(gram, "MOST_GRAM_BYTES", 8 * 7 * 7)
    with pytest.raises(SettingError, match=r"A Gram matrix of 8 features needs .* choose a selector"):
        gram.collect(consumer_of(layer, hidden), [hidden])


def test_factor_of_singular_and_zero_matrices() -> None:
    x = torch.randn(4, 10)
    matrix = (x.T @ x).double()
    lower, ridge = gram.factor(matrix.clone())
    expected = matrix + ridge * torch.eye(10, dtype=torch.float64)
    assert torch.allclose(lower @ lower.T, expected, atol=1e-12 * float(matrix.diagonal().max()))
    assert 1e-6 <= ridge / float(matrix.diagonal().mean()) <= 1e-4
    lower, ridge = gram.factor(torch.zeros(3, 3, dtype=torch.float64))
    assert torch.allclose(lower, ridge**0.5 * torch.eye(3, dtype=torch.float64))
    with pytest.raises(CalibrationError, match="NaN, infinite or too large"):
        gram.factor(torch.full((2, 2), torch.nan, dtype=torch.float64))


def test_factor_raises_the_ridge_until_it_exists() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, -1e-4], dtype=torch.float64))
    lower, ridge = gram.factor(matrix.clone())
    assert bool(lower.isfinite().all())
    assert 1e-4 < ridge < 1e-2

"""Distillation of every kind of model: what it reads and returns, its layouts and its precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ispasp import evaluate
from ispasp.calibration import Batch, read
from ispasp.distil import distil, distil_steps
from ispasp.errors import CalibrationError
from ispasp.tuning.objective import OUTPUT, Points
from tests.small_distillation import finish, mlp, objective_by_hand, pair


def test_vectors() -> None:
    dense, pruned, data = mlp(20), mlp(4), torch.randn(50, 6)
    recovery, _ = finish(distil_steps(pruned, dense, read(data), 80, learning_rate=1e-2))
    assert recovery.objective_after < 0.5 * recovery.objective_before


@pytest.mark.parametrize("last", [nn.Identity(), nn.Flatten(0)], ids=["(N, 1)", "(N,)"])
def test_one_output_has_no_divergence_but_an_error(last: nn.Module) -> None:
    dense = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), last)
    pruned, data = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 1), last), torch.randn(40, 6)
    recovery, _ = finish(distil_steps(pruned, dense, read(data), 60, learning_rate=1e-2))
    with torch.no_grad():
        error = (dense(data) - pruned(data)).square().sum() / dense(data).square().sum()
    assert recovery.objective_before == pytest.approx(float(error), rel=1e-4)
    assert recovery.objective_after < 0.7 * recovery.objective_before


def test_transformer_layers() -> None:
    """Their fast path hides what goes on inside from the hooks; the points are the same all the same."""
    dense, pruned = (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, width, batch_first=True), 2).eval()
        for width in (24, 6)
    )
    shared = {name: v for name, v in dense.state_dict().items() if "linear" not in name}
    pruned.load_state_dict(pruned.state_dict() | shared)
    data = torch.randn(12, 5, 8)
    recovery, _ = finish(distil_steps(pruned, dense, read(data), 40))
    assert recovery.objective_after < 0.9 * recovery.objective_before


@pytest.mark.parametrize(
    "returned",
    [lambda logits: {"logits": logits, "other": None}, lambda logits: (logits, [logits.sum()])],
    ids=["dict", "tuple"],
)
def test_models_that_return_more_than_a_tensor(returned: Callable[[Tensor], Any]) -> None:
    pruned, dense, batches = pair(returned)
    recovery, _ = finish(distil_steps(pruned, dense, read(batches), 20))
    assert recovery.objective_before == pytest.approx(objective_by_hand(pruned, dense, batches), rel=1e-4)
    assert recovery.objective_after < recovery.objective_before


class Recurrent(nn.Module):
    """One block called twice that returns a tuple, and one that returns no tensor; keyword inputs."""

    class Pair(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, width), nn.Linear(width, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return x + self.down(self.up(x).relu()), None

    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> str:
            return str(self.inner(x).dtype)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.block, self.nothing = nn.Embedding(7, 4), self.Pair(width), self.Nothing()

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(tokens)
        for _ in range(2):
            x, _ = self.block(x)
        self.nothing(x)
        return (x * mask[..., None]).sum(1)


def test_tokens_and_modules_called_again() -> None:
    dense, pruned = Recurrent(12), Recurrent(3)
    pruned.embed.load_state_dict(dense.embed.state_dict())
    data = [{"tokens": torch.randint(0, 7, (20, 5)), "mask": torch.ones(20, 5)}]
    points = Points(dense)(read(data)[0])
    assert list(points) == ["block#0", "block#1", OUTPUT]
    recovery, _ = finish(distil_steps(pruned, dense, read(data), 60, learning_rate=1e-2))
    assert recovery.objective_after < 0.7 * recovery.objective_before


def test_one_example_with_batch_norm() -> None:
    dense, pruned = (
        nn.Sequential(nn.Linear(4, w), nn.BatchNorm1d(w), nn.ReLU(), nn.Linear(w, 3)) for w in (6, 2)
    )
    recovery, _ = finish(distil_steps(pruned, dense, [Batch((torch.randn(1, 4),), {})], 5, batch_size=1))
    assert math.isfinite(recovery.objective_after)


class Viewing(nn.Module):
    """Not for channels-last layouts: it views its feature maps as rows, or has a parameter of five dimensions."""

    def __init__(self, width: int, view: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        self.scale = None if view else nn.Parameter(torch.ones(1, 4, 1, 1, 1))
        self.fc = nn.Linear(4 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.fc(x.view(len(x), -1) if self.scale is None else (x * self.scale[..., 0]).flatten(1))


@pytest.mark.parametrize("view", [True, False])
def test_models_that_bear_no_channels_last_layout(view: bool) -> None:
    dense, pruned, data = Viewing(9, view), Viewing(3, view), torch.randn(40, 3, 8, 8)
    pruned.fc.load_state_dict(dense.fc.state_dict())
    recovery, _ = finish(distil_steps(pruned, dense, read(data), 20))
    assert recovery.steps == 20 and recovery.objective_after < recovery.objective_before
    assert torch.isfinite(recovery.model(data)).all()


@pytest.mark.parametrize("view", [True, False])
def test_predictions_do_not_depend_on_the_layout(view: bool) -> None:
    model, data = Viewing(9, view).eval(), torch.randn(40, 3, 8, 8)
    with torch.no_grad():
        expected = model(data).argmax(1)
    assert torch.equal(torch.cat(list(evaluate.predictions(model, read([data[:30], data[30:]])))), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_trained_in_single_and_measured_in_its_own(dtype: torch.dtype) -> None:
    pruned, dense, batches = pair()
    for model in (pruned, dense):
        model.to(dtype)
    halves = [batch.to(dtype) for batch in batches]
    recovery, _ = finish(distil_steps(pruned, dense, read(halves), 40, batch_size=32))
    assert recovery.steps == 40 and recovery.objective_after < 0.7 * recovery.objective_before
    state = recovery.model.state_dict()
    assert {name: value.dtype for name, value in state.items()} == {
        name: value.dtype for name, value in pruned.state_dict().items()
    }
    assert recovery.model(halves[0]).dtype == next(dense.parameters()).dtype == dtype
    data = [batch.float() for batch in halves]
    for model, objective in (
        (pruned, recovery.objective_before),
        (recovery.model, recovery.objective_after),
    ):
        by_hand = objective_by_hand(copy.deepcopy(model).float(), copy.deepcopy(dense).float(), data)
        assert objective == pytest.approx(by_hand, rel=1e-4)


class Halving(nn.Module):
    """It wants its input in half precision, whatever its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.half())


def test_a_model_that_runs_in_half_precision_alone_is_refused() -> None:
    with pytest.raises(CalibrationError, match="two examples of the single-precision calibration data"):
        distil(Halving().half(), Halving().half(), torch.randn(8, 6).half(), 5, device="cpu")

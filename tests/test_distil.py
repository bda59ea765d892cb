"""Distillation: it helps, it never harms, it repeats, it leaves everything else alone, and what it refuses."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from ispasp.calibration import Batch, read
from ispasp.distil import _Distillation, distil, distil_steps
from ispasp.errors import CalibrationError, DeviceError, ISpaSPError, ModelError, SettingError
from ispasp.settings import PruneSettings
from tests.small_distillation import SmallNet, finish, mlp, objective_by_hand, pair


def test_recovers_and_reports_its_objective() -> None:
    pruned, dense, batches = pair()
    recovery, progress = finish(distil_steps(pruned, dense, read(batches), 60, batch_size=32))
    assert recovery.steps == 60 and recovery.seconds > 0
    assert recovery.objective_before == pytest.approx(objective_by_hand(pruned, dense, batches), rel=1e-4)
    assert isinstance(recovery.model, SmallNet)
    assert recovery.objective_after == pytest.approx(
        objective_by_hand(recovery.model, dense, batches), rel=1e-4
    )
    assert recovery.objective_after < 0.6 * recovery.objective_before
    assert not any(module.training for module in recovery.model.modules())
    done = [event.done for event in progress]
    assert done == sorted(done) and done[0] == 0 and done[-1] == 1
    assert progress[-1].doing == "distilling, step 60 of 60"


def test_same_seed_same_weights_and_arguments_and_random_state_untouched() -> None:
    pruned, dense, batches = pair()
    pruned.train()
    before = [copy.deepcopy(model.state_dict()) for model in (pruned, dense)]
    data = [batch.clone() for batch in batches]
    state = torch.random.get_rng_state()
    first, again = (distil(pruned, dense, batches, 8, seed=3, device="cpu") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    other = distil(pruned, dense, batches, 8, seed=4, device="cpu")
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.state_dict()["fc.weight"], other.state_dict()["fc.weight"])
    for model, kept in zip((pruned, dense), before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())
    assert all(module.training for module in pruned.modules())
    assert all(torch.equal(batch, kept) for batch, kept in zip(batches, data, strict=True))
    assert not any(module._forward_hooks for module in first.modules())
    assert all(p.requires_grad and p.grad is None for p in first.parameters())


@pytest.mark.parametrize("learning_rate", [50.0, 1e30])
def test_never_worse_than_given(learning_rate: float) -> None:
    pruned, dense, batches = pair()
    work = distil_steps(pruned, dense, read(batches), 12, learning_rate=learning_rate)
    recovery, progress = finish(work)
    assert recovery.objective_after == recovery.objective_before
    assert all(
        torch.equal(value, pruned.state_dict()[name]) for name, value in recovery.model.state_dict().items()
    )
    if learning_rate == 1e30:  # the second step meets a loss that is not finite
        assert recovery.steps < 12
        stop = f"distilling stopped at step {recovery.steps} of 12: the loss is not finite"
        assert (progress[-1].done, progress[-1].doing) == (1, stop)


def test_identity_stays() -> None:
    _, dense, batches = pair()
    recovery, _ = finish(distil_steps(dense, dense, read(batches), 4))
    assert recovery.objective_before == recovery.objective_after == 0
    assert torch.equal(recovery.model(batches[0]), dense(batches[0]))


def test_cancel_between_steps_changes_nothing() -> None:
    pruned, dense, batches = pair()
    before = copy.deepcopy(pruned.state_dict())
    work = distil_steps(pruned, dense, read(batches), 50)
    for _ in range(10):
        next(work)
    work.close()
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in before.items())
    assert not any(module._forward_hooks for model in (pruned, dense) for module in model.modules())


def test_only_a_lone_image_input_is_varied() -> None:
    images, tokens = torch.randn(6, 3, 8, 8), torch.randint(0, 9, (6, 3, 8, 8))
    for batch, varied in (
        (Batch((images,), {}), True),
        (Batch((), {"pixels": images}), True),
        (Batch((images, images), {}), False),
        (Batch((tokens,), {}), False),
        (Batch((images.flatten(1),), {}), False),
    ):
        drawn = _Distillation(mlp(2), mlp(3), [batch], seed=0, batch_size=6)._draw(blend=True)
        originals = {tuple(row.flatten().tolist()) for row in batch.tensors[0]}
        assert ({tuple(row.flatten().tolist()) for row in drawn.tensors[0]} == originals) != varied


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"steps": 0}, SettingError, "steps is 0; give a whole number of 1 or more"),
        ({"steps": 2.5}, SettingError, "steps is 2.5"),
        ({"steps": True}, SettingError, "steps is True"),
        ({"seed": -1}, SettingError, "seed is -1"),
        ({"batch_size": 0}, SettingError, "batch_size is 0"),
        ({"learning_rate": 0}, SettingError, "learning_rate is 0; give a number above 0"),
        ({"learning_rate": math.nan}, SettingError, "learning_rate is nan"),
        ({"device": "abacus"}, DeviceError, "Unknown device 'abacus'"),
        ({"calibration": []}, CalibrationError, "The calibration data is empty"),
        ({"calibration": 3}, CalibrationError, "give an iterable of batches"),
        ({"calibration": torch.randn(4, 7)}, CalibrationError, "does not run on two examples"),
        ({"dense": mlp, "pruned": mlp}, ModelError, "is a function; give a torch.nn.Module"),
        ({"dense": nn.Linear(6, 4)}, ModelError, r"gives \(40, 3\) torch.float32, the dense one \(40, 4\)"),
        ({"pruned": nn.Flatten(), "dense": nn.Flatten()}, ModelError, "has no parameters"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[ISpaSPError], words: str) -> None:
    given = {"pruned": mlp(3), "dense": mlp(9), "calibration": torch.randn(40, 6), "device": "cpu"}
    with pytest.raises(error, match=words):
        distil(**{**given, "steps": 5, **change})


def test_broken_weights_are_refused() -> None:
    pruned, dense = mlp(3), mlp(9)
    pruned[0].weight.data[0] = math.nan
    with pytest.raises(ModelError, match="NaN or infinite"):
        distil(pruned, dense, torch.randn(40, 6), 5, device="cpu")


def test_settings_are_checked_at_the_call() -> None:
    with pytest.raises(SettingError, match="steps is -1"):
        distil_steps(mlp(3), mlp(9), read(torch.randn(4, 6)), -1)
    with pytest.raises(CalibrationError, match="empty"):
        distil_steps(mlp(3), mlp(9), [])
    for check in (
        lambda seed: PruneSettings(seed=seed),
        lambda seed: distil_steps(mlp(3), mlp(9), [], seed=seed),
    ):
        with pytest.raises(SettingError, match="give a whole number from 0 to 9223372036854775807"):
            check(2**63)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_and_back() -> None:
    pruned, dense, batches = pair()
    recovered = distil(pruned, dense, batches, 20, device="cuda")
    assert next(recovered.parameters()).device.type == "cpu"

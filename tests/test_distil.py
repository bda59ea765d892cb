"""Distillation: it helps, it never harms, it repeats, it leaves everything else alone, and what it refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ispasp.augmentation import familiar, mirrored, mixed, shifted
from ispasp.calibration import Batch, read
from ispasp.distil import (
    OUTPUT,
    Recovery,
    _Distillation,
    _Points,
    distil,
    distil_steps,
)
from ispasp.errors import CalibrationError, DeviceError, ISpaSPError, ModelError, SettingError
from ispasp.records import Progress
from ispasp.settings import PruneSettings
from tests.conftest import settle_batch_norm


class Residual(nn.Module):
    """A block with ``width`` hidden channels between two sums of four."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.conv2(self.bn1(self.conv1(x)).relu())).relu_()


class SmallNet(nn.Module):
    """Stem, a stage of two blocks, a classifier; (N, 3, 8, 8) to (N, 5). ``returned`` wraps the logits."""

    def __init__(self, width: int = 12, returned: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stage = nn.Sequential(Residual(width), Residual(width))
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 5)
        self.returned = returned

    def forward(self, x: Tensor) -> Any:
        return self.returned(self.fc(self.dropout(self.stage(self.stem(x)).mean((2, 3)))))


def narrow(dense: SmallNet, width: int) -> SmallNet:
    """The same network with only the first hidden channels of each block."""
    pruned = SmallNet(width, dense.returned).eval()
    state = pruned.state_dict()
    for name, value in dense.state_dict().items():
        state[name] = value[tuple(slice(size) for size in state[name].shape)]
    pruned.load_state_dict(state)
    return pruned


def pair(
    returned: Callable[[Tensor], Any] = lambda logits: logits,
) -> tuple[SmallNet, SmallNet, list[Tensor]]:
    """A pruned model, its dense one, and data in batches of unequal size."""
    batches = [torch.randn(n, 3, 8, 8) for n in (24, 24, 9)]
    dense = SmallNet(returned=returned)
    dense.fc.weight.data *= 5
    settle_batch_norm(dense, batches)
    return narrow(dense, 5), dense, batches


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)).eval()


def finish(work: Generator[Progress, None, Recovery]) -> tuple[Recovery, list[Progress]]:
    seen = []
    while True:
        try:
            seen.append(next(work))
        except StopIteration as stop:
            return stop.value, seen


def objective_by_hand(pruned: SmallNet, dense: SmallNet, batches: list[Tensor]) -> float:
    """The documented objective for SmallNet, from its own modules: no shared code."""
    data = torch.cat(batches)
    values = []
    with torch.no_grad():
        for model in (dense, pruned):
            blocks = [model.stem(data)]
            for block in model.stage:
                blocks.append(block(blocks[-1]))
            values.append([*blocks[1:], model.fc(blocks[-1].mean((2, 3)))])
    relative = [((d - p) ** 2).sum() / (d**2).sum() for d, p in zip(*values, strict=True)]
    p, q = ((v[-1] / 2).softmax(1) for v in values)
    divergence = (p * (p / q).log()).sum(1).mean()
    return float(sum(relative) / len(relative) + 0.1 * divergence)


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
    points = _Points(dense)(read(data)[0])
    assert list(points) == ["block#0", "block#1", OUTPUT]
    recovery, _ = finish(distil_steps(pruned, dense, read(data), 60, learning_rate=1e-2))
    assert recovery.objective_after < 0.7 * recovery.objective_before


def test_one_example_with_batch_norm() -> None:
    dense, pruned = (
        nn.Sequential(nn.Linear(4, w), nn.BatchNorm1d(w), nn.ReLU(), nn.Linear(w, 3)) for w in (6, 2)
    )
    recovery, _ = finish(distil_steps(pruned, dense, [Batch((torch.randn(1, 4),), {})], 5, batch_size=1))
    assert math.isfinite(recovery.objective_after)


def test_augmentation_moves_whole_images() -> None:
    """Every augmented image is one of the 2 x 5 x 5 mirrored and shifted versions of its original."""
    images, generator = torch.randn(30, 2, 16, 16), torch.Generator().manual_seed(0)
    moved = shifted(mirrored(images, generator), generator)
    padded = nn.functional.pad(torch.stack([images, images.flip(-1)]), (2,) * 4)
    versions = torch.stack(
        [padded[m, :, :, y : y + 16, x : x + 16] for m in (0, 1) for y in range(5) for x in range(5)]
    )
    matches = (versions == moved).flatten(2).all(2)
    assert (matches.sum(0) == 1).all()
    assert matches.any(1).sum() > 15  # and they differ from image to image


def test_mixing_blends_two_images_in_one_proportion() -> None:
    """Image i is one in channel i and zero elsewhere, so that a blend tells who took part and how much."""
    images = torch.eye(12).view(12, 12, 1, 1).expand(12, 12, 4, 4)
    blends = mixed(images, torch.Generator().manual_seed(0))
    assert torch.equal(blends, blends[:, :, :1, :1].expand_as(blends))
    shares = blends[:, :, 0, 0]
    assert torch.allclose(shares.sum(1), torch.ones(12)) and (shares >= 0).all()
    assert ((shares > 0).sum(1) <= 2).all() and ((shares > 0).sum(1) == 2).sum() > 6


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


class Pixels(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: Tensor) -> Tensor:
        return self.inner(pixels)


class Side(nn.Module):
    """Two classes: whether the left or the right half of the image is lighter."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2)).unflatten(1, (2, -1)).mean(2)


def test_images_are_varied_only_as_the_dense_model_is_used_to() -> None:
    images = torch.zeros(20, 1, 16, 16)
    images[::2, :, 4:12, 2:5] = images[1::2, :, 4:12, 11:14] = 1
    batches = [Batch((images[:6],), {}), Batch((), {"pixels": images[6:]})]
    assert familiar(Side(), batches[:1]) == [shifted]
    assert familiar(Pixels(Side()), batches[1:]) == [shifted]
    assert familiar(nn.Flatten(0), batches[:1]) == [mirrored, shifted]  # not one class per image


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

"""Whole models: masked equals sliced, both streams, events, and what may be pruned."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import ispasp
from ispasp import data, surgery, zoo
from ispasp.errors import SurgeryError
from ispasp.records import BlockPruned, BlockStarted, Finished, Iteration, Progress, Started
from tests import oracle
from tests.conftest import settle_batch_norm
from tests.hooks import masked_twin


def sample(name: str, count: int = 96) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    card = zoo.card(name)
    images = data.choose(data.sample_images(card.dataset, "calibration"), count, seed=0)
    return zoo.load(name), data.batches(images, card.mean, card.std, batch_size=40)


def resnet18() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    batches = [torch.randn(4, 3, 64, 64) for _ in range(2)]
    model = settle_batch_norm(models.resnet18(weights=None), batches)
    return model, [(batch, torch.zeros(4, dtype=torch.int64)) for batch in batches]


def vgg() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    batches = [torch.randn(3, 3, 32, 32)]
    model = settle_batch_norm(models.vgg11_bn(weights=None, num_classes=10), batches)
    return model, [(batch, torch.zeros(3, dtype=torch.int64)) for batch in batches]


CASES = {
    "mnist_mlp": lambda: sample("mnist_mlp"),
    "cifar10_resnet20": lambda: sample("cifar10_resnet20"),
    "resnet18": resnet18,
    "vgg11_bn": vgg,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("keep", "multiple"), [(0.4, 1), (0.3, 8)])
def test_masked_equals_sliced(name: str, keep: float, multiple: int) -> None:
    model, batches = CASES[name]()
    before = copy.deepcopy(model.state_dict())
    result = ispasp.prune(model, batches, keep=keep, multiple=multiple, device="cpu")
    with torch.no_grad():
        expected, got = masked_twin(model, result)(batches[0][0]), result.model(batches[0][0])
    assert (expected - got).abs().max() <= 1e-4 * expected.abs().max()
    # What is left is what the kept counts say: one row or column per feature.
    removed = 0
    for event in result.blocks_pruned:
        gone = event.block.groups - len(event.selected)
        modules = [model.get_submodule(name) for name in (event.block.name, *event.block.riders)]
        removed += sum(gone * p[0].numel() for module in modules for p in module.parameters())
        consumer = model.get_submodule(event.block.consumer).weight
        columns = gone * event.block.group_size * consumer[:, 0].numel()
        both = result.model.get_submodule(event.block.consumer).weight.shape[0] / consumer.shape[0]
        removed += round(columns * both)  # rows of a consumer that is a producer too are gone already
    assert result.report["params_after"] == result.report["params_before"] - removed
    assert sum(p.numel() for p in result.model.parameters()) == result.report["params_after"]
    assert result.report["macs_after"] < result.report["macs_before"]
    # The model that was given is untouched.
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_every_block_sees_the_inputs_of_the_already_pruned_network() -> None:
    """The second block's hidden sum is that of the sliced first block followed by the dense second."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    inputs = torch.randn(50, 6)
    result = ispasp.prune(model, [inputs], keep=0.3, multiple=1, device="cpu")
    kept = list(result.blocks_pruned[0].selected)
    with torch.no_grad():
        hidden = torch.relu(model[0](inputs))[:, kept] @ model[2].weight[:, kept].T + model[2].bias
        expected = torch.relu(hidden)
    steps = oracle.algorithm_one(expected, model[4], s=9)
    second = [iteration for iteration in result.trace if iteration.block == "2"]
    assert [iteration.selected for iteration in second] == [step.selected for step in steps[: len(second)]]
    assert torch.allclose(second[0].hidden_sum, expected.double().sum(0), rtol=1e-5)
    # Drift is the pruned against the dense consumer output, over the first few examples.
    with torch.no_grad():
        dense = model[2](torch.relu(model[0](inputs)))[:2]
        drift = (dense - hidden[:2]).square().sum() / dense.square().sum()
    assert result.blocks_pruned[0].drift == pytest.approx(drift.item(), rel=1e-4)


def test_batches_of_any_size_give_the_same_sets() -> None:
    model, batches = sample("cifar10_resnet20", 60)
    images = torch.cat([x for x, _ in batches])
    whole = ispasp.prune(model, images, keep=0.3, multiple=1, device="cpu")
    parts = ispasp.prune(model, list(images.split(17)), keep=0.3, multiple=1, device="cpu")
    assert [i.selected for i in whole.trace] == [i.selected for i in parts.trace]
    again = ispasp.prune(model, list(images.split(17)), keep=0.3, multiple=1, device="cpu")
    assert [i.residual for i in again.trace] == [i.residual for i in parts.trace]


def test_events_come_in_order_and_progress_only_grows() -> None:
    model, batches = sample("cifar10_resnet20", 64)
    events = list(ispasp.iterate(model, batches, keep=0.25, evaluation=batches, device="cpu"))
    progress = [event.done for event in events if isinstance(event, Progress)]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    rest = [event for event in events if not isinstance(event, Progress)]
    assert isinstance(rest[0], Started)
    assert isinstance(rest[-1], Finished)
    names = []
    for event in rest[1:-1]:
        match event:
            case BlockStarted():
                names.append(event.block.name)
            case Iteration():
                assert event.block == names[-1]
            case BlockPruned():
                assert event.block.name == names[-1]
                assert len(event.selected) == rest[0].keep_groups[event.index]
    assert names == [block.name for block in rest[0].blocks]


def test_stopping_between_two_events_leaves_nothing_behind() -> None:
    model, batches = sample("cifar10_resnet20", 64)
    events = ispasp.iterate(model, batches, keep=0.25, device="cpu")
    for event in events:
        if isinstance(event, Iteration):
            break
    assert torch.is_grad_enabled()
    events.close()
    assert torch.is_grad_enabled()


def test_report_measures_what_the_models_predict() -> None:
    model, batches = sample("mnist_mlp", 200)
    result = ispasp.prune(model, batches, keep=0.1, device="cpu", evaluation=batches)
    report = result.report
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    with torch.no_grad():
        dense, pruned = model(images).argmax(1), result.model(images).argmax(1)
    assert report["accuracy_before"] == pytest.approx((dense == labels).double().mean().item())
    assert report["accuracy_after"] == pytest.approx((pruned == labels).double().mean().item())
    assert report["agreement"] == pytest.approx((dense == pruned).double().mean().item())
    assert report["macs_before"] == 784 * 1024 + 1024 * 10
    assert report["examples"] == 200
    unlabelled = [x for x, _ in batches]
    report = ispasp.prune(model, batches, keep=0.1, device="cpu", evaluation=unlabelled).report
    assert report["accuracy_after"] is None
    assert report["agreement"] == result.report["agreement"]
    report = ispasp.prune(model, batches, keep=0.1, device="cpu").report
    assert (report["examples"], report["agreement"]) == (0, None)


def test_keep_of_one_keeps_everything() -> None:
    model, batches = sample("cifar10_resnet20", 40)
    result = ispasp.prune(model, batches, keep=1.0, device="cpu")
    with torch.no_grad():
        assert torch.allclose(model(batches[0][0]), result.model(batches[0][0]), atol=1e-5)
    assert result.report["params_after"] == result.report["params_before"]
    assert all(iteration.residual == 0 for iteration in result.trace)


def test_keep_per_block_leaves_the_others_alone() -> None:
    model, batches = sample("cifar10_resnet20", 40)
    keep = {"layer3.0.conv1": 0.25, "layer1.1.conv1": 0.5}
    result = ispasp.prune(model, batches, keep=keep, device="cpu")
    assert [(event.block.name, len(event.selected)) for event in result.blocks_pruned] == [
        ("layer1.1.conv1", 8),
        ("layer3.0.conv1", 16),
    ]
    assert result.model.layer2[0].conv1.out_channels == 32


def test_a_model_in_training_mode_is_pruned_in_eval_mode_and_left_training() -> None:
    model, batches = sample("cifar10_resnet20", 40)
    expected = ispasp.prune(model, batches, keep=0.3, device="cpu").trace
    statistics = model.bn1.running_mean.clone()
    got = ispasp.prune(model.train(), batches, keep=0.3, device="cpu").trace
    assert got == expected
    assert model.training
    assert torch.equal(statistics, model.bn1.running_mean)


def test_several_threads_may_prune_at_once() -> None:
    """torch.export works on the state of the process; two users of the app run in two threads."""
    images = torch.randn(20, 6)
    networks = [oracle.two_layer_network(6, 16, 4, seed) for seed in range(4)]
    alone = [ispasp.prune(network, [images], keep=0.3, device="cpu").trace for network in networks]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(ispasp.prune, network, [images], 0.3, device="cpu") for network in networks]
        assert [job.result().trace for job in jobs] == alone


def test_dict_batches_and_dict_outputs() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"logits": self.second(torch.relu(self.first(x * scale)))}

    x, scale, labels = torch.randn(20, 6), torch.rand(20, 1), torch.randint(0, 3, (20,))
    batch = {"x": x, "scale": scale, "labels": labels}
    result = ispasp.prune(Keywords(), [batch], keep=0.5, multiple=1, device="cpu", evaluation=[batch])
    assert result.model.first.out_features == 8
    assert result.report["accuracy_after"] is not None
    positional = ispasp.prune(Keywords(), [(x, scale, labels)], keep=0.5, multiple=1, device="cpu")
    assert positional.model.first.out_features == 8


def test_a_generator_of_batches_is_read_once() -> None:
    def batches() -> Iterator[Tensor]:
        yield torch.randn(8, 6)
        yield torch.randn(5, 6)

    network = oracle.two_layer_network(6, 16, 4, seed=0)
    result = ispasp.prune(network, batches(), keep=0.5, multiple=1, device="cpu")
    assert result.settings["calibration_examples"] == 13


def test_a_wrongly_sliced_model_does_not_pass_the_check() -> None:
    model, batches = sample("cifar10_resnet20", 40)
    result = ispasp.prune(model, batches, keep=0.3, device="cpu")
    images = batches[0][0]
    with torch.no_grad():
        right = masked_twin(model, result)(images)
        result.model.layer3[0].conv2.weight[:, [0, 1]] = result.model.layer3[0].conv2.weight[:, [1, 0]]
        wrong = result.model(images)
    with pytest.raises(SurgeryError, match="differs from the masked model"):
        surgery.check_equal([right], [wrong])
    with pytest.raises(SurgeryError, match="differs from the masked model"):
        surgery.check_equal([right], [torch.full_like(right, math.nan)])
    with pytest.raises(SurgeryError, match="returns"):
        surgery.check_equal([right], [right[:, :3]])


def test_prune_refuses_a_model_that_was_sliced_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = sample("cifar10_resnet20", 40)
    right = surgery.slice_block

    def off_by_one(module: nn.Module, block: ispasp.Block, selected: tuple[int, ...]) -> None:
        right(module, block, sorted((group + 1) % block.groups for group in selected))
        module.get_submodule(block.consumer).weight = nn.Parameter(
            model.get_submodule(block.consumer).weight[:, list(selected)].detach()
        )

    monkeypatch.setattr(surgery, "slice_block", off_by_one)
    with pytest.raises(SurgeryError, match="nothing was kept"):
        ispasp.prune(model, batches, keep=0.3, multiple=1, blocks=["layer3.2.conv1"], device="cpu")


@pytest.mark.parametrize("tokens_first", [True, False])
def test_the_batch_need_not_be_the_first_dimension_of_the_hidden_representation(tokens_first: bool) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(0, 1) if tokens_first else x.reshape(-1, 6)
            x = self.second(torch.relu(self.first(x)))
            return x.transpose(0, 1) if tokens_first else x

    result = ispasp.prune(Tokens(), [torch.randn(20, 5, 6)], keep=0.5, multiple=1, device="cpu")
    assert result.model.first.out_features == 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_pruned_and_checked(dtype: torch.dtype) -> None:
    network = oracle.two_layer_network(6, 32, 4, seed=0).to(dtype)
    inputs = torch.randn(40, 6).to(dtype)
    result = ispasp.prune(network, [inputs], keep=0.25, multiple=1, device="cpu")
    assert result.model[0].weight.dtype == dtype
    assert result.model(inputs).shape == (40, 4)


def test_seconds_do_not_count_the_time_between_events() -> None:
    network = oracle.two_layer_network(6, 32, 4, seed=0)
    for event in ispasp.iterate(network, [torch.randn(40, 6)], keep=0.25, device="cpu"):
        if isinstance(event, Iteration):
            time.sleep(5.0)
    assert isinstance(event, Finished)
    assert sum(pruned.seconds for pruned in event.result.blocks_pruned) < 5.0

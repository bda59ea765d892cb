"""Every architecture that is promised: what is found, and that slicing it is right in every respect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import ispasp
from tests.conftest import settle_batch_norm
from tests.hooks import difference, masked_twin, parameters_left


def torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: models.get_model(name, weights=None, num_classes=10, **options)


def huggingface(name: str, **changed: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        kind = getattr(transformers, f"{name}ForSequenceClassification")
        return kind(kind.config_class(vocab_size=50, max_position_embeddings=40, **changed))

    return make


WIDTHS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


@dataclass(frozen=True)
class Case:
    """How to make a model, the side of its pictures (0: it reads text), and how many blocks of a kind it has."""

    make: Callable[[], nn.Module]
    side: int
    channels: int = 0
    neurons: int = 0
    heads: int = 0


CASES = {
    "resnet18": Case(torchvision("resnet18"), 64, channels=8),
    "resnet34": Case(torchvision("resnet34"), 64, channels=16),
    "resnet50": Case(torchvision("resnet50"), 64, channels=33),
    "wide_resnet50_2": Case(torchvision("wide_resnet50_2"), 64, channels=33),
    "mobilenet_v2": Case(torchvision("mobilenet_v2"), 64, channels=18),
    "mobilenet_v3_small": Case(torchvision("mobilenet_v3_small"), 64, channels=21, neurons=1),
    "efficientnet_b0": Case(torchvision("efficientnet_b0"), 64, channels=33),
    "vgg16_bn": Case(torchvision("vgg16_bn"), 32, channels=13, neurons=2),
    "densenet121": Case(torchvision("densenet121"), 64, channels=58),
    "convnext_tiny": Case(torchvision("convnext_tiny"), 64, neurons=18),
    "vit_b_16": Case(torchvision("vit_b_16", image_size=64), 64, neurons=12, heads=12),
    "swin_t": Case(torchvision("swin_t"), 64, neurons=12),
    "shufflenet_v2_x1_0": Case(torchvision("shufflenet_v2_x1_0"), 64, channels=17),
    "regnet_y_400mf": Case(torchvision("regnet_y_400mf"), 64, channels=17),
    "bert": Case(huggingface("Bert", **WIDTHS), 0, neurons=4, heads=3),
    "distilbert": Case(
        huggingface("DistilBert", dim=32, n_layers=3, n_heads=4, hidden_dim=48), 0, neurons=4, heads=3
    ),
    "roberta": Case(huggingface("Roberta", pad_token_id=1, **WIDTHS), 0, neurons=4, heads=3),
}


def waken(model: nn.Module) -> nn.Module:
    """Give parameters that are all alike (layer scales, zero biases, empty heads) values of their own.

    Otherwise whole blocks would not reach the output, and a wrong cut would not show.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                at = 1.0 if parameter.flatten()[0] > 0 else 0.0
                parameter.copy_(at + 0.1 * torch.randn_like(parameter))
    return model


def batches(case: Case) -> list[Any]:
    """Two batches: pictures, or token numbers of which some are padding."""
    if case.side:
        return [torch.randn(count, 3, case.side, case.side) for count in (4, 3)]
    found = []
    for lengths in ((12, 7, 9, 3), (5, 12, 1)):
        mask = (torch.arange(12) < torch.tensor(lengths)[:, None]).long()
        tokens = torch.randint(4, 50, mask.shape) * mask + (1 - mask)
        found.append({"input_ids": tokens, "attention_mask": mask})
    return found


def outputs(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        given = model(**batch) if isinstance(batch, Mapping) else model(batch)
    return given if isinstance(given, Tensor) else given.logits


@dataclass(frozen=True)
class Run:
    """The dense model, its data, and the run in which every block lost 60 % of its groups."""

    case: Case
    model: nn.Module
    data: list[Any]
    result: ispasp.PruneResult


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest) -> Run:
    """One for all tests of an architecture; pytest runs these in a row and lets go of it."""
    torch.manual_seed(0)
    case = CASES[request.param]
    data, model = batches(case), waken(case.make()).eval()
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        settle_batch_norm(model, data)
    return Run(case, model, data, ispasp.prune(model, data, keep=0.4, multiple=1, device="cpu"))


each = pytest.mark.parametrize("run", CASES, indirect=True)
pytestmark = pytest.mark.slow


@each
def test_blocks_are_found_and_lose_60_percent(run: Run) -> None:
    found = Counter(block.kind for block in run.result.started.blocks)
    assert found == Counter(channel=run.case.channels, neuron=run.case.neurons, head=run.case.heads)
    for event in run.result.blocks_pruned:
        assert len(event.selected) == max(1, int(0.4 * event.block.groups + 1e-9))


@each
def test_masked_equals_sliced(run: Run) -> None:
    twin = masked_twin(run.model, run.result)
    for batch in run.data:
        expected, got = outputs(twin, batch), outputs(run.result.model, batch)
        assert difference(expected, got) <= 1e-4
        assert difference(expected, outputs(run.model, batch)) > 1e-2  # what was removed did matter


@each
def test_parameters_are_as_many_as_the_cuts_say(run: Run) -> None:
    left = sum(parameter.numel() for parameter in run.result.model.parameters())
    assert left == parameters_left(run.model, run.result) == run.result.report["params_after"]
    assert left < run.result.report["params_before"] == sum(p.numel() for p in run.model.parameters())
    assert run.result.report["macs_after"] < run.result.report["macs_before"]


@each
def test_saved_and_loaded_into_a_fresh_architecture_it_computes_exactly_the_same(
    run: Run, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    loaded = ispasp.load(run.result.save(tmp_path / "run"), model=run.case.make())
    assert loaded.started == run.result.started
    for batch in run.data:
        assert float((outputs(loaded.model, batch) - outputs(run.result.model, batch)).abs().max()) == 0.0


@each
def test_onnx_computes_what_torch_computes(run: Run, tmp_path: Path) -> None:
    """The export itself compares onnxruntime with torch on two batch sizes and fails above its tolerance."""
    report = ispasp.export_onnx(run.result.model, run.data[0], tmp_path / "model.onnx")
    assert report.max_rel_diff <= 1e-4
    assert report.examples > 0

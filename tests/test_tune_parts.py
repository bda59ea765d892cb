"""The parts of a fine-tuning: settings, rates, decay, draws, the loss of labels, shared batch norms, and refusals."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ispasp import evaluate
from ispasp.augmentation import mirrored, shifted
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError, ISpaSPError, ModelError, SettingError
from ispasp.processes import Processes
from ispasp.tuning import optimiser
from ispasp.tuning.drawing import generator_of, held_out, seed_of, slice_of, steps_of
from ispasp.tuning.norms import normalised
from ispasp.tuning.objective import label_loss
from ispasp.tuning.settings import PRESET_WORDS, PRESETS, TuneSettings
from tests.small_distillation import mlp
from tests.small_tuning import Words, normed, tuned, vectors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": -1}, "epochs is -1; give a whole number of 0 or more"),
        ({"epochs": 0}, "epochs is 0; give 1 or more, or epochs after each block"),
        ({"epochs": True}, "epochs is True"),
        ({"after_block": 0.5}, "after_block is 0.5"),
        ({"optimiser": "adam"}, "Unknown optimiser 'adam'; choose one of auto, sgd and adamw"),
        ({"precision": "int8"}, "Unknown precision 'int8'; choose one of auto, fp32, bf16 and fp16"),
        ({"learning_rate": 0}, "learning_rate is 0; give a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"learning_rate": "big"}, "learning_rate is 'big'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"momentum": 1}, "momentum is 1; give a number from 0 to 0.999"),
        ({"weight_decay": -1}, "weight_decay is -1; give a number from 0 to 1"),
        ({"label_smoothing": 1}, "label_smoothing is 1"),
        ({"distil": 1.1}, "distil is 1.1; give a number from 0 to 1"),
        ({"distil": math.nan}, "distil is nan"),
        ({"warmup": 1}, "warmup is 1"),
        ({"augment": 1}, "augment is 1; give True or False"),
        ({"patience": -1}, "patience is -1"),
        ({"held_out": 0}, "held_out is 0; give a number from 0.001 to 0.5"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        TuneSettings(**change)


def test_presets_and_what_is_chosen_by_the_model() -> None:
    assert PRESETS.keys() == PRESET_WORDS.keys() == {"quick", "paper", "distil"}
    paper = PRESETS["paper"].resolved(mlp(3))
    assert (paper.after_block, paper.epochs, paper.label_smoothing) == (1, 90, 0.1)
    assert (paper.optimiser, paper.learning_rate, paper.weight_decay, paper.batch_size) == (
        "sgd", 0.01, 5e-4, 256,
    )  # fmt: skip
    assert PRESETS["distil"].distil == 1
    found = [TuneSettings().resolved(model) for model in (normed(), mlp(3))]
    assert [(s.optimiser, s.learning_rate, s.weight_decay) for s in found] == [
        ("sgd", 0.05, 5e-4),
        ("adamw", pytest.approx(evaluate.count_parameters(mlp(3)) ** -0.5), 0.01),
    ]
    given = TuneSettings(optimiser="adamw", learning_rate=0.3, weight_decay=0.2).resolved(normed())
    assert (given.optimiser, given.learning_rate, given.weight_decay) == ("adamw", 0.3, 0.2)


def test_rates() -> None:
    settings = TuneSettings(learning_rate=0.8, warmup=0.3)
    rates = [optimiser.rate(settings, "", step, 10) for step in range(10)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[3:] == pytest.approx([0.4 * (1 + math.cos(math.pi * t / 7)) for t in range(7)])
    assert optimiser.rate(settings, "layer1", 9, 10) == 0.8
    flat = TuneSettings(learning_rate=0.8, warmup=0.0)
    assert [optimiser.rate(flat, "", step, 4) for step in (0, 2)] == pytest.approx([0.8, 0.4])


def test_only_matrices_and_kernels_decay() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LayerNorm((2, 2)), nn.GroupNorm(1, 2), nn.Linear(3, 4),
        nn.Embedding(5, 6), nn.PReLU(3),
    )  # fmt: skip
    model[4].weight.requires_grad_(False)
    decays, others = optimiser.groups(model, 0.1)
    assert decays["weight_decay"] == 0.1 and others["weight_decay"] == 0
    assert [id(p) for p in decays["params"]] == [id(model[0].weight), id(model[5].weight)]
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in others["params"]} == {
        "0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "3.weight", "3.bias", "4.bias", "6.weight",
    }  # fmt: skip


def test_draws() -> None:
    held, trained = held_out(95, 0.1, 3)
    assert sorted(held + trained) == list(range(95)) and len(held) == 10
    assert held_out(95, 0.1, 3)[0] == held != held_out(95, 0.1, 4)[0]
    assert [tuple(map(len, held_out(n, 0.1, 0))) for n in (0, 1, 2, 3)] == [(0, 0), (0, 1), (1, 1), (1, 2)]
    steps = steps_of(trained, 30, generator_of(1, "x"))
    assert sorted(number for step in steps for number in step) == trained
    assert sorted(map(len, steps)) == [28, 28, 29] and steps == steps_of(trained, 30, generator_of(1, "x"))
    parts = [slice_of(10, Processes(rank, 4)) for rank in range(4)]
    assert [list(range(10))[part] for part in parts] == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
    assert 0 <= seed_of(1, "a") != seed_of(1, "b") < 2**63


@pytest.mark.parametrize("vary", [mirrored, shifted])
def test_a_slice_of_a_batch_is_varied_as_in_the_whole(vary: Any) -> None:
    images = torch.randn(9, 3, 8, 8)
    whole = vary(images, generator_of(1))
    parts = [vary(images[at], generator_of(1), first=at.start, of=9) for at in (slice(0, 4), slice(4, 9))]
    assert torch.equal(torch.cat(parts), whole) and not torch.equal(whole, images)


def test_the_loss_of_labels() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, -100])
    plain = F.cross_entropy(logits[:3], labels[:3], label_smoothing=0.2, reduction="sum")
    assert label_loss(logits, Batch((logits,), {}, labels), 0.2).item() == pytest.approx(plain.item())
    maps, wanted = torch.randn(2, 5, 4, 3), torch.randint(0, 5, (2, 4, 3))
    mean = F.cross_entropy(maps, wanted, label_smoothing=0.1)
    assert label_loss(maps, Batch((maps,), {}, wanted), 0.1).item() == pytest.approx(2 * mean.item())
    tokens, classes = torch.randn(2, 4, 3), torch.randint(0, 3, (2, 4), dtype=torch.uint8)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    by_hand = F.cross_entropy(tokens[0, :2], classes[0, :2].long()) + F.cross_entropy(
        tokens[1], classes[1].long()
    )
    batch = Batch((), {"x": tokens, "attention_mask": mask}, classes)
    assert label_loss(tokens, batch, 0.0).item() == pytest.approx(by_hand.item())


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_shared_batch_norms_are_batch_norms(kind: type[nn.BatchNorm1d], momentum: float | None) -> None:
    torch.manual_seed(1)
    ours, theirs = (kind(4, momentum=momentum) for _ in range(2))
    for norm in (ours, theirs):
        torch.nn.init.normal_(norm.weight, generator=generator_of(1))
    shape = (6, 4) if kind is nn.BatchNorm1d else (6, 4, 3, 2)
    for _ in range(2):
        x = (3 * torch.randn(shape) + 5).requires_grad_()
        y = x.detach().clone().requires_grad_()
        got, wanted = normalised(ours, x), theirs(y)
        weights = torch.randn(shape)
        for value in (got, wanted):
            (value * weights).sum().backward()
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    torch.testing.assert_close(normalised(ours.eval(), x), theirs.eval()(y))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"labels": None}, CalibrationError, 'no labels; .* use the preset "distil"'),
        ({"labels": torch.arange(60) % 4}, CalibrationError, "the label 3, but the model has 3 classes"),
        (
            {"labels": torch.full((60,), 156, dtype=torch.uint8)},
            CalibrationError,
            "the label 156, but the model has 3 classes",
        ),
        ({"labels": -torch.ones(60).long()}, CalibrationError, "the label -1, but the model has 3 classes"),
        (
            {"labels": torch.zeros(60, 2).long()},
            CalibrationError,
            r"labels of \(\d+, 2\) torch.int64 for a model that gives \(\d+, 3\)",
        ),
        ({"distil": 1.0}, SettingError, "distil is 1, but there is no dense model"),
        ({"examples": 1}, CalibrationError, "has 1 example; give at least two"),
        ({"model": normed().requires_grad_(False)}, ModelError, "parameters that are not all frozen"),
        ({"model": nn.Flatten()}, ModelError, "has no parameters to train"),
        ({"model": nn.Linear(6, 1)}, CalibrationError, r"for a model that gives \(\d+, 1\)"),
        ({"model": nn.Linear(5, 3)}, CalibrationError, "does not run on two examples of the training data"),
        ({"model": mlp}, ModelError, "is a function; give a torch.nn.Module"),
        (
            {"model": mlp(3), "dense": nn.Linear(6, 4), "distil": 0.5},
            ModelError,
            r"gives \(\d+, 3\) torch.float32, the dense one \(\d+, 4\)",
        ),
    ],
)
def test_what_cannot_be_trained(change: dict[str, Any], error: type[ISpaSPError], words: str) -> None:
    examples = change.get("examples", 60)
    inputs, labels = vectors(60)
    labels = change.get("labels", labels)
    data = inputs[:examples] if labels is None else {"input": inputs[:examples], "labels": labels[:examples]}
    settings = TuneSettings(epochs=1, batch_size=16, distil=change.get("distil", 0.0))
    with pytest.raises(error, match=words):
        tuned(change.get("model", normed()), [data], settings, change.get("dense"))


def test_broken_weights_are_refused() -> None:
    model = normed()
    model[0].weight.data[0] = math.nan
    with pytest.raises(ModelError, match="NaN or infinite on the training data"):
        tuned(model, [vectors()], dataclasses.replace(TuneSettings(), epochs=1))


def test_a_label_for_every_token_is_needed_where_every_token_has_a_class() -> None:
    data = {
        "tokens": torch.ones(9, 5).long(),
        "attention_mask": torch.ones(9, 5),
        "labels": torch.ones(9).long(),
    }
    with pytest.raises(CalibrationError, match=r"labels of \(1,\) .* that gives \(1, 5, 4\)"):
        tuned(Words(each=True).eval(), [data], TuneSettings(epochs=1))

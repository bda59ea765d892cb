"""The sample models load strictly, and say clearly what is wrong when they cannot."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sample_models
from ispasp import data, zoo
from ispasp.errors import ModelError

SHIPPED = Path(sample_models.__file__).parent


def top1(name: str) -> float:
    """Top-1 accuracy of a sample model on its 1,000 shipped test images."""
    card = zoo.card(name)
    model = zoo.load(name)
    images = data.sample_images(card.dataset, "test")
    with torch.no_grad():
        hits = [(model(x).argmax(1) == y).sum() for x, y in data.batches(images, card.mean, card.std, 250)]
    return int(sum(hits)) / len(images)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with a copy of mnist_mlp, to be damaged."""
    for ending in ("json", "safetensors"):
        shutil.copy(SHIPPED / f"mnist_mlp.{ending}", tmp_path)
    return tmp_path


def test_names_are_the_shipped_models():
    assert zoo.names() == ["cifar10_resnet20", "mnist_mlp"]
    assert zoo.names() == sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


@pytest.mark.parametrize("name", ["cifar10_resnet20", "mnist_mlp"])
def test_card_says_what_the_model_is(name: str):
    card = zoo.card(name)
    written = json.loads((SHIPPED / f"{name}.json").read_text())
    for field in fields(zoo.Card):
        value = getattr(card, field.name)
        assert (list(value) if isinstance(value, tuple) else value) == written.pop(field.name)
    assert not written
    model = zoo.load(name)
    assert card.parameters == sum(p.numel() for p in model.parameters())
    assert model(torch.zeros(2, *card.input_shape)).shape == (2, len(card.classes))
    assert card.name in card.command and str(card.seed) in card.command
    assert len(card.mean) == len(card.std) == card.input_shape[0]


@pytest.mark.parametrize("name", ["cifar10_resnet20", "mnist_mlp"])
def test_load_gives_the_stored_weights_in_evaluation_mode(name: str):
    model = zoo.load(name)
    stored = load_file(SHIPPED / f"{name}.safetensors")
    state = model.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[key], stored[key]) for key in stored)
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_each_load_is_a_module_of_its_own():
    first, second = zoo.load("mnist_mlp"), zoo.load("mnist_mlp")
    before = second.fc1.weight.clone()
    with torch.no_grad():
        first.fc1.weight.zero_()
    assert torch.equal(second.fc1.weight, before)
    assert torch.equal(zoo.load("mnist_mlp").fc1.weight, before)


def test_mnist_accuracy_is_the_cards():
    card = zoo.card("mnist_mlp")
    assert card.test_images == 1000
    assert round(top1("mnist_mlp"), 4) == card.accuracy_test


def test_cifar_accuracy_is_near_the_cards():
    """The shipped test images are 1,000 of those behind the card's figure."""
    measured = top1("cifar10_resnet20")
    assert measured > 0.3
    assert abs(measured - zoo.card("cifar10_resnet20").accuracy_test) < 0.05


@pytest.mark.parametrize("function", [zoo.card, zoo.load])
def test_unknown_name_lists_the_known(function):
    with pytest.raises(ModelError, match=r"'resnet999'.*cifar10_resnet20 and mnist_mlp"):
        function("resnet999")


@pytest.mark.parametrize(
    "function, file", [(zoo.card, "mnist_mlp.json"), (zoo.load, "mnist_mlp.safetensors")]
)
def test_missing_file_is_named(function, file: str, copied: Path):
    function("mnist_mlp", copied)
    (copied / file).unlink()
    with pytest.raises(ModelError, match=rf"{file} cannot be read.*install ispasp again"):
        function("mnist_mlp", copied)


@pytest.mark.parametrize("length", [0, 4, 500, -4])
def test_truncated_weights_are_damaged(length: int, copied: Path):
    path = copied / "mnist_mlp.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"mnist_mlp\.safetensors is damaged"):
        zoo.load("mnist_mlp", copied)


def test_a_pickle_in_place_of_weights_is_not_run(copied: Path):
    marker = copied / "was_run"
    torch.save({"fc1.weight": _Touch(marker)}, copied / "mnist_mlp.safetensors")
    with pytest.raises(ModelError, match="damaged"):
        zoo.load("mnist_mlp", copied)
    assert not marker.exists()


class _Touch:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda w: w.pop("fc2.bias"), "fc2.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra"),
        (lambda w: w.update({"fc2.bias": torch.zeros(11)}), "fc2.bias"),
        (lambda w: w.update({"fc2.bias": torch.zeros(10, dtype=torch.float64)}), "fc2.bias"),
        (lambda w: w.update({"fc2.bias": torch.full((10,), float("nan"))}), "fc2.bias"),
    ],
    ids=["missing", "foreign", "shape", "type", "not finite"],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, said: str, copied: Path):
    weights = load_file(copied / "mnist_mlp.safetensors")
    change(weights)
    save_file(weights, copied / "mnist_mlp.safetensors")
    with pytest.raises(ModelError, match=rf"damaged.*{said}") as caught:
        zoo.load("mnist_mlp", copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("mean"),
        lambda c: c.update(colour="blue"),
        lambda c: c.update(mean=0.5),
        lambda c: c.update(mean=["0.5"]),
        lambda c: c.update(seed=1.5),
        lambda c: c.update(seed=True),
        lambda c: c.update(name="cifar10_resnet20"),
    ],
    ids=["missing", "foreign", "no list", "text in list", "no whole number", "truth value", "other model"],
)
def test_damaged_card_is_refused(change, copied: Path):
    path = copied / "mnist_mlp.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"mnist_mlp\.json is damaged"):
        zoo.card("mnist_mlp", copied)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_card_that_is_no_json_object_is_refused(content: bytes, copied: Path):
    (copied / "mnist_mlp.json").write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        zoo.card("mnist_mlp", copied)

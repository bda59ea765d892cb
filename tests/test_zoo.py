"""The sample models load strictly, and say clearly what is wrong when they cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sample_models
from ispasp import calibration, data, zoo
from ispasp.errors import ModelError
from ispasp.preparation import ImagePreparation, TextPreparation

SHIPPED = Path(sample_models.__file__).parent
IMAGE_MODELS = ["cifar10_mobilenetv2", "cifar10_resnet20", "mnist_mlp"]
needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
TEXT_MODEL = pytest.param("nli_bert", marks=needs_transformers)
WEIGHTS = {name: f"{name}.safetensors" for name in IMAGE_MODELS} | {"nli_bert": "nli_bert/model.safetensors"}


def top1(name: str) -> float:
    """Top-1 accuracy of a sample model on its 1,000 shipped test examples."""
    model = zoo.load(name)
    hits = []
    with torch.no_grad():
        for batch in calibration.read(data.sample_batches(name, "test", batch_size=250)):
            given = model(*batch.inputs, **batch.keywords)
            hits.append((getattr(given, "logits", given).argmax(1) == batch.labels).float())
    assert len(torch.cat(hits)) == 1000
    return torch.cat(hits).mean().item()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with copies of mnist_mlp and nli_bert, to be damaged."""
    (tmp_path / "nli_bert").mkdir()
    for name in ("mnist_mlp", "nli_bert"):
        for file in (f"{name}.json", WEIGHTS[name]):
            shutil.copy(SHIPPED / file, tmp_path / file)
    return tmp_path


def test_names_are_the_shipped_models():
    assert zoo.names() == ["cifar10_mobilenetv2", "cifar10_resnet20", "mnist_mlp", "nli_bert"]
    assert zoo.names() == sorted(path.stem for path in SHIPPED.glob("*.json"))
    assert all((SHIPPED / WEIGHTS[name]).is_file() for name in zoo.names())


@pytest.mark.parametrize("name", [*IMAGE_MODELS, "nli_bert"])
def test_card_holds_what_is_written(name: str):
    card = zoo.card(name)
    written = json.loads((SHIPPED / f"{name}.json").read_text())
    for field in fields(zoo.Card):
        value = getattr(card, field.name)
        expected = written.pop(field.name, field.default)
        assert value == (tuple(expected) if isinstance(expected, list) else expected)
    assert not written
    assert card.name in card.command and str(card.seed) in card.command


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_card_says_what_an_image_model_is(name: str):
    card = zoo.card(name)
    model = zoo.load(name)
    assert card.kind == "image" and card.max_length == 0
    assert card.parameters == sum(p.numel() for p in model.parameters())
    assert model(torch.zeros(2, *card.input_shape)).shape == (2, len(card.classes))
    assert len(card.mean) == len(card.std) == card.input_shape[0]


@needs_transformers
def test_card_says_what_the_text_model_is():
    card = zoo.card("nli_bert")
    model = zoo.load("nli_bert")
    assert card.kind == "text" and card.input_shape == card.mean == card.std == ()
    assert card.classes == ("entailment", "neutral", "contradiction")
    assert card.parameters == sum(p.numel() for p in model.parameters())
    tokens = torch.ones(2, card.max_length, dtype=torch.int64)
    assert model(input_ids=tokens).logits.shape == (2, len(card.classes))


@pytest.mark.parametrize("name", [*IMAGE_MODELS, TEXT_MODEL])
def test_load_gives_the_stored_weights_in_evaluation_mode(name: str):
    model = zoo.load(name)
    stored = load_file(SHIPPED / WEIGHTS[name])
    state = model.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[key], stored[key]) for key in stored)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", [*IMAGE_MODELS, TEXT_MODEL])
def test_build_gives_fresh_weights_of_the_same_architecture(name: str):
    trained = zoo.load(name).state_dict()
    fresh = zoo.build(name).state_dict()
    assert {key: value.shape for key, value in fresh.items()} == {
        key: value.shape for key, value in trained.items()
    }
    assert not all(torch.equal(fresh[key], trained[key]) for key in trained)


def test_each_load_is_a_module_of_its_own():
    first, second = zoo.load("mnist_mlp"), zoo.load("mnist_mlp")
    before = second.fc1.weight.clone()
    with torch.no_grad():
        first.fc1.weight.zero_()
    assert torch.equal(second.fc1.weight, before)
    assert torch.equal(zoo.load("mnist_mlp").fc1.weight, before)


def test_mnist_accuracy_is_the_cards():
    card = zoo.card("mnist_mlp")
    assert card.test_examples == 1000
    assert round(top1("mnist_mlp"), 4) == card.accuracy_test


@pytest.mark.parametrize("name", ["cifar10_mobilenetv2", "cifar10_resnet20", TEXT_MODEL])
def test_accuracy_is_near_the_cards(name: str):
    """The shipped test examples are 1,000 of those behind the card's figure."""
    measured, card = top1(name), zoo.card(name)
    assert card.test_examples == 4000
    assert abs(measured - card.accuracy_test) < 0.03
    assert card.accuracy_test >= (0.9 if name == "nli_bert" else 0.8)


def test_preparation_of_an_image_model_is_that_of_its_batches():
    prepared = zoo.preparation("cifar10_mobilenetv2")
    assert isinstance(prepared, ImagePreparation)
    assert (prepared.size, prepared.channels, prepared.keyword) == ((32, 32), 3, "")
    images = data.sample_images("cifar10", "test")
    [(expected, _)] = data.sample_batches("cifar10_mobilenetv2", "test", batch_size=1000)
    assert torch.allclose(prepared.normalised(images.images), expected, atol=1e-6)


@needs_transformers
def test_preparation_of_the_text_model_knows_its_words():
    prepared = zoo.preparation("nli_bert")
    assert isinstance(prepared, TextPreparation)
    assert prepared.max_length == zoo.card("nli_bert").max_length
    encoded = prepared.encode(["Every DOG runs."], ["a zebra runs"])
    unknown = prepared.tokenizer.unk_token_id
    # The full stop and the zebra.
    assert int((encoded["input_ids"] == unknown).sum()) == 2


def test_transformers_is_asked_for_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    assert "nli_bert" in zoo.names()
    assert zoo.card("nli_bert").classes
    assert len(data.sample_pairs("nli", "calibration")) == 512
    zoo.load("cifar10_mobilenetv2")
    for function in (zoo.build, zoo.load, zoo.preparation, lambda name: data.sample_batches(name, "test")):
        with pytest.raises(ModelError, match=r'needs transformers.*pip install "ispasp\[huggingface\]"'):
            function("nli_bert")


def test_importing_the_zoo_leaves_transformers_alone():
    code = "import sys, ispasp.zoo, ispasp.data; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("function", [zoo.card, zoo.load, zoo.build, zoo.preparation])
def test_unknown_name_lists_the_known(function):
    with pytest.raises(ModelError, match=r"'resnet999'.*cifar10_resnet20, mnist_mlp and nli_bert"):
        function("resnet999")


@pytest.mark.parametrize(
    "function, file",
    [
        (zoo.card, "mnist_mlp.json"),
        (zoo.card, "nli_bert.json"),
        (zoo.load, "mnist_mlp.safetensors"),
        pytest.param(zoo.load, "nli_bert/model.safetensors", marks=needs_transformers),
    ],
)
def test_missing_file_is_named(function, file: str, copied: Path):
    name = Path(file).parts[0].split(".")[0]
    function(name, copied)
    (copied / file).unlink()
    with pytest.raises(ModelError, match=rf"{file} cannot be read.*install ispasp again"):
        function(name, copied)


@pytest.mark.parametrize("length", [0, 4, 500, -4])
@pytest.mark.parametrize("name", ["mnist_mlp", TEXT_MODEL])
def test_truncated_weights_are_damaged(name: str, length: int, copied: Path):
    path = copied / WEIGHTS[name]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelError, match=rf"{WEIGHTS[name]} is damaged"):
        zoo.load(name, copied)


@needs_transformers
def test_weights_of_another_bert_are_refused_by_name(copied: Path):
    weights = load_file(copied / WEIGHTS["nli_bert"])
    weights["classifier.weight"] = torch.zeros(2, 96)
    save_file(weights, copied / WEIGHTS["nli_bert"])
    with pytest.raises(ModelError, match=r"damaged.*classifier\.weight"):
        zoo.load("nli_bert", copied)


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
        lambda c: c.update(max_length=32),
    ],
    ids=[
        "missing",
        "foreign",
        "no list",
        "text in list",
        "no whole number",
        "truth value",
        "other model",
        "a text model's field",
    ],
)
def test_damaged_card_is_refused(change, copied: Path):
    path = copied / "mnist_mlp.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"mnist_mlp\.json is damaged"):
        zoo.card("mnist_mlp", copied)


@pytest.mark.parametrize("change", [lambda c: c.pop("max_length"), lambda c: c.update(mean=[0.5])])
def test_damaged_card_of_a_text_model_is_refused(change, copied: Path):
    path = copied / "nli_bert.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"nli_bert\.json is damaged"):
        zoo.card("nli_bert", copied)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_card_that_is_no_json_object_is_refused(content: bytes, copied: Path):
    (copied / "mnist_mlp.json").write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        zoo.card("mnist_mlp", copied)

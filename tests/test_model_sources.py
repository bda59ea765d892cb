"""Models by name: the samples, torchvision with each kind of weights, and a user's own Python function."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models as architectures  # type: ignore[import-untyped]

from ispasp import graph, models, zoo
from ispasp.errors import ModelError
from ispasp.models import ModelSource, torchvision_models
from ispasp.preparation import ImagePreparation

SMALL = "shufflenet_v2_x0_5"  # the smallest published file: 1.4 million parameters
NOBODY = "http://127.0.0.1:9/"  # a port on which nothing listens


def random(name: str, outputs: int = 1000, seed: int = 7) -> nn.Module:
    """A torchvision model with weights that no other seed gives."""
    torch.manual_seed(seed)
    model: nn.Module = architectures.get_model(name, weights=None, num_classes=outputs)
    return model.eval()


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    own = model.state_dict()
    return list(own) == list(state) and all(torch.equal(own[name], state[name]) for name in own)


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's folder of downloads, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def unreachable(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published weights of ``SMALL`` lie where nobody answers."""
    published = architectures.get_model_weights(SMALL).DEFAULT
    monkeypatch.setattr(published.value, "url", f"{NOBODY}small-0123abcd.pth")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which a real server offers its files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


# Sources as text


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("cifar10_resnet20", "sample", "cifar10_resnet20"),
        ("sample:mnist_mlp", "sample", "mnist_mlp"),
        ("torchvision:resnet34", "torchvision", "resnet34"),
        ("huggingface:models/my bert", "huggingface", "models/my bert"),
        ("huggingface:org/name", "huggingface", "org/name"),
        ("python:a:b/file.py:make", "python", "a:b/file.py:make"),
    ],
)
def test_text_and_source_round_trip(text: str, kind: str, name: str):
    source = models.parse(f" {text} ", "some.pth")
    assert source == ModelSource(kind, name, "some.pth")
    assert models.parse(str(source), source.weights) == source
    assert str(source) == text.removeprefix("sample:")


@pytest.mark.parametrize(
    "text", ["", "resnet34", "zoo:mnist_mlp", "torchvision:", "huggingface:  ", "C:\\x.py"]
)
def test_other_text_is_answered_with_what_is_accepted(text: str):
    with pytest.raises(ModelError, match="torchvision:NAME, huggingface:FOLDER_OR_HUB_NAME or python:path"):
        models.parse(text)


# Samples


@pytest.mark.parametrize("name", ["cifar10_resnet20", "mnist_mlp"])
def test_a_sample_comes_with_its_weights_and_says_how_to_feed_it(name: str):
    loaded = models.load(models.parse(name))
    card = zoo.card(name)
    assert same(loaded.model, zoo.load(name).state_dict()) and not loaded.model.training
    assert loaded.classes == card.classes
    assert loaded.preparation == zoo.preparation(name)
    assert loaded.example.inputs[0].shape == (2, *card.input_shape)
    assert loaded.words == f"{name}, a sample model, its trained weights"
    rebuilt = models.build(json.loads(json.dumps(loaded.record)))
    rebuilt.load_state_dict(loaded.model.state_dict(), strict=True)
    assert not rebuilt.training


def test_a_sample_takes_random_weights_or_a_checkpoint(tmp_path: Path):
    untrained = models.load(models.parse("mnist_mlp", "random"))
    assert "random weights: accuracy means nothing" in untrained.words
    state = untrained.model.state_dict()
    assert not same(zoo.load("mnist_mlp"), state)
    save_file(state, tmp_path / "mine.safetensors")
    local = models.load(models.parse("mnist_mlp", str(tmp_path / "mine.safetensors")))
    assert same(local.model, state) and "mine.safetensors" in local.words
    with pytest.raises(ModelError, match="mine.safetensors do not belong to this CifarResNet: missing"):
        models.load(models.parse("cifar10_resnet20", str(tmp_path / "mine.safetensors")))


def test_an_unknown_sample_is_named():
    with pytest.raises(ModelError, match="Unknown model 'nothing'"):
        models.load(ModelSource("sample", "nothing"))


# torchvision


def test_every_classification_model_is_offered_with_one_square_evaluation_transform():
    names = torchvision_models.names()
    assert len(names) > 70 and {"resnet34", "swin_t", "inception_v3"} <= set(names)
    assert not {"raft_large", "fcn_resnet50", "quantized_resnet18"} & set(names)
    for name in names:
        transforms = architectures.get_model_weights(name).DEFAULT.transforms()
        made = torchvision_models._preparation(transforms)
        assert made.size == (transforms.crop_size[0],) * 2 and made.resize >= made.size[0]


def test_random_weights_are_the_same_each_time_and_leave_the_random_state_alone():
    before = torch.get_rng_state()
    first = models.load(models.parse("torchvision:resnet18", "random"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert same(models.load(first.source).model, first.model.state_dict())
    assert first.words == "resnet18 of torchvision, 1000 classes, random weights: accuracy means nothing"
    assert len(first.classes) == 1000 and first.classes[0] == "tench"
    assert first.preparation == ImagePreparation(
        (224, 224), 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear"
    )
    assert first.example.inputs[0].shape == (2, 3, 224, 224) and not first.model.training
    assert same(models.build(json.loads(json.dumps(first.record))), first.model.state_dict())


def test_the_transform_is_that_of_the_published_weights():
    picture = torch.randint(256, (3, 300, 280), dtype=torch.uint8)
    weights = architectures.get_model_weights("efficientnet_b0").DEFAULT
    made = torchvision_models._preparation(weights.transforms())
    from torchvision.transforms.functional import to_pil_image  # type: ignore[import-untyped]

    given = to_pil_image(picture)
    ours = made.normalised(made.pixels(given)[None])[0]
    assert made.interpolation == "bicubic"
    assert torch.allclose(ours, weights.transforms()(given), atol=1e-6)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_are_left_out(name: str, tmp_path: Path):
    loaded = models.load(models.parse(f"torchvision:{name}", "random"))
    own = loaded.model.state_dict()
    assert not any("aux" in key.lower() for key in own)
    # The published files have them.
    torch.save(
        own | {"aux1.fc.weight": torch.zeros(2), "AuxLogits.fc.bias": torch.zeros(3)}, tmp_path / "full.pth"
    )
    assert same(models.load(models.parse(f"torchvision:{name}", str(tmp_path / "full.pth"))).model, own)
    if name == "googlenet":
        graph.trace(loaded.model, loaded.example)


@pytest.mark.parametrize("name", [SMALL, "squeezenet1_1"])
@pytest.mark.parametrize("outputs", [1000, 7])
def test_a_local_checkpoint_decides_the_number_of_classes(name: str, outputs: int, tmp_path: Path):
    state = random(name, outputs).state_dict()
    path = tmp_path / "mine.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    loaded = models.load(models.parse(f"torchvision:{name}", str(path)))
    assert same(loaded.model, state)
    assert len(loaded.classes) == (1000 if outputs == 1000 else 0)
    assert loaded.words == f"{name} of torchvision, {outputs} classes, weights of {path}"
    models.build(loaded.record).load_state_dict(state, strict=True)


@pytest.mark.parametrize("name", ["mnasnet0_5", "densenet121"])
def test_files_of_older_torchvision_are_read(name: str, tmp_path: Path):
    state = random(name).state_dict()
    if name == "densenet121":
        old = {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v for key, v in state.items()}
        assert len(set(old) - set(state)) > 100
    else:
        old = dict(state)
    torch.save(old, tmp_path / "old.pth")
    assert same(models.load(models.parse(f"torchvision:{name}", str(tmp_path / "old.pth"))).model, state)


def test_a_checkpoint_of_another_architecture_names_three_mismatches(tmp_path: Path):
    save_file(random("resnet34").state_dict(), tmp_path / "resnet34.safetensors")
    with pytest.raises(
        ModelError,
        match=r"do not belong to this ResNet: unexpected layer1\.2\.\S+; unexpected \S+; unexpected "
        r"\S+ and \d+ more\. Give a checkpoint",
    ):
        models.load(models.parse("torchvision:resnet18", str(tmp_path / "resnet34.safetensors")))


def test_published_weights_are_taken_from_the_downloads_and_read_safely(downloads: Path):
    state = random(SMALL).state_dict()
    downloads.mkdir(parents=True)
    torch.save(state, downloads / architectures.get_model_weights(SMALL).DEFAULT.url.rpartition("/")[2])
    loaded = models.load(models.parse(f"torchvision:{SMALL}"))
    assert same(loaded.model, state)
    assert loaded.words == f"{SMALL} of torchvision, 1000 classes, published weights (IMAGENET1K_V1)"


@pytest.mark.usefixtures("unreachable")
def test_without_a_network_one_sentence_says_the_way_out():
    started = time.perf_counter()
    with pytest.raises(ModelError) as raised:
        models.load(models.parse(f"torchvision:{SMALL}"))
    assert time.perf_counter() - started < 5
    message = str(raised.value)
    assert message.startswith(f"The published weights of {SMALL} cannot be fetched from {NOBODY}")
    assert "(weights=PATH)" in message and 'weights="random"' in message and "\n" not in message


@pytest.mark.usefixtures("downloads")
def test_a_server_that_keeps_silent_does_not_hold_anybody_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torchvision_models, "_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.perf_counter()
        with pytest.raises(ModelError, match="cannot be fetched from .*timed out"):
            torchvision_models.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/w-01234567.pth", "it")
        assert time.perf_counter() - started < 5


def test_published_weights_are_fetched_once_and_checked_by_their_hash(
    downloads: Path, served: tuple[Path, str]
):
    folder, address = served
    content = b"some weights"
    right = f"w-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    for name in (right, "w-00000000.pth"):
        (folder / name).write_bytes(content)
    assert torchvision_models.fetch(address + right, "it") == downloads / right
    (folder / right).unlink()
    assert torchvision_models.fetch(address + right, "it").read_bytes() == content
    with pytest.raises(ModelError, match="cannot be fetched .*hash"):
        torchvision_models.fetch(f"{address}w-00000000.pth", "it")
    with pytest.raises(ModelError, match="cannot be fetched .*[Nn]ot found"):
        torchvision_models.fetch(f"{address}absent-00000000.pth", "it")
    assert [path.name for path in downloads.iterdir()] == [right]


def test_an_unknown_name_is_answered_with_close_ones():
    with pytest.raises(ModelError, match="no classification model 'resnet43': did you mean resnet34"):
        models.load(models.parse("torchvision:resnet43"))
    with pytest.raises(ModelError, match="no classification model 'fcn_resnet50'"):
        models.load(models.parse("torchvision:fcn_resnet50", "random"))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"kind": "other"},
        {"kind": "sample"},
        {"kind": "torchvision", "name": "resnet18"},
        {"kind": "torchvision", "name": "resnet18", "outputs": True},
        {"kind": "torchvision", "name": "resnet18", "outputs": 10**9},
        {"kind": "torchvision", "name": ["x"], "outputs": 10},
        {"kind": "torchvision", "name": "os.system", "outputs": 10},
        {"kind": "python", "path": "x.py"},
    ],
)
def test_a_damaged_record_is_refused(record: dict[str, object]):
    with pytest.raises(ModelError):
        models.build(record, allow_code=True)

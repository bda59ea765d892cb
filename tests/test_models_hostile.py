"""Models with damaged or hostile files beside them: one sentence each, nothing read elsewhere, nothing fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ispasp import models
from ispasp.errors import ModelError
from ispasp.models import torchvision_models
from ispasp.models.source import ModelSource
from ispasp.preparation import TextPreparation
from tests.small_huggingface import BERT, WIDTHS, load, saved

VIT = "ViTForImageClassification"
BARE: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 8,
}  # fmt: skip


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def written(folder: Path, config: Any, architecture: str) -> None:
    """A folder with nothing but the configuration."""
    config.architectures = [architecture]
    config.save_pretrained(folder)


# Hugging Face: what the forward needs


def test_a_model_that_needs_more_than_tokens_is_one_sentence(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    written(tmp_path / "t5", config, "T5Model")
    parts = {
        "text_config": WIDTHS | {"vocab_size": 64},
        "vision_config": WIDTHS | {"image_size": 16, "patch_size": 8},
    }
    written(tmp_path / "clip", transformers.CLIPConfig(**parts), "CLIPModel")
    for name, kind in (("t5", "T5Model"), ("clip", "CLIPModel")):
        with pytest.raises(
            ModelError, match=f"{kind} fails on an example of input_ids alone.*needs nothing else"
        ):
            load(tmp_path / name, "random")


def test_a_preparation_of_another_size_than_the_model_reads_is_one_sentence(tmp_path: Path):
    pytest.importorskip("transformers")
    saved(tmp_path, VIT)
    edit(tmp_path / "preprocessor_config.json", size={"height": 32, "width": 32})
    with pytest.raises(ModelError, match=r"fails on an example of pixel_values.*\(32\*32\)"):
        load(tmp_path)


def test_a_model_without_positions_is_one_sentence(tmp_path: Path):
    pytest.importorskip("transformers")
    saved(tmp_path, BERT)
    edit(tmp_path / "config.json", max_position_embeddings=0)
    with pytest.raises(ModelError, match="BertForSequenceClassification fails on an example of input_ids"):
        load(tmp_path, "random")


# Hugging Face: the files beside the model


@pytest.mark.parametrize(
    ("values", "said"),
    [
        *[
            ({"size": {"height": side, "width": 16}}, "whole number from 1 to 4096")
            for side in (16.5, -3, 200_000)
        ],
        ({"size": {"height": "16", "width": "16"}}, ""),
        ({"image_mean": [float("nan")] * 3}, "give finite numbers"),
        ({"image_std": [0.0] * 3}, "the latter above 0"),
        ({"image_std": [float("inf")] * 3}, "give finite numbers"),
        ({"image_std": [-1.0] * 3}, "the latter above 0"),
        ({"rescale_factor": 0.0}, ""),
    ],
)
def test_a_damaged_picture_preparation_is_one_sentence(values: dict[str, Any], said: str, tmp_path: Path):
    pytest.importorskip("transformers")
    saved(tmp_path, VIT)
    edit(tmp_path / "preprocessor_config.json", **values)
    with pytest.raises(
        ModelError, match=rf"preprocessor_config\.json cannot be used \(.*{said}.*\): mend it"
    ):
        load(tmp_path)


@pytest.mark.parametrize("side", [200_000, -2])
def test_pictures_of_a_senseless_configured_size_are_not_made(side: int, tmp_path: Path):
    pytest.importorskip("transformers")
    name = "SwinForImageClassification"
    saved(tmp_path, name)
    (tmp_path / "preprocessor_config.json").unlink()
    edit(tmp_path / "config.json", image_size=side)
    with pytest.raises(ModelError, match=rf"{name} .*\(.*a side of {side}, which must be.*\)"):
        load(tmp_path, "random")


@pytest.mark.parametrize(("given", "length"), [(2, 32), (0, 32), (-5, 32), ("abc", 32), (None, 32), (9, 9)])
def test_a_senseless_length_of_the_tokenizer_counts_as_none(given: Any, length: int, tmp_path: Path):
    pytest.importorskip("transformers")
    saved(tmp_path, BERT)
    edit(tmp_path / "tokenizer_config.json", model_max_length=given)
    preparation = load(tmp_path).preparation
    assert isinstance(preparation, TextPreparation) and preparation.max_length == length


@pytest.mark.parametrize(
    "values",
    [
        {"tokenizer_file": "{}"},
        {"vocab_file": "{}", "tokenizer_class": "BertTokenizer"},
        {"vocab": "{}", "tokenizer_class": "BertTokenizer"},
        {"sp_model_kwargs": {"model_file": "{}"}},
    ],
)
def test_a_tokenizer_reads_no_file_elsewhere(values: dict[str, Any], tmp_path: Path):
    pytest.importorskip("transformers")
    saved(tmp_path / "model", BERT)
    secret = tmp_path / "secret.txt"
    secret.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nsecret\n")
    settings = tmp_path / "model" / "tokenizer_config.json"
    unchanged = settings.read_text()
    edit(settings, **json.loads(json.dumps(values).replace("{}", str(secret))))
    with pytest.raises(ModelError, match=r"names .*secret\.txt as its \w+, which lies outside of the folder"):
        load(tmp_path / "model")
    settings.write_text(unchanged)
    edit(settings, vocab_file="/dev/zero")
    with pytest.raises(ModelError, match="names /dev/zero as its vocab_file"):
        load(tmp_path / "model")
    # Where a tokenizer came from is often written down, and harmless.
    settings.write_text(unchanged)
    edit(settings, name_or_path=str(tmp_path), special_tokens_map_file=str(secret))
    assert isinstance(load(tmp_path / "model").preparation, TextPreparation)


# Hugging Face: records


@pytest.mark.parametrize(
    ("class_name", "values", "said"),
    [
        (
            "DetrModel",
            {"model_type": "detr", "backbone": "evil/repo", "use_timm_backbone": False},
            "never fetched",
        ),
        (
            "DetrModel",
            {"model_type": "detr", "use_pretrained_backbone": True},
            "use_pretrained_backbone: True",
        ),
        ("DetrModel", {"model_type": "detr", "backbone_config": "evil/repo"}, "backbone_config: 'evil/repo'"),
        (
            "DetrModel",
            {"model_type": "detr", "backbone_config": {"backbone": "evil/repo"}},
            "backbone: 'evil/repo'",
        ),
        (
            "BertModel",
            BARE | {"num_hidden_layers": 10**7},
            "num_hidden_layers 10,000,000, and the limit is 1,000",
        ),
        ("BertModel", BARE | {"num_labels": 10**8}, "num_labels 100,000,000, and the limit is 1,000,000"),
        (
            "SwinModel",
            {"model_type": "swin", "depths": [1, 10**7], "num_heads": [1, 1], "embed_dim": 8},
            "depths 10,000,000",
        ),
        (
            "CLIPModel",
            {"model_type": "clip", "text_config": {"num_hidden_layers": 10**7}},
            "num_hidden_layers",
        ),
    ],
)
def test_a_record_that_would_fetch_or_build_for_minutes_is_refused(class_name: str, values: Any, said: str):
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match=said):
        models.build({"kind": "huggingface", "class": class_name, "config": values})


# torchvision


@pytest.mark.parametrize("outputs", [0, -1, 10**6 + 1, 2.0, True, "7", None])
def test_a_torchvision_record_of_senseless_outputs_is_refused(outputs: Any):
    with pytest.raises(ModelError, match="outputs; save the run again"):
        models.build({"kind": "torchvision", "name": "squeezenet1_1", "outputs": outputs})


def test_a_torchvision_record_of_too_much_memory_is_refused_unbuilt():
    with pytest.raises(ModelError, match=r"mnasnet0_5 with 1,000,000 classes is 4\.8 GiB; at most 4 GiB"):
        models.build({"kind": "torchvision", "name": "mnasnet0_5", "outputs": 10**6})


def test_the_memory_of_many_classes_is_known_before_they_are_made(monkeypatch: pytest.MonkeyPatch):
    found = []
    monkeypatch.setattr(torchvision_models.checkpoint, "check_bytes", lambda size, name: found.append(size))
    model = models.build({"kind": "torchvision", "name": "squeezenet1_1", "outputs": 20_001})
    assert found == [4 * sum(value.numel() for value in model.parameters())]


# Paths


@pytest.mark.parametrize(
    "name", ["~nosuchuser/x", "a" * 300, "a\0b"], ids=["no such user", "too long", "with a null"]
)
@pytest.mark.parametrize("kind", ["huggingface", "python", "weights"])
def test_what_is_no_path_is_one_sentence(kind: str, name: str):
    file = f"{name}.py:make" if kind == "python" else name
    source = ModelSource("sample", "mnist_mlp", file) if kind == "weights" else ModelSource(kind, file)
    with pytest.raises(ModelError, match=r"cannot be used as a path \(.*\): check it"):
        models.load(source, allow_code=True)


def test_the_home_folder_may_be_meant_by_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from safetensors.torch import save_file

    monkeypatch.setenv("HOME", str(tmp_path))
    state = models.load(models.parse("mnist_mlp", "random")).model.state_dict()
    save_file(state, tmp_path / "mine.safetensors")
    loaded = models.load(models.parse("mnist_mlp", "~/mine.safetensors")).model.state_dict()
    assert all((loaded[key] == value).all() for key, value in state.items())

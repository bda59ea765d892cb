"""How a Hugging Face model is fed: its own tokenizer or picture processor, or a word that there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ispasp import graph
from ispasp.preparation import ImagePreparation, TextPreparation
from tests.small_huggingface import BERT, load, made, saved

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(("name", "length"), [(BERT, 32), ("RobertaForSequenceClassification", 30)])
def test_text_is_encoded_up_to_the_positions_that_the_model_has(name: str, length: int, tmp_path: Path):
    saved(tmp_path, name)
    loaded = load(tmp_path)
    assert isinstance(loaded.preparation, TextPreparation) and loaded.preparation.max_length == length
    encoded = loaded.preparation.encode(["a man is asleep ."] * 3, ["he sleeps ." * 30] * 3)
    assert {value.shape for value in encoded.values()} == {(3, length)}
    with torch.no_grad():
        assert loaded.model(**encoded).logits.isfinite().all()
    saved(tmp_path, BERT, max_position_embeddings=512)
    longer = load(tmp_path).preparation
    assert isinstance(longer, TextPreparation) and longer.max_length == 128


def test_the_tokenizer_gives_what_the_model_takes(tmp_path: Path):
    saved(tmp_path, "DistilBertForSequenceClassification")
    assert set(load(tmp_path).example.keywords) == {"input_ids", "attention_mask"}
    saved(tmp_path, BERT)
    assert set(load(tmp_path).example.keywords) == {"input_ids", "token_type_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("processor", "values", "expected"),
    [
        ("ViTImageProcessor", {"size": {"height": 16, "width": 12}}, ((16, 12), None, "bilinear")),
        (
            "ViTImageProcessor",
            {"size": {"height": 16, "width": 16}, "resample": 3},
            ((16, 16), None, "bicubic"),
        ),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 28}}, ((28, 28), 32, "bicubic")),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}, ((384, 384), None, "bicubic")),
        (
            "CLIPImageProcessor",
            {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}},
            ((32, 32), 40, "bicubic"),
        ),
        (
            "ViTImageProcessor",
            {"size": {"height": 16, "width": 16}, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3},
            ((16, 16), None, "bilinear"),
        ),
        (
            "ViTImageProcessor",
            {"size": {"height": 16, "width": 16}, "do_normalize": False},
            ((16, 16), None, "bilinear"),
        ),
    ],
)
def test_pictures_are_prepared_as_the_saved_processor_does(
    processor: str, values: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path
):
    saved(tmp_path, "ViTForImageClassification", image_size=expected[0], patch_size=expected[0][0] // 4)
    theirs = getattr(transformers, processor)(**values)
    theirs.save_pretrained(tmp_path)
    loaded = load(tmp_path).preparation
    assert isinstance(loaded, ImagePreparation) and loaded.keyword == "pixel_values"
    assert (loaded.size, loaded.resize, loaded.interpolation) == expected
    # One colour, so that only size and normalisation count: resampling differs a little between libraries.
    picture = Image.new("RGB", (60, 50), (200, 90, 10))
    wanted = theirs(picture, return_tensors="pt")["pixel_values"]
    assert torch.allclose(loaded.normalised(loaded.pixels(picture)[None]), wanted, atol=1e-4)


def test_without_tokenizer_or_processor_the_line_says_so(tmp_path: Path):
    made(BERT).save_pretrained(tmp_path / "text")
    made("ViTForImageClassification").save_pretrained(tmp_path / "pictures")
    text, pictures = load(tmp_path / "text"), load(tmp_path / "pictures")
    assert text.preparation is None and "there is no tokenizer" in text.words
    assert text.example.keywords["input_ids"].shape == (2, 32)
    assert pictures.preparation is None and "no preprocessor_config.json" in pictures.words
    assert pictures.example.keywords["pixel_values"].shape == (2, 3, 16, 16)
    for loaded in (text, pictures):
        graph.trace(loaded.model, loaded.example)

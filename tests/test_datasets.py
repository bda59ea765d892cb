"""Sources, preparation and settings of data sets, the samples and noise, as a model reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ispasp import data, datasets, zoo
from ispasp.calibration import as_batch
from ispasp.datasets import request as request_module
from ispasp.errors import CalibrationError, SettingError
from ispasp.preparation import ImagePreparation, TextPreparation
from tests.small_images import RGB, digest_of, folder, labels, load, values

# ---------------------------------------------------------------- sources


@pytest.mark.parametrize(
    "text",
    ["sample:mnist", "folder:a:b/c", "zip:x.zip", "torchvision:CIFAR10@data", "pairs:x.tsv@en", "noise",
     "python:a/b.py:make"],
)  # fmt: skip
def test_a_source_is_the_text_that_it_was_read_from(text: str):
    assert str(datasets.parse(text)) == text
    assert datasets.parse(str(datasets.parse(text))) == datasets.parse(text)


@pytest.mark.parametrize("text", ["", "imagenet", "folder:", "folder", "noise:3", "url:x", "sample: "])
def test_a_source_of_another_form_is_refused_with_the_forms(text: str):
    with pytest.raises(SettingError, match="give .*(folder:PATH|noise|sample:NAME)"):
        datasets.parse(text)


@pytest.mark.parametrize("text", ["folder: a b ", " zip:\tx.zip", "noise "])
def test_blanks_around_a_source_and_its_name_do_not_count(text: str):
    kind, _, name = text.strip().partition(":")
    assert datasets.parse(text) == datasets.DataSource(kind, name.strip())


@pytest.mark.parametrize("name", ["~nosuchuser/x", "a" * 300, "a\0b"], ids=["no user", "too long", "null"])
@pytest.mark.parametrize(
    "source", ["folder:", "zip:", "pairs:", "torchvision:CIFAR10@", "torchvision:ImageNet@"]
)
def test_what_is_no_path_is_one_sentence(source: str, name: str):
    preparation = TextPreparation(None, 8) if source == "pairs:" else RGB
    with pytest.raises(CalibrationError, match=r"cannot be used as a path \(.*\): check it"):
        load(source + name, preparation)


def test_a_model_without_preparation_is_told_what_it_needs(tmp_path: Path):
    with pytest.raises(CalibrationError, match="reads batches that are prepared already.*use python:path"):
        load("noise", None)


# ---------------------------------------------------------------- preparation, memory, settings


def test_a_named_argument_of_the_forward_makes_dicts(tmp_path: Path):
    named = ImagePreparation((8, 8), None, RGB.mean, RGB.std, keyword="pixel_values")
    found = load(f"folder:{folder(tmp_path)}", named)
    assert set(found.calibration[0]) == {"pixel_values", "labels"}
    assert set(load("noise", named).calibration[0]) == {"pixel_values"}
    assert labels(found.calibration) == [value // 10 for value in values(found.calibration)]


def test_images_go_through_the_evaluation_transform(tmp_path: Path):
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(
            path
        )
    preparation = ImagePreparation((16, 16), 20, RGB.mean, RGB.std, "bicubic")
    found = load(f"folder:{tmp_path}", preparation, samples=1, evaluation=1)
    expected = [preparation.pixels(Image.open(tmp_path / f"{number}.png")) for number in range(4)]
    assert any(torch.equal(found.pictures[0], pixels) for pixels in expected)
    assert torch.equal(found.calibration[0], preparation.normalised(found.pictures[:1]))


def test_batches_hold_64_images_and_32_of_large_ones():
    sizes = {side: [len(as_batch(b)) for b in load("noise", ImagePreparation(
        (side, side), None, (0.5,), (0.5,)), samples=70).calibration] for side in (128, 129)}  # fmt: skip
    assert sizes == {128: [64, 6], 129: [32, 32, 6]}


@pytest.mark.parametrize("where", ["folder:x", "zip:x.zip", "noise", "torchvision:MNIST@x", "sample:mnist"])
def test_images_for_a_model_that_reads_sentences_are_refused(where: str):
    with pytest.raises(CalibrationError, match="reads sentence pairs.*pairs:FILE"):
        load(where, TextPreparation(None, 8))
    with pytest.raises(CalibrationError, match="python:path"):
        load(where, None)


def test_what_would_not_fit_into_memory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch):
    large = ImagePreparation((1024, 1024), None, RGB.mean, RGB.std)
    with pytest.raises(CalibrationError, match=r"GiB; the limit is 8 GiB.*at most 682"):
        load("noise", large, samples=700)
    monkeypatch.setattr(request_module, "MAX_INPUT_BYTES", 10 * 4 * 3 * 64)
    with pytest.raises(CalibrationError, match="at most 10"):
        load(f"folder:{folder(tmp_path)}")
    # What is not there needs no memory.
    assert load(f"folder:{folder(tmp_path / 'few', per_class=5)}", samples=10**9).calibration


@pytest.mark.parametrize("change", [{"samples": 0}, {"seed": -1}, {"evaluation": 0}, {"samples": 1.5}])
def test_settings_out_of_range(change):
    with pytest.raises(SettingError, match=next(iter(change))):
        load("noise", **change)


# ---------------------------------------------------------------- noise


def test_noise_is_seeded_normal_and_says_what_it_is_worth():
    found, again, more = load("noise"), load("noise"), load("noise", samples=20)
    inputs = torch.cat(load("noise", samples=512).calibration)
    assert abs(inputs.mean()) < 0.01 and abs(inputs.std() - 1) < 0.01
    assert digest_of(found) == digest_of(again) != digest_of(load("noise", seed=1))
    assert torch.equal(torch.cat(more.calibration)[:8], torch.cat(found.calibration))
    assert torch.equal(torch.cat(more.evaluation), torch.cat(found.evaluation))
    assert not torch.equal(found.calibration[0][:4], found.evaluation[0])
    assert "says nothing about accuracy" in found.notes[0]
    assert found.pictures.shape == (8, 3, 8, 8) and found.pictures.dtype == torch.uint8


# ---------------------------------------------------------------- samples


@pytest.mark.parametrize("name", ["cifar10_resnet20", "mnist_mlp"])
def test_samples_are_the_shipped_images_as_the_sample_models_read_them(name: str):
    card = zoo.card(name)
    _, height, width = card.input_shape
    preparation = ImagePreparation((height, width), None, card.mean, card.std)
    found = load(f"sample:{card.dataset}", preparation, card.classes, 10, samples=100, evaluation=90)
    images = data.choose(data.sample_images(card.dataset, "calibration"), 100, seed=0)
    for (inputs, classes), (expected, positions) in zip(
        found.calibration, data.batches(images, card.mean, card.std), strict=True
    ):
        assert torch.equal(inputs, expected) and torch.equal(classes, positions)
    assert found.classes == card.classes and found.notes == ()
    assert labels(found.evaluation) == data.sample_images(card.dataset, "test").labels[:90].tolist()


def test_samples_for_a_model_of_another_size_and_other_classes():
    preparation = ImagePreparation((64, 64), 72, RGB.mean, RGB.std)
    found = load("sample:mnist", preparation, tuple(f"thing {n}" for n in range(1000)), 1000)
    assert found.calibration[0].shape == (8, 3, 64, 64)  # no pair: digits are no things
    assert "accuracy is unknown" in found.notes[0]


def test_unknown_samples_and_too_many_of_them():
    with pytest.raises(SettingError, match="'imagenet'.*cifar10, mnist and nli"):
        load("sample:imagenet")
    with pytest.raises(SettingError, match="samples is 513"):
        load("sample:mnist", samples=513)

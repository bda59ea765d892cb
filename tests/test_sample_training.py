"""The training scripts write what the zoo reads, and the same again for the same seed."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sample_models
from ispasp import data, zoo
from sample_models import train, train_text

SHIPPED = Path(sample_models.__file__).parent


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    train.main()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A zip of 20 training and 20 test images, named as the training script reads them."""
    path = tmp_path / "images.zip"
    splits = {"train": "calibration/", "test": "test/"}
    with zipfile.ZipFile(SHIPPED / "data" / "cifar10.zip") as shipped, zipfile.ZipFile(path, "w") as made:
        for split, folder in splits.items():
            for name in [name for name in shipped.namelist() if name.startswith(folder)][:20]:
                made.writestr(f"cifar10/{split}/{name.removeprefix(folder)}", shipped.read(name))
    return path


def test_cifar10_mobilenetv2_is_trained_and_written(monkeypatch, tmp_path: Path, images: Path):
    recipe = train.RECIPES["cifar10_mobilenetv2"]
    (phase,) = recipe.phases
    short = replace(recipe, phases=(replace(phase, epochs=2, small_epochs=1),), batch=10)
    monkeypatch.setitem(train.RECIPES, "cifar10_mobilenetv2", short)
    out = tmp_path / "out"
    out.mkdir()
    arguments = ("cifar10_mobilenetv2", "--images", str(images), "--out", str(out), "--seed", "3")
    run(monkeypatch, *arguments)
    card, first = zoo.card("cifar10_mobilenetv2", out), zoo.load("cifar10_mobilenetv2", out).state_dict()
    assert (card.seed, card.epochs, card.test_examples) == (3, 2, 20)
    assert (
        card.command == "python -m sample_models.train cifar10_mobilenetv2 --images cifar10_jpeg.zip --seed 3"
    )
    assert len(data.sample_images("cifar10", "calibration", out)) == 20
    assert all(value.isfinite().all() for value in first.values())
    run(monkeypatch, *arguments)
    again = zoo.load("cifar10_mobilenetv2", out).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_images_alone_are_written_the_same_at_every_run(monkeypatch, tmp_path: Path, images: Path):
    monkeypatch.setattr(train, "SHIPPED_CALIBRATION", 6)
    monkeypatch.setitem(train.SHIPPED_TRAINING, "cifar10", 15)
    written = []
    for out in (tmp_path / "one", tmp_path / "two"):
        out.mkdir()
        run(monkeypatch, "cifar10_resnet20", "--images", str(images), "--out", str(out), "--only-images")
        assert sorted(path.name for path in out.iterdir()) == ["data"]
        written.append({path.name: path.read_bytes() for path in (out / "data").iterdir()})
    assert written[0] == written[1] and set(written[0]) == {"cifar10.zip", "cifar10_train.zip"}
    calibration, test, training = (data.sample_images("cifar10", s, tmp_path / "one") for s in data.SPLITS)
    assert (len(calibration), len(test), len(training)) == (6, 20, 15)
    assert torch.equal(calibration.images, training.images[:6])
    with pytest.raises(SystemExit):
        run(monkeypatch, "nli_bert", "--only-images")


def test_nli_bert_is_trained_and_written(monkeypatch, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    for name, value in (("TRAINING_PAIRS", 300), ("TEST_PAIRS", 30), ("STEPS", 12), ("BATCH", 50)):
        monkeypatch.setattr(train_text, name, value)
    run(monkeypatch, "nli_bert", "--out", str(tmp_path), "--seed", "3")
    card, first = zoo.card("nli_bert", tmp_path), zoo.load("nli_bert", tmp_path).state_dict()
    assert (card.seed, card.epochs, card.test_examples) == (3, 2, 30)
    assert card.transformers == transformers.__version__
    run(monkeypatch, "nli_bert", "--out", str(tmp_path), "--seed", "3")
    again = zoo.load("nli_bert", tmp_path).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_images_are_asked_for(monkeypatch, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        run(monkeypatch, "cifar10_mobilenetv2")
    assert "needs --images: a zip of cifar10/{train,test}/<class>/*.jpg" in capsys.readouterr().err

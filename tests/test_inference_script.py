"""The script that runs an exported file elsewhere: in a process of its own, it says what torch says."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ispasp import data, runs, zoo
from ispasp.deployment import inference_script
from ispasp.errors import RunError
from ispasp.onnx_export import export_onnx
from ispasp.preparation import ImagePreparation
from ispasp.result import load
from ispasp.run_settings import RunSettings

HOSTILE = '"\'\'\'"""\n{0} %s %(prog)s\\ <b>\u2028'


def run_script(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-P",
        "inference.py",
        *map(str, arguments),
    ]  # -P: nothing beside it is imported
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def write_script(folder: Path, content: str) -> None:
    assert content.count("\n") <= 80
    (folder / "inference.py").write_text(content, encoding="utf-8")


def exported_run(name: str, folder: Path) -> tuple[Path, nn.Module]:
    """A saved run of a sample model, and its pruned model beside it as ``model.onnx``."""
    path = folder / "run"
    settings = RunSettings(name, keep=0.75, samples=16, evaluation=16, device="cpu", reconstruct="none")
    list(runs.execute(settings, folder, path))
    model = load(path).model
    export_onnx(model, torch.zeros(2, *zoo.card(name).input_shape), folder / "model.onnx")
    return path, model


@pytest.mark.parametrize("name", ["mnist_mlp", pytest.param("cifar10_resnet20", marks=pytest.mark.slow)])
def test_it_names_the_class_that_torch_names_for_a_picture(name: str, tmp_path: Path) -> None:
    path, model = exported_run(name, tmp_path)
    card, preparation = zoo.card(name), zoo.preparation(name)
    assert isinstance(preparation, ImagePreparation)
    write_script(tmp_path, inference_script.script(path))
    pictures, expected = [], []
    images = data.sample_images(card.dataset, "test").images
    for number, enlarged in ((0, None), (1, (61, 45))):  # as it is, and of a size that must be made to fit
        array = images[number].permute(1, 2, 0).squeeze(-1).numpy()
        picture = Image.fromarray(array)
        picture = picture.resize(enlarged) if enlarged else picture
        picture.save(tmp_path / f"{number}.png")
        pictures.append(f"{number}.png")
        with torch.no_grad():
            scores = model(preparation.normalised(preparation.pixels(picture)[None]))[0]
        shares = scores.double().softmax(0)
        expected.append(f"{shares.max():7.2%}  {card.classes[int(shares.argmax())]}")
    done = run_script(tmp_path, *pictures, "--top", 1)
    assert done.stdout.splitlines() == ["example 0", expected[0], "example 1", expected[1]], done.stderr
    (tmp_path / "model.onnx").unlink()
    done = run_script(tmp_path, pictures[0])
    assert (
        done.returncode == 1 and done.stderr.startswith("There is no model at") and "--model" in done.stderr
    )


def names_of(content: str) -> dict[str, Any]:
    """What the script defines, without running it."""
    names: dict[str, Any] = {"__name__": "script", "__file__": "inference.py"}
    exec(compile(content, "inference.py", "exec"), names)
    return names


@pytest.mark.parametrize(
    "preparation",
    [
        ImagePreparation((28, 28), 28, (0.1307,), (0.3081,)),
        ImagePreparation((17, 21), None, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic"),
        ImagePreparation((24, 24), 33, (0.5,) * 3, (0.25,) * 3, "nearest"),
        ImagePreparation((30, 31), 24, (0.5,) * 3, (0.25,) * 3),  # cuts more than there is
    ],
)
def test_pixels_are_those_of_the_preparation_whatever_the_picture(
    preparation: ImagePreparation, tmp_path: Path
) -> None:
    pixels = names_of(inference_script.of("model.onnx", preparation))["pixels"]
    generator = np.random.default_rng(0)
    for height, width in ((40, 61), (61, 40), (35, 35), preparation.size):
        picture = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        picture.save(tmp_path / "a.png")
        expected = preparation.normalised(preparation.pixels(picture)[None])[0].numpy()
        np.testing.assert_allclose(pixels(tmp_path / "a.png"), expected, rtol=0, atol=1e-6)


def test_sentences_are_read_as_by_the_tokenizer_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    from ispasp.preparation import TextPreparation

    preparation = zoo.preparation("nli_bert")
    assert isinstance(preparation, TextPreparation)
    content = inference_script.of("model.onnx", preparation, ("yes", "no"), "nli_bert")
    write_script(tmp_path, content)
    tokens = names_of(content)["tokens"]
    long = "A man is asleep. " * 12
    for pair in (("A man is asleep.", "He sleeps."), (long, "Two dogs run."), (long, long), ("", "xyzzy")):
        given = tokens(argparse.Namespace(sentences=pair))
        expected = preparation.encode([pair[0]], [pair[1]])
        assert {name: given[name] for name in expected} == {n: v[0].tolist() for n, v in expected.items()}

    class Large:
        """A tokenizer without a small file of its own, as those of large models."""

    fetched = inference_script.of("model.onnx", TextPreparation(Large(), 8), (), f"huggingface:{HOSTILE}")
    monkeypatch.setattr(sys, "argv", ["inference.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        names_of(fetched)["main"]()
    assert "--tokenizer" in capsys.readouterr().out


def test_without_a_known_preparation_it_says_what_it_needs_and_reads_arrays(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    export_onnx(model, torch.zeros(2, 6), tmp_path / "model.onnx")
    write_script(tmp_path, inference_script.of("model.onnx", None, model=HOSTILE))
    done = run_script(tmp_path)
    assert done.returncode == 1 and "'batch', 6" in done.stderr and ".npy" in done.stderr
    x = torch.randn(5, 6)
    np.save(tmp_path / "x.npy", x.double().numpy())  # of another type than the model's
    done = run_script(tmp_path, "x.npy", "--top", 1)
    lines = done.stdout.splitlines()
    with torch.no_grad():
        expected = [f"class {i}" for i in model(x).argmax(1).tolist()]
    assert [line.split("%  ")[1] for line in lines[1::2]] == expected, done.stderr
    for wrong, words in (
        ("bad.npy", "shape (5, 4)"),
        ("torn.npy", "cannot be used"),
        ("gone.npy", "cannot be used"),
    ):
        if wrong == "bad.npy":
            np.save(tmp_path / wrong, np.zeros((5, 4)))
        elif wrong == "torn.npy":
            (tmp_path / wrong).write_bytes(b"\x93NUMPY")
        done = run_script(tmp_path, wrong)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


def test_hostile_names_stay_words(tmp_path: Path) -> None:
    preparation = ImagePreparation((28, 28), 28, (0.1307,), (0.3081,))
    content = inference_script.of("model.onnx", preparation, [HOSTILE, "b"], HOSTILE)
    names = names_of(content)
    assert names["CLASSES"] == (HOSTILE, "b") and names["MODEL"] == HOSTILE
    with pytest.raises(RunError, match=r"run\.json"):
        inference_script.script(tmp_path)

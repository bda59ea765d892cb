"""Models and data of one's own in the app: chosen, run, refused, with the next click said each time."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest
from torchvision.models import get_model  # type: ignore[import-untyped]

from ispasp import store
from tests import small_huggingface
from tests.app_page import (
    choose,
    enabled,
    finish,
    press,
    runs_folder,
    seen,
    sound,
    table,
    until,
    visit,
    words,
)

__all__ = ["runs_folder"]  # a fixture that every test here uses

ARCHITECTURE = "squeezenet1_1"  # traced in a second


@pytest.fixture(autouse=True)
def no_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that holds none, whose network leads nowhere."""
    from ui import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    models.reachable.clear()


def random_weights(**query: str) -> AppTest:
    return visit(**({"model": f"torchvision:{ARCHITECTURE}", "weights": "random"} | query))


def few(app: AppTest, samples: int = 4) -> AppTest:
    return sound(app.number_input(key="samples").set_value(samples).run())


def images(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 6) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = torch.randint(0, 255, (40, 48, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def upload(app: AppTest, key: str, name: str, content: bytes) -> AppTest:
    place = next(one for one in app.file_uploader if str(one.key).startswith(f"upload_{key}"))
    return sound(place.set_value((name, content, "application/octet-stream")).run())


def test_a_torchvision_model_without_a_network_says_what_to_do_next() -> None:
    app = visit()
    choose(app, "model", "torchvision")
    choose(app, "architecture", ARCHITECTURE)
    said = words(app)
    assert f"The published weights of {ARCHITECTURE} are not on this machine and cannot be fetched" in said
    assert "give a checkpoint file, or take random weights" in said and enabled(app) == set()
    assert "9 blocks of channels can be pruned" in said  # which takes no weights
    press(app, "use_random")
    assert app.selectbox(key="weights").value == "random" and "accuracy means nothing" in words(app)
    assert "Choose data to calibrate with" in words(app) and enabled(app) == set()
    press(app, "use_noise")
    assert not app.error and enabled(app) == {"run", "step"}
    assert "which may take minutes for a large model" in words(app)
    choose(app, "weights", "")
    press(app, "use_file")
    assert "Choose the checkpoint" in words(app)
    sound(app.text_input(key="weights_path").set_value("/no/such.pth").run())
    assert "There is no checkpoint file /no/such.pth" in words(app)


def test_random_weights_and_noise_to_the_end_and_back(runs_folder: Path) -> None:
    app = few(random_weights(data="noise"))
    assert [metric.label for metric in app.metric][1] == "MACs per image"
    assert app.metric[0].value == "1.24 M"
    run = finish(app)
    text = words(app)
    assert (
        "Finished" in text
        and "random weights: accuracy means nothing" in text
        and "The inputs are noise" in text
    )
    assert app.metric[2].value == "unknown" and app.metric[3].value.endswith("%")
    assert (app.metric[2].label, app.metric[3].label) == ("Accuracy", "Agreement, 4 test images")
    assert app.metric[3].delta == "random weights: means nothing"
    assert "They cannot be shown" not in text and "Its filters" in text
    other = visit(run=run)  # after a restart only the disk and the address remember
    assert other.selectbox(key="model").value == "torchvision"
    assert other.selectbox(key="architecture").value == ARCHITECTURE
    assert (other.selectbox(key="weights").value, other.selectbox(key="data").value) == ("random", "noise")
    assert "Showing" not in words(other) and enabled(other) == {"run", "step"}
    assert seen(other, "model") == f"torchvision:{ARCHITECTURE}"
    choose(other, "weights", "")
    assert "Shown: weights random (above: the usual)" in words(other) or "cannot be fetched" in words(other)
    sound(other.switch_page("../pages/runs.py").run())
    (row,) = table(other, "Run").to_dict("records")
    assert (
        row["Model"] == f"torchvision:{ARCHITECTURE}"
        and "weights random, data noise" in row["Other settings"]
    )
    sound(other.switch_page("../pages/explore.py").run())
    assert other.selectbox(key="architecture").value == ARCHITECTURE


def test_a_folder_of_images(tmp_path: Path) -> None:
    folder = images(tmp_path / "pets")
    app = few(random_weights())
    choose(app, "data", "folder")
    assert "give the path of a folder" in words(app)
    sound(app.text_input(key="data_path").set_value(str(folder) + "x").run())
    assert "There is no folder" in words(app)
    sound(app.text_input(key="data_path").set_value(str(folder)).run())
    run = finish(app)
    text = words(app)
    assert "not among the model's" in text or "accuracy is unknown" in text
    assert app.metric[2].value == "unknown" and "2 calibration images" in text
    assert len(app.get("image")) >= 5  # photos, answers and filters
    assert store.open_run(store.default_folder() / run).settings["data"] == f"folder:{folder}"


def test_an_uploaded_checkpoint_of_another_architecture_is_refused_before_the_run(runs_folder: Path) -> None:
    content = io.BytesIO()
    torch.save(get_model("shufflenet_v2_x0_5").state_dict(), content)
    app = random_weights(data="noise")
    choose(app, "weights", "file")
    upload(app, "weights_path", "../shuffle.pth", content.getvalue())
    path = Path(str(app.text_input(key="weights_path").value))
    assert path.parent == runs_folder.absolute() / ".uploads" and path.is_file()
    until(app, lambda: "do not belong to this SqueezeNet" in words(app))
    (error,) = app.error
    assert (
        error.value.count("missing features.") == 3
        and "more. Give a checkpoint of this architecture" in error.value
    )
    assert enabled(app) == set() and app.selectbox(key="architecture").value == ARCHITECTURE
    assert str(path) in str(visit(**{k: seen(app, k) for k in ("model", "weights", "data")}).error[0].value)
    content = io.BytesIO()
    torch.save(get_model(ARCHITECTURE, num_classes=7).state_dict(), content)
    upload(app, "weights_path", "mine.pth", content.getvalue())
    until(app, lambda: not app.error and enabled(app) == {"run", "step"})
    choose(app, "architecture", "alexnet")
    assert app.selectbox(key="weights").value == ""  # the file was another architecture's


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('ran')",)


def test_a_pickle_with_code_is_refused_and_not_run() -> None:
    app = random_weights(data="noise")
    choose(app, "weights", "file")
    upload(app, "weights_path", "model.pt", pickle.dumps({"weight": _Evil()}))
    until(app, lambda: "which could run code when it is read, so it is refused" in words(app))
    assert enabled(app) == set()


def test_a_zip_that_leaves_its_folder_fails_with_a_sentence_and_keeps_the_settings(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "png")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("../cat/1.png", picture.getvalue())
    app = few(random_weights())
    choose(app, "data", "zip")
    upload(app, "data_path", "evil.zip", archive.getvalue())
    press(app, "run_button")
    until(app, lambda: "Failed" in words(app))
    (error,) = app.error
    assert "../cat/1.png" in error.value and "Traceback" not in error.value
    assert app.selectbox(key="data").value == "zip" and app.number_input(key="samples").value == 4
    assert not list(tmp_path.rglob("1.png")) and enabled(app) == {"run", "step"}


def test_only_data_that_fit_the_model_are_offered() -> None:
    app = visit(model="nli_bert")
    assert [kind.partition(" ")[2] for kind in app.selectbox(key="data").options[1:]] == [
        "file of sentence pairs …"
    ]
    choose(app, "model", "mnist_mlp")
    assert "a file of sentence pairs …" not in app.selectbox(key="data").options
    choose(app, "data", "sample:cifar10")
    choose(app, "model", "cifar10_resnet20")
    assert app.selectbox(key="data").value == ""


@pytest.mark.slow
def test_a_hugging_face_folder_and_uploaded_sentence_pairs(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    small_huggingface.saved(tmp_path / "bert", small_huggingface.BERT)
    app = visit()
    choose(app, "model", "huggingface")
    assert "Choose the model: give a folder on this machine or a name on the hub" in words(app)
    sound(app.text_input(key="hub_name").set_value(str(tmp_path / "bert")).run())
    assert "2 blocks of attention heads and 3 blocks of neurons can be pruned" in words(app)
    assert "use_noise" not in {button.key for button in app.button}  # noise is no text
    choose(app, "data", "pairs")
    lines = [f"a man is asleep .\ttwo dogs run .{' he' * n}\tneutral" for n in range(12)]
    upload(app, "data_path", "mine.tsv", "\n".join(["premise\thypothesis\tlabel", *lines]).encode())
    sound(app.button_group(key="kinds").set_value(["head"]).run())
    assert "attention heads only" in app.expander[0].label
    few(app)
    run = finish(app)
    text = words(app)
    assert "MACs per sentence pair" in [metric.label for metric in app.metric]
    assert "Look into a head" in text and "calibration sentence pairs" in text and "two dogs run" in text
    assert app.metric[2].value.endswith("%")  # the labels are the model's own
    opened = visit(run=run)
    assert opened.text_input(key="hub_name").value == str(tmp_path / "bert") and "Showing" not in words(
        opened
    )
    assert "attention heads only" in opened.expander[0].label


def test_a_name_on_the_hub_is_fetched_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    app = visit(model="huggingface:nobody/no-such-model", data="noise")
    assert "read_model" in {button.key for button in app.button} and enabled(app) == {"run", "step"}
    assert app.metric[1].label == "MACs per example"
    choose(app, "data", "")
    assert "or read the model first to see what it takes" in words(app) and "images of" not in words(app)
    choose(app, "data", "noise")
    press(app, "read_model")
    assert "is no folder here and cannot be fetched from the hub" in words(app) and enabled(app) == set()
    (error,) = app.error
    assert "give a folder that holds it" in error.value and "Traceback" not in error.value


def test_python_is_offered_only_with_the_permission(
    tmp_path: Path, runs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    ran = tmp_path / "ran"
    file.write_text(
        "import pathlib, torch\n"
        f"pathlib.Path({str(ran)!r}).touch()\n"
        "def model():\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))\n"
        "    return net, torch.randn(2, 8)\n"
        "def data():\n"
        "    return [torch.randn(8, 8) for _ in range(2)]\n"
    )
    app = visit(model=f"python:{file}:model", data=f"python:{file}:data")
    assert "ISPASP_ALLOW_CODE=1" in words(app) and "python" not in str(app.selectbox(key="model").options)
    assert not ran.exists()

    monkeypatch.setenv("ISPASP_ALLOW_CODE", "1")
    app = visit(model=f"python:{file}:model", data=f"python:{file}:data")
    assert app.selectbox(key="model").value == "python" and not ran.exists()  # an address alone runs nothing
    press(app, "read_model")
    assert ran.exists() and "1 block of neurons can be pruned" in words(app)
    few(app, 8)
    run = finish(app)
    assert "MACs per example" in [metric.label for metric in app.metric]
    press(app, "export_button")
    until(app, lambda: "Exporting" not in words(app))
    assert "Files and parity with torch" in words(app)
    assert (runs_folder / run / "export" / "model.onnx").is_file()

    monkeypatch.delenv("ISPASP_ALLOW_CODE")  # the run can still be looked at
    opened = visit(run=run)
    assert "Finished" in words(opened) and opened.selectbox(key="model").value == "python"
    assert enabled(opened) == set() and "ISPASP_ALLOW_CODE=1" in words(opened)

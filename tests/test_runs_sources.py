"""Runs of a user's own models and data: from their sources to disk and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ispasp
from ispasp import opened, runs, store
from ispasp.calibration import Batch, digest, read
from ispasp.deployment import exporting
from ispasp.deployment.exporting import ExportDone
from ispasp.errors import ISpaSPError, ModelError, RunError, SettingError
from ispasp.evaluate import first_tensor, forward
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved

FUNCTIONS = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))
    return net, torch.zeros(2, 6)

def data():
    torch.manual_seed(1)
    return [(torch.randn(32, 6), torch.randint(0, 3, (32,))) for _ in range(4)]
"""


def photos(root: Path) -> Path:
    """Forty pictures in four class folders."""
    drawn = np.random.default_rng(0)
    for label in "abcd":
        (root / label).mkdir(parents=True)
        for number in range(10):
            pixels = drawn.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


def execute(settings: RunSettings, folder: Path, **options: bool) -> Path:
    *_, last = runs.execute(settings, folder, **options)
    assert isinstance(last, RunSaved)
    return last.path


def outputs(model: torch.nn.Module, batch: Batch) -> Tensor:
    return first_tensor(forward(model, batch))


def loads_without_a_difference(path: Path, batch: Batch, **options: bool) -> ispasp.PruneResult:
    """The run twice from disk, its architecture built anew each time."""
    first, second = (ispasp.load(path, **options) for _ in range(2))
    assert torch.equal(outputs(first.model, batch), outputs(second.model, batch))
    saved = {name: tuple(value.shape) for name, value in first.model.state_dict().items()}
    assert saved == {name: tuple(value.shape) for name, value in second.model.state_dict().items()}
    return first


def test_a_torchvision_model_on_a_folder_of_images(tmp_path: Path) -> None:
    settings = RunSettings(
        "torchvision:squeezenet1_1", weights="random", data=f"folder:{photos(tmp_path / 'photos')}",
        samples=8, keep=0.5, device="cpu",
    )  # fmt: skip
    path = execute(settings, tmp_path / "runs")
    assert "torchvision-squeezenet1_1-keep0.5" in path.name
    record = store.open_run(path)
    assert RunSettings.of(record) == settings
    assert record.report["accuracy_before"] is None and record.report["examples"] == 32
    assert any(
        "accuracy is unknown" in note.lower() or "unknown" in note for note in record.settings["notes"]
    )
    assert "random weights" in record.settings["words"]
    loaded = opened.open_model(settings)
    data = opened.open_data(settings, loaded)
    assert record.settings["calibration_digest"] == digest(read(data.calibration))
    assert {"ispasp", "python", "torch"} <= set(record.settings["versions"])
    result = loads_without_a_difference(path, read(data.evaluation)[0])
    assert record.report["params_after"] == sum(p.numel() for p in result.model.parameters())
    assert record.report["params_after"] < record.report["params_before"]


@pytest.mark.slow
def test_a_hugging_face_folder_on_sentence_pairs(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import small_huggingface

    model = small_huggingface.made(small_huggingface.BERT)
    model.save_pretrained(tmp_path / "bert")
    small_huggingface.save_tokenizer(tmp_path / "bert")
    labels = ("entailment", "neutral", "contradiction")
    pairs = [
        {
            "premise": "two dogs run" * (1 + i % 3),
            "hypothesis": f"a man is asleep {i}",
            "label": labels[i % 3],
        }
        for i in range(40)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(pair) for pair in pairs))
    settings = RunSettings(
        f"huggingface:{tmp_path / 'bert'}", data=f"pairs:{file}", samples=16, keep=0.5, kinds=("head",),
        device="cpu",
    )  # fmt: skip
    path = execute(settings, tmp_path / "runs")
    record = store.open_run(path)
    assert {event.block.kind for event in record.blocks_pruned} == {"head"}
    assert len(record.blocks_pruned) == 2 and all(len(e.selected) == 1 for e in record.blocks_pruned)
    assert record.report["accuracy_before"] is not None
    # The folder may be gone by the time a run is opened.
    (tmp_path / "bert").rename(tmp_path / "elsewhere")
    loaded = opened.open_model(
        RunSettings(f"huggingface:{tmp_path / 'elsewhere'}", data=settings.data, samples=16)
    )
    data = opened.open_data(settings, loaded)
    loads_without_a_difference(path, read(data.evaluation)[0])
    with pytest.raises(ModelError, match="bert"):
        next(step for step in exporting.export_run(path) if isinstance(step, ExportDone))
    (tmp_path / "elsewhere").rename(tmp_path / "bert")
    *_, last = exporting.export_run(path, seconds=0.2)
    assert isinstance(last, ExportDone)
    assert last.report["onnx"]["max_abs_diff"] < 1e-4 and (path / "export" / "model.onnx").is_file()


def test_a_python_file_runs_only_where_that_is_permitted(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FUNCTIONS)
    settings = RunSettings(
        f"python:{file}:model", data=f"python:{file}:data", samples=64, keep=0.5, device="cpu"
    )
    with pytest.raises(ISpaSPError, match="permitted"):
        execute(settings, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    path = execute(settings, tmp_path / "runs", allow_code=True)
    with pytest.raises(RunError, match="permitted"):
        ispasp.load(path)
    loads_without_a_difference(path, Batch((torch.randn(4, 6),), {}), allow_code=True)
    assert store.open_run(path).report["accuracy_before"] is not None


def test_what_cannot_be_run_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="brings no data.*folder:PATH"):
        execute(RunSettings("torchvision:resnet18", weights="random"), tmp_path)
    with pytest.raises(SettingError, match="no prunable heads"):
        execute(RunSettings("mnist_mlp", kinds=("head",)), tmp_path)
    with pytest.raises(SettingError, match="kinds is"):
        RunSettings("mnist_mlp", kinds=("filter",))
    with pytest.raises(ModelError, match="There is no checkpoint file"):
        execute(
            RunSettings("torchvision:resnet18", weights=str(tmp_path / "no.safetensors"), data="noise"),
            tmp_path,
        )
    assert not list(tmp_path.iterdir())

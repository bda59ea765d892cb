"""Runs as notebooks: executed, they select the same groups."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from streamlit.testing.v1 import AppTest

from ispasp import notebook_export, runs, store, zoo
from ispasp.errors import RunError
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from notebooks.execute import execute
from tests.app_page import few_samples, finish, runs_folder, visit

__all__ = ["runs_folder"]  # a fixture of the page's tests

FUNCTIONS = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)]
    return nn.Sequential(*layers), torch.zeros(2, 6)

def data():
    torch.manual_seed(1)
    return [(torch.randn(32, 6), torch.randint(0, 3, (32,))) for _ in range(4)]

def mixed():
    torch.manual_seed(0)
    maps = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*maps, nn.Linear(12 * 4, 16), nn.ReLU(), nn.Linear(16, 3)), torch.zeros(2, 1, 6, 6)

def squares():
    return [(x.repeat(1, 6).view(32, 1, 6, 6), y) for x, y in data()]
"""
NASTY = "it's \"odd\"\n'); import os; os.abort() #\\ \u2028 {0} {x} %s `$x$`"


def small(**more: Any) -> RunSettings:
    return RunSettings(
        **{"model": "mnist_mlp", "keep": 0.2, "samples": 32, "evaluation": 32, "device": "cpu"} | more
    )


def saved(settings: RunSettings, folder: Path, **options: bool) -> Path:
    *_, last = runs.execute(settings, folder, **options)
    assert isinstance(last, RunSaved)
    return last.path


def cells(content: bytes, kind: str = "code") -> list[str]:
    made = nbformat.reads(content.decode(), as_version=4)
    nbformat.validate(made)
    return [cell.source for cell in made.cells if cell.cell_type == kind]


def repeated(content: bytes) -> dict[str, Any]:
    """The names that the notebook's code leaves behind, and what it printed."""
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()):
        for number, source in enumerate(cells(content)):
            exec(compile(source, f"cell {number}", "exec"), names)
    return names | {"said": said.getvalue()}


def same(path: Path) -> dict[str, Any]:
    """Repeat the run in this process; its sets must be those on disk."""
    left = repeated(notebook_export.of_run(path))
    record = store.open_run(path)
    sets = {block.block.name: list(block.selected) for block in record.blocks_pruned}
    assert left["expected"] == left["selected"] == sets
    assert left["settings"] == RunSettings.of(record)
    assert left["result"].trace == record.trace
    assert f"The same groups were selected in every block ({len(sets)} of {len(sets)})." in left["said"]
    assert "not those of the run" not in left["said"] and " in the run." not in left["said"]
    return left


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"keep_by_block": {"fc1": 0.1}, "selector": "ispasp-contribution", "reconstruct": "symmetric", "seed": 3},
        {"kinds": ("neuron",), "weights": "random", "data": "noise", "multiple": 1, "candidate_factor": 1.5},
        {"selector": "taylor", "distil": 2, "recalibrate": True, "hidden_sum": "signed", "iterations": 2},
    ],
)  # fmt: skip
def test_the_notebook_repeats_the_run(more: dict[str, Any], tmp_path: Path) -> None:
    same(saved(small(**more), tmp_path))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model and data in a Python file."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(FUNCTIONS)
    source = f"python:{folder / 'mine.py'}"
    settings = small(model=f"{source}:model", data=f"{source}:data", multiple=1)
    return saved(settings, folder / "runs", allow_code=True)


def test_a_run_of_ones_own_python_file_in_a_fresh_kernel(own: Path, tmp_path: Path) -> None:
    content = notebook_export.of_run(own)
    assert sum(cell.count("allow_code=True") for cell in cells(content)) == 2
    said = "\n".join(cells(content, "markdown"))
    assert "runs the Python file that the settings name" in said and "Relative paths" in said
    done = execute(nbformat.reads(content.decode(), as_version=4), tmp_path)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert "The same groups were selected in every block (2 of 2)." in outputs[-1]["text"]
    pictures = [o for o in outputs if "application/vnd.plotly.v1+json" in o.get("data", {})]
    tables = [o for o in outputs if "text/html" in o.get("data", {})]
    assert len(pictures) == 5 and len(tables) == 1
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".ipynb"]  # nothing is left behind


@pytest.mark.parametrize(
    "more",
    [
        {"allocation": "macs"},
        {"keep_by_block": {"0": 0.3, "5": 1.0}},
        {"kinds": ("channel",)},
        {"kinds": ("neuron",), "keep_by_block": {"5": 0.25}, "distil": 3},
    ],
)
def test_the_notebook_of_several_blocks(more: dict[str, Any], own: Path, tmp_path: Path) -> None:
    source = f"python:{own.parent.parent / 'mine.py'}"
    settings = small(model=f"{source}:mixed", data=f"{source}:squares", multiple=1, keep=0.5, **more)
    left = same(saved(settings, tmp_path, allow_code=True))
    kinds = {block.block.kind for block in left["result"].blocks_pruned}
    assert kinds == set(settings.kinds) - {"head"}


def test_names_and_paths_are_never_code(tmp_path: Path) -> None:
    photos, checkpoint = tmp_path / NASTY.replace("/", "") / "photos", tmp_path / f"{NASTY}.safetensors"
    drawn = np.random.default_rng(0)
    for label in "01":
        (photos / label).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(drawn.integers(0, 256, (28, 28), dtype=np.uint8)).save(
                photos / label / f"{number}.png"
            )
    save_file(zoo.load("mnist_mlp").state_dict(), checkpoint)
    path = saved(small(data=f"folder:{photos}", weights=str(checkpoint), samples=8), tmp_path / "runs")
    left = same(path)
    assert left["settings"].data == f"folder:{photos}" and "os" not in left
    record = store.open_run(path)
    versions = {**record.settings["versions"], NASTY: NASTY}
    hostile = {**record.settings, "calibration_digest": NASTY, "versions": versions}
    content = notebook_export.notebook(RunSettings.of(record), dataclasses.replace(record, settings=hostile))
    left = repeated(content)
    assert left["then"] == versions and left["calibration_digest"] == NASTY and "os" not in left
    assert "The calibration data are not those of the run" in left["said"]


def test_sources_in_running_text_are_harmless(own: Path) -> None:
    record = store.open_run(own)
    settings = dataclasses.replace(RunSettings.of(record), model=f"python:/a/<img src=x>`]({NASTY}:f")
    text = "\n".join(cells(notebook_export.notebook(settings, record), "markdown"))
    assert "`python:/a/?img src?x????" in text and "<" not in text and "os.abort() #" not in text


def test_other_sets_are_an_error_that_names_the_block(own: Path) -> None:
    record = store.open_run(own)
    first, *rest = record.blocks_pruned
    other = tuple(range(len(first.selected)))
    assert other != first.selected
    record = dataclasses.replace(record, blocks_pruned=[dataclasses.replace(first, selected=other), *rest])
    with pytest.raises(AssertionError, match=r"Other groups than in the run were selected in 0\.$"):
        repeated(notebook_export.notebook(RunSettings.of(record), record))


def test_what_no_notebook_can_repeat(own: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a saved run"):
        notebook_export.of_run(tmp_path)
    record = store.open_run(own)
    foreign = dataclasses.replace(record, settings={**record.settings, "versions": {"torch": torch.zeros(1)}})
    with pytest.raises(RunError, match="a Tensor among its settings"):
        notebook_export.notebook(RunSettings.of(record), foreign)


def test_the_page_offers_the_notebook(runs_folder: Path) -> None:
    app: AppTest = few_samples(visit())
    run = finish(app)
    (button,) = [b for b in app.get("download_button") if b.proto.label == "Open as notebook"]
    assert not button.proto.disabled and button.proto.ignore_rerun
    assert cells(notebook_export.of_run(runs_folder / run))

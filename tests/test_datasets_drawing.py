"""Drawing from pools with copies and unusable examples: a run that was trained and is opened again must be measured on
the very examples that it was measured on, none of them trained on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from ispasp import data, runs
from ispasp.calibration import copies, read
from ispasp.datasets import training
from ispasp.datasets.drawing import draw
from ispasp.datasets.file_set import FileSet
from ispasp.datasets.request import EVERYTHING, Request
from ispasp.deployment.opened_run import open_run
from ispasp.progress import result
from ispasp.result import load_record
from ispasp.run_settings import RunSettings
from ispasp.tuning import runs as tunings
from ispasp.tuning.data import open_training
from ispasp.tuning.request import TuneRequest
from tests.small_tuned_runs import saved

Drawn = tuple[list[int], list[int]]


def drawn(
    pool: list[str], other: list[str] | None, samples: int, evaluation: int, calibration: int | None
) -> Drawn:
    """Places in the pool and in ``other`` (from 1,000 on); to train where it is known how many calibrate.

    Examples of one letter are copies; "!" cannot be used.
    """
    purpose = "calibration" if calibration is None else "training"
    request = Request(None, (), None, samples, evaluation, 7, purpose, calibration or 0)
    contents = dict(enumerate(pool)) | dict(enumerate(other or (), start=1000))
    first, second, _ = draw(
        list(range(len(pool))),
        None if other is None else list(range(1000, 1000 + len(other))),
        request,
        lambda place: None if contents[place] == "!" else (place, contents[place]),
        "letters",
    )
    return first, second


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_a_trained_run_that_is_opened_again_is_measured_on_the_same(seed: int, apart: bool) -> None:
    chosen = random.Random(seed)
    letters = "!abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    pool = [chosen.choice(letters) for _ in range(chosen.choice((30, 60, 100)))]
    other = [chosen.choice(letters) for _ in range(40)] if apart else None
    samples, evaluation = chosen.choice((4, 8, 90)), chosen.choice((3, 12, 25, 300))
    contents = dict(enumerate(pool)) | dict(enumerate(other or (), start=1000))
    before = drawn(pool, other, samples, evaluation, None)[1]
    for examples in (
        EVERYTHING,
        chosen.choice((5, 20, 50)),
    ):  # the run is trained, and the result trained further
        trained, measured = drawn(pool, other, examples, evaluation, samples)
        assert not {contents[place] for place in trained} & {contents[place] for place in measured}
        assert set(measured) <= set(before)
        evaluation = len(measured) if len(measured) != len(before) else evaluation
        before = drawn(pool, other, samples, evaluation, None)[1]
        assert before == measured


def test_what_has_no_copies_is_drawn_as_ever() -> None:
    pool = list(map(str, range(50)))
    order = drawn(pool, None, 40, 10, None)[0] + drawn(pool, None, 40, 10, None)[1][::-1]
    assert sorted(order) == list(range(50))
    assert drawn(pool, None, EVERYTHING, 300, 8) == (order[:40], order[40:][::-1])
    assert drawn(pool, None, 20, 300, 8) == (order[:20], order[20:][::-1])


def images(root: Path) -> Path:
    """120 images, of which every eighth is there twice."""
    shipped = data.sample_images("mnist", "train")
    for number, (pixels, label) in enumerate(
        zip(shipped.images[:120], shipped.labels.tolist(), strict=False)
    ):
        place = root / str(label)
        place.mkdir(parents=True, exist_ok=True)
        for name in ("first", "copy")[: 2 if number % 8 == 0 else 1]:
            Image.fromarray(pixels[0].numpy()).save(place / f"{number} {name}.png")
    return root


@pytest.mark.parametrize("from_files", [False, True])
def test_a_folder_with_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_files: bool) -> None:
    torch.set_num_threads(1)
    if from_files:
        monkeypatch.setattr(training, "MEMORY_BYTES", 0)
    source = f"folder:{images(tmp_path / 'images')}"
    settings = RunSettings("mnist_mlp", keep=0.05, samples=16, evaluation=100, device="cpu", data=source)
    pruned = saved(runs.execute(settings, tmp_path / "runs"))
    request = TuneRequest.of_preset("distil", {"epochs": 1}, device="cpu")
    again = result(open_run(saved(tunings.execute(pruned, request, tmp_path / "runs"))))
    record = load_record(again.path)
    before = result(open_run(pruned))
    trained_on = open_training(before.settings, before.dense, request)
    assert isinstance(trained_on.set, FileSet) == from_files
    batches = list(trained_on.set.batches([range(len(trained_on.set))]))
    assert sum(map(len, again.evaluation)) == record.report["examples"] == 27
    assert copies(again.evaluation, read(trained_on.evaluation)) == 27
    assert copies(again.evaluation, batches) == 0
    if not from_files:
        assert any(
            "images to train on are copies of images to evaluate with" in note
            for note in record.settings["notes"]
        )

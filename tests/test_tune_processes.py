"""Two processes fine-tune as one does, and none waits for one that has died."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.shared_tuning import CASES, outcome
from tests.shared_work import ended, launch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes of one launch have written."""
    place = tmp_path_factory.mktemp("tuning")
    done = [ended(each, 120) for each in launch([["-m", "tests.shared_tuning", str(place)]] * 2)]
    assert [status for status, _, _ in done] == [0, 0], done
    return place


def close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(
            value, second[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_does(case: str, folder: Path) -> None:
    weights, curve = outcome(case)
    close(load_file(folder / f"{case} 0"), weights)
    curves: list[dict[str, list[dict[str, Any]]]] = [
        json.loads((folder / f"curves {rank}").read_text()) for rank in range(2)
    ]
    assert curves[0] == curves[1]
    for ours, alone in zip(curves[0][case], curve, strict=True):
        assert ours == {
            name: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            for name, value in alone.items()
        }
    best = [{k: v for k, v in load_file(folder / f"{case} {rank}").items() if "best" in k} for rank in (0, 1)]
    assert all(torch.equal(value, best[1][name]) for name, value in best[0].items())


def test_through_the_public_door(folder: Path) -> None:
    best, *_ = outcome("both")
    expected = {name.removeprefix("best "): value for name, value in best.items() if name.startswith("best ")}
    for rank in range(2):
        close(load_file(folder / f"door {rank}"), expected)


def test_what_only_one_cannot_do_ends_the_others(folder: Path) -> None:
    first, second = ((folder / f"wrong {rank}").read_text() for rank in range(2))
    assert first.startswith("ProcessError: One of the 2 processes has ended"), first
    assert second.startswith("CalibrationError: The training data has the label 77, but the model has 5"), (
        second
    )


def test_the_others_end_with_one(folder: Path) -> None:
    said = (folder / "said").read_text()
    assert said.startswith("ProcessError: One of the 2 processes has ended"), said


def test_all_go_on_from_the_same_epoch(folder: Path) -> None:
    for rank in range(2):
        said = (folder / f"apart {rank}").read_text()
        assert said.startswith("The 2 processes do not go on from the same epoch"), said


def test_all_must_be_given_the_same(folder: Path) -> None:
    said = [json.loads((folder / f"unlike {rank}").read_text()) for rank in range(2)]
    assert said[0] == said[1]
    # Of a set that is not in memory 64 examples stand for all; the first and the last are in the fingerprint, too.
    assert said[0].pop("read") == "66"
    assert said[0].pop("nothing") == said[0].pop("last digits") == "nothing"
    expected = (
        "SettingError: The 2 processes were given different models, settings, training or evaluation data; seed them "
        "alike, so that each reads the same examples in the same order."
    )
    names = ["model", "dense", "settings", "order", "one example", "one label", "files", "evaluation", "door"]
    assert said[0] == dict.fromkeys(names, expected)

"""A run.json that was damaged or made to harm: refused in one sentence, quickly, without code being run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ispasp
from ispasp.errors import RunError, SettingError
from ispasp.run_settings import RunSettings

Damage = Callable[[dict[str, Any]], None]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    result = ispasp.prune(network(), [torch.randn(32, 6)], 0.5, multiple=1, device="cpu")
    return result.save(tmp_path_factory.mktemp("runs") / "run")


def selected(value: object) -> Damage:
    return lambda plain: plain["blocks_pruned"][0].update(selected=value)


def cut(**values: object) -> Damage:
    return lambda plain: plain["blocks"][0]["cuts"][0].update(values)


def block(**values: object) -> Damage:
    return lambda plain: plain["blocks"][0].update(values)


@pytest.mark.parametrize(
    "damage",
    [
        *(
            selected(v)
            for v in (["a"], "abc", [0.5], [], [10**30], [-1, 2], [3, 2], [1, 1], None, [[1]], True)
        ),
        *(cut(size=v) for v in ("x", -1, 0, 10**9, 10**12, 1.0)),
        *(cut(repeats=v) for v in (0, 10**8, "3")),
        *(cut(module=v) for v in (["a"], "", "__class__", "9", 5)),
        cut(role="all"),
        *(block(groups=v) for v in ("a", 10**40, 0, -3)),
        block(kind=[1]),
        block(cuts=5),
    ],
)
def test_what_a_run_must_not_hold_is_refused(saved: Path, tmp_path: Path, damage: Damage) -> None:
    run = shutil.copytree(saved, tmp_path / "run")
    plain = json.loads((run / "run.json").read_text())
    damage(plain)
    (run / "run.json").write_text(json.dumps(plain))
    with pytest.raises(RunError, match="damaged|does not belong"):
        ispasp.load(run, network())


@pytest.mark.parametrize(
    "said", [{"keep": 10**400}, {"keep_by_block": {"a": 10**400}}, {"model": 5}, {"kinds": [["head"]]}]
)
def test_settings_that_cannot_be_used_are_refused(saved: Path, said: dict[str, Any]) -> None:
    record = ispasp.load(saved, network())
    record.settings.update({"model": "mnist_mlp", "keep": 0.5} | said)
    with pytest.raises(RunError, match="cannot be used here"):
        RunSettings.of(record)


def test_numbers_beyond_floating_point_are_refused() -> None:
    for given in ({"keep": 10**400}, {"candidate_factor": 10**400}):
        with pytest.raises(SettingError, match="give"):
            ispasp.prune(network(), [torch.randn(8, 6)], **given)


def test_a_run_that_names_a_python_file_does_not_run_it(saved: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    file = tmp_path / "evil.py"
    file.write_text(f"import pathlib\npathlib.Path({str(trap)!r}).touch()\ndef make():\n    return None\n")
    run = shutil.copytree(saved, tmp_path / "run")
    plain = json.loads((run / "run.json").read_text())
    plain["settings"]["architecture"] = {"kind": "python", "path": str(file), "function": "make"}
    (run / "run.json").write_text(json.dumps(plain))
    with pytest.raises(RunError, match="permitted"):
        ispasp.load(run)
    assert not trap.exists()


def test_infinite_buffers_come_back(tmp_path: Path) -> None:
    def masked() -> nn.Module:
        made = network()
        made.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        return made

    path = ispasp.prune(masked(), [torch.randn(32, 6)], 0.5, multiple=1, device="cpu").save(tmp_path / "run")
    assert ispasp.load(path, masked()).model.mask[1] == -torch.inf

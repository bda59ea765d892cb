"""A run.json that was damaged or made to harm: refused in one sentence, quickly, without code being run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ispasp
from ispasp import store
from ispasp.errors import RunError, SettingError
from ispasp.result import load_record
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


def part(name: str, **values: object) -> Damage:
    return lambda plain: plain[name][0].update(values)


def whole(**values: object) -> Damage:
    return lambda plain: plain.update(values)


def report(**values: object) -> Damage:
    return lambda plain: plain["report"].update(values)


def settings(**values: object) -> Damage:
    return lambda plain: plain["settings"].update(values)


def deep() -> Any:
    value: Any = 0
    for _ in range(400):  # which json reads, and what walks through it may not
        value = [value]
    return value


@pytest.mark.parametrize(
    "damage",
    [
        *(
            whole(**{name: []})
            for name in ("trace", "blocks_started", "blocks_pruned", "keep_groups", "blocks")
        ),
        *(whole(keep_groups=v) for v in ([99], [4], ["8"], [8, 8], [True])),
        *(part("trace", selected=v) for v in ([99999], [1, 0], ["a"], [], [-1, 3])),
        *(part("trace", **{k: [16]}) for k in ("candidates", "added", "dropped")),
        *(part("trace", relative_residual=v) for v in ("x", None, float("nan"), float("inf"), 10**400, True)),
        *(part("trace", t=v) for v in (0, 7, "1")),
        *(part("trace", **{k: "x"}) for k in ("residual", "seconds", "converged", "block")),
        *(part("blocks_started", **values) for values in ({"index": 1}, {"index": "0"}, {"keep_groups": 3})),
        *(part("blocks_started", **{k: "x"}) for k in ("total", "one_iteration_decides", "block")),
        *(part("blocks_pruned", **{k: "x"}) for k in ("drift", "seconds", "error_after", "notes", "index")),
        *(
            part("blocks_pruned", **values)
            for values in ({"iterations": 9}, {"target": None}, {"notes": [1]})
        ),
        block(cuts=[]),
        block(reads=[1]),
        report(distil="x"),
        report(distil={"steps": 1}),
        *(report(**{k: v}) for k in ("params_after", "macs_before") for v in (None, "x", 1.5, True)),
        *(report(**{k: "x"}) for k in ("accuracy_before", "agreement", "seconds", "examples")),
        *(report(blocks=v) for v in (None, [], [1], [{"name": "0"}])),
        report(device=None),
        lambda plain: plain["report"]["blocks"][0].update(relative_residual="x"),
        lambda plain: plain["report"]["blocks"][0].pop("error_after"),
        *(settings(keep_by_block=v) for v in ([1], 0.5, {"0": "x"}, {"0": None})),
        *(settings(keep=v) for v in ({"0": "x"}, "half")),
        settings(notes=5),
        settings(words=5),
        settings(anything=deep()),
        whole(distilled={"steps": 1, "objective_before": "x", "objective_after": 1.0, "seconds": 1.0}),
    ],
)
def test_what_no_page_could_show_is_refused(saved: Path, tmp_path: Path, damage: Damage) -> None:
    plain = json.loads((saved / "run.json").read_text())
    damage(plain)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps(plain))
    shutil.copy(saved / "trace.safetensors", run)
    with pytest.raises(RunError, match="damaged") as error:
        load_record(run)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("importance.0", torch.zeros(15, dtype=torch.float64)),
        ("importance.0", torch.full((16,), torch.nan)),
        ("hidden_sum.0", torch.zeros(16, 1)),
        ("score.0", torch.zeros(16, dtype=torch.int32)),
        ("sample.0", torch.zeros(4, 15, dtype=torch.float16)),
        ("sample.0", torch.zeros(16, dtype=torch.float16)),
        ("sample.0", torch.zeros(0, 16, dtype=torch.float16)),
    ],
)
def test_tensors_of_another_size_are_refused(
    saved: Path, tmp_path: Path, name: str, tensor: torch.Tensor
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(saved / "run.json", run)
    arrays = load_file(saved / "trace.safetensors")
    assert name in arrays or name == "score.0"
    save_file(arrays | {name: tensor}, run / "trace.safetensors")
    with pytest.raises(RunError, match=f"damaged: (the )?{name.partition('.')[0]} of block 0"):
        load_record(run)


def test_what_is_refused_does_not_hide_the_other_runs(saved: Path, tmp_path: Path) -> None:
    for name, text in (("deep", "[" * 100_000), ("nested", json.dumps({"format": 3, "settings": deep()}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    shutil.copytree(saved, tmp_path / "good")
    (tmp_path / "good" / "export").mkdir()
    (tmp_path / "good" / "export" / "export.json").write_text("[" * 100_000)
    problems = {run.run_id: run.problem for run in store.list_runs(tmp_path)}
    assert problems.pop("good") == "" and store.export_report(tmp_path / "good") is None
    assert set(problems) == {"deep", "nested"}
    assert all("nested too deeply" in problem for problem in problems.values())


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

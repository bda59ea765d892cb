"""The command line as a script meets it: its own process, its exit status, what it prints where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

import ispasp
from ispasp import cli
from ispasp.store import open_run

ROOT = Path(__file__).parent.parent


def test_prune_prints_one_object_and_saves_the_run(tmp_path: Path) -> None:
    """In a process of its own, from another folder, as a user runs it."""
    command = "-m ispasp prune mnist_mlp --keep 0.2 --samples 64 --out run --onnx --json"
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    printed = json.loads(done.stdout)
    assert (printed["model"], printed["keep"], printed["seed"]) == ("mnist_mlp", 0.2, 0)
    for name in (
        "device",
        "seconds",
        "accuracy_before",
        "accuracy_after",
        "agreement",
        "macs_before",
        "macs_after",
    ):
        assert printed[name] is not None
    assert printed["params_after"] < printed["params_before"] == 814_090
    (block,) = printed["blocks"]
    assert block["name"] == "fc1"
    assert (block["groups"], block["kept"]) == (1024, 208)
    assert len(block["selected"]) == block["kept"]
    assert block["iterations"] >= 1
    assert 0 < block["relative_residual"] < 1
    assert (printed["selector"], printed["reconstruct"], printed["recalibrate"]) == (
        "ispasp",
        "asymmetric",
        False,
    )
    assert (printed["allocation"], printed["distil"]) == ("uniform", None)
    assert block["target"] == "asymmetric" and 0 <= block["error_after"] < block["error_before"]
    assert block["notes"] == ["64 calibration positions for 208 unknowns per output: the re-fit leans on the old "
                              "weights; use more samples."]  # fmt: skip
    assert f"ispasp: fc1: {block['notes'][0]}" in done.stderr
    assert "100%" in done.stderr
    record = open_run(tmp_path / "run")
    assert record.trace[-1].selected == tuple(block["selected"])
    assert printed["onnx"]["max_rel_diff"] <= 1e-4
    onnxruntime.InferenceSession(tmp_path / printed["onnx"]["path"], providers=["CPUExecutionProvider"])
    assert printed["latency"]["dense"]["median_ms"] > 0
    assert ispasp.load(tmp_path / "run").model.fc1.out_features == 208


def test_without_json_a_person_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ISPASP_RUNS", str(tmp_path / "runs"))
    command = "prune mnist_mlp --keep 0.1 --samples 32 --multiple 1 --keep-block fc1=0.05"
    assert cli.main(command.split()) == 0
    printed = capsys.readouterr().out
    assert "51 of 1024" in printed
    assert "accuracy" in printed
    (run,) = (tmp_path / "runs").iterdir()
    assert str(run) in printed


def test_selector_re_fit_and_distillation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "prune mnist_mlp --keep 0.1 --samples 32 --selector l1 --reconstruct symmetric --recalibrate --distil 2"
    assert cli.main([*command.split(), "--json", "--out", str(tmp_path / "json")]) == 0
    printed, error = capsys.readouterr()
    summary = json.loads(printed)
    assert (summary["selector"], summary["reconstruct"], summary["recalibrate"]) == ("l1", "symmetric", True)
    assert summary["distil"]["steps"] == 2 and summary["distil"]["accuracy_before"] is not None
    assert "100%" in error
    assert cli.main([*command.split(), "--out", str(tmp_path / "table")]) == 0
    table, error = capsys.readouterr()
    heads, row = (line.split() for line in table.splitlines()[:2])
    assert heads == ["block", "kept", "iterations", "residual", "re-fit", "before", "after", "drift"]
    assert row[6] == "symmetric" and float(row[8]) <= float(row[7])
    assert "pruned and re-fitted" in table and "then distilled" in table and "Distilled in 2 steps" in table
    assert "ispasp: fc1: 32 calibration positions" in error


def test_the_papers_pure_selection_has_no_re_fit_to_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"prune mnist_mlp --keep 0.1 --samples 32 --reconstruct none --out {tmp_path / 'run'}"
    assert cli.main(command.split()) == 0
    table = capsys.readouterr().out
    assert "re-fit" not in table and "distilled" not in table and "drift" in table


def test_help_says_what_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["prune", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "ispasp, ispasp-contribution, cosamp, gfs, obs, l1" in text and "none, symmetric, asymmetric" in text
    )
    assert "--recalibrate" in text and "--distil STEPS" in text


def test_blocks_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["blocks", "cifar10_resnet20", "--json"]) == 0
    blocks = json.loads(capsys.readouterr().out)["blocks"]
    assert sum(block["prunable"] for block in blocks) == 9
    assert all(block["reason"] for block in blocks if not block["prunable"])
    assert cli.main(["blocks", "mnist_mlp"]) == 0
    assert "not prunable: the model returns it" in capsys.readouterr().out
    assert cli.main(["models", "--json"]) == 0
    names = [card["name"] for card in json.loads(capsys.readouterr().out)["models"]]
    assert names == ["cifar10_mobilenetv2", "cifar10_resnet20", "mnist_mlp", "nli_bert"]
    assert cli.main(["models"]) == 0
    assert "mnist_mlp" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("prune mnist_mlp --keep 0", "keep is 0.0"),
        ("prune mnist_mlp --keep 1.5", "keep is 1.5"),
        ("prune mnist_mlp --keep nan", "keep is nan"),
        ("prune mnist_mlp --keep half", "keep is 'half'; give a number"),
        ("prune mnist_mlp --keep-block fc1", "give BLOCK=KEEP"),
        ("prune mnist_mlp --keep-block fc7=0.5", "Unknown block 'fc7'; the prunable blocks are fc1"),
        ("prune mnist_mlp --samples 100000", "from 1 to 512"),
        ("prune mnist_mlp --samples ten", "samples is 'ten'; give a whole number"),
        ("prune mnist_mlp --multiple 0", "multiple is 0"),
        ("prune mnist_mlp --selector best", "Unknown selector 'best'; choose one of ispasp"),
        ("prune mnist_mlp --reconstruct magic", "Unknown reconstruct 'magic'"),
        ("prune mnist_mlp --allocation fair", "Unknown allocation 'fair'"),
        ("prune mnist_mlp --distil some", "distil is 'some'; give a whole number"),
        ("prune mnist_mlp --distil -1", "distil is -1"),
        ("prune mnist_mlp --device cuda:9", "cuda:9 is not here"),
        ("prune resnet99", "Unknown model 'resnet99'"),
        ("blocks resnet99", "Unknown model 'resnet99'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    command: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ISPASP_RUNS", str(tmp_path))
    assert cli.main(command.split()) == 2
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1]
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_and_untouched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert cli.main(["prune", "mnist_mlp", "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_unknown_options_exit_2() -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["prune"])
    assert stopped.value.code == 2

"""``export``, ``bench``, ``profile`` and ``report`` as a script and a person meet them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ispasp import cli, runs
from ispasp.deployment import commands
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved

SETTINGS = RunSettings("mnist_mlp", keep=0.05, samples=32, evaluation=40, reconstruct="none", device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    *_, saved = runs.execute(SETTINGS, tmp_path_factory.mktemp("runs"))
    assert isinstance(saved, RunSaved)
    return saved.path


@pytest.fixture(autouse=True)
def runs_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISPASP_RUNS", str(run.parent))


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    command = ["export", str(run), "--precision", "fp32,int8-dynamic", "--seconds", "0.1", "--json"]
    assert cli.main(command) == 0
    return run


def test_export_and_bench_for_a_script(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {file.name for file in (exported / "export").glob("*.onnx")} == {
        *("dense.onnx", "model.onnx", "dense-int8-dynamic.onnx", "model-int8-dynamic.onnx"),
    }
    command = ["bench", exported.name, "--batch", "1,4", "--precision", "int8-dynamic", "--seconds", "0.05"]
    assert cli.main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)["rows"]
    assert [(row["precision"], row["batch"], row["problem"]) for row in rows] == [
        ("int8-dynamic", 1, ""),
        ("int8-dynamic", 4, ""),
    ]
    assert "100%" in printed.err


def test_export_and_bench_for_a_person(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", exported.name, "--precision", "int8-dynamic", "--seconds", "0.1", "--opset", "18"]
    assert cli.main(command) == 0
    head, *rows, _, latency = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "model" and len(rows) == 4
    cells = [row.split() for row in rows]
    assert [row[:2] for row in cells] == [
        *(["dense", "fp32"], ["pruned", "fp32"], ["dense", "int8-dynamic"], ["pruned", "int8-dynamic"]),
    ]
    assert all(row[4] == "18" and Path(row[-1]).is_file() for row in cells)
    assert "faster [" in latency
    assert cli.main(["bench", str(exported), "--eager", "--seconds", "0.05"]) == 0
    printed = capsys.readouterr()
    head, first, second, explained = printed.out.splitlines()
    assert head.split()[:4] == ["provider", "precision", "batch", "threads"]
    assert first.split()[:4] == ["cpu", "fp32", "1", "1"] and "faster [" in first
    assert second.split()[:4] == ["torch-eager", "fp32", "1", "1"] and "faster [" in second
    assert explained.startswith("(medians")


def test_what_could_not_be_measured_is_said(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (exported / "export" / "model.onnx").read_bytes()
    (exported / "export" / "model.onnx").write_bytes(b"damaged")
    try:
        assert cli.main(["bench", exported.name, "--seconds", "0.05"]) == 0
        printed = capsys.readouterr()
        assert any(line.endswith("not measured") for line in printed.out.splitlines())
        assert "ispasp: cpu, fp32, batch 1, threads 1: " in printed.err
    finally:
        (exported / "export" / "model.onnx").write_bytes(whole)


def test_a_file_that_gives_no_numbers_has_its_line(exported: Path) -> None:
    variant = json.loads((exported / "export" / "export.json").read_text())["variants"][0]
    variant["parity"] |= {"max_rel_diff": None, "max_abs_diff": None, "passed": False}
    assert commands._variant(exported, variant)[4:7] == ("-", "100.0 %", "NO")


def test_the_folder_one_is_in_has_a_name(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(exported)
    assert cli.main(["bench", ".", "--precision", "fp16"]) == 2
    assert f"ispasp: {exported.name} was not exported as fp16" in capsys.readouterr().err


def test_report_is_one_page(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert cli.main(["report", exported.name, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out)}
    written = out.read_bytes()
    assert b"<html" in written[:1000].lower()
    assert cli.main(["report", exported.name, "--out", str(out)]) == 2
    assert "cannot be written" in capsys.readouterr().err and out.read_bytes() == written


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("export absent", "There is no run absent, neither as a folder nor in "),
        ("bench ../absent", "is not the name of a run"),
        ("report .hidden", "is not the name of a run"),
        ("export RUN --precision fp8", "Unknown precision 'fp8'"),
        ("export RUN --precision ,", "precision is ','; give a value"),
        ("export RUN --opset high", "opset is 'high'; give a whole number"),
        ("export RUN --opset 3", "opset is 3"),
        ("export RUN --seconds nan", "seconds is nan"),
        ("bench RUN --batch 0", "batch is 0; give a whole number from 1 to 1024"),
        ("bench RUN --batch 1,two", "batch is 'two'; give a whole number"),
        ("bench RUN --threads 1.5", "threads is '1.5'"),
        ("bench RUN --provider tpu", "Unknown provider 'tpu'"),
        ("bench RUN --precision fp16", "was not exported as fp16; export it first"),
        ("bench RUN --seconds -1", "seconds is -1.0"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    command: str, words: str, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(exported.rglob("*"))
    assert cli.main(command.replace("RUN", exported.name).split()) == 2
    printed = capsys.readouterr()
    assert words in printed.err.splitlines()[-1] and printed.out == ""
    assert sorted(exported.rglob("*")) == before


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("export", "report"):
        assert cli.main([command, str(tmp_path)]) == 2
        assert "is not a saved run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_profile_for_a_script_and_for_a_person(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["profile", exported.name, "--seconds", "0.1"]
    assert cli.main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert all(row["block"] in printed for row in report["blocks"]) and "all other layers" in printed
    assert cli.main([*command, "--precision", "fp64"]) == 2
    assert "fp64" in capsys.readouterr().err

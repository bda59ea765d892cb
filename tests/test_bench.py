"""Measuring a run's exported files: every setting a row, kept beside earlier ones, and what cannot be measured said."""

from __future__ import annotations

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn

from ispasp import plain_files, runs
from ispasp.calibration import Batch
from ispasp.deployment import providers
from ispasp.deployment.bench import (
    FILE,
    BenchDone,
    BenchSettings,
    Setting,
    batch_of,
    bench_report,
    bench_run,
)
from ispasp.deployment.cold_start import first_answers, memory
from ispasp.deployment.exporting import ExportDone, export_run
from ispasp.deployment.precisions import SIDES, Variant, file_name
from ispasp.errors import ExportError, SettingError
from ispasp.latency import Call
from ispasp.onnx_export import export_onnx
from ispasp.parity import open_session
from ispasp.records import Progress
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved

SETTINGS = RunSettings("mnist_mlp", keep=0.05, samples=32, evaluation=20, reconstruct="none", device="cpu")
QUICK = 0.02  # seconds per row


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with FP32 files, and the word that one in 8 bits could not be made."""
    *_, saved = runs.execute(SETTINGS, tmp_path_factory.mktemp("runs"))
    assert isinstance(saved, RunSaved)
    *_, done = export_run(saved.path, seconds=QUICK)
    assert isinstance(done, ExportDone)
    failed = [Variant(side, "int8-static", problem="It cannot be quantised.").as_dict() for side in SIDES]
    report = done.report | {"variants": [*done.report["variants"], *failed]}
    plain_files.write_json(saved.path / "export" / "export.json", report)
    return saved.path


@pytest.fixture
def run(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported run, to write to."""
    return Path(shutil.copytree(exported, tmp_path / "run"))


def measured(path: Path, **settings: Any) -> dict[str, Any]:
    *_, done = bench_run(path, BenchSettings(**{"seconds": QUICK} | settings))
    assert isinstance(done, BenchDone)
    return done.report


def settings_of(report: dict[str, Any]) -> list[tuple[str, str, int, int]]:
    return [(row["provider"], row["precision"], row["batch"], row["threads"]) for row in report["rows"]]


def test_every_setting_is_a_row_with_all_figures(run: Path) -> None:
    asked = BenchSettings((1, 30), (1,), ("fp32", "int8-static"), seconds=QUICK, torch_eager=True)
    *steps, last = bench_run(run, asked)
    assert isinstance(last, BenchDone)
    report = last.report
    assert settings_of(report) == [
        ("cpu", "fp32", 1, 1), ("cpu", "fp32", 30, 1),
        ("cpu", "int8-static", 1, 1), ("cpu", "int8-static", 30, 1),
        ("torch-eager", "fp32", 1, 1), ("torch-eager", "fp32", 30, 1),
    ]  # fmt: skip
    for row in report["rows"]:
        if row["precision"] == "int8-static":
            assert row["problem"] == "It cannot be quantised." and "ratio" not in row
            continue
        assert row["problem"] == "" and row["pairs"] >= 30 and row["rounds"] == 10
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["ratio_low"] > 1, "a twentieth of a wide layer is faster at any load"
        for side in SIDES:
            times = row[side]
            assert 0 < times["median_ms"] <= times["p95_ms"] <= times["p99_ms"]
            assert times["examples_per_second"] == pytest.approx(1e3 * row["batch"] / times["median_ms"])
        if row["provider"] != "cpu":
            assert row["cold_start_ms"] is None and row["memory_bytes"] is None
            continue
        assert all(row["cold_start_ms"][side] > 0 for side in SIDES)
        if row["memory_bytes"] or sys.platform == "linux":
            sizes = [(run / "export" / file_name(side, "fp32")).stat().st_size for side in SIDES]
            taken = [row["memory_bytes"][side] for side in SIDES]
            assert taken[0] - taken[1] > (sizes[0] - sizes[1]) / 2, "it grows with the weights"
    assert report["notes"] == ["The evaluation data has 20 examples; in larger batches they are repeated."]
    assert report["machine"]["versions"]["onnxruntime"] == onnxruntime.__version__
    assert json.loads((run / "export" / FILE).read_text()) == json.loads(json.dumps(report))
    assert bench_report(run) == json.loads(json.dumps(report))
    progress = [step for step in steps if isinstance(step, Progress)]
    assert len(progress) == len(steps) and progress[-1].done == 1
    assert all(a.done <= b.done for a, b in pairwise(progress))
    words = {step.doing for step in progress}
    assert "batch 30, 1 thread, fp32: measuring latency, round 3 of 10" in words
    assert "batch 30, 1 thread, torch-eager: measuring latency, round 3 of 10" in words


def test_rows_measured_again_are_replaced_and_others_stay(run: Path) -> None:
    first = measured(run, batches=(1, 2))
    again = measured(run, batches=(2,))
    assert settings_of(again) == [("cpu", "fp32", batch, 1) for batch in (1, 2)]
    assert again["rows"][0] == first["rows"][0] and again["rows"][1] != first["rows"][1]
    elsewhere = again | {"machine": again["machine"] | {"processor": "another"}}
    plain_files.write_json(run / "export" / FILE, elsewhere)
    assert settings_of(measured(run, batches=(2,))) == [("cpu", "fp32", 2, 1)]


def test_a_measurement_that_is_stopped_keeps_the_rows_it_has(run: Path) -> None:
    steps = bench_run(run, BenchSettings((1, 2), seconds=QUICK))
    for step in steps:
        if isinstance(step, Progress) and step.doing.startswith("batch 2"):
            break
    steps.close()  # type: ignore[attr-defined]
    report = bench_report(run)
    assert report is not None and settings_of(report) == [("cpu", "fp32", 1, 1)]
    assert not [path for path in (run / "export").iterdir() if path.name.startswith(".")], (
        "nothing half-written"
    )


def test_figures_of_older_files_do_not_stand_beside_new_ones(run: Path) -> None:
    steps = bench_run(run, BenchSettings(seconds=QUICK))
    for step in steps:
        if isinstance(step, Progress) and "round 2" in step.doing:
            break
    shutil.copytree(run / "export", run / "new")
    shutil.move(run / "export", run / "old")
    shutil.move(run / "new", run / "export")
    with pytest.raises(ExportError, match="exported anew while the older files were measured"):
        list(steps)
    assert not (run / "export" / FILE).exists()


def test_two_measurements_at_once_keep_the_rows_of_both(run: Path) -> None:
    first = bench_run(run, BenchSettings((1,), seconds=QUICK))
    assert any("round 2" in step.doing for step in first if isinstance(step, Progress))
    measured(run, batches=(2,))
    list(first)
    report = bench_report(run)
    assert report is not None and settings_of(report) == [("cpu", "fp32", batch, 1) for batch in (1, 2)]


def test_the_memory_of_a_model_is_measured_whatever_its_inputs_are_called(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, file: torch.Tensor, allow_pickle: torch.Tensor) -> torch.Tensor:
            return file + allow_pickle

    given = (torch.ones(2, 3), torch.ones(2, 3))
    export_onnx(Sum(), given, tmp_path / "sum.onnx")
    assert returned(memory(tmp_path / "sum.onnx", given, 1, "CPUExecutionProvider")) > 0


def test_what_was_not_exported_is_asked_for(run: Path) -> None:
    with pytest.raises(ExportError, match=r"not exported as fp16; .* --precision fp32,fp16"):
        measured(run, precisions=("fp32", "fp16"))
    (run / "export" / "dense.onnx").unlink()
    with pytest.raises(ExportError, match="not exported as fp32; export it first"):
        measured(run)


def test_files_that_do_not_run_are_a_row_with_their_problem(run: Path) -> None:
    (run / "export" / "model.onnx").write_bytes(b"not a model")
    (row,) = measured(run)["rows"]
    assert "model.onnx is not an ONNX file that onnxruntime can load" in row["problem"]
    assert set(row) == {"provider", "precision", "batch", "threads", "problem"}


def test_damaged_records_are_left_out(run: Path) -> None:
    assert bench_report(run) is None
    report = measured(run)
    (row,) = report["rows"]
    place = run / "export" / FILE
    bad = [
        7,
        {},
        row | {"dense": {"median_ms": 1.0}},
        row | {"dense": row["dense"] | {"p99_ms": "1"}},
        row | {"dense": row["dense"] | {"median_ms": 0.0}},
        row | {"ratio_low": None},
        row | {"ratio": -1.0},
        row | {"batch": "1"},
        row | {"provider": ["cpu"]},
        row | {"problem": None},
        row | {"cold_start_ms": {"dense": 1.0}},
        row | {"memory_bytes": 5},
        row | {"memory_bytes": {"dense": -1, "pruned": 1}},
        row | {"provider": "<b>"},
        row | {"precision": "fp8"},
        row | {"batch": 10**9},
        row | {"threads": 0},
        row | {"verdict": "99.00x faster [98.00, 100.00]"},
        {name: value for name, value in row.items() if name != "cold_start_ms"},
    ]
    # A process whose memory was larger before the model was opened does not grow.
    without = row | {"batch": 2, "memory_bytes": {"dense": 0, "pruned": 0}}
    rows = [*bad, row, without]
    place.write_text(json.dumps(report | {"rows": rows, "machine": 3, "notes": ["a", 1]}))
    found = bench_report(run)
    assert found is not None
    assert (found["rows"], found["machine"], found["notes"]) == ([row, without], {}, ["a"])
    for text in ("", "[]", "{", '{"format": 2, "rows": []}', '{"format": 1, "rows": {}}', "[" * 100_000):
        place.write_text(text)
        assert bench_report(run) is None
    assert settings_of(measured(run)) == [("cpu", "fp32", 1, 1)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batches": ()}, "batches is ()"),
        ({"batches": (0,)}, "batch is 0; give a whole number from 1 to 1024"),
        ({"batches": (1025,)}, "batch is 1025"),
        ({"threads": (1, 257)}, "threads is 257; give a whole number from 1 to 256"),
        ({"precisions": ("fp8",)}, "Unknown precision 'fp8'; choose one of fp32"),
        ({"precisions": "fp32"}, "precisions is 'fp32'"),
        ({"providers": ("gpu",)}, "Unknown provider 'gpu'; choose one of cpu, cuda"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": 601}, "up to 600"),
        ({"torch_eager": 1}, "torch_eager is 1"),
        ({"batches": tuple(range(1, 22)), "threads": tuple(range(1, 11))}, "That makes 210 combinations"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        BenchSettings(**settings)
    assert words in str(caught.value)


def test_settings_that_repeat_are_measured_once() -> None:
    rows = BenchSettings((1, 8, 1), (2,), torch_compile=True).rows()
    assert rows == [
        *(Setting("cpu", "fp32", batch, 2) for batch in (1, 8)),
        *(Setting("torch-compile", "fp32", batch, 2) for batch in (1, 8)),
    ]


def test_providers_that_are_not_here(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cpu" in providers.installed()
    (absent, full), *_ = ((n, f) for n, f in providers.PROVIDERS.items() if n not in providers.installed())
    with pytest.raises(SettingError, match=f"has no provider '{absent}', only cpu"):
        measured(run, providers=(absent,))
    with pytest.raises(SettingError, match="Unknown provider 'tpu'"):
        providers.full_name("tpu")
    # onnxruntime goes on with the CPU where a provider does not load; so it does with this one.
    listed = [full, "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.warns(UserWarning, match="not in available provider names"):
        report = measured(run, providers=(absent, "cpu"))
    problems = {row["provider"]: row["problem"] for row in report["rows"]}
    assert f"has {full}, but it does not load, and the CPU would run in its place" in problems[absent]
    assert problems["cpu"] == ""
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(ExportError, match="does not load"),
    ):
        open_session(run / "export" / "model.onnx", provider=full)


def test_batches_are_filled_from_the_start_again() -> None:
    batches = [Batch((torch.tensor([[1.0], [2.0]]),), {}), Batch((torch.tensor([[3.0]]),), {})]
    assert batch_of(batches, 2).inputs[0].flatten().tolist() == [1, 2]
    assert batch_of(batches, 8).inputs[0].flatten().tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    named = [Batch((), {"ids": torch.tensor([[1], [2]]), "mask": torch.ones(2, 1)})]
    found = batch_of(named, 3)
    assert found.keywords["ids"].flatten().tolist() == [1, 2, 1] and len(found) == 3


def returned(steps: Any) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def test_cold_start_counts_opening_and_the_first_call() -> None:
    opened: list[int] = []

    def opener(side: int):
        def work() -> Call:
            opened.append(side)
            return Call(lambda: sum(range(2_000_000 if side == 0 else 2)), 1)

        return work

    dense, pruned = returned(first_answers((opener(0), opener(1))))
    assert dense > 5 * pruned > 0
    assert opened == [0, 1, 1, 0, 0, 1, 1, 0, 0, 1]


@pytest.mark.slow
def test_without_a_compiler_torch_compile_is_a_row_with_its_problem(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with config.patch({"cpp.cxx": (None, str(tmp_path / "absent"))}):
        report = measured(run, torch_compile=True)
    onnx, compiled = report["rows"]
    assert onnx["problem"] == "" and compiled["provider"] == "torch-compile"
    assert compiled["problem"].startswith("torch.compile cannot compile or run this model: ")
    assert len(compiled["problem"].splitlines()) == 1


@pytest.mark.slow
def test_torch_compile(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    rows = measured(run, batches=(1, 4), torch_compile=True)["rows"]
    assert [row["problem"] for row in rows] == [""] * 4
    assert all(row["ratio"] > 1 for row in rows if row["provider"] == "torch-compile")

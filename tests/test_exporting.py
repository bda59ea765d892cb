"""Exports of saved runs: every precision on record, all files or none, and reports that can be trusted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

import ispasp
from ispasp import runs, store
from ispasp.deployment import agreement, exporting, model_diff
from ispasp.deployment.agreement import Tolerance
from ispasp.deployment.exporting import ExportDone
from ispasp.deployment.precisions import PRECISIONS, SIDES, file_name
from ispasp.errors import ExportError, ModelError, SettingError
from ispasp.records import Progress
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved

CONVOLUTIONS = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 64, 3), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )
    for norm in (net[1], net[4]):
        norm.running_mean.normal_()
    return net, torch.zeros(2, 3, 10, 10)

def data():
    torch.manual_seed(1)
    return [(torch.randn(32, 3, 10, 10), torch.randint(0, 5, (32,))) for _ in range(4)]
"""


def pruned(settings: RunSettings, folder: Path) -> Path:
    *_, last = runs.execute(settings, folder, allow_code=True)
    assert isinstance(last, RunSaved)
    return last.path


def export(path: Path, **options: Any) -> dict[str, Any]:
    *_, last = exporting.export_run(path, seconds=0.1, allow_code=True, **options)
    assert isinstance(last, ExportDone)
    return last.report


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network with batch norms, whose Python file lies beside the runs."""
    folder = tmp_path_factory.mktemp("convolutional")
    file = folder / "mine.py"
    file.write_text(CONVOLUTIONS)
    settings = RunSettings(
        f"python:{file}:model", data=f"python:{file}:data", samples=64, keep=0.5, device="cpu", seed=3
    )
    return pruned(settings, folder / "runs")


@pytest.fixture(scope="module")
def exported(convolutional: Path) -> dict[str, Any]:
    """The report of the run's export in all precisions."""
    return export(convolutional, precisions=("int8-static", "fp16", "int8-dynamic"), opset=18)


def test_every_precision_of_both_sides_is_on_record(convolutional: Path, exported: dict[str, Any]) -> None:
    variants = exported["variants"]
    assert [(one["precision"], one["side"]) for one in variants] == [
        (p, s) for p in PRECISIONS for s in SIDES
    ]
    assert exported == store.export_report(convolutional)
    assert exported["notes"] == []
    assert exported["latency"]["dense"]["median_ms"] > 0 and exported["machine"]["processor"]
    for one in variants:
        if (
            one["precision"] == "int8-dynamic"
        ):  # there is no matrix product, and the others are made all the same
            assert "no matrix product" in one["problem"]
            assert (one["path"], one["bytes"], one["opset"], one["parity"]) == ("", 0, 0, None)
            continue
        file = convolutional / one["path"]
        assert one["path"] == f"export/{file_name(one['side'], one['precision'])}" and one["problem"] == ""
        assert (one["bytes"], one["opset"]) == (file.stat().st_size, 18)
        assert one["parity"]["passed"] and one["parity"]["examples"] == exported["onnx"]["examples"]
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for size in (1, 3):
            images = torch.randn(size, 3, 10, 10).numpy()
            assert session.run(None, {"input": images})[0].shape == (size, 5)
    made = {Path(one["path"]).name for one in variants if one["path"]}
    assert set(files(convolutional / "export")) == {"export.json", model_diff.FILE} | made
    assert exported["onnx"]["max_rel_diff"] == variants[1]["parity"]["max_rel_diff"]


def test_files_say_where_they_come_from_and_nothing_of_the_machine(
    convolutional: Path, exported: dict[str, Any]
) -> None:
    report = store.open_run(convolutional).report
    for one in exported["variants"]:
        if not one["path"]:
            continue
        said = metadata(convolutional / one["path"])
        assert (said["ispasp.side"], said["ispasp.precision"]) == (one["side"], one["precision"])
        assert (said["ispasp.run"], said["ispasp.seed"]) == (convolutional.name, "3")
        assert said["ispasp.model"] == "python:mine.py:model"
        assert json.loads(said["ispasp.versions"])["ispasp"] == ispasp.__version__
        if one["side"] == "pruned":
            kept = {block["name"]: block["kept"] / block["groups"] for block in report["blocks"]}
            assert json.loads(said["ispasp.keep"]) == pytest.approx(kept)
        assert str(convolutional.parent.parent).encode() not in (convolutional / one["path"]).read_bytes()


def test_what_is_stopped_or_fails_leaves_the_former_export(
    convolutional: Path, exported: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(convolutional)
    steps = exporting.export_run(convolutional, precisions=("int8-static",), allow_code=True)
    moment = "converting to dense-int8-static.onnx"
    assert any(isinstance(step, Progress) and step.doing == moment for step in steps)
    steps.close()  # type: ignore[attr-defined]
    assert files(convolutional) == before
    monkeypatch.setitem(agreement.TOLERANCES, "fp32", Tolerance(1e-12, "no file is that close"))
    with pytest.raises(ExportError, match=r"dense\.onnx does not agree with torch, and nothing was kept"):
        export(convolutional)
    assert files(convolutional) == before


def test_a_dense_model_that_was_replaced_and_a_precision_that_does_not_agree_are_said(
    convolutional: Path, exported: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, file = tmp_path / "run", convolutional.parent.parent / "mine.py"
    shutil.copytree(convolutional, run)
    monkeypatch.setitem(agreement.TOLERANCES, "fp16", Tolerance(1e-12, "no file is that close"))
    try:
        file.write_text(CONVOLUTIONS.replace("manual_seed(0)", "manual_seed(7)"))
        report = export(run, precisions=("fp16",))
        file.unlink()
        before = files(run)
        with pytest.raises(ModelError, match=r"mine\.py"):
            export(run)
        assert files(run) == before
    finally:
        file.write_text(CONVOLUTIONS)
    (note,) = report["notes"]
    assert "% of the evaluation examples otherwise than when the run was made" in note
    full, _, half, _ = report["variants"]
    assert full["parity"]["passed"] and not half["parity"]["passed"] and half["problem"] == ""
    assert (run / half["path"]).is_file() and not (run / "export" / "model-int8-static.onnx").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precisions": ("fp32", "int4")}, "Unknown precision 'int4'; choose some of fp32, fp16"),
        ({"opset": 5}, "opset is 5; give a whole number from 18 to 23"),
    ],
)
def test_settings_are_refused_at_once(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=words):
        next(iter(exporting.export_run(tmp_path / "absent", **options)))


def removed(*keys: str) -> Callable[[dict[str, Any]], object]:
    def change(report: dict[str, Any]) -> None:
        for key in keys[:-1]:
            report = report[key]
        del report[keys[-1]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        removed("latency"),
        removed("latency", "dense", "p95_ms"),
        removed("onnx", "bytes"),
        lambda report: report["onnx"].update(path="../../secret.onnx"),
        lambda report: report["variants"][2].update(path="export/absent.onnx"),
        lambda report: report["variants"][2].update(side="left"),
        lambda report: report["variants"][2].update(bytes="many"),
        lambda report: report["variants"][2].update(parity={"passed": True}),
        lambda report: report["variants"][2]["parity"].update(passed="yes"),
        lambda report: report["variants"].append(5),
        lambda report: report.update(variants={"a": 1}),
        lambda report: report.update(notes="text"),
        lambda report: report.update(machine=None),
    ],
)
def test_a_report_that_is_damaged_or_lies_counts_as_none(
    convolutional: Path, exported: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    shutil.copytree(convolutional / "export", tmp_path / "export")
    report = json.loads(json.dumps(exported))
    assert store.export_report(tmp_path) == report
    change(report)
    (tmp_path / "export" / "export.json").write_text(json.dumps(report))
    assert store.export_report(tmp_path) is None


def test_a_report_of_an_earlier_version_has_no_variants(
    convolutional: Path, exported: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(convolutional / "export", tmp_path / "export")
    report = {key: exported[key] for key in ("dense_onnx", "onnx", "latency")}
    (tmp_path / "export" / "export.json").write_text(json.dumps(report))
    assert store.export_report(tmp_path) == report | {"variants": [], "machine": {}, "notes": []}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mnist_mlp", "cifar10_resnet20", "nli_bert"])
def test_sample_models_in_every_precision(model: str, tmp_path: Path) -> None:
    path = pruned(RunSettings(model, keep=0.6, samples=64, device="cpu"), tmp_path)
    report = export(path, precisions=PRECISIONS)
    assert len(report["variants"]) == 8
    for one in report["variants"]:
        assert one["problem"] == "" and one["parity"]["examples"] == 1000
        assert one["parity"]["passed"] or one["side"] == "pruned", one["parity"]["sentence"]
    static = {one["side"]: one["bytes"] for one in report["variants"] if one["precision"] == "int8-static"}
    assert static["dense"] < report["dense_onnx"]["bytes"] / 2
    remarks = [
        note
        for note in report["notes"]
        if note.startswith("int8-dynamic quantizes the weights of matrix products alone")
    ]
    assert len(remarks) == (model == "cifar10_resnet20")
    if model == "nli_bert":
        shapes = [
            [axis.dim_param for axis in value.type.tensor_type.shape.dim]
            for value in onnx.load(path / "export" / "model-int8-static.onnx").graph.input
        ]
        assert shapes == [["batch", "length"]] * 3

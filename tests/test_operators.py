"""Profiles of exported models: every node under its layer and block, the sums, and what profile.json holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ispasp
from ispasp import evaluate, runs
from ispasp.calibration import Batch
from ispasp.deployment import operators, peak, profile
from ispasp.deployment.by_block import BlockTime, Operator, by_block, side_by_side
from ispasp.deployment.operators import Measured
from ispasp.deployment.origins import Origins
from ispasp.deployment.precisions import convert
from ispasp.deployment.profile import ProfileDone, profile_report, profile_run
from ispasp.errors import ExportError, SettingError
from ispasp.onnx_export import export_onnx
from ispasp.parity import open_session, session_batch
from ispasp.records import Progress
from ispasp.result import PruneResult
from ispasp.run_settings import RunSettings
from tests import small_huggingface


class Case:
    """A dense and a pruned model with their exported files, and what a profile says about them."""

    def __init__(self, folder: Path, dense: nn.Module, data: Batch, result: PruneResult) -> None:
        self.data = data.keywords or data.inputs
        self.dense, self.result = dense, result
        self.blocks = [event.block for event in result.blocks_pruned]
        self.files = [folder / "dense.onnx", folder / "model.onnx"]
        for file, model in zip(self.files, self.models, strict=True):
            export_onnx(model, self.data, file)
        self.origins = [Origins(file, model) for file, model in zip(self.files, self.models, strict=True)]
        self.dense_kernels, self.pruned_kernels = self.measured(self.files)
        self.rows = side_by_side(
            self.dense_kernels.kernels,
            self.pruned_kernels.kernels,
            self.origins,
            self.blocks,
            len(data),
            100.0,
        )

    @property
    def models(self) -> tuple[nn.Module, nn.Module]:
        return self.dense, self.result.model

    def measured(self, files: list[Path]) -> tuple[Measured, Measured]:
        *_, found = operators.measure(files, self.origins, self.data, 1, 0.01)
        assert isinstance(found, tuple)
        return found

    def check(self) -> None:
        """Every weight under its block, and nothing counted twice or left out."""
        of = {o.layer: o for o in self.rows if o.shape_dense}
        for block in self.blocks:
            for cut in block.cuts:
                if cut.module not in of:  # a batch norm is folded into the convolution before it
                    assert cut.role == "rider"
                elif cut.role != "consumer":
                    assert of[cut.module].block == block.name
                else:
                    assert of[cut.module].block is not None
        self.check_sums()

    def check_sums(self) -> None:
        own, rest = by_block(self.rows, self.blocks)
        assert [each.block for each in own] == [block.name for block in self.blocks]
        for side, kernels in (("dense", self.dense_kernels), ("pruned", self.pruned_kernels)):
            total = sum(getattr(each, f"{side}_ms") for each in (*own, rest))
            assert total == pytest.approx(sum(kernel.ms for kernel in kernels.kernels)) and total > 0


def case(folder: Path, model: nn.Module, data: Tensor, **options: Any) -> Case:
    result = ispasp.prune(model, [data], device="cpu", iterations=1, **options)
    return Case(folder, model, Batch((data[:2],), {}), result)


class Inverted(nn.Module):
    """A convolution, an inverted residual with a depthwise convolution, a classifier."""

    def __init__(self) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, **more: Any) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, bias=False, **more), nn.BatchNorm2d(outputs), nn.ReLU6()
            )

        self.first = conv(3, 16, kernel_size=3, padding=1)
        self.expand, self.depthwise = (
            conv(16, 48, kernel_size=1),
            conv(48, 48, kernel_size=3, padding=1, groups=48),
        )
        self.project = nn.Sequential(nn.Conv2d(48, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def inverted(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    data = torch.randn(6, 3, 8, 8)
    return case(tmp_path_factory.mktemp("inverted"), Inverted().eval(), data, keep=0.4, multiple=1)


def test_convolutions_with_batch_norms_are_found_under_their_block(inverted: Case) -> None:
    inverted.check()
    for model, side in zip(inverted.models, ("dense", "pruned"), strict=True):
        counted = evaluate.count_macs(model, Batch(inverted.data, {}))
        assert sum(getattr(o, f"macs_{side}") for o in inverted.rows) == counted
    assert {o.layer for o in inverted.rows if o.block == "expand.0"} == {
        "expand.0",
        "depthwise.0",
        "project.0",
    }
    (depthwise,) = [o for o in inverted.rows if o.layer == "depthwise.0" and o.op_type == "Conv"]
    assert depthwise.shape_dense == (48, 1, 3, 3) and depthwise.shape_pruned == (19, 1, 3, 3)
    assert depthwise.macs_dense == 48 * 9 * 64 and depthwise.macs_pruned == 19 * 9 * 64
    assert depthwise.gflops_dense == pytest.approx(2 * 2 * depthwise.macs_dense / depthwise.dense_ms / 1e6)
    assert depthwise.share_of_peak_dense == pytest.approx(depthwise.gflops_dense / 100)
    # The addition after it is part of this convolution, which reads what is added as well.
    (project,) = [o for o in inverted.rows if o.layer == "project.0" and o.op_type == "Conv"]
    assert project.moved_dense == 2 * 64 * 4 * (48 + 16 + 16)


@pytest.mark.parametrize("precision", ["fp16", "int8-static"])
def test_other_precisions_have_the_same_layers(inverted: Case, tmp_path: Path, precision: str) -> None:
    session = open_session(inverted.files[0])
    feed: Any = session_batch(session, inverted.data)[1]
    files = [tmp_path / file.name for file in inverted.files]
    for source, target in zip(inverted.files, files, strict=True):
        convert(source, target, precision, [feed])
    for found, usual in zip(
        inverted.measured(files), (inverted.dense_kernels, inverted.pruned_kernels), strict=True
    ):
        assert _macs(found) == _macs(usual)


def _macs(measured: Measured) -> dict[str, int]:
    return {kernel.layer: kernel.macs for kernel in measured.kernels if kernel.macs}


@pytest.mark.slow
def test_attention_of_a_transformer_is_found_under_its_heads(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = small_huggingface.made(small_huggingface.BERT, num_hidden_layers=1)
    words = torch.randint(4, 14, (4, 8))
    data = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    result = ispasp.prune(model, [data], keep=0.5, multiple=1, device="cpu", iterations=1)
    found = Case(tmp_path, model, Batch((), data).first(2), result)
    found.check()
    heads = next(block for block in found.blocks if block.kind == "head")
    mine = [o for o in found.rows if o.block == heads.name]
    assert {o.layer for o in mine if o.shape_dense} == {cut.module for cut in heads.cuts}
    assert (
        sum(o.macs_dense for o in found.rows if o.shape_dense)
        == 8 * (4 * 16 * 16 + 2 * 16 * 24) + 16 * 16 + 3 * 16
    )
    assert sum(o.macs_dense for o in mine if o.op_type == "MatMul of activations") == 2 * 8 * 8 * 16
    assert "Softmax" in {o.op_type for o in mine}


@pytest.mark.slow
def test_fused_queries_keys_and_values_are_found_by_their_values(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True).eval()
    found = case(tmp_path, model, torch.randn(6, 5, 16), keep=0.5, multiple=1)
    found.check_sums()
    shapes = {o.layer: (o.block, o.shape_dense, o.shape_pruned) for o in found.rows if o.shape_dense}
    assert shapes["self_attn"] == ("self_attn", (48, 16), (24, 16))
    assert shapes["linear1"] == ("linear1", (24, 16), (12, 16))
    assert shapes["linear2"] == ("linear1", (16, 24), (16, 12))


def test_the_peak_is_a_rate_that_some_machine_has() -> None:
    *steps, best = peak.measure(1)
    assert all(isinstance(step, Progress) for step in steps)
    assert isinstance(best, float) and 0.5 < best < 100_000


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = RunSettings("mnist_mlp", keep=0.2, samples=32, evaluation=40, iterations=1, device="cpu")
    *_, last = runs.execute(settings, tmp_path_factory.mktemp("runs"))
    (last.path / "export").mkdir()
    dense, example = ispasp.zoo.load("mnist_mlp"), torch.randn(2, 1, 28, 28)
    for name, model in (("dense", dense), ("model", ispasp.load(last.path).model)):
        export_onnx(model, example, last.path / "export" / f"{name}.onnx")
    return Path(last.path)


def profiled(path: Path, **settings: Any) -> dict[str, Any]:
    steps: Iterator[Any] = profile_run(path, seconds=0.1, **settings)
    *progress, last = steps
    assert isinstance(last, ProfileDone)
    done = [step.done for step in progress]
    assert done == pytest.approx(sorted(done)) and done[-1] == 1
    return last.report


def test_a_run_is_profiled_and_its_report_read_again(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = profiled(saved, batch=2)
    assert profile_report(saved) == json.loads(json.dumps(report))
    assert (report["batch"], report["threads"], report["precision"]) == (2, 1, "fp32")
    assert {o["layer"]: o["block"] for o in report["operators"] if o["macs_dense"]} == {
        "fc1": "fc1",
        "fc2": "fc1",
    }
    (first,) = [o for o in report["operators"] if o["layer"] == "fc1" and o["macs_dense"]]
    assert (first["macs_dense"], first["macs_pruned"]) == (784 * 1024, 784 * first["shape_pruned"][0])
    assert 0 < first["share_of_peak_pruned"] <= 1 and first["pruned_ms"] > 0
    assert 1 <= len(report["sentences"]) <= 5 and "times as fast" in report["sentences"][0]
    assert report["total_ms"]["dense"] == report["latency"]["dense"]["median_ms"] > 0
    rows, blocks = profile.operator_rows(report), profile.block_rows(report)
    assert all(isinstance(row, Operator) for row in rows) and all(isinstance(b, BlockTime) for b in blocks)
    assert [b.block for b in blocks] == ["fc1", None]
    assert sum(b.dense_ms for b in blocks) == pytest.approx(sum(o.dense_ms for o in rows))

    monkeypatch.setattr(peak, "measure", lambda threads: pytest.fail("the peak was measured before"))
    again = profiled(saved)
    assert again["machine"]["peak_gflops"] >= report["machine"]["peak_gflops"]


def test_a_profile_that_is_stopped_leaves_what_was_there(saved: Path) -> None:
    before = sorted((saved / "export").iterdir())
    steps = profile_run(saved, seconds=1)
    for step in steps:
        if isinstance(step, Progress) and step.doing.startswith("profiling operators, round 2"):
            break
    steps.close()
    assert sorted((saved / "export").iterdir()) == before


def test_what_was_not_exported_must_be_exported_first(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="export the run as fp16 first"):
        next(profile_run(saved, precision="fp16"))
    with pytest.raises(ExportError, match="export the run as fp32 first"):
        next(profile_run(tmp_path))
    for wrong in ({"precision": "fp8"}, {"batch": 0}, {"threads": 1.5}, {"seconds": 0}):
        with pytest.raises(SettingError):
            next(profile_run(saved, **wrong))


def test_a_damaged_file_is_an_export_error(saved: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(saved, copy)
    (copy / "export" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"model\.onnx is not an ONNX file"):
        list(profile_run(copy, seconds=0.1))


@pytest.mark.parametrize(
    "damage",
    [
        "[1",
        "[]",
        '{"format": 1}',
        ("format", 2),
        ("operators", [{"layer": "fc1"}]),
        ("operators", [5]),
        ("blocks", None),
        ("sentences", [1]),
        ("machine", {"peak_gflops": "fast"}),
        ("total_ms", {"dense": -1, "pruned": 1}),
        ("suggestion", {"multiple": "8", "layers": []}),
        ("latency", {}),
        ("threads", 0),
        ("precision", "<b>"),
    ],
)
def test_a_damaged_profile_is_none(saved: Path, tmp_path: Path, damage: Any) -> None:
    if profile_report(saved) is None:
        profiled(saved)
    plain = profile_report(saved)
    assert plain is not None
    (tmp_path / "export").mkdir()
    file = tmp_path / "export" / "profile.json"
    file.write_text(json.dumps(plain))
    assert profile_report(tmp_path) == plain
    file.write_text(damage if isinstance(damage, str) else json.dumps(plain | {damage[0]: damage[1]}))
    assert profile_report(tmp_path) is None

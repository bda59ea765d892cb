"""Export: what is written runs at every batch size and equals torch; what fails leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ispasp.calibration import Batch
from ispasp.errors import CalibrationError, ExportError, SettingError
from ispasp.onnx_export import OPSETS, OnnxReport, check_parity, export_onnx
from sample_models.architectures import CifarResNet, TwoLayerNet
from tests import small_huggingface


class TwoInputs(nn.Module):
    """left (N, 4), right (N, 5) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.a(left) - 2 * self.b(right)


class TwoOutputs(TwoInputs):
    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"scores": self.a(left), "both": super().forward(left, right)[:, None]}


class DependsOnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class ScalarOutput(nn.Module):
    def forward(self, x: Tensor) -> float:
        return float(x.shape[0])


@pytest.fixture(scope="module")
def net() -> CifarResNet:
    torch.manual_seed(1)
    return CifarResNet(blocks_per_stage=1)


@pytest.fixture(scope="module")
def exported(net: CifarResNet, tmp_path_factory: pytest.TempPathFactory) -> OnnxReport:
    """From a model in training mode, with an example of one image."""
    return export_onnx(net.train(), torch.randn(1, 3, 32, 32), tmp_path_factory.mktemp("onnx") / "net.onnx")


def images(*sizes: int) -> list[Tensor]:
    return [torch.randn(size, 3, 32, 32) for size in sizes]


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def run(path: str | Path, **inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


def test_file_runs_at_other_batch_sizes_and_equals_torch(net: CifarResNet, exported: OnnxReport) -> None:
    net.eval()
    for batch in images(1, 3, 7):
        with torch.no_grad():
            torch.testing.assert_close(run(exported.path, input=batch), net(batch), rtol=1e-4, atol=1e-5)


def test_report_and_names(exported: OnnxReport) -> None:
    proto = onnx.load(exported.path, load_external_data=False)
    graph = proto.graph
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {"input": ["batch", 3, 32, 32], "logits": ["batch", 10]}
    assert exported.bytes == Path(exported.path).stat().st_size
    assert exported.opset == next(entry.version for entry in proto.opset_import if not entry.domain)
    assert exported.examples == 1 + 2
    assert exported.top1_agreement == 1.0
    assert 0 <= exported.max_rel_diff < 1e-4
    assert json.loads(json.dumps(exported.as_dict())) == dataclasses.asdict(exported)
    assert names_in(Path(exported.path).parent) == ["net.onnx"]


def test_file_names_nothing_of_the_machine(exported: OnnxReport) -> None:
    content = Path(exported.path).read_bytes()
    assert b"stack_trace" not in content
    assert str(Path(torch.__file__).parent.parent).encode() not in content
    assert str(Path(__file__).parent.parent).encode() not in content


def test_caller_s_model_stays_as_it_was_and_stdout_clean(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 2)).double()
    model.train()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    identities = [id(value) for value in model.parameters()]
    export_onnx(model, torch.randn(3, 4), tmp_path / "m.onnx")
    assert [module.training for module in model.modules()] == flags
    assert [id(value) for value in model.parameters()] == identities
    assert all(value.requires_grad and value.dtype == torch.float64 for value in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert capfd.readouterr().out == ""


def test_two_positional_inputs_keep_their_names(tmp_path: Path) -> None:
    model, left, right = TwoInputs(), torch.randn(3, 4), torch.randn(3, 5)
    labels = torch.zeros(3, dtype=torch.long)
    batches = [
        (left, right),
        (left, right, labels),
        ((left, right), labels),
        Batch((left, right), {}, labels),
    ]
    report = export_onnx(model, (left, right), tmp_path / "m.onnx", batches=batches)
    assert report.examples == 12
    expected = model(left[:1], right[:1])
    torch.testing.assert_close(run(report.path, left=left[:1], right=right[:1]), expected)


def test_dict_inputs_in_any_order(tmp_path: Path) -> None:
    model, left, right = TwoInputs(), torch.randn(2, 4), torch.randn(2, 5)
    batches = [{"left": left, "right": right, "labels": torch.zeros(2)}, (left, right)]
    report = export_onnx(model, {"right": right, "left": left}, tmp_path / "m.onnx", batches=batches)
    assert report.examples == 4
    torch.testing.assert_close(run(report.path, right=right, left=left), model(left, right))
    with pytest.raises(ExportError, match="reads left and right"):
        check_parity(model, report.path, [{"left": left}])


def test_several_outputs_and_no_classes(tmp_path: Path) -> None:
    report = export_onnx(TwoOutputs(), (torch.randn(2, 4), torch.randn(2, 5)), tmp_path / "m.onnx")
    assert report.top1_agreement == 1.0 and report.max_rel_diff < 1e-5
    image = export_onnx(nn.Conv2d(1, 2, 3), torch.randn(2, 1, 5, 5), tmp_path / "c.onnx")
    assert image.top1_agreement is None


def test_attention_from_one_example_runs_at_other_batch_sizes(tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    batches = [torch.randn(size, 5, 8) for size in (1, 3, 7)]
    report = export_onnx(layer, torch.randn(1, 5, 8), tmp_path / "m.onnx", batches=batches)
    assert report.max_rel_diff < 1e-4 and report.examples == 11


def test_parity_figures_are_those_computed_by_hand(tmp_path: Path) -> None:
    model, x = nn.Linear(3, 2), torch.randn(5, 3)
    path = export_onnx(model, x, tmp_path / "m.onnx").path
    other = nn.Linear(3, 2)
    with torch.no_grad():
        difference = (other(x) - model(x)).abs().max().item()
        agreement = (other(x).argmax(1) == model(x).argmax(1)).float().mean().item()
        relative = difference / other(x).abs().max().item()
    parity = check_parity(other, path, [(x[:2], torch.zeros(2)), x[2:]], tolerance=100.0)
    assert parity.max_abs_diff == pytest.approx(difference, rel=1e-5)
    assert parity.max_rel_diff == pytest.approx(relative, rel=1e-5)
    assert parity.top1_agreement == pytest.approx(agreement)
    assert parity.examples == 5


def test_one_changed_weight_in_the_file_is_caught(
    net: CifarResNet, exported: OnnxReport, tmp_path: Path
) -> None:
    proto = onnx.load(exported.path)
    weight = next(value for value in proto.graph.initializer if value.name == "fc.weight")
    changed = onnx.numpy_helper.to_array(weight).copy()
    changed[3, 5] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    onnx.save(proto, tmp_path / "broken.onnx")
    check_parity(net, exported.path, images(4))
    with pytest.raises(
        ExportError, match=r"disagree over 4 examples: largest absolute difference .* accepted 0.0001"
    ):
        check_parity(net, tmp_path / "broken.onnx", images(4))


def test_failed_parity_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"former")
    x = torch.randn(2, 1, 28, 28)
    for wrong in ([torch.full_like(x, float("nan"))], [torch.randn(2, 5)], ["text"]):
        with pytest.raises(ExportError):
            export_onnx(TwoLayerNet(hidden=8), x, path, batches=wrong)
    with pytest.raises(CalibrationError, match="no example"):
        export_onnx(TwoLayerNet(hidden=8), x, path, batches=[])
    with pytest.raises(ExportError, match="disagree"):
        export_onnx(TwoLayerNet(hidden=8), x * 50, path, tolerance=1e-12)
    assert path.read_bytes() == b"former"
    assert names_in(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("values", [(), (torch.zeros(0, 4),), (torch.tensor(1.0),), (torch.ones(2, 4), 3)])
def test_examples_that_are_no_batch(values: tuple[object, ...], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="example_inputs"):
        export_onnx(nn.Linear(4, 2), values, tmp_path / "m.onnx")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="batch sizes 2 and 3"):
        export_onnx(TwoInputs(), (torch.ones(2, 4), torch.ones(3, 5)), tmp_path / "m.onnx")
    assert names_in(tmp_path) == []


def test_models_that_cannot_be_exported(tmp_path: Path) -> None:
    x = torch.ones(2, 4)
    for model, words in (
        ("resnet", "model is a str"),
        (DependsOnValues(), "cannot be exported to ONNX: .*data-dependent"),
        (ScalarOutput(), "returns no tensor"),
        (nn.Linear(5, 2), r"does not run on example_inputs of shape \(2, 4\)"),
        (nn.Linear(2**15, 2**15, device="meta"), "take 4.0 GiB"),
        (nn.Linear(4, 2, device="meta"), "cannot be copied to the CPU"),
    ):
        with pytest.raises(ExportError, match=words) as caught:
            export_onnx(model, x, tmp_path / "m.onnx")  # type: ignore[arg-type]
        assert len(str(caught.value).splitlines()) == 1
    assert names_in(tmp_path) == []


def test_paths_and_tolerances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(*args: object, **kwargs: object) -> None:
        raise AssertionError("the slow export began")

    monkeypatch.setattr(torch.onnx, "export", too_late)
    model, x = nn.Linear(4, 2), torch.ones(2, 4)
    with pytest.raises(SettingError, match=r"must end in \.onnx"):
        export_onnx(model, x, tmp_path / "m.pt")
    with pytest.raises(SettingError, match="tolerance is nan"):
        export_onnx(model, x, tmp_path / "m.onnx", tolerance=float("nan"))
    with pytest.raises(ExportError, match="No such file or directory. Create it"):
        export_onnx(model, x, tmp_path / "absent" / "m.onnx")
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="cannot be written"):
        export_onnx(model, x, tmp_path / "file" / "m.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ExportError, match="is a folder"):
        export_onnx(model, x, tmp_path / "folder.onnx")
    assert names_in(tmp_path) == ["file", "folder.onnx"]


def test_missing_and_damaged_files(net: CifarResNet, exported: OnnxReport, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no ONNX file"):
        check_parity(net, tmp_path / "absent.onnx", images(1))
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(Path(exported.path).read_bytes()[:1000])
    with pytest.raises(ExportError, match="damaged.onnx is not an ONNX file that onnxruntime can load"):
        check_parity(net, damaged, images(1))


def test_two_exports_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports: list[OnnxReport] = []

    def export(number: int) -> None:
        reports.append(export_onnx(nn.Linear(4, 2 + number), torch.ones(2, 4), tmp_path / f"{number}.onnx"))

    threads = [threading.Thread(target=export, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("stdout still works")
    assert capsys.readouterr().out == "stdout still works\n"
    assert len(reports) == 2 and names_in(tmp_path) == ["0.onnx", "1.onnx"]


def axes(path: str | Path) -> dict[str, list[str | int]]:
    """The size or the name of every axis of the inputs."""
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in onnx.load(path).graph.input
    }


@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_the_opset_asked_for_and_the_metadata_are_in_the_file(
    opset: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 3))
    said = {"run": "20260101-mnist", "keep": '{"fc1": 0.4}'}
    report = export_onnx(model, torch.randn(2, 4), tmp_path / "m.onnx", opset=opset, metadata=said)
    proto = onnx.load(report.path)
    assert report.opset == opset == next(entry.version for entry in proto.opset_import if not entry.domain)
    assert {entry.key: entry.value for entry in proto.metadata_props} == said
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("opset", [17, 24, 0, "20", 20.0, True])
def test_opsets_that_cannot_be_written(opset: object, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="opset is .*; give a whole number from 18 to 23"):
        export_onnx(nn.Linear(4, 2), torch.ones(2, 4), tmp_path / "m.onnx", opset=opset)  # type: ignore[arg-type]
    assert names_in(tmp_path) == []


def test_a_hugging_face_model_reads_texts_of_any_length(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    model = small_huggingface.made(small_huggingface.BERT)
    capfd.readouterr()
    ids = torch.randint(4, 15, (2, 12))
    text = {"token_type_ids": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids), "input_ids": ids}
    text["attention_mask"][1, 8:] = 0
    report = export_onnx(model, text, tmp_path / "m.onnx", dynamic_length=True)
    assert capfd.readouterr() == ("", "")
    assert report.note == "" and set(map(tuple, axes(report.path).values())) == {("batch", "length")}
    for size, length in ((1, 1), (2, 5), (4, 24)):
        other = {name: value.repeat(2, 2)[:size, :length] for name, value in text.items()}
        with torch.no_grad():
            torch.testing.assert_close(run(report.path, **other), model(**other).logits)


class FixedLength(nn.Module):
    """Token numbers (N, 6), integers -> (N, 3); every position has weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(24, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids).reshape(ids.shape[0], 24))


def test_a_length_that_the_model_fixes_is_fixed_and_said(tmp_path: Path) -> None:
    report = export_onnx(FixedLength(), torch.ones(2, 6).long(), tmp_path / "m.onnx", dynamic_length=True)
    assert report.note.startswith(
        "The file reads texts of 6 tokens only; another length cannot be exported: "
    )
    assert axes(report.path) == {"input": ["batch", 6]} and report.max_rel_diff < 1e-5


def test_images_have_no_length(tmp_path: Path) -> None:
    report = export_onnx(nn.Linear(4, 2), torch.ones(2, 4), tmp_path / "m.onnx", dynamic_length=True)
    assert report.note == "" and axes(report.path) == {"input": ["batch", 4]}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_model_on_cuda_stays_there(tmp_path: Path) -> None:
    model = TwoLayerNet(hidden=8).cuda()
    report = export_onnx(model, torch.randn(2, 1, 28, 28, device="cuda"), tmp_path / "m.onnx")
    assert report.max_rel_diff < 1e-4
    assert next(model.parameters()).is_cuda

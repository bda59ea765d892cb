"""Other precisions: every file is valid, loads, has the types it should have inside, and answers nearly as before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from ispasp.deployment.precisions import PRECISION_KEY, PRECISIONS, SIDES, Feed, convert, file_name
from ispasp.errors import ExportError, SettingError
from ispasp.onnx_export import export_onnx

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
INT8, UINT8 = onnx.TensorProto.INT8, onnx.TensorProto.UINT8


def convolutions() -> list[nn.Module]:
    """(N, 3, 8, 8) -> (N, 64)."""
    layers = [nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64)]
    return [*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]


class Attention(nn.Module):
    """Token numbers and mask (N, T), integers -> (N, 3); masked positions get the lowest number of all added."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 32)
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)
        away = (1 - mask.float())[:, None] * torch.finfo(torch.float32).min
        weights = (self.query(x) @ self.key(x).transpose(1, 2) + away).softmax(-1)
        return self.head(self.norm(x + weights @ self.value(x)).mean(1))


def randomized(model: nn.Module) -> nn.Module:
    """With batch norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def image_feeds(count: int = 3) -> list[Feed]:
    torch.manual_seed(3)
    return [{"input": torch.randn(4 + i, 3, 8, 8).numpy()} for i in range(count)]


def text_feeds(length: int = 12) -> list[Feed]:
    torch.manual_seed(4)
    ids = torch.randint(20, (64, length))
    mask = (torch.arange(length) < torch.randint(3, length + 1, (64, 1))).long()
    return [{"ids": ids[part].numpy(), "mask": mask[part].numpy()} for part in (slice(30), slice(30, 64))]


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    model = randomized(nn.Sequential(*convolutions(), nn.Linear(64, 10)))
    path = tmp_path_factory.mktemp("images") / "model.onnx"
    said = {"ispasp.run": "one", PRECISION_KEY: "fp32"}
    export_onnx(model, torch.randn(2, 3, 8, 8), path, metadata=said, opset=19)
    return path


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("texts") / "model.onnx"
    ids, mask = (torch.as_tensor(value) for value in text_feeds()[0].values())
    export_onnx(Attention().eval(), (ids, mask), path, dynamic_length=True)
    return path


def run(path: Path, given: Feed) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answer = session.run(None, given)[0]
    assert isinstance(answer, np.ndarray)
    return answer


def weights(path: Path) -> dict[int, int]:
    """How many weights of each element type a file holds, leaving out scales and biases."""
    found: dict[int, int] = {}
    for value in onnx.load(path).graph.initializer:
        if len(value.dims) >= 2:
            found[value.data_type] = found.get(value.data_type, 0) + int(np.prod(value.dims))
    return found


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_a_network_of_images_in_every_precision(
    image_file: Path, tmp_path: Path, precision: str, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "other.onnx"
    convert(image_file, target, precision, image_feeds())
    assert capfd.readouterr() == ("", "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["other.onnx"]
    proto = onnx.load(target)
    said = {entry.key: entry.value for entry in proto.metadata_props}
    assert said["ispasp.run"] == "one" and said[PRECISION_KEY] == precision
    assert next(entry.version for entry in proto.opset_import if not entry.domain) == 19
    convolved, connected = 3 * 32 * 9 + 32 * 64 * 9, 640
    assert (
        weights(target)
        == {
            "fp16": {HALF: convolved + connected},
            "int8-dynamic": {FLOAT: convolved, INT8: connected},
            "int8-static": {INT8: convolved + connected},
        }[precision]
    )
    for given in image_feeds(5):  # of several batch sizes, in float32 on both ends
        expected, found = run(image_file, given), run(target, given)
        assert found.dtype == np.float32 and found.shape == expected.shape
        assert abs(found - expected).max() < (0.002 if precision == "fp16" else 0.05) * abs(expected).max()


def test_static_8_bits_take_less_than_half_the_room_and_no_batch_norm_is_left(
    image_file: Path, tmp_path: Path
) -> None:
    convert(image_file, tmp_path / "static.onnx", "int8-static", image_feeds())
    assert (tmp_path / "static.onnx").stat().st_size < image_file.stat().st_size / 2
    operators = {node.op_type for node in onnx.load(tmp_path / "static.onnx").graph.node}
    assert "QuantizeLinear" in operators and "BatchNormalization" not in operators


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_masked_attention_in_every_precision_at_any_length(
    text_file: Path, tmp_path: Path, precision: str
) -> None:
    target = tmp_path / "other.onnx"
    feeds = [*text_feeds(), *text_feeds(length=7)]
    convert(text_file, target, precision, feeds)
    names = {value.name: value.type.tensor_type.elem_type for value in onnx.load(target).graph.input}
    assert names == {"ids": onnx.TensorProto.INT64, "mask": onnx.TensorProto.INT64}
    quantized = {kind: count for kind, count in weights(target).items() if kind in (INT8, UINT8)}
    everything = 20 * 32 + 3 * 32 * 32 + 32 * 3  # the embedding, too
    assert sum(quantized.values()) == (0 if precision == "fp16" else everything)
    for given in feeds:
        expected, found = run(text_file, given), run(target, given)
        assert abs(found - expected).max() < (0.005 if precision == "fp16" else 0.1) * abs(expected).max()
        assert (found.argmax(1) == expected.argmax(1)).mean() > 0.9


def test_what_has_nothing_to_quantize_is_refused_and_the_former_file_stays(tmp_path: Path) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "other.onnx"
    export_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(2, 3, 8, 8), source)
    target.write_bytes(b"former")
    with pytest.raises(ExportError, match="no matrix product with fixed weights that int8-dynamic"):
        convert(source, target, "int8-dynamic")
    with pytest.raises(ExportError, match="cannot be converted to int8-static"):
        convert(source, target, "int8-static", [])
    source.write_bytes(source.read_bytes()[:300])
    with pytest.raises(ExportError, match="cannot be converted to fp16"):
        convert(source, target, "fp16")
    assert target.read_bytes() == b"former"
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.onnx", "other.onnx"}


def test_an_end_of_the_feeds_by_an_error_ends_the_conversion(image_file: Path, tmp_path: Path) -> None:
    def interrupted() -> Iterator[Feed]:
        yield image_feeds()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(image_file, tmp_path / "other.onnx", "int8-static", interrupted())
    assert not list(tmp_path.iterdir())


def test_names(tmp_path: Path) -> None:
    names = [file_name(side, precision) for side in SIDES for precision in PRECISIONS]
    assert names[:2] == ["dense.onnx", "dense-fp16.onnx"] and names[-1] == "model-int8-static.onnx"
    assert len(set(names)) == 8
    with pytest.raises(SettingError, match="Unknown side 'left'; choose one of dense and pruned"):
        file_name("left", "fp32")
    with pytest.raises(SettingError, match="Unknown precision 'int4'"):
        file_name("dense", "int4")
    for precision in ("fp32", "int4"):
        with pytest.raises(SettingError, match=f"'{precision}' is no precision to convert to"):
            convert(tmp_path / "absent.onnx", tmp_path / "other.onnx", precision)


def test_a_file_at_which_onnxruntime_crashes_is_refused_and_this_process_goes_on(tmp_path: Path) -> None:
    model = VisionTransformer(
        16, 4, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    ).eval()
    export_onnx(model, torch.randn(2, 3, 16, 16), tmp_path / "dense.onnx")
    try:
        convert(tmp_path / "dense.onnx", tmp_path / "half.onnx", "fp16", [])
    except ExportError as error:  # onnxruntime 1.32
        assert "crashes when it opens" in str(error) and not (tmp_path / "half.onnx").exists()
    else:
        onnxruntime.InferenceSession(tmp_path / "half.onnx", providers=["CPUExecutionProvider"])

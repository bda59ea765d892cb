"""What is refused before or while a whole model is pruned: settings, data, blocks and models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ispasp
from ispasp import zoo
from ispasp.errors import CalibrationError, DeviceError, ModelError, SettingError, SurgeryError

GOOD = [torch.randn(4, 3, 32, 32)]


@pytest.mark.parametrize("keep", [0, 0.0, -0.5, 1.01, math.nan, math.inf, "0.5", None, True])
def test_keep_out_of_range_is_refused_before_any_work(keep: object) -> None:
    with pytest.raises(SettingError, match="give the fraction to keep, above 0 and up to 1"):
        ispasp.iterate(nn.Linear(1, 1), GOOD, keep=keep)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": {"layer1.0.conv1": 2}}, SettingError, "keep of block layer1.0.conv1 is 2"),
        ({"selector": "best"}, SettingError, "Unknown selector 'best'; choose one of ispasp"),
        ({"reconstruct": "magic"}, SettingError, "Unknown reconstruct 'magic'; choose one of"),
        ({"multiple": 0}, SettingError, "multiple is 0"),
        ({"multiple": 2.5}, SettingError, "multiple is 2.5"),
        ({"iterations": 0}, SettingError, "iterations is 0"),
        ({"candidate_factor": 0.5}, SettingError, "candidate_factor is 0.5"),
        ({"candidate_factor": math.nan}, SettingError, "candidate_factor is nan"),
        ({"seed": -1}, SettingError, "seed is -1"),
        ({"device": "tpu"}, DeviceError, "'tpu'"),
        ({"device": "cuda:17"}, DeviceError, "cuda:17 is not here"),
        ({"evaluation": []}, CalibrationError, "evaluation data is empty"),
    ],
)
def test_settings_are_refused_before_any_work(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ispasp.iterate(zoo.load("cifar10_resnet20"), GOOD, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "calibration data is empty"),
        (7, "is a int"),
        ([[]], "a tuple of tensors"),
        ([torch.zeros(0, 3, 32, 32)], "holds no examples"),
        ([torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 16, 16)], "Batch 2 of the calibration data is"),
        (
            [torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 32).double()],
            "Batch 2 of the calibration data is",
        ),
        ([torch.full((2, 3, 32, 32), math.nan)], "6144 values that are NaN or infinite"),
        (["images"], "is a str"),
        ([{"labels": torch.zeros(3)}], "no inputs"),
    ],
)
def test_calibration_that_cannot_be_used_is_refused(calibration: object, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        ispasp.iterate(zoo.load("cifar10_resnet20"), calibration)  # type: ignore[arg-type]


def test_calibration_of_the_wrong_shape_names_the_model_and_the_shape() -> None:
    with pytest.raises(ModelError, match=r"CifarResNet cannot be traced .* \(4, 1, 32, 32\)"):
        ispasp.prune(zoo.load("cifar10_resnet20"), [torch.randn(4, 1, 32, 32)], device="cpu")
    with pytest.raises(ModelError, match="cannot be traced"):
        ispasp.prune(
            zoo.load("cifar10_resnet20"), [torch.zeros(4, 3, 32, 32, dtype=torch.int64)], device="cpu"
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8, torch.float16])
def test_data_of_the_wrong_type_is_named(dtype: torch.dtype) -> None:
    images = torch.randint(0, 2, (4, 1, 28, 28))
    with pytest.raises((CalibrationError, ModelError), match=str(dtype).replace("torch.", "")):
        ispasp.prune(zoo.load("mnist_mlp"), [images.to(dtype)], device="cpu")
    good = [images.float()]
    with pytest.raises(CalibrationError, match="evaluation data"):
        ispasp.prune(zoo.load("mnist_mlp"), good, device="cpu", evaluation=[torch.randn(4, 1, 14, 14)])


def test_unknown_blocks_are_refused_with_the_known_ones() -> None:
    model = zoo.load("cifar10_resnet20")
    with pytest.raises(SettingError, match="Unknown block 'layer9'; the prunable blocks are layer1.0.conv1"):
        ispasp.prune(model, GOOD, keep={"layer9": 0.5}, device="cpu")
    with pytest.raises(SettingError, match="Block layer1.0.conv2 cannot be pruned: it is added"):
        ispasp.prune(model, GOOD, keep=0.5, blocks=["layer1.0.conv2"], device="cpu")
    with pytest.raises(SettingError, match="Unknown block 'typo'"):
        keep = {"layer1.0.conv1": 0.5, "typo": 0.5}
        ispasp.prune(model, GOOD, keep=keep, blocks="layer1.0.conv1", device="cpu")
    with pytest.raises(SettingError, match="keep names no block"):
        ispasp.iterate(model, GOOD, keep={})
    with pytest.raises(SettingError, match=r"names no fraction for block layer1\.1\.conv1"):
        ispasp.prune(model, GOOD, keep={"layer1.0.conv1": 0.5}, blocks=["layer1.1.conv1"], device="cpu")


def test_what_is_not_a_module_is_refused() -> None:
    with pytest.raises(ModelError, match="The model is a str"):
        ispasp.prune("resnet18", GOOD)  # type: ignore[arg-type]


class WidthInTheSecondOutput(nn.Module):
    """Its second output depends on how many neurons there are: masking and slicing differ."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.first(x))
        out = self.second(hidden / self.first.out_features)
        return torch.zeros_like(out), out


class TutorialLeNet(nn.Module):
    def __init__(self, view: str) -> None:
        super().__init__()
        self.view = view
        self.conv, self.fc = nn.Conv2d(3, 16, 5), nn.Linear(16 * 14 * 14, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.fc(x.view(-1, 16 * 14 * 14) if self.view == "written" else x.view(x.size(0), -1))


def test_a_width_that_is_written_into_forward_is_refused_or_found_out() -> None:
    with pytest.raises(SurgeryError, match="depends on the width of a pruned layer"):
        ispasp.prune(WidthInTheSecondOutput(), [torch.rand(40, 6)], keep=0.5, multiple=1, device="cpu")
    images = torch.randn(4, 3, 32, 32)
    with pytest.raises(ModelError, match="reshaped to a size written into forward"):
        ispasp.prune(TutorialLeNet("written"), [images], keep=0.5, device="cpu")
    result = ispasp.prune(TutorialLeNet("open"), [images], keep=0.5, device="cpu")
    assert result.model.fc.in_features == 8 * 14 * 14

"""Agreement: the figures are numpy's own, what is broken is caught, and nothing passes by default."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ispasp.calibration import Batch
from ispasp.deployment import agreement
from ispasp.deployment.agreement import TOLERANCES, ParityReport, measure
from ispasp.deployment.precisions import convert
from ispasp.errors import CalibrationError, ExportError, SettingError
from ispasp.onnx_export import export_onnx
from ispasp.records import Progress

Array = np.ndarray[Any, Any]


class Pictures(nn.Module):
    """(N, 3, 8, 8) -> (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv(self.act(x))).mean((2, 3)))


class Tokens(nn.Module):
    """ids (N, T) and attention_mask (N, T) -> scores of every token (N, T, 3) and the sum of them (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        scores = self.head(self.embed(ids)) / attention_mask[..., None]  # infinite or NaN at padding
        return {
            "scores": scores,
            "sum": (self.head(self.embed(ids)) * attention_mask[..., None]).sum((1, 2))[:, None],
        }


def report(steps: Generator[Progress, None, ParityReport]) -> ParityReport:
    """The result of ``measure``."""
    while True:
        try:
            assert 0 <= next(steps).done < 1
        except StopIteration as done:
            return done.value


def broken(path: Path, target: Path, change: Callable[[str, Array], bool]) -> Path:
    """A copy of an ONNX file with the first initializer changed that ``change`` takes."""
    proto = onnx.load(path)
    for entry in proto.graph.initializer:
        value = onnx.numpy_helper.to_array(entry).copy()
        if change(entry.name, value):
            entry.CopyFrom(onnx.numpy_helper.from_array(value, entry.name))
            onnx.save(proto, target)
            return target
    raise AssertionError("no initializer was changed")


def one_weight(name: str, value: Array) -> bool:
    if name == "conv.weight":
        value.flat[7] += 0.1
    return name == "conv.weight"


def one_sign(name: str, value: Array) -> bool:
    if name == "head.bias":
        value[2] = -value[2]
    return name == "head.bias"


def not_a_number(name: str, value: Array) -> bool:
    if name == "head.bias":
        value[2] = np.nan
    return name == "head.bias"


@pytest.fixture(scope="module")
def net() -> Pictures:
    torch.manual_seed(3)
    return Pictures().train()


@pytest.fixture(scope="module")
def file(net: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agreement") / "model.onnx"
    export_onnx(net, torch.randn(2, 3, 8, 8), path)
    return path


@pytest.fixture
def batches() -> list[Batch]:
    """17 labelled pictures; the twelfth has the largest values by far."""
    generator = torch.Generator().manual_seed(5)
    pictures = torch.randn(17, 3, 8, 8, generator=generator)
    pictures[11] *= 6
    labels = torch.randint(4, (17,), generator=generator)
    return [Batch((x,), {}, y) for x, y in zip(pictures.split(5), labels.split(5), strict=True)]


def arrays(net: nn.Module, path: Path, batches: list[Batch]) -> tuple[Array, Array, Array]:
    """Torch's output, onnxruntime's, and the labels of all pictures at once, by other means."""
    x = torch.cat([batch.inputs[0] for batch in batches])
    with torch.no_grad():
        torchs = net.eval()(x.clone()).numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    labels = np.concatenate([batch.labels for batch in batches])  # type: ignore[arg-type]
    return torchs, session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], labels


def test_a_good_file_passes_and_the_data_stay_as_they_were(
    net: Pictures, file: Path, batches: list[Batch]
) -> None:
    before = [batch.copy() for batch in batches]
    found = report(measure(net, file, batches, "fp32"))
    assert found.passed and found.examples == 17 and found.top1_agreement == 1.0
    assert found.criterion == "max_rel_diff" and found.tolerance == 1e-4
    assert found.max_rel_diff is not None and found.max_rel_diff < 1e-5
    assert found.accuracy_torch == found.accuracy_onnx is not None
    assert found.sentence.startswith("fp32: differs by up to ") and found.sentence.endswith(
        " of the largest output over 17 examples (at most 0.0001 is allowed): passed."
    )
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False)) == found.as_dict()
    assert all(torch.equal(a.inputs[0], b.inputs[0]) for a, b in zip(before, batches, strict=True))


@pytest.mark.parametrize("change", [one_weight, one_sign])
def test_one_changed_number_fails_and_the_figures_are_numpy_s(
    net: Pictures, file: Path, batches: list[Batch], tmp_path: Path, change: Callable[[str, Array], bool]
) -> None:
    path = broken(file, tmp_path / "broken.onnx", change)
    found = report(measure(net, path, batches, "fp32"))
    expected, got, labels = arrays(net, path, batches)
    difference = np.abs(got.astype(float) - expected)
    assert not found.passed and found.sentence.endswith(": failed.")
    assert found.max_abs_diff == pytest.approx(difference.max(), rel=1e-3)
    assert found.max_rel_diff == pytest.approx(difference.max() / np.abs(expected).max(), rel=1e-3)
    assert found.mean_abs_diff == pytest.approx(difference.mean(), rel=1e-3)
    assert found.top1_agreement == pytest.approx((got.argmax(1) == expected.argmax(1)).mean())
    assert found.accuracy_torch == pytest.approx((expected.argmax(1) == labels).mean())
    assert found.accuracy_onnx == pytest.approx((got.argmax(1) == labels).mean())
    assert found.worst_diff == found.max_abs_diff
    assert difference[found.worst].max() == pytest.approx(difference.max(), rel=1e-6)


def test_the_worst_example_is_found_in_whichever_batch_it_lies(
    net: Pictures, file: Path, batches: list[Batch], tmp_path: Path
) -> None:
    path = broken(file, tmp_path / "broken.onnx", one_weight)
    expected, got, _ = arrays(net, path, batches)
    assert int(np.abs(got - expected).max(1).argmax()) == 11
    assert report(measure(net, path, batches, "fp32")).worst == 11
    assert report(measure(net, path, [*batches[2:], *batches[:2]], "fp32")).worst == 1


def test_whole_numbers_are_held_to_their_answers(
    net: Pictures, file: Path, batches: list[Batch], tmp_path: Path
) -> None:
    expected, _, _ = arrays(net, file, batches)
    answers = torch.from_numpy(expected.argmax(1)).split(5)
    right = [Batch(batch.inputs, {}, labels) for batch, labels in zip(batches, answers, strict=True)]

    def destroyed(name: str, value: Array) -> bool:
        if name == "head.bias":
            value[int(expected.mean(0).argmin())] += 100
        return name == "head.bias"

    good = report(measure(net, file, right, "int8-static"))
    assert good.passed and (good.criterion, good.tolerance) == ("top1_agreement", 0.95)
    assert good.sentence == (
        "int8-static: same answer for 100.0 % of 17 examples (at least 95 % is asked): passed."
    )
    bad = report(measure(net, broken(file, tmp_path / "bad.onnx", destroyed), right, "int8-static"))
    share = bad.top1_agreement
    assert not bad.passed and share is not None and share < 0.5 and bad.accuracy_torch == 1.0
    assert bad.accuracy_onnx == share
    lost = f"accuracy fell by {100 - 100 * share:.1f} points, from 100.0 % to {100 * share:.1f} %"
    assert bad.sentence.endswith(f", {lost}: failed.")


def test_half_precision_has_a_tolerance_of_its_own(
    net: Pictures, file: Path, batches: list[Batch], tmp_path: Path
) -> None:
    half = tmp_path / "half.onnx"
    convert(file, half, "fp16", [])
    found = report(measure(net, half, batches, "fp16"))
    assert found.passed and found.max_rel_diff is not None and 1e-4 < found.max_rel_diff < 5e-3
    assert not report(measure(net, half, batches, "fp32")).passed

    def beyond(name: str, value: Array) -> bool:
        if name == "conv.weight":
            value *= 1e6
        return name == "conv.weight"

    far = copy.deepcopy(net)
    with torch.no_grad():
        far.conv.weight.mul_(1e6)
    convert(broken(file, tmp_path / "far.onnx", beyond), half, "fp16", [])
    assert report(measure(far, tmp_path / "far.onnx", batches, "fp32")).passed
    assert not report(measure(far, half, batches, "fp16")).passed


def test_no_labels_or_labels_of_another_shape_give_no_accuracy(
    net: Pictures, file: Path, batches: list[Batch]
) -> None:
    for labels in (None, torch.zeros(5, 2, dtype=torch.long), torch.zeros(3, dtype=torch.long)):
        odd = [Batch(batch.inputs, {}, labels) for batch in batches]
        found = report(measure(net, file, odd, "fp32"))
        assert found.passed and found.top1_agreement == 1.0
        assert found.accuracy_torch is None and found.accuracy_onnx is None


def test_one_number_per_example_has_no_answer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)), torch.randn(9, 4)
    path = tmp_path / "m.onnx"
    export_onnx(model, x, path)
    labelled = [Batch((x,), {}, torch.zeros(9, dtype=torch.long))]
    found = report(measure(model, path, labelled, "int8-dynamic"))
    assert (found.criterion, found.tolerance, found.passed) == ("max_rel_diff", 0.25, True)
    assert found.top1_agreement is None and found.accuracy_torch is None
    with torch.no_grad():
        model[2].weight.mul_(2)
        model[2].bias.mul_(2)
    doubled = report(measure(model, path, labelled, "int8-dynamic"))
    assert not doubled.passed and doubled.max_rel_diff == pytest.approx(0.5, rel=1e-4)
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    nothing = report(measure(model, path, labelled, "int8-dynamic"))
    assert not nothing.passed and nothing.max_rel_diff is None and "by up to everything" in nothing.sentence
    assert "torch gives nothing but 0" in nothing.sentence and "but 0" not in doubled.sentence


def test_an_output_beside_the_answers_counts_as_well(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classes, self.place = nn.Linear(4, 3), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.classes(x), self.place(x)

    torch.manual_seed(0)
    model, x = Two(), torch.randn(9, 4)
    path = tmp_path / "two.onnx"
    export_onnx(model, x, path)
    batches = [Batch((x,), {}, None)]
    assert report(measure(model, path, batches, "int8-static")).passed
    with torch.no_grad():
        model.place.weight.mul_(2)
        model.place.bias.mul_(2)
    found = report(measure(model, path, batches, "int8-static"))
    assert found.top1_agreement == 1.0 and found.criterion == "top1_agreement" and not found.passed
    assert (
        "another output differs by up to 0.5 of its largest value (at most 0.25 is allowed): failed"
        in found.sentence
    )


def test_tokens_count_one_by_one_and_padding_not_at_all(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = Tokens()
    ids = torch.randint(11, (7, 5))
    mask = (torch.arange(5) < torch.tensor([5, 3, 1, 4, 2, 5, 3])[:, None]).long()
    both = [
        Batch((), {"ids": i, "attention_mask": m}) for i, m in zip(ids.split(4), mask.split(4), strict=True)
    ]
    path = tmp_path / "m.onnx"
    export_onnx(model, {"ids": ids[:2], "attention_mask": torch.ones(2, 5).long()}, path)
    with torch.no_grad():
        model.embed.weight[ids[5, 4]] *= -5
        expected, counts = model.head(model.embed(ids)).numpy(), mask.bool().numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got, _ = session.run(None, {"ids": ids.numpy(), "attention_mask": np.ones((7, 5), np.int64)})
    found = report(measure(model, path, both, "int8-static"))
    same = got.argmax(2)[counts] == expected.argmax(2)[counts]
    assert found.top1_agreement == pytest.approx(same.mean()) and same.mean() < 1
    assert f"of {int(counts.sum())} answers in 7 examples" in found.sentence
    in_sum = np.where(counts[..., None], got - expected, 0).sum((1, 2))
    per_example = np.maximum(
        np.abs(np.where(counts[..., None], got - expected, 0)).max((1, 2)), np.abs(in_sum)
    )
    assert found.max_abs_diff == pytest.approx(per_example.max(), rel=1e-4)
    assert found.worst is not None and per_example[found.worst] == pytest.approx(per_example.max(), rel=1e-6)
    assert found.accuracy_torch is None


def test_what_is_not_finite_fails_in_every_precision(
    net: Pictures, file: Path, batches: list[Batch], tmp_path: Path
) -> None:
    path = broken(file, tmp_path / "nan.onnx", not_a_number)
    for precision in TOLERANCES:
        found = report(measure(net, path, batches, precision))
        assert not found.passed and found.max_rel_diff is found.worst_diff is None and found.worst == 0
        assert found.sentence.startswith(
            f"{precision}: onnxruntime gives NaN or infinity for 17 of 17 examples"
        )
    batches[2].inputs[0][1, 0, 0, 0] = torch.inf
    one = report(measure(net, file, batches, "int8-static"))
    assert not one.passed and one.worst == 11 and "torch gives NaN or infinity for 1 of 17" in one.sentence
    json.dumps(one.as_dict(), allow_nan=False)


def test_other_shapes_fail(net: Pictures, file: Path, batches: list[Batch]) -> None:
    other = Pictures()
    other.head = nn.Linear(6, 5)
    found = report(measure(other, file, batches, "int8-static"))
    assert not found.passed and found.max_abs_diff is found.worst is found.top1_agreement is None
    assert "outputs of shape [(5, 4)], torch [(5, 5)]" in found.sentence


def test_what_cannot_be_compared_is_an_error(
    net: Pictures, file: Path, batches: list[Batch], tmp_path: Path
) -> None:
    for given, path, precision, error, words in (
        (batches, file, "int4", SettingError, "precision is 'int4'; choose one of fp32"),
        ([], file, "fp32", CalibrationError, "no example"),
        ([Batch((torch.zeros(0, 3, 8, 8),), {})], file, "fp32", CalibrationError, "no example"),
        (batches, tmp_path / "absent.onnx", "fp32", ExportError, "no ONNX file"),
        ([Batch((torch.zeros(2, 5),), {})], file, "fp32", ExportError, "A batch of 2 does not run"),
    ):
        with pytest.raises(error, match=words):
            report(measure(net, path, given, precision))


def test_there_is_a_step_for_each_batch_and_a_reason_for_each_tolerance(
    net: Pictures, file: Path, batches: list[Batch]
) -> None:
    doing = [step.doing for step in measure(net, file, batches, "fp32")]
    assert doing[0] == "opening model.onnx" and doing[-1] == "comparing model.onnx with torch, batch 4 of 4"
    assert len(doing) == 5
    assert all(tolerance.reason and tolerance.max_rel_diff > 0 for tolerance in agreement.TOLERANCES.values())

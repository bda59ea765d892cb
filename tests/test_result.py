"""Saving and loading: everything comes back, and nothing half-written stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ispasp
from ispasp.errors import RunError
from ispasp.result import load_record
from sample_models.architectures import CifarResNet
from tests import oracle


@pytest.fixture(scope="module")
def result() -> ispasp.PruneResult:
    torch.manual_seed(0)
    batches = [torch.randn(6, 3, 32, 32) for _ in range(2)]
    return ispasp.prune(CifarResNet(blocks_per_stage=1), batches, keep=0.3, device="cpu")


@pytest.fixture
def saved(result: ispasp.PruneResult, tmp_path: Path) -> Path:
    return result.save(tmp_path / "run")


def fresh() -> nn.Module:
    return CifarResNet(blocks_per_stage=1)


def test_what_was_saved_comes_back(result: ispasp.PruneResult, saved: Path) -> None:
    loaded = ispasp.load(saved, fresh())
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), result.model(images))
    assert not loaded.model.training
    assert loaded.model.layer3[0].conv1.out_channels == result.model.layer3[0].conv1.weight.shape[0]
    assert loaded.trace == result.trace
    for ours, theirs in zip(loaded.trace, result.trace, strict=True):
        assert torch.equal(ours.importance, theirs.importance)
        assert torch.equal(ours.hidden_sum, theirs.hidden_sum)
        assert torch.equal(ours.score, theirs.score)
    for ours, theirs in zip(loaded.blocks_started, result.blocks_started, strict=True):
        assert ours == theirs
        assert torch.equal(ours.sample, theirs.sample)
    assert (loaded.started, loaded.blocks_pruned) == (result.started, result.blocks_pruned)
    assert (loaded.report, loaded.settings) == (result.report, result.settings)


def test_what_did_not_happen_is_not_written(saved: Path) -> None:
    plain = json.loads((saved / "run.json").read_text())
    assert plain["format"] == 3 and "distilled" not in plain
    assert not {"target", "error_before", "error_after", "notes"} & set(plain["blocks_pruned"][0])
    assert not [name for name in load_file(saved / "trace.safetensors") if name.startswith("score")]


def test_re_fit_scores_and_distillation_come_back(tmp_path: Path) -> None:
    from ispasp import zoo

    images = [torch.randn(24, 1, 28, 28)]
    result = ispasp.prune(
        zoo.load("mnist_mlp"), images, keep=0.2, selector="ispasp-contribution", reconstruct="symmetric",
        distil=2, device="cpu", source="zoo:mnist_mlp",
    )  # fmt: skip
    path = result.save(tmp_path / "run")
    assert json.loads((path / "run.json").read_text())["format"] == 3
    loaded = ispasp.load(path)
    with torch.no_grad():
        assert torch.equal(loaded.model(images[0]), result.model(images[0]))
    for ours, theirs in zip(loaded.trace, result.trace, strict=True):
        assert torch.equal(ours.score, theirs.score) and not torch.equal(ours.score, ours.hidden_sum)
    (ours,), (theirs,) = loaded.blocks_pruned, result.blocks_pruned
    assert ours == theirs and ours.target == "symmetric" and ours.error_after is not None
    assert ours.notes and isinstance(ours.notes, tuple)  # 24 images for 208 unknowns
    assert loaded.distilled == result.distilled and loaded.distilled is not None
    assert loaded.report["distil"]["steps"] == loaded.distilled.steps == 2
    assert loaded.report == json.loads(json.dumps(result.report))


def test_a_run_of_the_first_version_loads_as_it_was(saved: Path, result: ispasp.PruneResult) -> None:
    plain = json.loads((saved / "run.json").read_text())
    for name in ("recalibrate", "distil"):
        del plain["settings"][name]
    del plain["report"]["distil"]
    for block in plain["report"]["blocks"]:
        for name in ("target", "error_before", "error_after", "notes"):
            del block[name]
    plain["format"] = 1
    for block in plain["blocks"]:
        cuts = block.pop("cuts")
        for name in ("gates", "signed", "tokens_first"):
            del block[name]
        for role in ("rider", "consumer"):
            block[f"{role}s"] = [cut["module"] for cut in cuts if cut["role"] == role]
    # The first version wrote every field, also those with their default.
    for block, event in zip(plain["blocks_pruned"], result.blocks_pruned, strict=True):
        block |= {"relative_residual": event.relative_residual, "drift": event.drift}
    (saved / "run.json").write_text(json.dumps(plain))
    loaded = ispasp.load(saved, fresh())
    assert loaded.trace == result.trace and loaded.blocks_pruned == result.blocks_pruned
    assert loaded.distilled is None
    for iteration in loaded.trace:
        assert torch.equal(iteration.score, iteration.hidden_sum)
    (saved / "run.json").write_text(json.dumps(plain | {"distilled": {"steps": "many"}}))
    with pytest.raises(RunError, match="damaged"):
        ispasp.load(saved, fresh())


def test_a_sample_model_needs_no_architecture(tmp_path: Path) -> None:
    from ispasp import zoo

    images = torch.randn(8, 1, 28, 28)
    result = ispasp.prune(zoo.load("mnist_mlp"), [images], keep=0.2, device="cpu", source="zoo:mnist_mlp")
    loaded = ispasp.load(result.save(tmp_path / "run"))
    with torch.no_grad():
        assert torch.equal(loaded.model(images), result.model(images))


def test_a_run_of_another_model_asks_for_its_architecture(saved: Path) -> None:
    with pytest.raises(RunError, match=r"pass it: ispasp.load\(path, model=YourModel\(\)\)"):
        ispasp.load(saved)


def test_another_architecture_is_refused_with_the_first_differences(saved: Path) -> None:
    with pytest.raises(RunError, match="do not belong to this CifarResNet: missing layer1.1.conv1.weight"):
        ispasp.load(saved, CifarResNet(blocks_per_stage=2))
    with pytest.raises(
        RunError, match=r"fc.weight is \(10, 64\) torch.float32 in place of \(3, 64\) torch.float32"
    ):
        ispasp.load(saved, CifarResNet(blocks_per_stage=1, classes=3))


def test_a_finished_run_is_never_overwritten(result: ispasp.PruneResult, saved: Path) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    with pytest.raises(RunError, match="not empty; give a new folder"):
        result.save(saved)
    assert before == {file.name: file.read_bytes() for file in saved.iterdir()}


def test_a_save_that_fails_leaves_nothing(
    result: ispasp.PruneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(RunError, match="No space left on device"):
        result.save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(result: ispasp.PruneResult, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="Choose a folder you can write to"):
        result.save(tmp_path / "file" / "run")


def damage_json(run: Path) -> None:
    (run / "run.json").write_text("{")


def foreign_json(run: Path) -> None:
    (run / "run.json").write_text('{"hello": 1}')


def newer_format(run: Path) -> None:
    plain = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(plain | {"format": 99}))


def missing_field(run: Path) -> None:
    plain = json.loads((run / "run.json").read_text())
    del plain["trace"][0]["selected"]
    (run / "run.json").write_text(json.dumps(plain))


def cut_weights(run: Path) -> None:
    file = run / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def lose_trace(run: Path) -> None:
    (run / "trace.safetensors").unlink()


def pickle_weights(run: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1)}, run / "model.safetensors")


def rename_weight(run: Path) -> None:
    weights = load_file(run / "model.safetensors")
    weights["other"] = weights.pop("fc.weight")
    save_file(weights, run / "model.safetensors")


def cut_rows(run: Path) -> None:
    weights = load_file(run / "model.safetensors")
    weights["layer1.0.conv1.weight"] = weights["layer1.0.conv1.weight"][:5]
    save_file(weights, run / "model.safetensors")


def spoil_weight(run: Path) -> None:
    weights = load_file(run / "model.safetensors")
    weights["fc.weight"][0, 0] = float("nan")
    save_file(weights, run / "model.safetensors")


def spoil_settings(run: Path) -> None:
    plain = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(plain | {"settings": []}))


def spoil_event(run: Path) -> None:
    plain = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(plain | {"blocks_pruned": ["x"]}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_json, "run.json cannot be read"),
        (foreign_json, "was not written by ispasp"),
        (newer_format, "install a newer ispasp"),
        (missing_field, "damaged"),
        (cut_weights, "model.safetensors cannot be read"),
        (lose_trace, "trace.safetensors cannot be read"),
        (pickle_weights, "model.safetensors cannot be read"),
        (rename_weight, "missing fc.weight; unexpected other"),
        (cut_rows, r"layer1.0.conv1.weight is \(5, "),
        (spoil_weight, "fc.weight holds NaN"),
        (spoil_settings, "lacks its settings or report"),
        (spoil_event, "damaged"),
        (shutil.rmtree, "is not a saved run"),
    ],
)
def test_a_damaged_run_is_refused_in_one_sentence(saved: Path, harm: object, message: str) -> None:
    harm(saved)  # type: ignore[operator]
    with pytest.raises(RunError, match=message):
        ispasp.load(saved, fresh())


def test_record_can_be_read_without_the_model(saved: Path, result: ispasp.PruneResult) -> None:
    (saved / "model.safetensors").unlink()
    assert load_record(saved).trace == result.trace


def test_several_features_per_group_survive(tmp_path: Path) -> None:
    network = oracle.flattening_network(3, 16, 10, side=8, seed=0)
    images = torch.randn(9, 3, 8, 8)
    result = ispasp.prune(network, [images], keep=0.4, multiple=1, device="cpu")
    loaded = ispasp.load(result.save(tmp_path / "run"), oracle.flattening_network(3, 16, 10, side=8, seed=1))
    with torch.no_grad():
        assert torch.equal(loaded.model(images), result.model(images))

"""Runs of sample models: start to disk, listing, export."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path

import onnxruntime
import pytest
import torch

import ispasp
from ispasp import data, runs, store, zoo
from ispasp.deployment import exporting
from ispasp.deployment.exporting import ExportDone
from ispasp.errors import DeviceError, ModelError, RunError, SettingError
from ispasp.records import Distilled, Progress
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from ispasp.settings import PruneSettings
from ispasp.unfinished import Discarded

SETTINGS = RunSettings("mnist_mlp", keep=0.2, samples=64, device="cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    *_, last = runs.execute(SETTINGS, tmp_path_factory.mktemp("runs"))
    assert isinstance(last, RunSaved)
    return last.path


def test_a_run_is_listed_opened_and_loaded_again(saved: Path) -> None:
    (summary,) = store.list_runs(saved.parent)
    assert (summary.path, summary.problem, summary.exported) == (saved, "", False)
    record = store.open_run(saved)
    assert RunSettings.of(record) == SETTINGS
    short = [{k: v for k, v in block.items() if k != "selected"} for block in record.report["blocks"]]
    assert summary.report == record.report | {"blocks": short}
    assert 0.9 < record.report["accuracy_before"] <= 1
    assert record.report["examples"] == 1000
    card = zoo.card("mnist_mlp")
    test = data.batches(data.sample_images("mnist", "test"), card.mean, card.std)
    model = ispasp.load(saved).model
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
    assert record.report["accuracy_after"] == pytest.approx(right / 1000)


def test_the_same_settings_give_the_same_sets(saved: Path, tmp_path: Path) -> None:
    *_, again = runs.execute(SETTINGS, tmp_path)
    assert store.open_run(again.path).trace == store.open_run(saved).trace
    *_, other = runs.execute(RunSettings("mnist_mlp", keep=0.2, samples=64, seed=1, device="cpu"), tmp_path)
    first, second = (store.open_run(path).trace[0] for path in (saved, other.path))
    assert not torch.equal(first.hidden_sum, second.hidden_sum)


def test_the_defaults_give_a_model_that_still_works(saved: Path) -> None:
    """The Python API's own default is the paper's: selection alone."""
    import inspect

    assert (SETTINGS.selector, SETTINGS.reconstruct) == ("ispasp", "asymmetric")
    assert (SETTINGS.recalibrate, SETTINGS.distil) == (False, 0)
    assert inspect.signature(ispasp.iterate).parameters["reconstruct"].default == "none"
    (block,) = store.open_run(saved).report["blocks"]
    assert block["target"] == "asymmetric" and block["error_after"] < block["error_before"]


def test_run_settings_mirror_those_of_the_pruner() -> None:
    """A setting that the pruner learns must be one of the app and the command line, too."""
    ours = {f.name: f.default for f in dataclasses.fields(RunSettings)}
    theirs = {f.name: f.default for f in dataclasses.fields(PruneSettings)}
    assert {name: ours[name] for name in theirs} == theirs | {"reconstruct": "asymmetric"}


def test_settings_of_a_run_of_the_first_version_are_what_it_did(saved: Path) -> None:
    record = store.open_run(saved)
    newer = ("recalibrate", "distil", "allocation")
    first = {k: v for k, v in record.settings.items() if k not in newer}
    as_saved = dataclasses.replace(record, settings=first | {"reconstruct": "none"})
    assert RunSettings.of(as_saved) == dataclasses.replace(SETTINGS, reconstruct="none")
    del first["reconstruct"]
    assert RunSettings.of(dataclasses.replace(record, settings=first)).reconstruct == "none"


def test_a_run_can_be_distilled_and_recalibrated(tmp_path: Path) -> None:
    settings = RunSettings(
        "mnist_mlp", keep=0.1, samples=32, device="cpu", selector="l2", distil=3, recalibrate=True
    )
    events = list(runs.execute(settings, tmp_path))
    kinds = [type(event) for event in events]
    assert kinds.index(ispasp.BlockPruned) < kinds.index(Distilled) < kinds.index(ispasp.Finished)
    doing = [event.doing for event in events if isinstance(event, Progress)]
    assert "distilling, step 2 of 3" in doing
    record = store.open_run(events[-1].path)
    assert RunSettings.of(record) == settings and record.distilled is not None
    assert record.report["distil"]["accuracy_before"] is not None


def test_a_run_discarded_while_it_is_distilled_leaves_nothing(tmp_path: Path) -> None:
    events = runs.execute(dataclasses.replace(SETTINGS, distil=50), tmp_path)
    for event in events:
        if isinstance(event, Progress) and event.doing == "distilling, step 2 of 50":
            break
    with pytest.raises(Discarded):
        events.throw(Discarded())
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    events = runs.execute(SETTINGS, tmp_path)
    for event in events:
        if isinstance(event, ispasp.Iteration):
            break
    with pytest.raises(Discarded):
        events.throw(Discarded())
    assert list(tmp_path.iterdir()) == []


def test_keep_by_block_overrides_keep(tmp_path: Path) -> None:
    settings = RunSettings(
        "cifar10_resnet20", keep=0.5, keep_by_block={"layer2.1.conv1": 0.25}, samples=32, device="cpu"
    )
    *_, last = runs.execute(settings, tmp_path)
    kept = {block["name"]: block["kept"] for block in store.open_run(last.path).report["blocks"]}
    assert kept["layer2.1.conv1"] == 8
    assert kept["layer2.0.conv1"] == 16
    assert len(kept) == 9


def test_damaged_and_foreign_folders_are_listed_with_their_problem(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("[1")
    (tmp_path / ".hidden.partial").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "run.json").write_text('{"format": 1, "settings": {}, "report": {"finished_at": 5}}')
    problems = {run.run_id: run.problem for run in store.list_runs(tmp_path)}
    assert set(problems) == {"foreign", "damaged", "odd"}
    assert "damaged" in problems["odd"]
    assert "is not a saved run" in problems["foreign"]
    assert "damaged" in problems["damaged"]
    assert store.list_runs(tmp_path / "nowhere") == []


def test_export_writes_both_models_that_onnxruntime_runs_as_torch_does(saved: Path) -> None:
    *_, last = exporting.export_run(saved, seconds=0.2)
    assert isinstance(last, ExportDone)
    assert store.export_report(saved) == json.loads(json.dumps(last.report))
    assert store.list_runs(saved.parent)[0].exported
    images = torch.randn(5, 1, 28, 28)
    for key, model in (("onnx", ispasp.load(saved).model), ("dense_onnx", zoo.load("mnist_mlp"))):
        report = last.report[key]
        assert report["examples"] == 1000
        assert report["top1_agreement"] == 1.0
        file = saved / report["path"]
        assert file.stat().st_size == report["bytes"]
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {"input": images.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(got), model(images), atol=1e-4)
    assert last.report["latency"]["dense"]["median_ms"] > 0
    assert last.report["onnx"]["bytes"] < last.report["dense_onnx"]["bytes"]
    assert not [file for file in saved.iterdir() if file.name.startswith(".")]


def test_a_second_export_takes_the_place_of_the_first_only_when_it_stands(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if store.export_report(saved) is None:
        list(exporting.export_run(saved, seconds=0.2))
    first = store.export_report(saved)
    rename = Path.rename

    def full_disk(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(RunError, match="No space left on device"):
        list(exporting.export_run(saved, seconds=0.2))
    assert store.export_report(saved) == first
    monkeypatch.undo()
    list(exporting.export_run(saved, seconds=0.2))
    assert store.export_report(saved) != first
    assert not [file for file in saved.iterdir() if file.name.startswith(".")]


def test_archive_holds_the_run_and_follows_no_link(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (saved / "link.txt").symlink_to(tmp_path / "secret.txt")
    with zipfile.ZipFile(io.BytesIO(store.archive(saved))) as bundle:
        names = set(bundle.namelist())
        assert {
            f"{saved.name}/{name}" for name in ("run.json", "model.safetensors", "trace.safetensors")
        } <= names
        assert f"{saved.name}/link.txt" not in names
        assert bundle.read(f"{saved.name}/run.json") == (saved / "run.json").read_bytes()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"model": "resnet99"},
            ModelError,
            "Unknown model 'resnet99': give a sample",
        ),
        ({"keep": 0}, SettingError, "keep is 0"),
        ({"keep_by_block": {"fc1": 3}}, SettingError, "keep of block fc1 is 3"),
        ({"selector": "best"}, SettingError, "Unknown selector"),
        ({"samples": 0}, SettingError, "samples is 0"),
        ({"distil": -1}, SettingError, "distil is -1"),
        ({"allocation": "fair"}, SettingError, "Unknown allocation 'fair'"),
        (
            {"allocation": "macs", "keep_by_block": {"fc1": 0.3}},
            SettingError,
            "fc1 has a keep ratio of its own",
        ),
        ({"recalibrate": "yes"}, SettingError, "recalibrate is 'yes'"),
    ],
)
def test_settings_are_refused_at_once(
    settings: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RunSettings(**({"model": "mnist_mlp"} | settings))  # type: ignore[arg-type]


def test_an_absent_device_is_refused_at_the_start_but_its_runs_can_be_read(
    saved: Path, tmp_path: Path
) -> None:
    with pytest.raises(DeviceError, match="cuda:9 is not here"):
        next(iter(runs.execute(RunSettings("mnist_mlp", device="cuda:9"), tmp_path)))
    record = store.open_run(saved)
    elsewhere = dataclasses.replace(record, settings={**record.settings, "device": "cuda:9"})
    assert RunSettings.of(elsewhere).device == "cuda:9"


@pytest.mark.parametrize("samples", [0, -1, 513, 2.5])
def test_samples_beyond_what_there_is_are_refused(samples: object, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="samples"):
        list(runs.execute(RunSettings("mnist_mlp", samples=samples), tmp_path))  # type: ignore[arg-type]


def test_unknown_block_of_keep_by_block_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="Unknown block 'fc9'; the prunable blocks are fc1"):
        list(runs.execute(RunSettings("mnist_mlp", keep_by_block={"fc9": 0.5}), tmp_path))


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Choose a folder you can write to"):
        next(iter(runs.execute(SETTINGS, tmp_path / "file")))


def test_a_run_from_python_cannot_be_repeated_from_settings(tmp_path: Path) -> None:
    result = ispasp.prune(zoo.load("mnist_mlp"), [torch.randn(8, 1, 28, 28)], keep=0.2, device="cpu")
    with pytest.raises(RunError, match="made from Python"):
        RunSettings.of(result)

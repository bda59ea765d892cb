"""Archives of runs: what was packed comes back elsewhere, and every kind of hostile one ends in one sentence."""

from __future__ import annotations

import errno
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ispasp
from ispasp import run_import, store
from ispasp.errors import RunError
from ispasp.run_import import Imported, import_archive


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    result = ispasp.prune(network(), [torch.randn(32, 6)], 0.5, multiple=1, device="cpu")
    path = result.save(tmp_path_factory.mktemp("made") / "mine")
    store.rename(path, "The small one")
    return path


@pytest.fixture
def members(made: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in made.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The runs folder; whatever a test does, nothing half-written stays in it and nothing lands beside it."""
    folder = tmp_path / "here" / "runs"
    yield folder
    assert not list(folder.glob(".*"))
    assert all((path / "model.safetensors").is_file() for path in folder.glob("*"))
    assert [path.name for path in tmp_path.rglob("*") if "evil" in path.name] == []


def packed(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer


def run(members: dict[str, bytes], prefix: str = "mine/", **changes: bytes | None) -> dict[str, bytes]:
    """The files of a run in an archive; ``run_json=...`` for another run.json, None for none."""
    changed = {name.replace("_", "."): content for name, content in changes.items()}
    return {prefix + name: content for name, content in (members | changed).items() if content is not None}


def refused(buffer: io.BytesIO, folder: Path, said: str) -> None:
    with pytest.raises(RunError, match=said) as found:
        import_archive(buffer, folder, "x.zip")
    message = str(found.value)
    assert "x.zip" in message and "\n" not in message and run_import.STAGING not in message
    assert store.list_runs(folder) == []


def test_what_was_packed_comes_back_elsewhere(made: Path, folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(made, tmp_path / "elsewhere" / "other run")
    done = import_archive(io.BytesIO(store.archive(made, other)), folder)
    assert done == Imported(("mine", "other run"), ())
    listed = {run.run_id: (run.name, run.problem) for run in store.list_runs(folder)}
    assert listed == {"mine": ("The small one", ""), "other run": ("The small one", "")}
    first, second = (ispasp.load(path, network()) for path in (made, folder / "mine"))
    assert first.trace == second.trace and first.settings == second.settings
    for key, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value)


def test_a_run_that_is_here_already_is_left_out(made: Path, folder: Path) -> None:
    archive = store.archive(made)
    import_archive(io.BytesIO(archive), folder)
    done = import_archive(io.BytesIO(archive), folder)
    assert done == Imported((), ("mine is already here.",), ("mine",))
    store.rename(folder / "mine", "the first")  # what it is called does not matter
    (folder / "mine").rename(folder / "other")
    done = import_archive(io.BytesIO(archive), folder)
    assert done == Imported((), ("mine is already here, as other.",), ("other",))
    assert [run.name for run in store.list_runs(folder)] == ["the first"]


def test_a_name_that_is_taken_gets_another_and_both_stay(made: Path, folder: Path) -> None:
    archive = store.archive(made)
    import_archive(io.BytesIO(archive), folder)
    store.rename(folder / "mine", "the first")
    (folder / "mine" / "run.json").write_text((folder / "mine" / "run.json").read_text() + "\n")
    done = import_archive(io.BytesIO(archive), folder)
    (new,) = done.run_ids
    assert new.startswith("mine-") and done.notes == (
        f"mine is called {new} here: a run of that name is there already.",
    )
    assert {run.run_id: run.name for run in store.list_runs(folder)} == {
        "mine": "the first",
        new: "The small one",
    }


@pytest.mark.parametrize(
    ("prefix", "name"),
    [("", "x"), ("a/b/deep/", "deep"), ("a,b & ü/", "a-b-"), ("-/", "imported"), (".hidden/", "hidden")],
)
def test_where_a_run_lies_in_the_archive(
    members: dict[str, bytes], folder: Path, prefix: str, name: str
) -> None:
    done = import_archive(packed(run(members, prefix)), folder, "x.zip")
    assert done.run_ids == (name.rstrip("-"),)


def test_files_that_ispasp_does_not_write_are_left_out_and_named(
    members: dict[str, bytes], folder: Path
) -> None:
    more = {
        "mine/evil.py": b"x", "mine/export/evil.bin": b"x", "READ ME": b"x", "mine/evil/run.json": b"x",
        "__MACOSX/mine/._run.json": b"x",
    }  # fmt: skip
    done = import_archive(packed(run(members) | more), folder)
    assert done.run_ids == ("mine",)
    assert done.notes == (
        "5 files that ispasp does not write left out: 'mine/evil.py', 'mine/export/evil.bin', 'READ ME' and 2 more.",
    )
    assert {file.name for file in (folder / "mine").iterdir()} == set(members)


def times(ratio: object = 2.0) -> dict[str, Any]:
    model = {"median_ms": 1.0, "p95_ms": 1.0}
    counts = {"batch": 1, "threads": 1, "pairs": 9, "ratio_low": 1.0, "ratio_high": 3.0}
    return {"dense": model, "pruned": model, "ratio": ratio, **counts}


def exported(path: str = "export/model.onnx", ratio: object = 2.0) -> dict[str, bytes]:
    file = {
        "bytes": 1, "opset": 20, "max_abs_diff": 0.0, "max_rel_diff": 0.0, "examples": 1, "top1_agreement": None
    }  # fmt: skip
    report = {
        "onnx": file | {"path": path}, "dense_onnx": file | {"path": "export/dense.onnx"}, "latency": times(ratio)
    }  # fmt: skip
    names = {"export/export.json": json.dumps(report).encode()}
    return {
        f"mine/{k}": v for k, v in (names | {"export/model.onnx": b"1", "export/dense.onnx": b"2"}).items()
    }


def test_an_export_comes_along(members: dict[str, bytes], folder: Path) -> None:
    done = import_archive(packed(run(members) | exported()), folder)
    assert not done.notes and store.list_runs(folder)[0].exported
    assert (folder / "mine" / "export" / "model.onnx").read_bytes() == b"1"


def test_measurements_come_along_where_they_are_whole(members: dict[str, bytes], folder: Path) -> None:
    whole = b'{"format": 1, "rows": [], "layers": []}'
    more = {f"mine/export/{name}": whole for name in ("bench.json", "diff.json")}
    more["mine/export/profile.json"] = b'{"format": 1, "operators": [], "blocks": []}'
    done = import_archive(packed(run(members) | exported() | more), folder)
    assert done.notes == ("profile.json of mine was left out, as it is damaged: measure the run again.",)
    names = {file.name for file in (folder / "mine" / "export").iterdir()}
    assert names == {"export.json", "model.onnx", "dense.onnx", "bench.json", "diff.json"}
    more = {"mine/export/bench.json": b"[]", "mine/export/diff.json": b'{"format": 9}'}
    again = run(members) | exported() | more
    shutil.rmtree(folder / "mine")
    assert len(import_archive(packed(again), folder).notes) == 2


@pytest.mark.parametrize(
    "export",
    [exported(path="/etc/passwd"), exported(path="../../x"), exported(ratio="fast"), exported(ratio=None)],
)
def test_an_export_that_lies_is_left_out(
    members: dict[str, bytes], folder: Path, export: dict[str, bytes]
) -> None:
    done = import_archive(packed(run(members) | export), folder)
    assert done.notes == (
        "The ONNX files of mine were left out, as their report is damaged: export it again.",
    )
    assert not (folder / "mine" / "export").exists()


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\3\4" + b"\0" * 40])
def test_no_archive(folder: Path, content: bytes) -> None:
    refused(io.BytesIO(content), folder, "cannot be read as a zip file.*: pack the runs once more")


def test_an_archive_without_a_run(members: dict[str, bytes], folder: Path) -> None:
    refused(packed({"cat/1.png": b"x"}), folder, "holds no run: there is no run.json in it")
    refused(packed(run(members, run_json=None)), folder, "holds no run")


@pytest.mark.parametrize("name", ["/evil", "../evil", "mine/../../evil", "C:/evil", "mine\\..\\evil", "a\0b"])
def test_paths_that_lead_out(members: dict[str, bytes], folder: Path, name: str) -> None:
    buffer = packed(run(members))
    with zipfile.ZipFile(buffer, "a") as file:
        info = zipfile.ZipInfo("x")
        info.filename = name
        file.writestr(info, b"x")
    refused(buffer, folder, "a path that leads out of it")


def test_links(members: dict[str, bytes], folder: Path) -> None:
    buffer = packed(run(members, model_safetensors=None))
    with zipfile.ZipFile(buffer, "a") as file:
        info = zipfile.ZipInfo("mine/model.safetensors")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")
    refused(buffer, folder, "a symbolic link")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run_json": b"{"}, "cannot be imported, and nothing of it was kept. The saved run mine is damaged"),
        ({"run_json": b'{"format": 99}'}, "The run mine has format 99, .* install a newer ispasp"),
        ({"run_json": b"[" * 100_000}, "damaged"),
        ({"trace_safetensors": None}, "trace.safetensors cannot be read"),
        ({"trace_safetensors": b"\x80\x02pickle"}, "trace.safetensors cannot be read"),
        ({"model_safetensors": None}, "model.safetensors cannot be read"),
        ({"model_safetensors": b"\xff" * 8 + b"{}"}, "model.safetensors cannot be read"),
        ({"model_safetensors": b""}, "model.safetensors cannot be read"),
    ],
)
def test_a_damaged_run(
    members: dict[str, bytes], folder: Path, changes: dict[str, bytes | None], said: str
) -> None:
    refused(packed(run(members, **changes)), folder, said)


@pytest.mark.parametrize(
    "change", [{"params_after": None}, {"macs_before": "1"}, {"seconds": float("nan")}, {"agreement": [1]},
               {"blocks": [{"name": 1}]}, {"blocks": None}, {"params_before": 10**400}, {"macs_after": True}],
)  # fmt: skip
def test_a_report_that_no_page_could_show(
    members: dict[str, bytes], folder: Path, change: dict[str, Any]
) -> None:
    plain = json.loads(members["run.json"])
    plain["report"] |= change
    refused(
        packed(run(members, run_json=json.dumps(plain).encode())), folder, "damaged: its report (has|does)"
    )


def test_one_damaged_run_keeps_the_others_out(members: dict[str, bytes], folder: Path) -> None:
    both = run(members, "a/") | run(members, "b/", model_safetensors=b"x")
    refused(packed(both), folder, "The saved run b is damaged")


def test_bombs(members: dict[str, bytes], folder: Path) -> None:
    refused(packed(run(members, model_safetensors=b"\0" * 2**22)), folder, "taken for a bomb")
    padded = run(members, model_safetensors=b"\0" * 2**22) | {"pad": torch.randn(2**14).numpy().tobytes()}
    refused(packed(padded), folder, "unpacks to more than 200 times its size")
    refused(packed(run(members), zipfile.ZIP_LZMA), folder, "packed by method 14")


def test_limits(members: dict[str, bytes], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = packed(run(members, "a/") | run(members, "b/"))
    monkeypatch.setattr(run_import, "MAX_RUNS", 1)
    refused(two, folder, "holds 2 runs, and the limit is 1")
    monkeypatch.setattr(run_import, "LIMITS", run_import.Limits(archive=2**30, members=7, unpacked=2**30))
    refused(two, folder, "holds 8 files, and the limit is 7")
    monkeypatch.setattr(run_import, "LIMITS", run_import.Limits(archive=2**30, members=9, unpacked=1000))
    refused(two, folder, "unpacks to .* GiB, and the limit")
    monkeypatch.setattr(run_import, "LIMITS", run_import.Limits(archive=2**30, members=9, unpacked=2**30))
    monkeypatch.setattr(run_import, "MAX_JSON_BYTES", 100)
    refused(packed(run(members)), folder, "run.json' of 0 MiB, and the limit")


def test_a_file_that_is_there_twice_and_one_that_was_changed(members: dict[str, bytes], folder: Path) -> None:
    buffer = packed(run(members))
    with zipfile.ZipFile(buffer, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("mine/run.json", b"{}")
    refused(buffer, folder, "'mine/run.json' twice")
    content = packed(run(members), zipfile.ZIP_STORED).getvalue()
    changed = content.replace(members["model.safetensors"][-40:], b"\x01" * 40)
    assert changed != content
    refused(io.BytesIO(changed), folder, "damaged: 'mine/model.safetensors' cannot be unpacked")


def test_a_full_disk_leaves_nothing(made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = store.archive(made)
    original = Path.open

    def full(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if path.name == "model.safetensors" and "x" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RunError, match="the disk is full., and nothing of them was kept: free some room"):
        import_archive(io.BytesIO(archive), folder)


def test_a_failure_at_the_second_run_takes_the_first_back(
    made: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = store.archive(made, shutil.copytree(made, tmp_path / "second"))
    original = Path.rename

    def fails(path: Path, target: Path) -> Path:
        if target.name == "second":
            raise OSError(errno.EIO, "Input/output error")
        return original(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(RunError, match="Input/output error"):
        import_archive(io.BytesIO(archive), folder)
    assert list(folder.iterdir()) == []


def test_two_processes_that_import_the_same_name(
    made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = store.archive(made)
    original = Path.rename

    def late(path: Path, target: Path) -> Path:
        if target.name == "mine" and not target.exists():
            shutil.copytree(made, target)  # the other process was faster
        return original(path, target)

    monkeypatch.setattr(Path, "rename", late)
    done = import_archive(io.BytesIO(archive), folder)
    assert done.run_ids[0].startswith("mine-") and len(store.list_runs(folder)) == 2


def test_a_run_that_is_gone_cannot_be_packed(made: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gone is not a saved run"):
        store.archive(made, tmp_path / "gone")

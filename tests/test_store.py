"""The runs folder: its list, what a person says about a run, deleting and bringing back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

import ispasp
from ispasp import run_trash, store
from ispasp.errors import ISpaSPError, RunError, SettingError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    result = ispasp.prune(network, [torch.randn(32, 6)], 0.5, multiple=1, device="cpu")
    return result.save(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    for name in "abc":
        shutil.copytree(made, tmp_path / "runs" / name)
    return tmp_path / "runs"


def ids(folder: Path) -> list[str]:
    return sorted(run.run_id for run in store.list_runs(folder))


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every run.json that was read."""
    read: list[Path] = []
    original: Callable[[Path], object] = store.read_json
    monkeypatch.setattr(store, "read_json", lambda path: read.append(path) or original(path))
    return read


def test_300_runs_are_read_once(made: Path, tmp_path: Path, parsed: list[Path]) -> None:
    folder = tmp_path / "runs"
    for i in range(300):
        shutil.copytree(made, folder / f"run{i}")
    first = store.list_runs(folder)
    assert len(parsed) == len(first) == 300
    assert store.list_runs(folder) == first
    assert len(parsed) == 300
    store.rename(folder / "run7", "Seven")
    plain = json.loads((folder / "run8" / "run.json").read_text())
    (folder / "run8" / "run.json").write_text(json.dumps(plain))
    shutil.rmtree(folder / "run9")
    again = store.list_runs(folder)
    assert sorted(path.name for path in parsed[300:]) == ["run7", "run8"] and len(again) == 299
    assert {run.name for run in again} == {"", "Seven"}


def test_a_summary_says_what_a_list_needs_and_holds_no_trace(folder: Path) -> None:
    path = folder / "a"
    plain = json.loads((path / "run.json").read_text())
    plain["settings"]["lineage"] = {"sweep": "s1"}
    (path / "run.json").write_text(json.dumps(plain))
    run = next(run for run in store.list_runs(folder) if run.run_id == "a")
    assert run.lineage == {"sweep": "s1"} and not run.exported and not run.problem
    assert run.size == sum(file.stat().st_size for file in path.rglob("*"))
    record = store.open_run(path)
    assert run.settings == record.settings
    (block,) = run.report["blocks"]
    assert block == {k: v for k, v in record.report["blocks"][0].items() if k != "selected"}
    (path / "export").mkdir()
    (path / "export" / "export.json").write_text("{}")
    assert next(run for run in store.list_runs(folder) if run.run_id == "a").exported


def test_damaged_newer_and_foreign_folders_are_listed_with_their_problem(folder: Path) -> None:
    (folder / "a" / "run.json").write_text("{")
    (folder / "b" / "run.json").write_text('{"format": 99}')
    (folder / "d").mkdir()
    (folder / ".hidden").mkdir()
    (folder / "file").write_text("")
    problems = {run.run_id: run.problem for run in store.list_runs(folder)}
    assert set(problems) == {"a", "b", "c", "d"} and not problems["c"]
    assert (
        "damaged" in problems["a"] and "newer ispasp" in problems["b"] and "not a saved run" in problems["d"]
    )


def test_what_vanishes_while_it_is_listed_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = store.read_json

    def vanish(path: Path) -> object:
        if path.name == "b":
            shutil.rmtree(path)
        return original(path)

    monkeypatch.setattr(store, "read_json", vanish)
    assert ids(folder) == ["a", "c"]


def test_name_and_note_are_kept_beside_each_other(folder: Path) -> None:
    store.rename(folder / "a", "  The small\none ")
    store.set_note(folder / "a", "half the MACs\nsecond line\0\n")
    run = next(run for run in store.list_runs(folder) if run.run_id == "a")
    assert (run.name, run.note) == ("The small one", "half the MACs\nsecond line")
    store.rename(folder / "a", "")
    run = next(run for run in store.list_runs(folder) if run.run_id == "a")
    assert (run.name, run.note) == ("", "half the MACs\nsecond line")
    assert sorted(path.name for path in (folder / "a").iterdir() if "about" in path.name) == ["about.json"]


@pytest.mark.parametrize("content", ["{", "[]", '{"name": 5, "note": null}', "[" * 100_000, "\ud800", ""])
def test_a_damaged_about_counts_as_empty(folder: Path, content: str) -> None:
    (folder / "a" / store.ABOUT).write_bytes(content.encode("utf-8", "surrogatepass"))
    run = next(run for run in store.list_runs(folder) if run.run_id == "a")
    assert (run.name, run.note, run.problem) == ("", "", "")
    store.set_note(folder / "a", "mended")
    assert store.read_about(folder / "a")["note"] == "mended"


def test_a_name_or_note_that_cannot_be_kept_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingError, match="81 characters: give one of at most 80"):
        store.rename(folder / "a", "x" * 81)
    with pytest.raises(SettingError, match="2,001 characters: shorten it"):
        store.set_note(folder / "a", "x" * 2001)
    with pytest.raises(RunError, match="gone is not there any more"):
        store.rename(folder / "gone", "x")
    store.rename(folder / "a", "before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="cannot be written .No space left on device.: free some room"):
        store.rename(folder / "a", "after")
    assert store.read_about(folder / "a")["name"] == "before"
    assert not list((folder / "a").glob("*partial")) and not list((folder / "a").glob(".*"))


def test_deleted_runs_come_back(folder: Path) -> None:
    store.rename(folder / "c", "The best")
    named = run_trash.delete(folder, "c")
    assert [one.name for one in run_trash.in_trash(folder)] == ["The best"]
    run_trash.restore(folder, named.key)
    store.rename(folder / "c", "")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    gone = [run_trash.delete(folder, name) for name in ("a", "b")]
    assert ids(folder) == ["c"] and {one.key for one in run_trash.in_trash(folder)} == {
        one.key for one in gone
    }
    assert [run_trash.restore(folder, one.key) for one in gone] == ["a", "b"]
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert run_trash.in_trash(folder) == []


def test_a_run_can_be_deleted_again_after_another_took_its_name(folder: Path) -> None:
    first = run_trash.delete(folder, "a")
    shutil.copytree(folder / "b", folder / "a")
    with pytest.raises(RunError, match="a run of that name is there again: delete that one first"):
        run_trash.restore(folder, first.key)
    second = run_trash.delete(folder, "a")
    assert first.key != second.key and len(run_trash.in_trash(folder)) == 2
    assert run_trash.restore(folder, first.key) == "a"


def test_what_vanished_meanwhile_is_one_sentence(folder: Path) -> None:
    gone = run_trash.delete(folder, "a")
    with pytest.raises(RunError, match="The run a is not there any more"):
        run_trash.delete(folder, "a")
    run_trash.restore(folder, gone.key)
    with pytest.raises(RunError, match="not in the trash any more: it was restored meanwhile"):
        run_trash.restore(folder, gone.key)


@pytest.mark.parametrize("name", ["", ".", "..", "../b", "/etc", ".trash", "b/../c", "x\0"])
def test_only_runs_are_deleted(folder: Path, name: str) -> None:
    for action in (run_trash.delete, run_trash.restore):
        with pytest.raises(ISpaSPError):
            action(folder, name)
    assert ids(folder) == ["a", "b", "c"] and not (folder / ".trash").exists()


def test_the_trash_is_emptied_after_a_week_when_something_is_deleted(folder: Path) -> None:
    old, young = (run_trash.delete(folder, name) for name in "ab")
    for one, days in ((old, 8), (young, 6)):
        moment = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y%m%d-%H%M%S")
        (folder / ".trash" / one.key).rename(folder / ".trash" / f"{one.run_id}.{moment}-0000")
    (folder / ".trash" / "of somebody else").mkdir()
    assert len(run_trash.in_trash(folder)) == 2
    run_trash.delete(folder, "c")
    assert sorted(one.run_id for one in run_trash.in_trash(folder)) == ["b", "c"]
    assert (folder / ".trash" / "of somebody else").is_dir()


def test_a_folder_that_cannot_be_read_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(RunError, match="cannot be read .Permission denied.: check its permissions"):
        store.list_runs(folder)
    assert run_trash.in_trash(folder) == []

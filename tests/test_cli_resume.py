"""``resume`` by name and by path, and with ``--discard``: every command that a message names works."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ispasp import cli, runs, store, sweeps, unfinished
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from ispasp.tuning import runs as tunings
from ispasp.tuning.attempt import FOLDER as TUNING
from ispasp.tuning.attempt import Files
from tests.small_tuned_runs import equal, quick, tuned

SETTINGS = RunSettings("mnist_mlp", keep=0.2, samples=32, evaluation=50, device="cpu")
PRUNE = shlex.split("prune mnist_mlp --keep 0.2 --samples 32 --evaluation 50 --device cpu")
TUNE = shlex.split("--epochs 2 --batch-size 16 --learning-rate 0.002 --train-examples 80 --device cpu")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an empty runs folder in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISPASP_RUNS", "runs")
    return tmp_path


@contextlib.contextmanager
def ctrl_c(after: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C behind this method of a class that writes down what is done."""
    method = after.__name__
    kind = {"keep": unfinished.Attempt, "keep_state": Files}[method]

    def pressed(*given: Any) -> None:
        after(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kind, method, pressed)
        yield


def commands(printed: str) -> list[list[str]]:
    """The commands that a message names, without ``python -m ispasp``."""
    return [shlex.split(found) for found in re.findall(r"python -m ispasp (resume .*)", printed)]


@pytest.mark.parametrize("out", ["runs/mine", "mine", "elsewhere/mine", "ABSOLUTE/mine"])
@pytest.mark.parametrize("kind", ["prune", "finetune"])
def test_what_was_interrupted_goes_on_by_the_command_that_is_named(
    own: Path,
    here: Path,
    kind: str,
    out: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = out.replace("ABSOLUTE", str(here))
    command = [*(PRUNE if kind == "prune" else ["finetune", str(own), *TUNE]), "--out", out]
    written: Callable[..., None] = unfinished.Attempt.keep if kind == "prune" else Files.keep_state
    with ctrl_c(written, monkeypatch):
        assert cli.main(command) == 130
        (go_on,) = commands(capsys.readouterr().err)
        assert go_on == ["resume", {"runs/mine": "mine", "mine": "./mine"}.get(out, out)]
        assert cli.main(go_on) == 130
        assert commands(capsys.readouterr().err) == [go_on]
    assert cli.main(command) == 2  # it is not begun twice
    said = capsys.readouterr().err
    assert commands(said) == [go_on] and "was begun already" in said
    assert cli.main([*go_on, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    saved = Path(printed["out"] if kind == "finetune" else printed["runs"][0]["out"])
    assert saved.resolve() == Path(out).resolve() and cli.main(go_on) == 2
    if kind == "finetune":
        assert equal(saved, tuned(own, quick(), here / "whole"))


@pytest.mark.parametrize("kind", ["prune", "finetune"])
def test_what_is_saved_is_not_gone_on_with(kind: str, own: Path, here: Path, capsys: Any) -> None:
    """The process was killed between the saving and the tidying up."""
    place = here / "runs" / {"prune": unfinished.FOLDER, "finetune": TUNING}[kind] / own.name
    place.mkdir(parents=True)
    (place / unfinished.PLAN).write_text("{}")
    shutil.copytree(own, here / "runs" / own.name)
    assert cli.main(["resume", own.name]) == 2
    assert "Nothing called" in capsys.readouterr().err and not place.exists()


def test_a_name_is_looked_up_in_the_runs_folder_first(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (here / "runs", here):
        unfinished.begin(folder, "mine", SETTINGS).let_go()
    assert cli.main(["resume", "mine", "--discard"]) == 0
    assert capsys.readouterr().out == "mine is discarded\n"
    assert unfinished.find(here / "runs") == [] and len(unfinished.find(here)) == 1
    assert cli.main(["resume", "mine", "--discard", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"discarded": "mine"}
    assert unfinished.find(here) == [] and cli.main(["resume", "mine", "--discard"]) == 2
    assert "Nothing called mine was cut off in runs" in capsys.readouterr().err


def begun(kind: str, own: Path, folder: Path) -> str:
    """Leave something unfinished in ``folder``; its name."""
    steps: Any
    if kind == "sweep":
        steps = sweeps.execute(sweeps.SweepSettings(SETTINGS, (0.2, 0.3)), folder)
        assert any(isinstance(event, RunSaved) for event in steps)
    elif kind == "prune":
        steps = runs.execute(SETTINGS, folder)
        assert any(list(folder.glob(".unfinished/*/0000")) for _ in steps)
    else:
        steps = tunings.execute(own, quick(), folder, allow_code=True)
        assert any(list(folder.glob(".tuning/*/epochs-*")) for _ in steps)
    assert cli.main(["resume", *names(folder), "--discard"]) == 2  # it is under work
    steps.close()
    (name,) = names(folder)
    return name


def names(folder: Path) -> list[str]:
    """Of all that was begun and is not finished: a sweep, else a single run or a fine-tuning."""
    places = [path for place in (".unfinished", ".tuning") for path in folder.glob(f"{place}/[!.]*")]
    return [path.stem for path in folder.glob(".sweeps/*.json")] or [path.name for path in places]


@pytest.mark.parametrize("kind", ["prune", "sweep", "finetune"])
def test_everything_that_was_cut_off_can_be_discarded(
    own: Path, here: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = begun(kind, own, here / "runs")
    assert "being worked on" in capsys.readouterr().err
    assert cli.main(["resume"]) == 0
    assert f"{name}  " in capsys.readouterr().out
    assert cli.main(["resume", name, "--discard"]) == 0
    capsys.readouterr()
    assert cli.main(["resume"]) == 0 and capsys.readouterr().out == ""
    assert cli.main(["resume", name]) == 2 and names(here / "runs") == []
    assert len(store.list_runs(here / "runs")) == (kind == "sweep")  # the finished run of it stays


def test_a_sweep_goes_on_by_its_path_until_it_is_complete(
    own: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = begun("sweep", own, here / "runs")
    monkeypatch.setenv("ISPASP_RUNS", "others")
    assert cli.main(["resume", f"runs/{name}", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 1
    for more in ([], ["--discard"]):
        assert cli.main(["resume", f"runs/{name}", *more]) == 2
        assert "Nothing called runs/" in capsys.readouterr().err
    (here / "runs" / ".sweeps" / f"{name}.json").write_text("{}")  # as from another version, say
    assert cli.main(["resume", f"runs/{name}"]) == 2
    (remove,) = commands(capsys.readouterr().err)
    assert cli.main(remove) == 0 and names(here / "runs") == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["gone"], "Nothing called gone was cut off in runs"),
        (["elsewhere/gone"], "Nothing called elsewhere/gone was cut off"),
        ([".."], "not the name of a run"),
        ([""], "not the name of a run"),
        (["a\0b"], "cannot be used as a path"),
        (["--discard"], "--discard needs a name"),
    ],
)
def test_a_name_that_is_none_is_one_sentence(
    here: Path, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["resume", *given]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.count("ispasp: ") == 1
    assert list(here.iterdir()) == []

"""``finetune`` and ``resume`` as a script and a person meet them, alone, interrupted, and as two processes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from ispasp import cli
from ispasp.result import load_record
from ispasp.tuning import runs as tunings
from ispasp.tuning.commands import stopped_by_hand
from tests.shared_work import ended, launch
from tests.small_tuned_runs import equal, paper, sample_run, tuned, weights

SHORT = shlex.split("--epochs 2 --batch-size 16 --learning-rate 0.002 --train-examples 80 --device cpu")
BY_BLOCK = shlex.split(
    "--preset paper --epochs 2 --after-block 2 --batch-size 16 --learning-rate 0.02 --device cpu"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return sample_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISPASP_RUNS", str(tmp_path))
    return tmp_path


def test_for_a_script(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", str(run), *SHORT, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    record = load_record(printed["out"])
    assert Path(printed["out"]).parent == folder
    assert printed["tuning"] == record.report["tuning"] and len(printed["tuning"]["curve"]) == 2
    assert (printed["run"], printed["settings"]["epochs"]) == (run.name, 2)
    for name in ("accuracy_before", "accuracy_after", "agreement", "params_after", "macs_before"):
        assert printed[name] == record.report[name]


def test_for_a_person(own: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", str(own), *BY_BLOCK, "--out", str(folder / "mine")]) == 0
    out = capsys.readouterr().out
    assert [line.split("  ")[0] for line in out.splitlines()[1:7]] == [
        "0",
        "0",
        "2",
        "2",
        "all blocks",
        "all blocks",
    ]
    assert (
        f"saved to {folder / 'mine'}" in out
        and "Fine-tuned for 6 epochs after the blocks and at the end" in out
    )
    assert equal(folder / "mine", tuned(own, paper(), folder))
    assert cli.main(["finetune", str(own), *SHORT, "--out", str(folder / "mine")]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "no run nowhere"),
        (["RUN", "--preset", "fast"], "Unknown preset 'fast'; choose one of quick, paper and distil"),
        (["RUN", "--epochs", "many"], "epochs is 'many'; give a whole number"),
        (["RUN", "--epochs", "0"], "epochs is 0"),
        (["RUN", "--learning-rate", "-1"], "learning_rate is -1.0; give a number above 0"),
        (["RUN", "--from", "dense"], "Unknown start 'dense'; choose one of pruned and random"),
        (["RUN", "--from", "random", "--after-block", "1"], "set it to 0"),
        (["RUN", "--train", "nowhere"], "Unknown source of data 'nowhere'"),
        (["RUN", "--train", "folder:/nowhere"], "/nowhere"),
        (["RUN", "--train", "sample:nli"], "images"),
        (["RUN", "--train-examples", "0"], "train_examples is 0"),
        (["RUN", "--train-examples", "1"], "has 1 example"),
        (["RUN", "--device", "cuda:9"], "cuda:9 is not here"),
        (["RUN", "--precision", "int8"], "Unknown precision 'int8'"),
        (["RUN", "--preset", "distil", "--distil", "2"], "distil is 2.0; give a number from 0 to 1"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    run: Path, folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["finetune", *(str(run) if word == "RUN" else word for word in options)]) == 2
    printed = capsys.readouterr()
    last = [line for line in printed.err.splitlines() if line.startswith("ispasp: ")]
    assert printed.out == "" and len(last) == 1 and message in last[0]
    assert list(folder.iterdir()) == []


def test_a_rate_that_diverges_keeps_what_was_good(
    own: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = ["--optimiser", "sgd", "--learning-rate", "1e6", "--epochs", "5", "--device", "cpu"]
    assert cli.main(["finetune", str(own), *rate, "--out", str(folder / "mine")]) == 0
    assert "try a lower rate" in capsys.readouterr().out
    assert equal(folder / "mine", own)


def test_resume_lists_fine_tunings_and_goes_on(
    own: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = tunings.execute(own, paper(), folder, allow_code=True)
    for _ in events:
        if (found := list(folder.glob(".tuning/*/epochs-0001"))) and any(found[0].iterdir()):
            break
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert cli.main(["resume"]) == 0
    name, _, told = capsys.readouterr().out.strip().partition("  ")
    assert told == f"fine-tuning of {own}, 3 of 6 epochs done"
    assert cli.main(["resume", name, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert equal(Path(printed["out"]), tuned(own, paper(), folder))


def test_the_second_ctrl_c_interrupts(capsys: pytest.CaptureFixture[str]) -> None:
    usual = signal.getsignal(signal.SIGINT)
    with stopped_by_hand() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop() and "best weights so far" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is usual


def begun(folder: Path, processes: list[subprocess.Popen[str]]) -> None:
    """Wait until an epoch of the only fine-tuning in ``folder`` is done."""
    end = time.monotonic() + 60
    while time.monotonic() < end and all(process.poll() is None for process in processes):
        time.sleep(0.05)
        for plan in folder.glob(".tuning/*/plan.json"):
            if json.loads(plan.read_text())["epochs_done"]:
                return
    raise AssertionError(
        [process.communicate(timeout=1) for process in processes if process.poll() is not None]
    )


def test_ctrl_c_here_keeps_the_best(own: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def press() -> None:
        begun(folder, [])
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        pressed = pool.submit(press)
        assert cli.main(["finetune", str(own), *SHORT, "--epochs", "5000"]) == 0
        pressed.result()
    printed = capsys.readouterr()
    assert "the best weights so far will be saved" in printed.err and "Stopped in epoch" in printed.out
    (saved,) = folder.iterdir()
    assert load_record(saved).report["tuning"]["epochs_done"] >= 1


@pytest.mark.slow
def test_ctrl_c_keeps_the_best(own: Path, folder: Path) -> None:
    command = ["-m", "ispasp", "finetune", str(own), *SHORT, "--epochs", "5000"]
    (process,) = started = launch([command])
    begun(folder, started)
    process.send_signal(signal.SIGINT)
    status, out, err = ended(process)
    assert status == 0, err
    assert "the best weights so far will be saved" in err and "Stopped in epoch" in out
    (saved,) = folder.iterdir()
    assert load_record(saved).report["tuning"]["epochs_done"] >= 1


@pytest.mark.slow
def test_two_processes_prune_and_train_as_one(own: Path, folder: Path) -> None:
    command = ["-m", "ispasp", "finetune", str(own), *BY_BLOCK, "--json"]
    (status, out, err), (other, silent, also) = (ended(process) for process in launch([command] * 2))
    assert (status, other, silent) == (0, 0, ""), (err, also)
    path = Path(json.loads(out)["out"])
    assert [one.name for one in folder.iterdir()] == [path.name]
    alone, together = (load_record(one) for one in (tuned(own, paper(), folder), path))
    assert [b.selected for b in together.blocks_pruned] == [b.selected for b in alone.blocks_pruned]
    assert (together.report["tuning"]["processes"], alone.report["tuning"]["processes"]) == (2, 1)
    one = weights(tuned(own, paper(), folder))
    assert all(torch.allclose(value, one[name], atol=1e-5) for name, value in weights(path).items())


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_and_the_work_can_be_gone_on_with(own: Path, folder: Path) -> None:
    command = ["-m", "ispasp", "finetune", str(own), *SHORT, "--epochs", "5000"]
    first, second = started = launch([command] * 2)
    begun(folder, started)
    os.kill(second.pid, signal.SIGKILL)
    status, _, err = ended(first)
    ended(second)
    said = [line for line in err.splitlines() if line.startswith("ispasp: ")]
    assert status == 2 and len(said) == 1 and "is kept" in said[0]
    (left,) = tunings.find(folder)
    assert left.epochs_done >= 1
    seen: list[Any] = []
    for event in tunings.resume(folder, left.run_id, allow_code=True, stop=lambda: len(seen) > 50):
        seen.append(event)
    assert load_record(seen[-1].path).report["tuning"]["epochs_done"] >= left.epochs_done

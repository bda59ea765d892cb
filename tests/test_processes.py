"""Several processes of one launch: they decide what one process decides, and end together."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ispasp import processes, store, unfinished
from ispasp.cli import main
from ispasp.errors import ProcessError
from tests.shared_work import CASES, ended, free_port, launch, outcomes

PRUNE = ["prune", "mnist_mlp", "--samples", "33", "--evaluation", "40", "--device", "cpu"]

# What each of two processes sees, one after the other: as one of a group, where the second stands still, as commands,
# and where the second is killed.
VIEWS = """
import json, os, signal, sys, time
from pathlib import Path
import torch
from ispasp import calibration, processes, runs
from ispasp.cli import main
from ispasp.errors import ISpaSPError, ProcessError
from ispasp.records import BlockStarted
from ispasp.run_settings import RunSettings
from tests.shared_work import outcomes
from tests.test_processes import PRUNE

with processes.joined(timeout_seconds=60) as group:
    rank = group.rank
    own = torch.full((rank + 2, 2), float(rank))
    batches = calibration.read([torch.arange(3.0)[:, None], torch.arange(3.0, 7.0)[:, None]])
    view = {
        "outside": [
            float(processes.total(torch.ones(()))), len(processes.gathered(own)), len(processes.share(batches)),
        ],
        "any": [processes.agreed(rank == 1), processes.agreed(False)],
    }
    value = torch.tensor([1.0 + rank, 2.0], requires_grad=True)
    (processes.summed(value).square().sum() * (rank + 1)).backward()
    view["gradient"] = value.grad.tolist()
    with processes.shared():
        view["outcomes"] = outcomes()
        view["total"] = processes.total(torch.tensor([1.0, rank])).tolist()
        view["rows"] = processes.gathered(own).tolist()
        view["share"] = [batch.tensors[0].flatten().tolist() for batch in processes.share(batches)]
        try:
            processes.share(batches[:1][:0] + [batches[0].first(1)])
        except ISpaSPError as error:
            view["too few"] = str(error)
    try:
        with processes.joined():
            pass
    except ProcessError as error:
        view["nested"] = str(error)
    view["still there"] = processes.agreed(rank == 0)
try:
    with processes.joined(timeout_seconds=2):
        processes.agreed(True)
        began = time.perf_counter()
        time.sleep(4 * rank)
        processes.agreed(True)
except ProcessError as error:
    view["late"] = [str(error), time.perf_counter() - began]
view["statuses"] = [main(command) for command in (["models"], [*PRUNE, "--samples", "1"])]
began = time.perf_counter()
if rank == 0:
    view["survivor"] = [main(PRUNE), time.perf_counter() - began]
Path(sys.argv[1] + str(rank)).write_text(json.dumps(view))
if rank == 1:
    settings = RunSettings("mnist_mlp", samples=33, evaluation=40, device="cpu")
    with processes.joined():
        for event in runs.execute(settings, Path(os.devnull)):
            if isinstance(event, BlockStarted):
                os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("views")


@pytest.fixture(scope="module")
def views(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """What two processes see, and all they wrote to standard error."""
    command = ["-c", VIEWS, str(folder / "view")]
    done = [ended(process, 120) for process in launch([command] * 2, ISPASP_RUNS=str(folder / "runs"))]
    assert [status for status, _, _ in done] == [0, -signal.SIGKILL], done
    assert not any(out for _, out, _ in done)
    return [json.loads((folder / f"view{rank}").read_text()) for rank in range(2)], "".join(
        err for _, _, err in done
    )


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(outcomes()))
    return found


def agree(shared: dict[str, Any], alone: dict[str, Any]) -> None:
    """Sets are the same, scores and errors to 1e-5, and re-fitted weights to what is left of that."""
    for name in ("sets", "counts", "data", "notes"):
        assert shared[name] == alone[name], name
    for name, tolerance in (("scores", 1e-5), ("errors", 1e-5), ("weights", 1e-4)):
        for one, other in zip(shared[name], alone[name], strict=True):
            largest = max(map(abs, other), default=0.0)
            assert one == pytest.approx(other, rel=tolerance, abs=tolerance * largest), name


@pytest.mark.parametrize("case", CASES)
def test_two_processes_decide_what_one_decides(
    case: str, views: tuple[list[dict[str, Any]], str], alone: dict[str, Any]
) -> None:
    leader, other = views[0]
    agree(leader["outcomes"][case], alone[case])
    # What each goes on with is the same to the last bit; only the drift is of the examples that each looks at.
    for name in ("sets", "scores", "weights"):
        assert leader["outcomes"][case][name] == other["outcomes"][case][name]


def test_sums_and_rows_of_both(views: tuple[list[dict[str, Any]], str]) -> None:
    for view in views[0]:
        assert view["total"] == [2.0, 1.0]
        assert view["rows"] == [[0.0, 0.0]] * 2 + [[1.0, 1.0]] * 3
        assert view["outside"][0] == 1.0
        assert view["any"] == [True, False]
        # y = (3, 4) in both; the whole loss is 1 |y|^2 + 2 |y|^2.
        assert view["gradient"] == [18.0, 24.0]
    assert [view["outside"][1:] for view in views[0]] == [[2, 2], [3, 2]]


def test_shares_are_a_partition_in_order(views: tuple[list[dict[str, Any]], str]) -> None:
    first, second = (view["share"] for view in views[0])
    assert first == [[0, 1, 2], [3]]
    assert second == [[4, 5, 6]]


def test_fewer_examples_than_processes(views: tuple[list[dict[str, Any]], str]) -> None:
    for view in views[0]:
        assert view["too few"].startswith("1 calibration examples cannot be shared by 2 processes")
        assert view["statuses"] == [2, 2]
    # Both failed alike, and one of them said it.
    assert views[1].count("cannot be shared by 2 processes") == 1
    assert views[1].count("The command models runs in one process; start it without torchrun.") == 1


@pytest.mark.slow
def test_three_processes(tmp_path: Path, alone: dict[str, Any]) -> None:
    names = ["cosamp", "padding"]
    command = ["-m", "tests.shared_work", str(tmp_path / "out"), *names]
    done = [ended(process, 120) for process in launch([command] * 3)]
    assert [status for status, _, _ in done] == [0, 0, 0], done
    shared = json.loads((tmp_path / "out").read_text())
    for name in names:
        agree(shared[name], alone[name])


def test_prune_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("ISPASP_RUNS", str(tmp_path / "runs"))
    prune = [*PRUNE, "--json", "--selector", "ispasp-contribution", "--reconstruct", "symmetric"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    (process,) = launch([[*torchrun, "-m", "ispasp", *prune]], ISPASP_RUNS=str(tmp_path / "runs"))
    status, out, err = ended(process, 120)
    assert status == 0, err
    summary = json.loads(out)  # one object: one process printed
    assert main(prune) == 0
    capsys.readouterr()
    runs = [store.open_run(path) for path in sorted((tmp_path / "runs").iterdir()) if path.name[0] != "."]
    assert len(runs) == 2
    shared = store.open_run(Path(summary["out"]))
    for run in runs:
        assert [i.selected for i in run.trace] == [i.selected for i in shared.trace]
        assert run.report["agreement"] == shared.report["agreement"]


def test_a_process_that_is_killed_ends_the_other(
    views: tuple[list[dict[str, Any]], str], folder: Path
) -> None:
    status, seconds = views[0][0]["survivor"]
    assert status == 2 and seconds < 20
    assert (
        "ispasp: One of the 2 processes has ended or stood still for 600 s, so process 0 ends, too"
        in views[1]
    )
    assert "Traceback" not in views[1]
    # Nothing was saved; what was done can be gone on with.
    assert [path.name for path in (folder / "runs").iterdir()] == [".unfinished"]
    assert len(unfinished.find(folder / "runs")) == 1


def test_one_group_at_a_time(views: tuple[list[dict[str, Any]], str]) -> None:
    for view in views[0]:
        assert view["nested"].startswith("This process has a torch.distributed group already; leave it")
        assert view["still there"] is True


def test_a_process_that_stands_still_ends_the_other(views: tuple[list[dict[str, Any]], str]) -> None:
    for rank, (said, seconds) in enumerate(view["late"] for view in views[0]):
        sentence = f"One of the 2 processes has ended or stood still for 2 s, so process {rank} ends, too"
        assert said.startswith(sentence)
        assert 1.5 < seconds < 12


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR and MASTER_PORT is not set"),
        ({"WORLD_SIZE": "two"}, "not set"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2 and WORLD_SIZE 2"),
        ({"WORLD_SIZE": "2", "RANK": "one"}, "RANK is 'one'"),
    ],
)
def test_a_launch_that_is_incomplete(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if "RANK" in environment:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "1")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.launched()
    with pytest.raises(ProcessError, match="."), processes.joined():
        pass
    assert main(["models"]) == 2
    assert expected in capsys.readouterr().err


def test_others_that_never_come(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("WORLD_SIZE", "2"),
        ("RANK", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", free_port()),
    ):
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ProcessError, match="have not found one another"),
        processes.joined(timeout_seconds=0.2),
    ):
        pass
    assert processes.here() is processes.ALONE


def test_alone_nothing_is_done() -> None:
    value = torch.ones(3)
    with processes.joined() as group, processes.shared():
        assert group is processes.ALONE and group.leads and not processes.launched()
        assert all(
            function(value) is value for function in (processes.total, processes.gathered, processes.summed)
        )
        assert processes.total_number(3) == 3 and processes.agreed(True) and not processes.agreed(False)

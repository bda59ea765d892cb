"""Runs that are pruned again and trained block after block, as in the paper."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ispasp
from ispasp.errors import RunError
from ispasp.models import load, parse
from ispasp.records import BlockPruned, BlockStarted, Iteration, Started
from ispasp.result import load_record
from ispasp.tuning import attempt
from ispasp.tuning import runs as tunings
from ispasp.tuning.memory import CheckpointMissed
from ispasp.tuning.records import EpochDone
from tests.small_tuned_runs import begun, cut_off, equal, full, own_run, paper, saved, told, tuned, weights


@pytest.fixture(scope="module")
def own_by_block(own: Path) -> tuple[Path, list[Any]]:
    """The two blocks pruned and trained one after the other: the run, and its events."""
    events = told(tunings.execute(own, paper(), own.parent, allow_code=True))
    return events[-1].path, events


def test_block_by_block_keeps_the_counts_of_the_run(own: Path, own_by_block: tuple[Path, list[Any]]) -> None:
    path, events = own_by_block
    kinds = [type(event).__name__ for event in events if not isinstance(event, Iteration)]
    block = ["BlockStarted", "BlockPruned", "EpochDone", "EpochDone"]
    assert kinds == ["Started", *block, *block, "EpochDone", "EpochDone", "Finished", "RunSaved"]
    parent, result = load_record(own), ispasp.load(path, allow_code=True)
    assert result.started == parent.started
    begun = [event for event in events if isinstance(event, BlockStarted)]
    assert [(one.index, one.total) for one in begun] == [(0, 2), (1, 2)]
    assert [one.stage for one in events if isinstance(one, EpochDone)] == ["0", "0", "2", "2", "", ""]
    assert [b["kept"] for b in result.report["blocks"]] == [b["kept"] for b in parent.report["blocks"]]
    assert {k: v.shape for k, v in weights(path).items()} == {k: v.shape for k, v in weights(own).items()}
    # The first block sees the dense network, as in the run; the second sees what training has made of it.
    assert result.blocks_pruned[0].selected == parent.blocks_pruned[0].selected
    second = [next(one for one in run.trace if one.block == "2") for run in (result, parent)]
    assert not torch.equal(second[0].hidden_sum, second[1].hidden_sum)
    assert (result.report["tuning"]["agreement_before"], result.settings["distil"]) == (1.0, 0)


def same(one: Path, other: Path, *seen: list[Any]) -> None:
    """Make sure that two runs, and the events that led to them, are equal."""
    assert equal(one, other)
    ours, theirs = load_record(one), load_record(other)
    assert ours.trace == theirs.trace and ours.blocks_pruned == theirs.blocks_pruned
    for kind in (Started, BlockStarted, Iteration, BlockPruned, EpochDone):
        first, second = ([event for event in events if isinstance(event, kind)] for events in seen)
        assert first == second


@pytest.mark.parametrize("after", [3, 5])
def test_it_goes_on_after_a_break(
    own: Path, own_by_block: tuple[Path, list[Any]], tmp_path: Path, after: int
) -> None:
    """Between two blocks, and in the middle of the training after one."""
    begun(own, paper(), tmp_path, after)
    (left,) = tunings.find(tmp_path)
    assert (left.epochs_done, left.epochs_total) == ({3: 2, 5: 3}[after], 6)
    again = told(tunings.resume(tmp_path, left.run_id, allow_code=True))
    same(again[-1].path, own_by_block[0], again, own_by_block[1])


def test_it_goes_on_however_often_it_is_cut_off(
    own: Path, own_by_block: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    begun(own, paper(), tmp_path, 1)
    for after in range(2, 9):
        (left,) = tunings.find(tmp_path)
        cut_off(tunings.resume(tmp_path, left.run_id, allow_code=True), after)
    again = told(tunings.resume(tmp_path, left.run_id, allow_code=True))
    same(again[-1].path, own_by_block[0], again, own_by_block[1])


def test_a_block_that_is_kept_whole_is_measured_alone(tmp_path: Path) -> None:
    parent = own_run(tmp_path, keep=0.5, keep_by_block={"0": 1.0})
    assert tunings.epochs_of(load_record(parent), paper()) == 4
    whole = told(tunings.execute(parent, paper(), parent.parent, allow_code=True))
    done = load_record(whole[-1].path)
    assert [one["stage"] for one in done.report["tuning"]["curve"]] == ["2", "2", "", ""]
    before, _ = load_record(parent).blocks_pruned
    first, second = done.blocks_pruned
    assert first.whole and not second.whole and (before.target, first.target) == ("asymmetric", "none")
    assert first.selected == before.selected and first.drift == first.relative_residual == 0
    assert [block["kept"] for block in done.report["blocks"]] == [16, 6]
    begun(parent, paper(), tmp_path, 1)
    (left,) = tunings.find(tmp_path)
    kept = load_file(tmp_path / attempt.FOLDER / left.run_id / "stage-0000" / "model.safetensors")
    dense = load(parse(f"python:{tmp_path / 'mine.py'}:model"), allow_code=True).model.state_dict()
    assert all(torch.equal(value, dense[name]) for name, value in kept.items())
    for after in (2, 4):
        cut_off(tunings.resume(tmp_path, left.run_id, allow_code=True), after)
    again = told(tunings.resume(tmp_path, left.run_id, allow_code=True))
    same(again[-1].path, whole[-1].path, again, whole)


def test_stop_between_blocks_prunes_the_rest_untrained(own: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    for event in tunings.execute(
        own, paper(), tmp_path, allow_code=True, stop=lambda: any(isinstance(e, EpochDone) for e in seen)
    ):
        seen.append(event)
    assert sum(isinstance(event, BlockPruned) for event in seen) == 2
    assert sum(isinstance(event, EpochDone) for event in seen) == 1
    result = ispasp.load(seen[-1].path, allow_code=True)
    assert result.report["tuning"]["stopped"] == "Stopped by hand: 1 block pruned without training."
    assert result.report["params_after"] == sum(p.numel() for p in result.model.parameters())


def test_a_disk_full_after_a_block_is_told_and_an_older_place_is_gone_on_from(
    own: Path, own_by_block: tuple[Path, list[Any]], tmp_path: Path, monkeypatch: Any
) -> None:
    with monkeypatch.context() as patch:
        kept = attempt.save_file
        patch.setattr(
            attempt, "save_file", lambda *given: full() if "stage-0001" in str(given[1]) else kept(*given)
        )
        seen = begun(own, paper(), tmp_path, 5)  # in the middle of the training behind the second block
    assert sum(isinstance(event, CheckpointMissed) for event in seen) == 1
    (left,) = tunings.find(tmp_path)
    shutil.copytree(tmp_path, tmp_path / "again")
    assert equal(saved(tunings.resume(tmp_path, left.run_id, allow_code=True)), own_by_block[0])
    stopped = saved(tunings.resume(tmp_path / "again", left.run_id, allow_code=True, stop=lambda: True))
    assert load_record(stopped).report["tuning"]["epochs_done"] == 3


def test_epochs_behind_a_block_that_was_pruned_to_other_digits_are_made_again(
    own: Path, tmp_path: Path
) -> None:
    """As on another machine, where the disk was too full for the pruning and not for the epochs."""
    begun(own, paper(), tmp_path, 5)
    (left,) = tunings.find(tmp_path)
    files = attempt.Files(tmp_path / attempt.FOLDER / left.run_id)
    with pytest.raises(RunError, match="of another model"):
        files.state(1, "other digits")
    record, weights = files.pruned()
    shutil.rmtree(files.folder / "stage-0001")
    files.keep_pruned(record, weights)
    assert files.state(1, "other digits") is None


def test_what_was_held_out_is_told_where_all_epochs_were_after_blocks(own: Path, tmp_path: Path) -> None:
    tuning = load_record(tuned(own, paper(epochs=0), tmp_path)).report["tuning"]
    assert (tuning["held_out_examples"], tuning["precision"], tuning["epochs_done"]) == (9, "fp32", 4)
    none = load_record(tuned(own, paper(), tmp_path, stop=lambda: True)).report["tuning"]
    assert (none["held_out_examples"], none["precision"], none["epochs_done"]) == (0, "", 0)
    assert none["stopped"] == "Stopped by hand: 1 block pruned without training."

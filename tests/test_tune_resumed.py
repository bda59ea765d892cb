"""Fine-tunings that were cut off and are resumed: what a stop costs then, and from where their progress is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ispasp.records import BlockPruned, Progress
from ispasp.result import load_record
from ispasp.tuning import runs as tunings
from ispasp.tuning.records import EpochDone
from ispasp.tuning.request import TuneRequest, curve_of
from tests.small_tuned_runs import begun, cut_off, equal, paper, quick, saved

QUICK, PAPER = quick(), paper()


def progress(events: Iterator[Any]) -> list[Progress]:
    return [event for event in events if isinstance(event, Progress)]


@pytest.fixture(scope="module")
def whole(own: Path) -> dict[str, list[Progress]]:
    """The progress of fine-tunings that are not cut off, by preset."""
    return {
        asked.preset: progress(tunings.execute(own, asked, own.parent, allow_code=True))
        for asked in (QUICK, PAPER)
    }


def stopped(own: Path, request: TuneRequest, after: int) -> Path:
    """A fine-tuning that was told to stop behind so many epochs and pruned blocks, and never cut off."""
    seen: list[Any] = []

    def events() -> Iterator[Any]:
        for event in tunings.execute(own, request, own.parent, allow_code=True, stop=stop):
            seen.append(event)
            yield event

    def stop() -> bool:
        return sum(isinstance(one, (EpochDone, BlockPruned)) for one in seen) >= after

    return saved(events())


def same(one: Path, other: Path) -> None:
    """Make sure that two runs have the same weights, and tell the same of their epochs and of why they ended."""
    assert equal(one, other)
    ours, theirs = (load_record(path).report["tuning"] for path in (one, other))
    assert curve_of(ours["curve"]) == curve_of(theirs["curve"])
    assert all(ours[key] == theirs[key] for key in ("stopped", "best_epoch", "epochs_done"))


@pytest.mark.parametrize(
    ("asked", "after", "epochs"),
    [
        (quick(epochs=50), 1, 1),
        (PAPER, 1, 0),  # nothing is trained yet
        (PAPER, 2, 1),  # in the training after the first block
        (PAPER, 5, 3),
        (PAPER, 7, 5),  # in the training at the end
        (PAPER, 8, 6),
    ],
)
def test_a_stop_as_soon_as_it_is_resumed_loses_no_epoch(
    own: Path, tmp_path: Path, asked: TuneRequest, after: int, epochs: int
) -> None:
    begun(own, asked, tmp_path, after)
    (left,) = tunings.find(tmp_path)
    resumed = saved(tunings.resume(tmp_path, left.run_id, allow_code=True, stop=lambda: True))
    same(resumed, stopped(own, asked, after))
    tuning = load_record(resumed).report["tuning"]
    assert tuning["epochs_done"] == epochs and (tuning["stopped"] == "") == (epochs == 6)
    assert equal(resumed, own) is (epochs == 0 and not asked.by_block)


def test_a_stop_that_an_earlier_attempt_was_told_holds_and_loses_no_epoch(own: Path, tmp_path: Path) -> None:
    begun(own, PAPER, tmp_path, 2)
    (left,) = tunings.find(tmp_path)
    # Cut off again once the second block is pruned, which is not trained after any more.
    cut_off(tunings.resume(tmp_path, left.run_id, allow_code=True, stop=lambda: True), 3)
    resumed = saved(tunings.resume(tmp_path, left.run_id, allow_code=True))
    same(resumed, stopped(own, PAPER, 2))
    tuning = load_record(resumed).report["tuning"]
    assert tuning["epochs_done"] == 1 and "1 block pruned without training" in tuning["stopped"]


@pytest.mark.parametrize(
    ("asked", "after", "first"),
    [
        (QUICK, 1, "epoch 2 of 2, step 1 of 5"),
        (PAPER, 2, "epoch 2 of 2, step 1 of 6, after block 0"),
        (PAPER, 3, "pruning 2"),
        (PAPER, 7, "epoch 2 of 2, step 1 of 6"),
        (PAPER, 8, "measuring accuracy"),
    ],
)
def test_progress_stands_at_0_until_the_work_goes_on(
    own: Path,
    whole: dict[str, list[Progress]],
    tmp_path: Path,
    asked: TuneRequest,
    after: int,
    first: str,
) -> None:
    """From there it is that of a fine-tuning that was never cut off, so that its pace tells the time that is left."""
    begun(own, asked, tmp_path, after)
    (left,) = tunings.find(tmp_path)
    resumed = progress(tunings.resume(tmp_path, left.run_id, allow_code=True))
    while resumed[0].done == 0:
        del resumed[0]
    assert resumed[0].doing == first
    # While a block is pruned, it is told as often as time passes.
    ours, theirs = (
        [e for e in one if not e.doing.startswith("pruning")] for one in (resumed, whole[asked.preset])
    )
    assert len(ours) < len(theirs) and ours == theirs[-len(ours) :]

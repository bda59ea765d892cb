"""What fine-tuned runs are trained on, and what they are measured on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ispasp import narrative
from ispasp.errors import CalibrationError
from ispasp.result import load_record
from ispasp.tuning import runs as tunings
from ispasp.tuning.records import Began
from ispasp.tuning.request import TuneRequest
from tests.small_tuned_runs import own_run, paper, quick, tuned


def test_without_labels_the_dense_model_teaches_alone(tmp_path: Path) -> None:
    parent = own_run(tmp_path, "unlabelled", keep=0.5)
    with pytest.raises(CalibrationError, match='no labels.*preset "distil"'):
        tuned(parent, quick())
    assert [path.name for path in parent.parent.iterdir()] == [parent.name]
    distil = TuneRequest.of_preset("distil", {"epochs": 2, "batch_size": 16, "learning_rate": 0.01})
    record = load_record(tuned(parent, distil))
    tuning, report = record.report["tuning"], record.report
    assert report["accuracy_after"] is tuning["accuracy_before"] is None
    assert tuning["curve"][-1]["accuracy"] is None and tuning["curve"][-1]["agreement"] is not None
    assert report["agreement"] is not None and tuning["best_epoch"] > 0


def test_what_is_trained_on_is_not_measured_on(tmp_path: Path) -> None:
    """A single pool of 100: the run was pruned with 32 of them and measured on 30, of which 20 are left."""
    parent = own_run(tmp_path, "one_pool", keep=0.5)
    assert load_record(parent).report["examples"] == 30
    record = load_record(tuned(parent, paper()))
    assert (record.report["examples"], record.report["tuning"]["train_examples"]) == (20, 80)
    assert record.settings["evaluation"] == 20
    assert any("Measured on 20 examples of its own" in note for note in record.settings["notes"])


def test_another_source_of_training_data(own: Path) -> None:
    file = own.parent.parent / "mine.py"
    request = dataclasses.replace(paper(after_block=0), train=f"python:{file}:one_pool", train_examples=40)
    report = load_record(tuned(own, request)).report
    assert (report["tuning"]["train_examples"], report["examples"]) == (40, 30)


@pytest.fixture
def one_pool(tmp_path: Path) -> Path:
    return own_run(tmp_path, "one_pool", keep=0.5, distil=2)


def test_figures_of_other_examples_do_not_stand_beside_each_other(one_pool: Path) -> None:
    parent = load_record(one_pool)
    assert parent.report["distil"]["accuracy_before"] is not None
    record = load_record(tuned(one_pool, quick()))
    assert record.report["examples"] == 20 and record.report["distil"]["accuracy_before"] is None
    rows = narrative.result_rows(record.report)
    assert [row["Model"] for row in rows][1:] == ["pruned and re-fitted", "then distilled", "then fine-tuned"]
    assert rows[1]["Accuracy"] == rows[1]["Agreement"] == "unknown" and "%" in rows[2]["Accuracy"]


def test_what_is_told_at_the_beginning_is_of_the_same_examples(own: Path, one_pool: Path) -> None:
    def told(parent: Path, request: TuneRequest) -> tuple[list[float | None], list[float | None]]:
        """What is said of the dense model and of what was before, and what the report says."""
        events = list(tunings.execute(parent, request, parent.parent, allow_code=True))
        (began,) = (event for event in events if isinstance(event, Began))
        report = load_record(events[-1].path).report
        first = [
            report["accuracy_before"],
            report["tuning"]["accuracy_before"],
            report["tuning"]["agreement_before"],
        ]
        return [began.dense_accuracy, began.accuracy, began.agreement], first

    said, reported = told(one_pool, quick(epochs=1))
    assert said == reported and said[1] != load_record(one_pool).report["accuracy_after"]
    # Block by block it begins with the dense model; before is the run, where it was measured on the same.
    before = load_record(own).report
    said, (dense, *_) = told(own, paper(epochs=1, after_block=1))
    assert said == [dense, before["accuracy_after"], before["agreement"]]
    said, (dense, *_) = told(one_pool, paper(epochs=1, after_block=1))
    assert said == [dense, None, None]


def test_few_training_examples_leave_it_those_that_it_was_measured_on(one_pool: Path) -> None:
    record = load_record(tuned(one_pool, dataclasses.replace(quick(), train_examples=40)))
    assert (record.report["examples"], record.report["tuning"]["train_examples"]) == (30, 40)
    assert not any("of its own" in note for note in record.settings["notes"])


def test_as_many_other_examples_are_told_as_well(tmp_path: Path) -> None:
    """The file gives others whenever it is asked."""
    parent = own_run(tmp_path, "anew", keep=0.5)
    record = load_record(tuned(parent, dataclasses.replace(quick(), train_examples=40)))
    assert record.report["examples"] == 30
    assert any("Measured on 30 examples of its own" in note for note in record.settings["notes"])


def test_a_source_is_the_same_however_its_path_is_spelled(one_pool: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    train = f"python:{tmp_path}/x/../mine.py:one_pool"
    record = load_record(tuned(one_pool, dataclasses.replace(quick(), train=train)))
    assert (record.report["examples"], record.settings["evaluation"]) == (20, 20)


def test_copies_in_another_source_are_told(own: Path, tmp_path: Path) -> None:
    """Its training examples are those that the run is measured on."""
    more = "\ndef others():\n    return [examples(30, 2)], [examples(30, 5)]\n"
    (tmp_path / "others.py").write_text((own.parent.parent / "mine.py").read_text() + more)
    request = dataclasses.replace(quick(), train=f"python:{tmp_path / 'others.py'}:others")
    notes = load_record(tuned(own, request)).settings["notes"]
    assert any(
        "30 of the 30 examples that it is measured on are training examples too" in note for note in notes
    )
    assert not load_record(tuned(own, quick(epochs=1))).settings["notes"]

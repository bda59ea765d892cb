"""Runs side by side: rows, frontier, overlap, classes, flips, and the examples behind them."""

from __future__ import annotations

import csv
import dataclasses
import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ispasp import comparison, data, examples, models, store, zoo
from ispasp.comparison import CHANGED, GAINED, LOST, Dense, Family, Overlap, Row
from ispasp.errors import RunError, SettingError
from ispasp.evaluate import Predictions
from ispasp.preparation import TextPreparation
from ispasp.result import RunRecord
from ispasp.run_settings import RunSettings
from tests.compared_runs import make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def records(folder: Path) -> dict[str, RunRecord]:
    return {path.name: store.open_run(path) for path in folder.iterdir() if path.is_dir()}


def row(**values: object) -> Row:
    usual: dict[str, object] = {
        "run_id": "r", "name": "r", "family": Family("m", "", "", 100), "dense": Dense(100, 1000, 0.9),
        "keep": 0.5, "selector": "ispasp", "reconstruct": "none", "macs": 500, "parameters": 50, "accuracy": 0.8,
        "agreement": 0.85, "speedup": None, "seconds": 1.0, "finished_at": "", "lineage": {}, "samples": 64,
        "seed": 0, "distil": 0,
    }  # fmt: skip
    return Row(**usual | values)  # type: ignore[arg-type]


def test_rows_say_what_the_runs_are(folder: Path) -> None:
    found, unfit = comparison.rows(store.list_runs(folder))
    by_id = {one.run_id: one for one in found}
    assert set(by_id) == {"wide", "narrow", "norm"} and not unfit
    assert comparison.families(found) == [Family("mnist_mlp", "", "", 200)]
    narrow, norm = by_id["narrow"], by_id["norm"]
    assert narrow.made == ("ispasp", "asymmetric") and norm.made == ("l2", "none")
    assert (
        narrow.keep == 0.05 and narrow.samples == 64 and narrow.macs < by_id["wide"].macs < narrow.dense.macs
    )
    assert narrow.change is not None and narrow.accuracy is not None and narrow.dense.accuracy is not None
    assert narrow.change == pytest.approx(narrow.accuracy - narrow.dense.accuracy)
    assert ("samples", "64") in norm.conditions and (
        "kinds",
        "channel and neuron and head",
    ) in norm.conditions
    assert norm.title == "keep 0.05, Weight norm, L2, no re-fit"


def test_damaged_and_foreign_runs_are_told_apart_from_the_others(folder: Path) -> None:
    whole = store.list_runs(folder)[0]
    broken = [
        dataclasses.replace(whole, report=whole.report | {"macs_after": "many"}),
        dataclasses.replace(whole, report=whole.report | {"accuracy_after": 7}),
        dataclasses.replace(whole, settings={k: v for k, v in whole.settings.items() if k != "model"}),
        dataclasses.replace(whole, problem="It is damaged."),
    ]
    found, unfit = comparison.rows([*broken, whole])
    assert [one.run_id for one in found] == [whole.run_id] and unfit == broken


def test_the_frontier_is_what_brute_force_finds() -> None:
    draw = random.Random(0)
    for size in [0, 1, 2, *(draw.randint(3, 12) for _ in range(60))]:
        # Few different values, so that many are equal.
        costs = [draw.randint(0, 5) for _ in range(size)]
        gains = [draw.randint(0, 5) for _ in range(size)]

        def beaten(i: int, costs: list[int] = costs, gains: list[int] = gains) -> bool:
            return any(
                costs[j] <= costs[i] and gains[j] >= gains[i] and (costs[j], gains[j]) != (costs[i], gains[i])
                for j in range(len(costs))
            )

        found = comparison.efficient_frontier(costs, gains)
        assert sorted(found) == [i for i in range(size) if not beaten(i)]
        assert [costs[i] for i in found] == sorted(costs[i] for i in found)
    with pytest.raises(SettingError, match="2 costs and 1 accuracies"):
        comparison.efficient_frontier([1, 2], [1])


def test_overlap_counts_every_group_once(records: dict[str, RunRecord]) -> None:
    (found,) = comparison.overlaps(records["narrow"], records["norm"])
    one, other = (set(records[name].blocks_pruned[0].selected) for name in ("narrow", "norm"))
    assert found == Overlap(
        "fc1", len(one & other), len(one - other), len(other - one), 1024 - len(one | other)
    )
    assert 0 < found.jaccard == len(one & other) / len(one | other) < 1
    (same,) = comparison.overlaps(records["wide"], records["wide"])
    assert same.jaccard == 1 and same.only_a == same.only_b == 0


def test_runs_of_other_models_have_no_overlap(records: dict[str, RunRecord]) -> None:
    first = records["wide"]
    done = first.blocks_pruned[0]
    for block, said in (
        (dataclasses.replace(done.block, name="conv9"), "no block in common"),
        (dataclasses.replace(done.block, groups=2048), "fc1 has another size"),
    ):
        other = dataclasses.replace(first, blocks_pruned=[dataclasses.replace(done, block=block)])
        with pytest.raises(RunError, match=said):
            comparison.overlaps(first, other)


def test_class_changes_begin_with_the_largest() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    before = np.array([0, 0, 0, 1, 1, 0, 2])
    after = np.array([0, 0, 1, 1, 2, 0, 2])
    found = comparison.class_changes(labels, before, after)
    assert found == [(1, 2, 0.5, 0.0), (0, 4, 0.75, 0.5), (2, 1, 1.0, 1.0)]


def test_flips_begin_with_what_went_wrong() -> None:
    labels, before = np.array([0, 1, 2, 3, 4]), np.array([5, 1, 7, 3, 4])
    after = np.array([0, 8, 6, 3, 9])
    found = comparison.flips(labels, before, after)
    assert [(flip.example, flip.kind) for flip in found] == [(1, LOST), (4, LOST), (0, GAINED), (2, CHANGED)]
    assert found[0] == (1, LOST, 1, 1, 8)
    unknown = comparison.flips(None, before, after)
    assert [(flip.example, flip.kind, flip.label) for flip in unknown] == [
        (i, CHANGED, None) for i in (0, 1, 2, 4)
    ]


def test_flips_and_classes_agree_with_the_report(records: dict[str, RunRecord]) -> None:
    record = records["narrow"]
    seen = comparison.predictions(record)
    assert seen.labels is not None
    labels, dense, pruned = seen.labels.numpy(), seen.dense.numpy(), seen.pruned.numpy()
    found = comparison.flips(labels, dense, pruned)
    assert len(found) == round(200 * (1 - record.report["agreement"])) > 0
    lost, gained = (sum(flip.kind == kind for flip in found) for kind in (LOST, GAINED))
    moved = record.report["accuracy_after"] - record.report["accuracy_before"]
    assert (gained - lost) / 200 == pytest.approx(moved)
    changes = comparison.class_changes(labels, dense, pruned)
    assert sum(c.examples * (c.after - c.before) for c in changes) / 200 == pytest.approx(moved)


def test_answers_are_compared_only_where_the_examples_are_the_same(records: dict[str, RunRecord]) -> None:
    one, other = records["narrow"], records["norm"]
    assert comparison.check_same_examples(one, other) == (one.predictions, other.predictions)
    with pytest.raises(RunError, match="no predictions on record"):
        comparison.check_same_examples(one, dataclasses.replace(other, predictions=None))
    seen = other.predictions
    assert seen is not None and seen.labels is not None
    turned = dataclasses.replace(other, predictions=dataclasses.replace(seen, labels=seen.labels.flip(0)))
    with pytest.raises(RunError, match="different examples"):
        comparison.check_same_examples(one, turned)

    def unlabelled(record: RunRecord, seed: int) -> RunRecord:
        assert record.predictions is not None
        plain = Predictions(record.predictions.dense, record.predictions.pruned)
        return dataclasses.replace(record, predictions=plain, settings=record.settings | {"seed": seed})

    comparison.check_same_examples(unlabelled(one, 1), unlabelled(other, 1))
    with pytest.raises(RunError, match="different examples"):
        comparison.check_same_examples(unlabelled(one, 1), unlabelled(other, 2))


def test_the_csv_reads_back() -> None:
    text = comparison.table_csv([
        row(name='say "50 %", please', lineage={"sweep": "s1"}, speedup=1.5),
        row(run_id="q", accuracy=None, keep=None, agreement=2 / 3, macs=333, dense=Dense(100, 1001, 0.9)),
    ])  # fmt: skip
    dense, first, second = csv.DictReader(io.StringIO(text))
    assert dense["run"] == "dense" and dense["macs"] == "1000" and dense["accuracy"] == "0.9"
    assert first["name"] == 'say "50 %", please' and first["lineage_sweep"] == "s1"
    assert float(first["macs_of_dense"]) == 0.5 and float(first["accuracy_change"]) == pytest.approx(-0.1)
    assert second["accuracy"] == second["keep"] == second["speedup"] == second["lineage_sweep"] == ""
    assert second["agreement"] == "0.666667" and second["macs_of_dense"] == "0.332667"
    assert first["accuracy_change"] == "-0.1"  # not -0.09999999999999998
    assert comparison.table_csv([]).count("\n") == 1


def test_pictures_are_those_that_the_model_saw(records: dict[str, RunRecord]) -> None:
    record = records["narrow"]
    loaded = models.load(RunSettings.of(record).model_source())
    shown = examples.evaluation_examples(record, loaded)
    assert shown.pictures is not None and len(shown) == 200 and shown.classes[7] == "7"
    assert torch.equal(torch.from_numpy(shown.pictures), data.sample_images("mnist", "test").images[:200])

    seen = record.predictions
    assert seen is not None and seen.labels is not None
    others = dataclasses.replace(seen, labels=seen.labels.roll(1))
    with pytest.raises(RunError, match="not what they were"):
        examples.evaluation_examples(dataclasses.replace(record, predictions=others), loaded)
    unlabelled = dataclasses.replace(record, predictions=dataclasses.replace(seen, labels=None))
    assert len(examples.evaluation_examples(unlabelled, loaded)) == 200
    foreign = dataclasses.replace(unlabelled, settings=record.settings | {"calibration_digest": "0" * 64})
    with pytest.raises(RunError, match="not what they were"):
        examples.evaluation_examples(foreign, loaded)


def test_sentence_pairs_are_shown_as_text() -> None:
    pytest.importorskip("transformers")
    preparation = zoo.preparation("nli_bert")
    assert isinstance(preparation, TextPreparation)
    pairs = data.sample_pairs("nli", "test").part(torch.arange(5))
    batches = examples.read(data.pair_batches(pairs, preparation), "evaluation")
    shown = examples.texts(batches, preparation)
    assert len(shown) == 5
    for text, premise, hypothesis in zip(shown, pairs.premises, pairs.hypotheses, strict=True):
        first, second = text.split(" → ")
        plain = str.maketrans("", "", " .,'")
        assert first.lower().translate(plain) == premise.lower().translate(plain)
        assert second.lower().translate(plain) == hypothesis.lower().translate(plain)

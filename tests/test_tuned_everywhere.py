"""Fine-tuned runs wherever runs are read: lists, comparison, words, figures, archives, reports, notebooks."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ispasp
from ispasp import compare_figures, comparison, display, narrative, notebook_export, run_import, store
from ispasp.deployment import report as html_report
from ispasp.errors import RunError
from ispasp.result import load_record
from ispasp.tuning import report as commands
from ispasp.tuning import runs as tunings
from ispasp.tuning.figures import curves_figure, curves_info, report_info
from ispasp.tuning.records import EpochDone
from ispasp.tuning.request import TuneRequest
from tests.small_tuned_runs import own_run, paper, quick, sample_run, tuned
from tests.test_notebook_export import repeated

Damage = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return sample_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def run(parent: Path) -> Path:
    return tuned(parent, quick())


@pytest.fixture(scope="module")
def control(parent: Path) -> Path:
    return tuned(parent, dataclasses.replace(quick(), start="random"))


@pytest.fixture(scope="module")
def by_block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks, tuned block by block and then once more."""
    folder = tmp_path_factory.mktemp("own")
    once = tuned(own_run(folder, keep=0.5, distil=2), paper())
    return tuned(once, quick(epochs=1))


def setting(**values: object) -> Damage:
    return lambda plain: plain["settings"]["tuning"].update(values)


def said(**values: object) -> Damage:
    return lambda plain: plain["report"]["tuning"].update(values)


def epoch(**values: object) -> Damage:
    return lambda plain: plain["report"]["tuning"]["curve"][0].update(values)


@pytest.mark.parametrize(
    "damage",
    [
        *(setting(**{name: value}) for name, value in (
            ("epochs", "2"), ("epochs", -1), ("learning_rate", "fast"), ("preset", "mine"), ("preset", ["quick"]),
            ("start", 5), ("start", {}), ("train", "nowhere:x"), ("train", 7), ("train_examples", 0), ("device", 3),
            ("optimiser", []), ("earlier", 5), ("earlier", [5]), ("earlier", [{"epochs": -1}]), ("made", "all"),
        )),
        *(said(**{name: value}) for name, value in (
            ("epochs_done", 1.5), ("best_epoch", -1), ("stopped", None), ("seconds", "1"), ("seconds", 1e999),
            ("accuracy_before", 2), ("agreement_before", "x"), ("curve", None), ("curve", [5]), ("curve", [{}]),
            ("curve", {"a": 1}), ("precision", 16), ("processes", True), ("after_block", "1"), ("start", []),
        )),
        *(epoch(**{name: value}) for name, value in (
            ("stage", 1), ("epoch", 0), ("epoch", 9), ("epochs", "2"), ("loss", float("nan")), ("accuracy", -0.1),
            ("agreement", 7), ("best", 1), ("seconds", -1), ("learning_rate", None), ("held_out_loss", []),
            ("more", 1),
        )),
        lambda plain: plain["report"].pop("tuning"),
        lambda plain: plain["settings"].pop("tuning"),
        lambda plain: plain["settings"].update(tuning=[]),
        lambda plain: plain["report"].update(tuning=5),
    ],
)  # fmt: skip
def test_what_a_tuned_run_must_not_hold_is_refused(run: Path, tmp_path: Path, damage: Damage) -> None:
    place = tmp_path / "run"
    place.mkdir()
    shutil.copy(run / "trace.safetensors", place)
    plain = json.loads((run / "run.json").read_text())
    damage(plain)
    (place / "run.json").write_text(json.dumps(plain))
    with pytest.raises(RunError, match="damaged") as error:
        load_record(place)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_lists_and_comparison_tell_it_from_its_parent(parent: Path, run: Path, control: Path) -> None:
    rows, unfit = comparison.rows(store.list_runs(parent.parent))
    found = {row.run_id: row for row in rows}
    assert not unfit and set(found) == {parent.name, run.name, control.name}
    assert {name: row.tuned for name, row in found.items()} == {
        parent.name: "", run.name: "fine-tuned, quick", control.name: "fine-tuned from random weights, quick",
    }  # fmt: skip
    assert found[run.name].title.endswith("re-fit asymmetric, fine-tuned, quick")
    assert len({row.family for row in rows}) == 1
    assert ("fine-tuning", "none") in found[parent.name].conditions
    traces = compare_figures.trade_off_figure(rows).data
    symbols = {trace.name: trace.marker.symbol for trace in traces if "i-SpaSP" in (trace.name or "")}
    assert symbols["i-SpaSP, re-fit asymmetric"] == "circle"
    assert symbols["i-SpaSP, re-fit asymmetric, fine-tuned, quick"] == "circle-dot"
    report = load_record(run).report
    both = [(found[name], report) for name in (parent.name, run.name)]
    assert [len(compare_figures.residuals_by_keep(part).lines) for part in (both, both[1:])] == [1, 1]
    again = report | {"tuning": report["tuning"] | {"after_block": 1}}
    assert len(compare_figures.residuals_by_keep([both[0], (found[run.name], again)]).lines) == 2
    assert ",fine-tuned from random weights" in comparison.table_csv(rows).replace('"', "")


def test_words(parent: Path, run: Path, control: Path, by_block: Path) -> None:
    record = load_record(run)
    before, after = (f"{100 * value:.1f} %" for value in (
        record.report["tuning"]["accuracy_before"], record.report["accuracy_after"],
    ))  # fmt: skip
    rows = narrative.result_rows(record.report)
    assert [row["Model"] for row in rows] == ["dense", "pruned and re-fitted", "then fine-tuned"]
    assert rows[1]["Accuracy"].startswith(before) and rows[2]["Accuracy"].startswith(after)
    sentence = narrative.tuned_sentence(record.report)
    assert sentence.startswith("Fine-tuned for 2 epochs") and sentence.endswith(f"{before} → {after}.")
    assert sentence in display.remark_lines(record) and "fine-tuned, quick" in display.html(record)
    assert narrative.tuned_sentence(load_record(parent).report) == ""
    first = narrative.result_rows(load_record(control).report)[1]
    assert first["Model"] == "random weights"
    last = load_record(by_block)
    assert narrative.tuned_words(last.settings) == "fine-tuned again, quick"
    assert narrative.tuned_words({"tuning": {"preset": "**x**"}}) == "fine-tuned"
    assert narrative.model_stages(last.report) == ["dense", "fine-tuned before", "then fine-tuned"]
    once = copy.deepcopy(last.report)
    once["tuning"]["after_block"] = 1
    assert narrative.model_stages(once) == ["dense", "pruned and fine-tuned"]
    assert " % of the dense model → " in narrative.tuned_sentence(once)
    once["tuning"] |= {"after_block": 0, "best_epoch": 0, "stopped": "It diverged."}
    assert narrative.tuned_sentence(once).startswith("Fine-tuned for 1 epoch, none better than before")
    assert narrative.tuned_sentence(once).endswith(". It diverged.")


def test_distillation_and_fine_tuning_stand_one_after_the_other() -> None:
    report = {
        "params_before": 100, "params_after": 50, "macs_before": 1000, "macs_after": 500,
        "accuracy_before": 0.9, "accuracy_after": 0.85, "agreement": 0.9, "blocks": [{"target": "none"}],
        "distil": {"accuracy_before": 0.7, "agreement_before": 0.71},
        "tuning": {"start": "pruned", "after_block": 0, "accuracy_before": 0.8, "agreement_before": 0.81},
    }  # fmt: skip
    rows = narrative.result_rows(report)
    assert [(row["Model"], row["Accuracy"].split(",")[0], row["Agreement"]) for row in rows] == [
        ("dense", "90.0 %", "–"), ("pruned", "70.0 %", "71.0 %"), ("then distilled", "80.0 %", "81.0 %"),
        ("then fine-tuned", "85.0 %", "90.0 %"),
    ]  # fmt: skip


def test_an_archive_brings_it_here_with_its_curve(run: Path, tmp_path: Path) -> None:
    imported = run_import.import_archive(io.BytesIO(store.archive(run)), tmp_path)
    (name,) = imported.run_ids
    assert load_record(tmp_path / name).report == load_record(run).report
    assert store.list_runs(tmp_path)[0].lineage == store.list_runs(run.parent)[0].lineage | {
        "tuned": load_record(run).settings["lineage"]["tuned"]
    }


def test_the_report_shows_it_and_how_to_repeat_it(run: Path, by_block: Path) -> None:
    page = html_report.write(run).decode()
    assert "Fine-tuning" in page and "80 training examples 8 were held out" in page
    last = load_record(by_block)
    told = commands.commands(last, "python -m ispasp prune m")
    assert told == [
        "python -m ispasp prune m --out pruned",
        "python -m ispasp finetune pruned --preset paper --epochs 2 --after-block 2 --learning-rate 0.02 "
        "--batch-size 16 --out tuned-1",
        "python -m ispasp finetune tuned-1 --preset quick --epochs 1 --learning-rate 0.002 --batch-size 16 "
        "--train-examples 80 --out tuned-2",
    ]
    assert commands.commands(load_record(run), "x")[0] == "x --out pruned"


@pytest.mark.parametrize("which", ["run", pytest.param("control", marks=pytest.mark.slow), "by_block"])
def test_the_notebook_does_what_the_run_did(which: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(which)
    content = notebook_export.of_run(path)
    left = repeated(content)
    result = ispasp.load(path, allow_code=True)
    state = left["result"].model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in result.model.state_dict().items())
    assert (
        left["result"].report["tuning"]["curve"][-1]["loss"] == result.report["tuning"]["curve"][-1]["loss"]
    )
    assert (
        f"accuracy_after: {result.report['accuracy_after']} here, {result.report['accuracy_after']}"
        in left["said"]
    )
    text = content.decode()
    assert text.count("tune = TuneSettings") == (2 if which == "by_block" else 1)
    assert ("Fine-tune again" in text) == (which == "by_block")


def test_the_notebook_of_one_that_was_stopped_stops_there(by_block: Path, tmp_path: Path) -> None:
    parent = by_block.parent / load_record(by_block).settings["lineage"]["tuned"]
    seen: list[object] = []
    for event in tunings.execute(
        parent,
        quick(epochs=9),
        tmp_path,
        allow_code=True,
        stop=lambda: sum(isinstance(e, EpochDone) for e in seen) > 1,
    ):
        seen.append(event)
    (path,) = tmp_path.iterdir()
    content = notebook_export.of_run(path)
    assert "It ended early in the run, after 2 epochs" in content.decode()
    page = html_report.write(path, allow_code=True).decode()
    assert "9; ended early, after 2" in page and "goes on to its end so" in page
    left = repeated(content)
    assert len(left["epochs"]) == 2
    state = left["result"].model.state_dict()
    assert all(
        torch.equal(state[k], v) for k, v in ispasp.load(path, allow_code=True).model.state_dict().items()
    )


def curve(*stages: str, labelled: bool = True) -> list[EpochDone]:
    return [
        EpochDone(
            stage, 1 + stages[:i].count(stage), stages.count(stage), 0.1, 2.0 - i / 10, 2.1 - i / 10,
            0.5 + i / 10 if labelled else None, 0.6 + i / 10, i != len(stages) - 1, 1.0,
        )
        for i, stage in enumerate(stages)
    ]  # fmt: skip


def test_curves_of_one_stage() -> None:
    info = curves_info(curve("", "", ""), 0.9, 0.4, 0.45)
    assert (info.best, info.blocks, info.end, info.dense, info.before) == (1, (), 0, 90.0, 40.0)
    assert info.shows == "accuracy" and np.allclose(info.values, [50, 60, 70])
    figure = curves_figure(info)
    names = [trace.name for trace in figure.data]
    assert names == ["accuracy", "kept: lowest held-out loss", "loss on held-out examples", "training loss"]
    assert [a.text for a in figure.layout.annotations] == ["dense 90.0 %", "before 40.0 %"]
    assert list(figure.data[1].x) == [2.0]


def test_curves_without_labels_and_without_epochs() -> None:
    info = curves_info(curve("", "", labelled=False), None, None, 0.45)
    assert (info.shows, info.dense, info.before) == ("agreement with the dense model", 100.0, 45.0)
    assert np.allclose(info.values, [60, 70])
    empty = curves_info([], 0.9, 0.4)
    assert empty.best is None and len(empty.loss) == 0 and curves_figure(empty, dark=True).data


def test_curves_block_by_block() -> None:
    info = curves_info(curve("a", "a", "b", "", ""), 0.9, 0.9)
    assert (info.blocks, info.end, info.before, info.best) == ((("a", 0), ("b", 2)), 3, None, 3)
    figure = curves_figure(info, dark=True)
    assert [a.text for a in figure.layout.annotations] == ["dense 90.0 %", "a", "b"]
    under_way = curves_info(curve("a", "a", "b"), 0.9)
    assert under_way.best is None and under_way.end == 3


def test_curves_of_a_saved_run(run: Path) -> None:
    report = load_record(run).report
    info = report_info(report)
    assert len(info.loss) == 2 and info.dense == pytest.approx(100 * report["accuracy_before"])


def test_a_request_comes_back_from_plain_values() -> None:
    for made in (quick(), paper(), TuneRequest.of_preset("distil", train="noise", device="cpu")):
        assert TuneRequest.of(json.loads(json.dumps(made.plain()))) == made
    assert quick().changed == {"epochs": 2, "batch_size": 16, "learning_rate": 0.002}

"""The Deploy page without a browser: what a person reads before, while and after a run is exported and measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from ispasp import runs
from ispasp.deployment import exporting, profile
from ispasp.errors import RunError
from ispasp.jobs import registry
from ispasp.records import Progress
from ispasp.run_settings import RunSettings
from tests import app_page
from tests.app_page import MAIN, press, runs_folder, seen, sound, table, until, words
from ui import background, deploy_records

__all__ = ["runs_folder"]  # a fixture that every test here uses


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its export."""
    settings = RunSettings("mnist_mlp", keep=0.3, samples=32, evaluation=60, device="cpu")
    path = tmp_path_factory.mktemp("made") / "small"
    for _ in runs.execute(settings, path.parent, path):
        pass
    for _ in exporting.export_run(path, precisions=("fp32", "int8-static"), seconds=0.1):
        pass
    return path


@pytest.fixture
def run(exported: Path, runs_folder: Path) -> Path:
    """A copy of it in the runs folder."""
    return Path(shutil.copytree(exported, runs_folder / "small"))


@pytest.fixture
def bare(run: Path) -> Path:
    """The same without the export."""
    shutil.rmtree(run / "export")
    return run


def visit(**query: str) -> AppTest:
    """The page as a fresh browser gets it."""
    app = AppTest.from_file(str(MAIN), default_timeout=120).switch_page("../pages/deploy.py")
    for name, value in query.items():
        app.query_params[name] = value
    return sound(app.run())


def labels(app: AppTest) -> list[str]:
    return [button.proto.label for button in app.get("download_button")]


def test_without_a_run_the_page_says_what_to_do() -> None:
    app = visit()
    assert "No finished run to deploy yet" in words(app) and not app.selectbox


def test_an_unknown_run_in_the_address_is_said_and_no_other_is_shown(bare: Path) -> None:
    app = visit(run="../gone")
    assert 'There is no run "../gone" in the runs folder' in words(app)
    assert app.selectbox(key="deploy_choice").value is None and "1. Files" not in words(app)
    sound(app.selectbox(key="deploy_choice").set_value("small").run())
    assert seen(app, "run") == "small" and "1. Files" in words(app)


def test_a_run_that_is_not_exported_says_what_comes_first(bare: Path) -> None:
    app = visit()
    assert seen(app, "run") == "small"  # the newest
    text = words(app)
    assert "241,690" not in text and "**0.242 M** of 0.814 M parameters" in text
    assert text.count(":gray-badge[not done yet]") == 4
    assert text.count("Export first") == 2
    assert labels(app) == ["Download report"]


def test_a_run_whose_model_cannot_be_rebuilt_says_so(bare: Path) -> None:
    plain = json.loads((bare / "run.json").read_text())
    del plain["settings"]["model"]
    (bare / "run.json").write_text(json.dumps(plain))
    app = visit()
    assert len(app.error) == 1 and "1. Files" not in words(app)
    plain["settings"]["model"] = "torchvision:no_such_model"
    (bare / "run.json").write_text(json.dumps(plain))
    app = visit()
    if not app.error:  # it takes an attempt to find out
        press(app, "deploy_export")
        until(app, lambda: bool(app.error))
    assert "no_such_model" in app.error[0].value


def test_the_export_is_a_job_whose_table_appears_and_survives_a_refresh(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "export_run", partial(exporting.export_run, seconds=0.1))
    app = visit(run="small")
    sound(app.pills(key="deploy_precisions_small").set_value(["fp16"]).run())
    press(app, "deploy_export")
    assert "**Export small**" in words(app) and ":blue-badge[" in words(app)
    assert app.button(key="deploy_export").disabled and seen(app, "exporting")
    watching = visit(run="small")  # another browser sees the export under way
    assert "**Export small**" in words(watching)
    until(app, lambda: "exporting" not in app.query_params)
    for page in (app, visit(run="small")):
        assert "exporting" not in page.query_params
        rows = table(page, "Check")
        assert rows["Precision"].tolist() == ["FP32", "FP32", "FP16", "FP16"]
        assert rows["Model"].tolist() == ["dense", "pruned"] * 2 and set(rows["Check"]) == {"✓ passed"}
        assert rows["Of dense FP32"].tolist()[0] == "100 %" and "→" in rows["Accuracy, torch → file"][0]
        assert labels(page) == ["Download ONNX", "Download inference.py", "Download report"]
        layers = table(page, "Weight after")
        assert layers["Layer"].tolist()[-1] == "all" and len(page.get("plotly_chart")) == 1


def test_an_export_can_be_stopped_and_nothing_of_it_is_kept(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object, **__: object) -> Iterator[Progress]:
        while True:
            yield Progress(0.1, "exporting")

    monkeypatch.setattr(exporting, "export_run", slow)
    app = press(visit(run="small"), "deploy_export")
    press(app, "stop_exporting")
    until(app, lambda: "stopped" in words(app))
    assert not app.button(key="deploy_export").disabled and not (bare / "export").exists()
    press(app, "close_exporting")
    assert "exporting" not in app.query_params


def test_a_file_that_failed_its_check_is_labelled_and_can_still_be_taken(run: Path) -> None:
    file = run / "export" / "export.json"
    plain = json.loads(file.read_text())
    bad = next(v for v in plain["variants"] if (v["side"], v["precision"]) == ("pruned", "int8-static"))
    bad["parity"] |= {"passed": False, "sentence": "int8-static: same answer for 12.0 %: failed."}
    lost = next(v for v in plain["variants"] if (v["side"], v["precision"]) == ("dense", "int8-static"))
    lost |= {"path": "", "bytes": 0, "opset": 0, "problem": "It has `no` layer to quantize.", "parity": None}
    file.write_text(json.dumps(plain))
    app = visit()
    assert ":red-badge[✗ 2 failed]" in words(app) and ":green-badge[✓ passed]" not in words(app)
    assert [error.value for error in app.error] == [
        "**Dense, INT8 static:** It has \\`no\\` layer to quantize.",
        "**Pruned, INT8 static:** int8-static: same answer for 12.0 %: failed.",
    ]
    assert table(app, "Check")["Check"].tolist() == ["✓ passed"] * 2 + ["✗ not made", "✗ failed"]
    chooser = app.selectbox(key="deploy_file")
    assert len(chooser.options) == 3 and chooser.value == "model.onnx"
    sound(chooser.set_value("model-int8-static.onnx").run())
    assert labels(app)[0] == "Download, though it failed its check"
    assert app.pills(key="deploy_precisions_small").value == ["int8-static"]  # as it was exported
    assert app.pills(key="deploy_timed_fp32").options == ["FP32"]  # what is not there cannot be timed


def test_without_labels_accuracy_is_said_to_be_unknown(run: Path) -> None:
    assert "no labels" not in words(visit())
    file = run / "export" / "export.json"
    plain = json.loads(file.read_text())
    for variant in plain["variants"]:
        variant["parity"] |= {"accuracy_torch": None, "accuracy_onnx": None}
    file.write_text(json.dumps(plain))
    app = visit()
    assert "no labels that fit, so accuracy is unknown" in words(app)
    assert table(app, "Check")["Accuracy, torch → file"].isna().all()


def test_what_nobody_checked_has_not_passed(run: Path) -> None:
    file = run / "export" / "export.json"
    plain = json.loads(file.read_text())
    for variant in plain["variants"]:
        variant["parity"] = None
    file.write_text(json.dumps(plain))
    app = visit()
    assert set(table(app, "Check")["Check"]) == {"✗ failed"} and "was not compared with torch" in words(app)
    assert ":red-badge[✗ 4 failed] of 4 files." in words(app)  # there are no others


@pytest.mark.parametrize("name", ["export.json", "bench.json", "profile.json", "diff.json"])
def test_a_damaged_file_costs_its_own_section_alone(run: Path, name: str) -> None:
    app = visit()
    for content in ("", "[]", '{"format": 99, "rows": [], "layers": []}'):
        (run / "export" / name).write_text(content)
        text = words(sound(app.run()))
        assert ":red-badge[cannot be read]" in text and "again" in text and "5. Report" in text
        assert (":green-badge[✓ passed]" in text) == (name != "export.json")


def test_counts_that_are_no_networks_are_not_shown(run: Path) -> None:
    file = run / "export" / "diff.json"
    plain = json.loads(file.read_text())
    plain["layers"][0]["macs_dense"] = 10**30
    file.write_text(json.dumps(plain))
    assert "too large" in visit().error[0].value


def test_a_run_that_says_nothing_of_itself_has_no_line(bare: Path) -> None:
    plain = json.loads((bare / "run.json").read_text())
    plain["report"] = {}
    (bare / "run.json").write_text(json.dumps(plain))
    assert "Pruned:" not in words(visit())


def test_a_record_offers_no_file_from_elsewhere(run: Path) -> None:
    file = run / "export" / "export.json"
    plain = json.loads(file.read_text())
    for path in ("../run.json", "run.json", "export/../run.json", "export/gone.onnx"):
        plain["variants"][0]["path"] = path
        file.write_text(json.dumps(plain))
        with pytest.raises(RunError, match="export it again"):
            deploy_records.exported(run)


def test_latency_is_measured_and_told_with_its_interval(run: Path) -> None:
    app = visit()
    sound(app.text_input(key="deploy_batches").set_value("1, x").run())
    assert app.button(key="deploy_measure").disabled and "whole numbers separated by commas" in words(app)
    sound(app.text_input(key="deploy_batches").set_value("0").run())
    assert app.button(key="deploy_measure").disabled
    sound(app.text_input(key="deploy_batches").set_value("1, 4").run())
    sound(app.number_input(key="deploy_seconds").set_value(0.1).run())
    sound(app.pills(key="deploy_timed_fp32_int8-static").set_value(["fp32"]).run())
    assert "2 lines, about 0.2 s" in words(app)
    sound(app.text_input(key="deploy_batches").set_value("4").run())
    press(app, "deploy_measure")
    assert app.button(key="deploy_export").disabled  # its files are in use
    until(app, lambda: "timing" not in app.query_params)
    rows = table(app, "Verdict")
    assert rows["Measured"].tolist() == ["FP32, batch 4, 1 thread"]
    assert rows["Times as fast"].str.fullmatch(r"[\d.]+ × \[[\d.]+, [\d.]+\]").all()
    assert set(rows["Verdict"]) <= {"faster", "slower", "no measurable difference"}
    assert "95 % interval" in words(app)
    assert app.button(key="deploy_measure").label == "Measure again"

    bench = run / "export" / "bench.json"
    plain = json.loads(bench.read_text())
    (row,) = plain["rows"]
    lost = {"provider": "cuda", "problem": "onnxruntime has CUDA, but it does not load."}
    plain["rows"] = [row, row | {"batch": 1}, row | lost]
    bench.write_text(json.dumps(plain))
    again = visit()
    assert len(table(again, "Verdict")) == 2 and "Of 2 lines: 2 " in words(again)
    assert again.error[0].value.startswith("**FP32 on CUDA, batch 4, 1 thread** could not be measured.")


def test_the_profile_says_why_before_it_shows_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "profile_run", partial(profile.profile_run, seconds=0.2))
    app = visit()
    press(app, "deploy_profile")
    until(app, lambda: "profiling" not in app.query_params)
    assert "A call takes" in words(app) and len(app.get("plotly_chart")) == 3
    assert "Share of latency" in table(app, "Weight after")

    file = run / "export" / "profile.json"
    plain = json.loads(file.read_text())
    file.write_text(json.dumps(plain | {"suggestion": {"multiple": 16, "layers": ["fc1"]}}))
    assert "set **Multiple of** under Finer settings there to 16" in words(sound(app.run()))


def test_a_second_job_on_a_run_is_refused(run: Path) -> None:
    def fails() -> Iterator[Progress]:
        raise RunError("The disk is full.")
        yield

    (subject,) = background.of_run("export", run).subjects
    assert registry.submit("Export", fails, "cpu", subject=subject).wait(timeout=60)
    file = run / "export" / "export.json"
    plain = json.loads(file.read_text())
    plain["latency"] |= {"ratio_low": 1.004, "ratio_high": 1.2}
    file.write_text(json.dumps(plain))
    deploy, explore = visit(run="small"), app_page.visit(run="small")
    assert "**No measurable difference**" in words(explore)  # as Deploy says of 1.00
    assert "The export failed. The disk is full." in words(explore)  # what an earlier one left stays below it
    (subject,) = background.of_run("bench", run).subjects
    job = registry.submit("Latency of small", lambda: iter(()), "cpu", paused=True, subject=subject)
    for page, key in ((deploy, "deploy_export"), (explore, "export_again")):  # drawn before it began
        press(page, key)
        assert "Latency of small is under way" in words(page)
    assert [one for one in registry.jobs() if not one.state.ended] == [job]


@pytest.mark.parametrize(
    ("operation", "query", "help"),
    [
        ("export", "exporting", "the run stays"),
        ("bench", "timing", "lines that are finished stay"),
        ("profile", "profiling", "an earlier one stays"),
    ],
)
def test_the_runs_page_leads_to_a_job_of_this_page(run: Path, operation: str, query: str, help: str) -> None:
    (subject,) = background.of_run(operation, run).subjects
    job = registry.submit("Stands still", lambda: iter(()), "cpu", paused=True, subject=subject)
    app = sound(AppTest.from_file(str(MAIN), default_timeout=120).switch_page("../pages/runs.py").run())
    assert help in app.button(key=f"stop_{job.id}").help
    press(app, f"watch_{job.id}")
    assert (seen(app, "run"), seen(app, query)) == ("small", job.id)
    assert "**Stands still**: paused" in words(app) and app.button(key=f"go_on_{query}")
    assert all(app.button(key=f"deploy_{name}").disabled for name in ("export", "measure", "profile"))


def test_the_runs_page_leads_here(run: Path) -> None:
    app = AppTest.from_file(str(MAIN), default_timeout=120).switch_page("../pages/runs.py")
    sound(app.run())
    assert app.button(key="runs_deploy").disabled
    app.session_state[app.dataframe[0].key] = {"selection": {"rows": [0], "columns": [], "cells": []}}
    sound(app.run())
    press(app, "runs_deploy")
    assert seen(app, "run") == "small" and "1. Files" in words(app)


def test_explore_leads_here_and_back(run: Path) -> None:
    app = press(visit(), "deploy_open")
    assert "i-SpaSP Explorer" in words(app)
    assert [link.proto.label for link in app.get("page_link")] == ["More in Deploy", "Fine-tune"]

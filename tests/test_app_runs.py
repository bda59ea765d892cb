"""The Runs page without a browser: find, open, compare, name, delete, bring back, take away, import."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from ispasp import run_trash, runs, store, sweeps, unfinished
from ispasp.jobs import registry
from ispasp.records import Progress
from ispasp.run_settings import RunSettings
from tests.app_page import MAIN, press, runs_folder, seen, sound, table, until, words
from ui import library

__all__ = ["runs_folder"]  # a fixture that every test here uses


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = RunSettings("mnist_mlp", keep=0.5, samples=32, evaluation=50, device="cpu")
    *_, last = runs.execute(settings, tmp_path_factory.mktemp("made"))
    return last.path


Put = Callable[..., Path]


@pytest.fixture
def put(made: Path, runs_folder: Path) -> Put:
    """Lay a copy of a run into the runs folder, with other settings and another day."""

    def lay(name: str, day: int = 1, model: str = "mnist_mlp", **settings: Any) -> Path:
        path = shutil.copytree(made, runs_folder / name)
        plain = json.loads((path / "run.json").read_text())
        plain["settings"] |= {"model": model} | settings
        plain["report"]["finished_at"] = f"2026-11-{day:02d}T12:00:00+00:00"
        (path / "run.json").write_text(json.dumps(plain))
        return path

    return lay


def visit(**query: str) -> AppTest:
    """The Runs page in a browser session of its own."""
    app = AppTest.from_file(str(MAIN), default_timeout=120).switch_page("../pages/runs.py")
    for name, value in query.items():
        app.query_params[name] = value
    return sound(app.run())


def shown(app: AppTest) -> list[str]:
    return list(table(app, "Run")["Run"])


def pick(app: AppTest, *ids: str) -> AppTest:
    (frame,) = app.dataframe
    rows = [shown(app).index(id) for id in ids]
    app.session_state[frame.key] = {"selection": {"rows": rows, "columns": [], "cells": []}}
    return sound(app.run())


def locked(app: AppTest) -> set[str]:
    return {name for name in ("open", "compare", "delete") if app.button(key=f"runs_{name}").disabled}


def test_every_figure_of_a_run_is_in_its_row(put: Put, runs_folder: Path) -> None:
    put("a", lineage={"budget": "20261101-110203-b1c2", "role": "uniform"}, multiple=1)
    store.rename(runs_folder / "a", "The half")
    store.set_note(runs_folder / "a", "a note")
    report = store.open_run(runs_folder / "a").report
    (row,) = table(visit(), "Run").to_dict("records")
    assert row["Name"] == "The half (mnist_mlp)" and row["Note"] == "a note" and row["Keep"] == "0.5"
    assert (row["Selector"], row["Re-fit"], row["ONNX"]) == ("i-SpaSP, as in the paper", "asymmetric", "")
    assert (
        row["Part of"] == "budget b1c2, 01 Nov 11:02, uniform"
        and row["Other settings"] == "multiple 1, tested on 50"
    )
    assert row["Parameters"] == report["params_after"] and row["MACs"] == report["macs_after"]
    assert row["Parameters left"] == pytest.approx(100 * report["params_after"] / 814_090)
    assert row["MACs left"] == pytest.approx(100 * report["macs_after"] / report["macs_before"])
    assert row["Accuracy"] == pytest.approx(100 * report["accuracy_after"])
    assert row["Accuracy, change"] == pytest.approx(
        100 * (report["accuracy_after"] - report["accuracy_before"])
    )
    assert row["Agreement"] == pytest.approx(100 * report["agreement"])
    assert row["Size"] == sum(file.stat().st_size for file in (runs_folder / "a").iterdir())
    assert row["Finished"] == pd.Timestamp("2026-11-01T12:00:00Z")


def test_a_run_that_a_budget_made_keeps_per_block_and_its_selector_can_be_read(put: Put) -> None:
    put("a", 2, keep_by_block={"fc1": 0.5}, lineage={"budget": "x", "role": "budget"}, selector="l1")
    put("b", 1, selector="l2")
    rows = table(visit(), "Run")
    assert rows["Keep"].tolist() == ["per block", "0.5"]
    assert rows["Selector"].tolist() == ["Weight norm, L1", "Weight norm, L2"]
    assert rows["Part of"].tolist() == ["budget x", ""]


def test_search_and_filters_and_the_columns_are_in_the_address(put: Put, runs_folder: Path) -> None:
    put("a", 3)
    put("b", 2, selector="taylor")
    put("c", 1, model="torchvision:resnet18", lineage={"sweep": "s0123456789"})
    store.set_note(runs_folder / "a", "for the board")
    app = visit()
    assert shown(app) == ["a", "b", "c"]
    for text, found in (
        ("BOARD", ["a"]), ("taylor", ["b"]), ("resnet18", ["c"]), ("s0123456789", ["c"]), ("mnist taylor", ["b"])
    ):  # fmt: skip
        sound(app.text_input(key="runs_find").set_value(text).run())
        assert shown(app) == found, text
    sound(app.text_input(key="runs_find").set_value("nothing like it").run())
    assert "None of the 3 runs matches" in words(app) and not app.dataframe
    sound(app.button(key="runs_clear").click().run())
    assert shown(app) == ["a", "b", "c"]
    sound(app.multiselect(key="runs_model").set_value(["mnist_mlp"]).run())
    sound(app.multiselect(key="runs_selector").set_value(["Taylor, uses labels"]).run())
    sound(app.text_input(key="runs_find").set_value("mnist").run())
    assert shown(app) == ["b"]
    fresh = visit(
        runs_model="mnist_mlp", runs_selector="Taylor, uses labels", runs_find="mnist", runs_columns="Seed"
    )
    assert shown(fresh) == ["b"] and fresh.text_input(key="runs_find").value == "mnist"
    assert list(fresh.dataframe[0].proto.column_order) == ["Name", "Seed"]


def test_the_actions_say_by_being_locked_how_many_they_take(put: Put) -> None:
    put("a", 2)
    put("b", 1)
    app = visit()
    assert locked(app) == {"open", "compare", "delete"} and "Tick runs" in words(app)
    assert locked(pick(app, "a")) == set()
    assert locked(pick(app, "a", "b")) == {"open"} and "2 runs" in words(app)


def test_what_was_picked_stays_picked_when_the_list_changes(put: Put, runs_folder: Path) -> None:
    put("a", 1)
    put("b", 2)
    app = pick(visit(), "a")
    put("c", 3)  # a job ended: all rows move down
    sound(app.run())
    assert shown(app) == ["c", "b", "a"] and app.session_state["runs_picked"] == ["a"]
    sound(app.button(key="runs_delete").click().run())
    assert sorted(run.run_id for run in store.list_runs(runs_folder)) == ["b", "c"]


def test_open_and_compare_go_to_their_pages(put: Put) -> None:
    put("a", 2)
    put("b", 1)
    app = pick(visit(), "a", "b")
    sound(app.button(key="runs_compare").click().run())
    assert app.query_params["runs"] in ("a,b", ["a,b"])
    app = pick(visit(), "b")
    sound(app.button(key="runs_open").click().run())
    assert app.query_params["run"] in ("b", ["b"]) and "Finished" in words(app)


def test_name_and_note(put: Put, runs_folder: Path) -> None:
    put("a")
    app = pick(visit(), "a")
    app.text_input(key="runs_new_name_0_a").set_value("Mine")
    app.text_area(key="runs_new_note_0_a").set_value("Why it is good")
    save = next(button for button in app.button if button.label == "Save")
    sound(save.click().run())
    assert store.read_about(runs_folder / "a") == {"name": "Mine", "note": "Why it is good"}
    assert list(table(app, "Name")["Name"]) == ["Mine (mnist_mlp)"] and "Name and note saved." in words(app)
    assert app.session_state["runs_picked"] == ["a"]
    shutil.rmtree(runs_folder / "a")  # in another window
    app.text_input(key="runs_new_name_1_a").set_value("Again")
    sound(next(button for button in app.button if button.label == "Save").click().run())
    assert "The run a is not there any more" in words(app) and "No finished run yet" in words(app)


def test_deleting_can_be_undone_and_the_line_stays(put: Put, runs_folder: Path) -> None:
    for day, name in enumerate("abc", 1):
        put(name, day)
    app = pick(visit(), "a", "b")
    sound(app.button(key="runs_delete").click().run())
    assert (
        shown(app) == ["c"]
        and "2 runs deleted." in words(app)
        and locked(app) == {"open", "compare", "delete"}
    )
    sound(app.text_input(key="runs_find").set_value("mnist").run())
    assert "2 runs deleted." in words(app)
    sound(app.button(key="runs_undo").click().run())
    assert shown(app) == ["c", "b", "a"] and "2 runs restored." in words(app)
    sound(app.button(key="runs_dismiss").click().run())
    assert "restored" not in words(app)
    # After a refresh the line is gone; the trash is on the page.
    gone = run_trash.delete(runs_folder, "a")
    app = visit()
    sound(app.button(key=f"runs_restore_{gone.key}").click().run())
    assert shown(app) == ["c", "b", "a"]


def test_a_run_that_another_window_deleted(put: Put, runs_folder: Path) -> None:
    put("a", 1)
    put("b", 2)
    app = pick(visit(), "a", "b")
    shutil.rmtree(runs_folder / "a")
    sound(app.button(key="runs_delete").click().run())
    text = words(app)
    assert "The run a is not there any more" in text and "1 run deleted." in text
    assert "No finished run yet" in text


def test_an_archive_goes_from_one_folder_to_another(put: Put, runs_folder: Path) -> None:
    put("a", 1)
    put("b", 2)
    app = pick(visit(), "a", "b")
    (download,) = app.get("download_button")
    assert not download.proto.disabled
    archive = store.archive(runs_folder / "a", runs_folder / "b")
    shutil.rmtree(runs_folder)
    app = visit()
    assert "No finished run yet" in words(app)
    sound(app.file_uploader(key="runs_upload_0").set_value(("mine.zip", archive, "application/zip")).run())
    assert shown(app) == ["b", "a"] and "2 runs imported." in words(app)
    assert app.session_state["runs_picked"] == ["b", "a"]
    sound(app.file_uploader(key="runs_upload_1").set_value(("mine.zip", archive, "application/zip")).run())
    assert "a is already here." in words(app) and "imported" not in words(app)
    assert len(store.list_runs(runs_folder)) == 2
    sound(app.file_uploader(key="runs_upload_2").set_value(("x.zip", b"no zip", "application/zip")).run())
    assert "x.zip cannot be read as a zip file: pack" in words(app) and len(store.list_runs(runs_folder)) == 2


def test_runs_that_cannot_be_opened_are_listed_and_can_be_deleted(put: Put, runs_folder: Path) -> None:
    put("a")
    (runs_folder / "later").mkdir()
    (runs_folder / "later" / "run.json").write_text('{"format": 99}')
    app = visit()
    assert "later** cannot be opened" in words(app) and "newer ispasp" in words(app) and shown(app) == ["a"]
    sound(app.button(key="runs_delete_later").click().run())
    assert "cannot be opened" not in words(app) and "1 run deleted." in words(app)


@pytest.mark.parametrize(
    "hostile",
    [
        {"keep": [1], "selector": ["x"], "reconstruct": {}, "model": 5, "lineage": "x", "kinds": 7},
        {"keep": float("nan"), "multiple": {"a": [1]}, "model": "<b>[x](y)</b>", "keep_by_block": 3},
    ],
)
def test_settings_of_a_run_from_elsewhere_may_hold_anything(put: Put, hostile: dict[str, Any]) -> None:
    path = put("a", **hostile)
    plain = json.loads((path / "run.json").read_text())
    plain["report"] = {"finished_at": "yesterday", "params_before": "x", "accuracy_after": []}
    (path / "run.json").write_text(json.dumps(plain))
    assert shown(visit()) == ["a"]


def test_300_runs_are_drawn_again_without_reading_them(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(300):
        put(f"run{i:03d}", 1 + i % 28, selector=("ispasp", "taylor")[i % 2])
    app = visit()
    monkeypatch.setattr(store, "read_json", lambda path: pytest.fail(f"{path} was read again"))
    begun = time.perf_counter()
    sound(app.run())
    assert len(shown(app)) == 300 and time.perf_counter() - begun < 5  # on a busy machine


def cut_off(runs_folder: Path, settings: RunSettings) -> str:
    """What a killed server leaves of a run: its plan, and a lock that nobody holds."""
    attempt = unfinished.begin(runs_folder, "cut", settings)
    attempt.let_go()
    return attempt.run_id


def test_an_interrupted_run_is_resumed(runs_folder: Path) -> None:
    settings = RunSettings("mnist_mlp", keep=0.2, samples=32, evaluation=50, device="cpu")
    run_id = cut_off(runs_folder, settings)
    app = visit()
    assert "Interrupted" in words(app) and "mnist_mlp, keep 0.2**: 0 blocks" in words(app)
    sound(app.button(key=f"runs_resume_{run_id}").click().run())
    until(app, lambda: len(app.dataframe) == 1)
    assert shown(app) == [run_id] and "Interrupted" not in words(app)
    assert "**Prune mnist_mlp, keep 0.2**: finished" in words(app)
    assert RunSettings.of(store.open_run(runs_folder / run_id)) == settings
    again = visit()  # another window did not ask
    assert "finished" not in words(again).replace("Finished", "").replace("finished run", "")
    press(app, next(button.key for button in app.button if str(button.key).startswith("runs_open_")))
    assert seen(app, "run") == run_id and "i-SpaSP Explorer" in words(app)


def test_the_address_of_a_job_from_before_a_restart_says_where_to_go_on() -> None:
    app = AppTest.from_file(str(MAIN), default_timeout=120)
    app.query_params["model"], app.query_params["job"] = "mnist_mlp", "0123456789ab"
    said = "That job is not known any more: the server was restarted."
    for _ in range(2):  # what follows by itself does not take it away
        assert said in words(sound(app.run())) and "job" not in app.query_params
    press(app, "gone_dismiss")
    assert said not in words(app)


def test_interrupted_work_is_discarded_and_live_work_is_not_offered(runs_folder: Path) -> None:
    settings = RunSettings("mnist_mlp", samples=32, evaluation=50, device="cpu")
    run_id = cut_off(runs_folder, settings)
    live = unfinished.begin(runs_folder, "live", settings)
    sweep = sweeps.SweepSettings(settings, (0.2, 0.3))
    begun = sweeps.execute(sweep, runs_folder)
    started = next(event for event in begun if isinstance(event, sweeps.SweepStarted))
    app = visit()
    assert {button.key for button in app.button if button.label == "Discard"} == {f"runs_discard_{run_id}"}
    sound(app.button(key=f"runs_discard_{run_id}").click().run())
    assert unfinished.find(runs_folder) == [] and "Interrupted" not in words(app)
    live.discard()
    begun.close()
    assert started.settings == sweep.runs()


def test_a_sweep_that_was_cut_off_is_resumed(runs_folder: Path) -> None:
    settings = RunSettings("mnist_mlp", samples=32, evaluation=50, device="cpu")
    begun = sweeps.execute(sweeps.SweepSettings(settings, (0.2, 0.3)), runs_folder)
    first = next(event for event in begun if isinstance(event, runs.RunSaved))
    begun.close()
    (sweep,) = sweeps.unfinished(runs_folder)
    app = visit()
    assert "**Sweep of mnist_mlp**: 1 of 2 runs finished" in words(app) and shown(app) == [first.run_id]
    sound(app.button(key=f"runs_resume_{sweep.id}").click().run())
    until(app, lambda: "Interrupted" not in words(app) and "Under way" not in words(app))
    assert sorted(table(app, "Keep")["Keep"]) == ["0.2", "0.3"]
    assert all(one.startswith(f"sweep {sweep.id[-4:]}, ") for one in table(app, "Part of")["Part of"])
    app = visit(runs_find=sweep.id)
    assert len(shown(app)) == 2 and sweeps.unfinished(runs_folder) == []


def test_what_waits_to_be_resumed_is_not_offered_again_on_any_page(runs_folder: Path) -> None:
    settings = RunSettings("mnist_mlp", samples=32, evaluation=50)
    run_id = cut_off(runs_folder, settings)
    begun = sweeps.execute(sweeps.SweepSettings(settings, (0.2, 0.3)), runs_folder)
    next(event for event in begun if isinstance(event, runs.RunSaved))
    begun.close()
    (sweep,) = sweeps.unfinished(runs_folder)
    assert len(unfinished.find(runs_folder)) == 2  # one of them goes on with the sweep
    free = threading.Event()

    def holds() -> Iterator[Progress]:
        while not free.wait(0.02):
            yield Progress(0.5, "holding the device")

    holder = registry.submit("Holds", holds, library.slot(settings.device), subject="elsewhere")
    app, stale = visit(), visit()
    compare = sound(visit().switch_page("../pages/compare.py").run())
    press(compare, f"resume_{sweep.id}")
    press(app, f"runs_resume_{run_id}")
    waiting = registry.get(seen(compare, "sweeping"))
    assert waiting is not None and waiting.state.value == "queued"
    for page in (app, compare):
        sound(page.run())
        assert not [button for button in page.button if button.label in ("Resume", "Discard")]
    assert "Interrupted" not in words(app)
    # A window that was drawn before that neither takes it up twice nor pulls it away.
    jobs = len(registry.jobs())
    press(stale, f"runs_resume_{sweep.id}")
    assert len(registry.jobs()) == jobs
    free.set()
    assert holder.wait()
    until(app, lambda: "Under way" not in words(app))
    assert len(shown(app)) == 3 and unfinished.find(runs_folder) == sweeps.unfinished(runs_folder) == []


@pytest.mark.parametrize(
    ("subject", "query", "help"),
    [
        ("sweep", "sweeping", "can be resumed"),
        ("budget", "measuring", "A run that is finished already stays"),
        ("sensitivity", "measuring", "within one step"),
        ("elsewhere", "", "Nothing is saved"),
    ],
)
def test_every_job_can_be_stopped_and_watched_where_it_has_a_page(
    subject: str, query: str, help: str
) -> None:
    job = registry.submit("Stands still", lambda: iter(()), "cpu", paused=True, subject=subject)
    app = visit()
    assert help in app.button(key=f"stop_{job.id}").help
    watch = [button for button in app.button if button.label == "Watch"]
    assert len(watch) == bool(query)
    if query:
        sound(watch[0].click().run())
        assert seen(app, query) == job.id and app.button(key=f"go_on_{query}")
        assert "**Stands still**: paused" in words(app)

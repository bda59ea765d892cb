"""The page without a browser: visit it, press, wait, read. What the tests of the app share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from ispasp.jobs import registry

MAIN = Path(__file__).resolve().parent.parent / "ui" / "main.py"


@pytest.fixture(autouse=True)
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "runs"
    monkeypatch.setenv("ISPASP_RUNS", str(folder))
    yield folder
    for job in registry.jobs():
        job.cancel()
    assert all(job.wait(timeout=60) for job in registry.jobs())


def visit(**query: str) -> AppTest:
    """A browser session of its own; the small model unless told otherwise."""
    app = AppTest.from_file(str(MAIN), default_timeout=120)
    for name, value in ({"model": "mnist_mlp", "keep": "0.2"} | query).items():
        app.query_params[name] = value
    return sound(app.run())


def sound(app: AppTest) -> AppTest:
    assert not app.exception, app.exception[0].value
    return app


def words(app: AppTest) -> str:
    """Everything a person can read on the page, roughly."""
    bars = [bar.proto.text for bar in app.get("progress")]
    kinds = (app.title, app.subheader, app.markdown, app.caption, app.error, app.info, app.warning)
    return "\n".join([*bars, *(str(element.value) for kind in kinds for element in kind)])


def until(app: AppTest, done: Callable[[], bool], seconds: float = 120) -> None:
    """Look again, as the page does by itself in a browser, until ``done``."""
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit, words(app)
        time.sleep(0.1)
        sound(app.run())


def press(app: AppTest, key: str) -> AppTest:
    return sound(app.button(key=key).click().run())


def few_samples(app: AppTest) -> AppTest:
    return sound(app.number_input(key="samples").set_value(64).run())


def finish(app: AppTest) -> str:
    """Run to the end; the run's id."""
    press(app, "run_button")
    until(app, lambda: "run" in app.query_params)
    return seen(app, "run")


def table(app: AppTest, column: str) -> pd.DataFrame:
    """The table that has this column."""
    return next(frame.value for frame in app.dataframe if column in frame.value)


def seen(app: AppTest, kind: str) -> str:
    """The id of the job or run in the address."""
    value = app.query_params[kind]
    return value if isinstance(value, str) else value[0]


def enabled(app: AppTest) -> set[str]:
    names = ("run_button", "step_button", "pause_button", "stop_button")
    return {name.removesuffix("_button") for name in names if not app.button(key=name).disabled}


def choose(app: AppTest, key: str, value: object) -> AppTest:
    return sound(app.selectbox(key=key).set_value(value).run())

"""The Runs page in a real browser: find a run, name it, delete it, take it back; all by what can be read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ispasp import runs, store
from ispasp.run_settings import RunSettings

pytestmark = pytest.mark.browser

ROW, TITLES, BOX = 35, 35, 16  # pixels: a row's height, the height of the titles, the middle of the boxes
NAMES = [f"listed-{letter}" for letter in "abcd"]


@pytest.fixture(scope="module")
def listed(runs_folder: Path) -> Iterator[Path]:
    """Four runs of one name in their note, newest first by letter, and one that cannot be opened."""
    settings = RunSettings("mnist_mlp", keep=0.5, samples=32, evaluation=50, device="cpu")
    *_, last = runs.execute(settings, runs_folder, runs_folder / NAMES[0])
    for day, name in enumerate(reversed(NAMES), 1):
        if name != last.run_id:
            shutil.copytree(last.path, runs_folder / name)
        plain = json.loads((runs_folder / name / "run.json").read_text())
        plain["report"]["finished_at"] = f"2031-01-{day:02d}T12:00:00+00:00"
        plain["report"]["accuracy_after"] = day / 10
        (runs_folder / name / "run.json").write_text(json.dumps(plain))
        store.set_note(runs_folder / name, "browserlist")
    (runs_folder / "listed-broken").mkdir()
    (runs_folder / "listed-broken" / "run.json").write_text('{"format": 99}')
    yield runs_folder
    for name in [*NAMES, "listed-broken"]:
        shutil.rmtree(runs_folder / name, ignore_errors=True)


def click(page: Any, x: int, y: int) -> None:
    """Click into the table, which is drawn on a canvas."""
    box = page.locator("[data-testid=stDataFrame] canvas").first.bounding_box()
    page.mouse.click(box["x"] + x, box["y"] + y)


def tick(page: Any, row: int) -> None:
    """Tick a row's box; rows count from 0 as they are shown."""
    click(page, BOX, TITLES + ROW * row + ROW // 2)


def shown(count: int) -> re.Pattern[str]:
    """The line under the table, which says of how many runs these are, if there are others."""
    return re.compile(f"^{count} (of .* )?runs, .* on disk")


def button(page: Any, name: str) -> Any:
    return page.locator(".st-key-runs_bar").get_by_role("button", name=re.compile(f"^{name}"))


@pytest.mark.slow
def test_find_sort_name_delete_and_undo(
    visit: Callable[..., Any],
    shoot: Callable[[Any, str], None],
    check_access: Callable[[Any], None],
    listed: Path,
    tmp_path: Path,
) -> None:
    page = visit("/runs")
    page.set_default_timeout(30_000)
    page.get_by_text("Tick runs at the left").wait_for()
    page.get_by_text("listed-broken").first.wait_for()
    search = page.get_by_role("searchbox", name="Search")
    search.fill("browserlist")
    search.press("Enter")
    page.get_by_text(shown(4)).wait_for()
    assert "runs_find=browserlist" in page.url
    shoot(page, "runs_light_1280")
    check_access(page)

    # Sorted in the browser: a tick means the run that is shown there, and the address gives the same list again.
    again = visit("/runs?runs_find=browserlist", dark=True)
    again.set_default_timeout(30_000)
    again.get_by_text(shown(4)).wait_for()
    again.wait_for_timeout(1000)  # the table is drawn after its text is there
    left = 33 + 130 + 72 + 164 + 90 + 94 + 126 + 33  # into the title "Accuracy"
    click(again, left, TITLES // 2)  # smallest first: d, then c
    again.wait_for_timeout(500)
    tick(again, 0)
    again.get_by_text("1 run picked").wait_for()
    button(again, "Name and note").click()
    again.get_by_role("textbox", name="Name").fill("The worst")
    again.get_by_role("button", name="Save").click()
    again.get_by_text("Name and note saved").wait_for()
    assert store.read_about(listed / "listed-d") == {"name": "The worst", "note": "browserlist"}
    again.get_by_text("1 run picked").wait_for()
    tick(again, 1)
    again.get_by_text("2 runs picked").wait_for()
    shoot(again, "runs_dark_1280")
    check_access(again)
    with again.expect_download() as download:
        button(again, "Download").click()
    assert download.value.suggested_filename == "ispasp-2-runs.zip"

    button(again, "Delete").click()
    again.get_by_text("2 runs deleted.").wait_for()
    again.get_by_text(shown(2)).wait_for()
    assert {name for name in NAMES if (listed / name).exists()} == {"listed-a", "listed-b"}
    again.get_by_role("button", name="Undo").click()
    again.get_by_text(shown(4)).wait_for()
    assert all((listed / name).is_dir() for name in NAMES)

    # What was downloaded is here already; once it says something else, it is imported beside that, under other names.
    for name in NAMES[2:]:
        file = listed / name / "run.json"
        file.write_text(file.read_text() + "\n")
    download.value.save_as(tmp_path / "two.zip")
    again.locator(".st-key-runs_import summary").click()
    again.locator(".st-key-runs_import input[type=file]").set_input_files(tmp_path / "two.zip")
    again.get_by_text("2 runs imported.").wait_for()
    again.get_by_text(re.compile("listed-d is called listed-d-.* here")).wait_for()
    new = [path for path in listed.iterdir() if re.fullmatch(r"listed-[cd]-\w+", path.name)]
    assert len(new) == 2
    for path in new:
        shutil.rmtree(path)

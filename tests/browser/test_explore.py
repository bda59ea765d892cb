"""The whole way a person goes, in a real browser. Assertions are on what can be read on the page."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ispasp import runs
from ispasp.run_settings import RunSettings
from tests.browser.test_runs_page import tick

pytestmark = pytest.mark.browser

Visit = Callable[..., Any]
Shoot = Callable[[Any, str], None]
Check = Callable[[Any], None]


def button(page: Any, name: str) -> Any:
    """The button whose label begins with ``name``; Run's goes on with its shortcut."""
    return page.get_by_role("button", name=re.compile(rf"^{name}\b"))


def status(page: Any) -> Any:
    return page.locator(".st-key-status")


def wait_for(page: Any, place: Any, text: str) -> None:
    place.get_by_text(re.compile(text)).first.wait_for()
    assert page.get_by_text("Traceback").count() == 0


def scroll(page: Any, text: str) -> None:
    page.get_by_text(text, exact=True).first.evaluate("e => e.scrollIntoView({block: 'start'})")
    page.mouse.wheel(0, -80)


@pytest.fixture(scope="session")
def saved_run(runs_folder: Path) -> str:
    """A finished run with several iterations per block, made beside the server."""
    settings = RunSettings("cifar10_resnet20", keep=0.3, samples=64)
    events = runs.execute(settings, runs_folder)
    return next(event for event in events if isinstance(event, runs.RunSaved)).run_id


def test_from_the_first_visit_to_the_downloaded_file(
    visit: Visit, shoot: Shoot, check_access: Check, tmp_path: Path
) -> None:
    page = visit()
    wait_for(page, page, "1. Press Run")
    wait_for(page, page, "layer3.2.conv1")
    shoot(page, "1_empty_light_1280")
    check_access(page)

    page.get_by_role("combobox", name=re.compile("Model")).click()
    page.get_by_role("option", name="cifar10_resnet20").click()
    exact = page.get_by_role("textbox", name=re.compile("Keep ratio, exact"))
    exact.fill("0.5")
    exact.press("Enter")
    wait_for(page, status(page), "Ready")

    for number in (1, 2, 3):
        button(page, "Step").click()
        wait_for(page, status(page), rf"Paused.*block {number} of 9")
        wait_for(
            page,
            page.locator(".st-key-sentence"),
            r"Iteration 1: \d+ of \d+ channels chosen; residual 0\.\d+",
        )
        wait_for(page, page.locator(".st-key-sentence"), "this one iteration decides")
    assert page.get_by_text("Settings are locked").is_visible()
    assert exact.is_disabled() and button(page, "Pause").is_disabled()
    shoot(page, "2_paused_light_1280")
    check_access(page)

    page.reload()
    wait_for(page, status(page), r"Paused.*block 3 of 9")
    assert exact.input_value() == "0.5" and exact.is_disabled()  # the job's own settings, also after F5

    strip = page.get_by_role("group", name="Blocks of the network")
    strip.get_by_role("button", name=re.compile("layer3.0.conv1")).click()
    wait_for(page, page, "has not been reached yet")
    button(page, "Follow the work").click()
    wait_for(page, page, "Block layer1.2.conv1")

    button(page, "Run").click()
    wait_for(page, status(page), "Running")
    shoot(page, "3_running_light_1280")
    button(page, "Pause").click()
    wait_for(page, status(page), "Paused")
    button(page, "Run").click()
    wait_for(page, status(page), "Finished in")
    wait_for(page, page, "Result: dense against pruned")
    # Rounding to 8 keeps exactly half of 16, 32 and 64 channels.
    for name, kept in (
        ("layer1.0.conv1", "16 → 8"),
        ("layer2.0.conv1", "32 → 16"),
        ("layer3.2.conv1", "64 → 32"),
    ):
        assert kept in strip.get_by_role("button", name=re.compile(name)).inner_text()
    figures = page.locator("[data-testid=stMetric]")
    assert [figures.nth(i).inner_text().split("\n")[0] for i in range(4)] == [
        "Parameters",
        "MACs per image",
        "Accuracy, 1,000 shipped test images",
        "Agreement, 1,000 shipped test images",
    ]
    assert re.search(r"−\d+ %, dense 0\.272 M", figures.nth(0).inner_text())
    shoot(page, "4_finished_light_1280")
    check_access(page)

    button(page, "Export to ONNX").click()
    wait_for(page, page, "Exporting")
    button(page, "Download ONNX").wait_for()
    wait_for(page, page, "Files and parity with torch")
    wait_for(page, page, "the dense model \\(95 % interval")
    scroll(page, "Take it away: export")
    shoot(page, "5_exported_light_1280")
    check_access(page)

    with page.expect_download() as download:
        button(page, "Download ONNX").click()
    file = tmp_path / "model.onnx"
    download.value.save_as(file)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    import numpy as np

    for batch in (1, 3):
        images = np.zeros((batch, 3, 32, 32), dtype=np.float32)
        assert session.run(None, {session.get_inputs()[0].name: images})[0].shape == (batch, 10)
    with page.expect_download() as download:
        button(page, "Download saved model").click()
    names = zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())).namelist()
    assert {Path(name).name for name in names} >= {"run.json", "model.safetensors", "model.onnx"}


@pytest.mark.slow
@pytest.mark.parametrize(("dark", "width"), [(True, 1280), (False, 1920), (True, 1920)])
def test_a_saved_run_in_both_themes_and_widths(
    visit: Visit, saved_run: str, shoot: Shoot, check_access: Check, dark: bool, width: int
) -> None:
    page = visit(f"/?run={saved_run}", dark=dark, width=width, height=1400)
    wait_for(page, status(page), "Finished in")
    wait_for(page, page, "Download saved model")
    shoot(page, f"6_finished_{'dark' if dark else 'light'}_{width}")
    check_access(page)
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, "the page scrolls sideways"


@pytest.mark.slow
def test_a_click_in_the_map_looks_into_that_channel(visit: Visit, saved_run: str, shoot: Shoot) -> None:
    page = visit(f"/?run={saved_run}", height=1400)
    wait_for(page, status(page), "Finished in")
    strip = page.get_by_role("group", name="Blocks of the network")
    strip.get_by_role("button", name=re.compile("layer2.1.conv1")).click()
    wait_for(page, page, "Block layer2.1.conv1")
    canvas = page.get_by_role("img", name=re.compile("32 channels of layer2.1.conv1"))
    canvas.wait_for()
    page.wait_for_timeout(1000)
    canvas.click(position={"x": 52, "y": 8})
    group = page.get_by_role("spinbutton", name=re.compile("Channel \\(0 to 31\\)"))
    page.wait_for_function("e => e.value === '0'", arg=group.element_handle())
    wait_for(page, page, "Importance and hidden sum at iteration 1")
    wait_for(page, page, "Its filters")
    shoot(page, "7_inspector")


@pytest.mark.slow
def test_the_runs_page_opens_a_run(visit: Visit, saved_run: str, shoot: Shoot, check_access: Check) -> None:
    page = visit(f"/runs?runs_find={saved_run}", dark=True)  # a deep link, as from a bookmark
    page.set_default_timeout(30_000)
    wait_for(page, page, "Finished runs")
    wait_for(page, page, "1 (of .* )?runs?, .* on disk")
    page.wait_for_timeout(1000)  # the table is drawn after its text is there
    shoot(page, "8_runs_dark_1280")
    check_access(page)
    tick(page, 0)
    page.get_by_text("1 run picked").wait_for()
    page.locator(".st-key-runs_bar").get_by_role("button", name=re.compile("^Open")).click()
    wait_for(page, status(page), "Finished in")
    assert f"run={saved_run}" in page.url


def test_a_wrong_keep_ratio_is_one_sentence_by_the_field(
    visit: Visit, shoot: Shoot, check_access: Check
) -> None:
    page = visit()
    wait_for(page, page, "1. Press Run")
    exact = page.get_by_role("textbox", name=re.compile("Keep ratio, exact"))
    exact.fill("1.5")
    exact.press("Enter")
    wait_for(page, page, r"Keep ratio: 1\.5 was given; give a number above 0 and up to 1")
    page.wait_for_function("e => e.disabled", arg=button(page, "Run").element_handle())
    shoot(page, "9_wrong_keep")
    check_access(page)


@pytest.mark.slow
def test_a_block_may_have_a_keep_ratio_of_its_own(visit: Visit, shoot: Shoot) -> None:
    page = visit("/?model=mnist_mlp")
    wait_for(page, page, "1. Press Run")
    wait_for(page, page, "1024 → 512")
    button(page, "Per block").click()
    table = page.locator("[data-testid=stDataFrame] canvas").first
    table.wait_for()
    page.wait_for_timeout(1000)

    def give(keep: str) -> None:
        box = table.bounding_box()
        page.mouse.click(box["x"] + box["width"] - 30, box["y"] + 52)  # the last cell of the first row
        page.wait_for_timeout(300)
        page.keyboard.press("Enter")
        page.wait_for_timeout(300)
        page.keyboard.press("Control+a")
        page.keyboard.type(keep, delay=100)
        page.keyboard.press("Enter")

    give("0.25")
    wait_for(page, page, "1024 → 256")
    shoot(page, "10_per_block")
    give("3")
    wait_for(page, page, r"fc1 was given 3; give a number above 0 and up to 1")
    assert button(page, "Run").is_disabled()


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_role("combobox", name=re.compile(label)).click()
    page.get_by_role("option", name=option, exact=True).click()


@pytest.mark.slow
def test_a_greedy_selection_that_is_distilled(visit: Visit, shoot: Shoot, check_access: Check) -> None:
    page = visit("/?model=mnist_mlp&keep=0.1", height=1400)
    wait_for(page, page, "1. Press Run")
    choose(page, "Selector", "Greedy forward selection")
    wait_for(page, page, "adds, one by one, the group that lowers the residual most")
    choose(page, "Distil", "400 steps")
    wait_for(page, status(page), "then distils for 400 steps")
    check_access(page)
    button(page, "Run").click()
    wait_for(page, status(page), r"distilling, step \d+ of 400 · about")
    button(page, "Pause").click()
    wait_for(page, status(page), r"Paused while distilling, step \d+ of 400")
    shoot(page, "11_distilling")
    button(page, "Run").click()
    wait_for(page, status(page), r"Distilled in 400 steps, .*: accuracy \d+\.\d % → \d+\.\d %")
    wait_for(
        page,
        page.locator(".st-key-sentence"),
        r"Iteration 32: \d neurons more; residual .*; all 104 are chosen",
    )
    wait_for(
        page,
        page.locator(".st-key-sentence"),
        r"Re-fit at the end, asymmetric: error \S+ → \S+ of its target",
    )
    wait_for(page, page, "lower the residual most")
    shoot(page, "12_greedy_distilled")
    check_access(page)


@pytest.mark.slow
def test_ctrl_enter_runs_and_iterations_can_be_compared(
    visit: Visit, shoot: Shoot, check_access: Check
) -> None:
    """Its picture is the README's: copy ``screenshots/readme.png`` to ``docs/explore.png``."""
    page = visit("/?keep=0.3", height=1330)
    wait_for(page, page, "1. Press Run")
    wait_for(page, page, "layer3.2.conv1")
    page.keyboard.press("Control+Enter")
    wait_for(page, status(page), "Finished in")
    wait_for(page, page, "Result: dense against pruned")
    wait_for(page, page, "Rounding to the multiple changed the kept fraction")
    strip = page.get_by_role("group", name="Blocks of the network")
    strip.get_by_role("button", name=re.compile("layer3.1.conv1")).click()
    wait_for(page, page, "Block layer3.1.conv1")
    page.get_by_role("radio", name="2", exact=True).click()
    wait_for(
        page,
        page.locator(".st-key-sentence"),
        r"Iteration 2: \d+ channels? in, \d+ out; residual 0\.\d+ → 0\.\d+",
    )
    wait_for(page, page, "Importance and hidden sum at iteration 2")
    page.mouse.move(5, 600)
    page.wait_for_timeout(1500)
    shoot(page, "readme")

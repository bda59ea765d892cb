"""Deploy in a browser: a run becomes files that are checked and timed, and a report that opens without a network."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from ispasp import runs
from ispasp.run_settings import RunSettings

expect = pytest.importorskip("playwright.sync_api").expect


@pytest.mark.slow
def test_a_run_is_exported_checked_timed_and_reported(
    browser: Any,
    visit: Callable[..., Any],
    runs_folder: Path,
    tmp_path: Path,
    shoot: Callable[[Any, str], None],
    check_access: Callable[[Any], None],
) -> None:
    settings = RunSettings("mnist_mlp", keep=0.37, samples=64, evaluation=200, device="cpu")
    for _ in runs.execute(settings, runs_folder, runs_folder / "deployed"):
        pass
    page = visit("/deploy")
    choice = page.get_by_role("combobox", name=re.compile("Run"))
    choice.fill("0.37")
    page.get_by_role("option", name=re.compile("keep 0.37")).click()
    page.get_by_text("not done yet").nth(3).wait_for()
    assert "run=deployed" in page.url

    page.get_by_role("button", name="Export", exact=True).click()
    page.get_by_text("All 4 files answer as torch does").wait_for()  # FP32 and INT8 static, dense and pruned
    page.get_by_test_id("stDataFrame").first.scroll_into_view_if_needed()  # it is filled once it can be seen
    expect(page.locator('[role="gridcell"]').filter(has_text="✓ passed")).to_have_count(4)
    page.get_by_role("combobox", name=re.compile("Take a file")).click()
    page.get_by_role("option", name=re.compile("Pruned, INT8 static")).click()
    page.get_by_text(re.compile(r"Worst example")).wait_for()
    page.get_by_text("Show it", exact=True).click()
    page.get_by_role("img", name=re.compile("for which the file differs most from torch")).wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download ONNX").click()
    assert download.value.suggested_filename == "model-int8-static.onnx"
    onnx.checker.check_model(onnx.load(download.value.path()))

    seconds = page.get_by_role("spinbutton", name=re.compile("Seconds each"))
    seconds.fill("0.2")
    seconds.press("Enter")
    page.get_by_text("2 lines, about 0.4 s").wait_for()
    page.get_by_role("button", name="Measure", exact=True).click()
    page.get_by_text("Of 2 lines:").wait_for()
    expect(page.get_by_role("button", name="Measure again")).to_be_enabled()
    shoot(page, "60_deploy_light_1280")
    check_access(page)

    with page.expect_download() as download:
        page.get_by_role("button", name="Download report").click()
    report = tmp_path / download.value.suggested_filename
    download.value.save_as(report)
    context = browser.new_context()
    try:
        context.set_offline(True)
        alone = context.new_page()
        asked: list[str] = []
        alone.on("request", lambda request: asked.append(request.url))
        alone.goto(report.as_uri())
        alone.get_by_role("heading", name="deployed").wait_for()
        expect(alone.get_by_role("heading", name="In short")).to_be_visible()
        alone.locator(".js-plotly-plot").first.wait_for()
        assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
        shoot(alone, "61_report_alone")
    finally:
        context.close()

    again = visit("/deploy?run=deployed", dark=True, width=1920)
    again.get_by_text("Of 2 lines:").wait_for()
    shoot(again, "62_deploy_dark_1920")
    check_access(again)

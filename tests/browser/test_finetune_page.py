"""Fine-tune in a browser: started, refreshed in the middle, stopped with the best so far, and the result stays."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ispasp import runs
from ispasp.run_settings import RunSettings

pytestmark = [pytest.mark.browser, pytest.mark.slow]

expect = pytest.importorskip("playwright.sync_api").expect


def test_a_run_is_trained_watched_and_stopped_with_the_best(
    visit: Callable[..., Any],
    runs_folder: Path,
    shoot: Callable[[Any, str], None],
    check_access: Callable[[Any], None],
) -> None:
    settings = RunSettings("mnist_mlp", keep=0.13, samples=64, evaluation=200, device="cpu")
    for _ in runs.execute(settings, runs_folder, runs_folder / "to-be-tuned"):
        pass
    page = visit("/finetune?run=to-be-tuned")
    page.get_by_text("20 epochs over 4,000 images").wait_for()
    page.get_by_text("Finer settings").click()
    epochs = page.get_by_role("spinbutton", name="Epochs")
    epochs.fill("5000")
    epochs.press("Enter")
    page.get_by_text("5,000 epochs over 4,000 images").wait_for()
    page.keyboard.press("Control+Enter")
    page.get_by_text(re.compile(r"Epoch \d+ of 5000: loss")).wait_for()
    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(2)
    assert "tuning=" in page.url

    page.reload()
    page.get_by_text(re.compile(r"Epoch \d+ of 5000: loss")).wait_for()
    page.get_by_text("Settings for the next one").click()
    expect(page.get_by_role("button", name=re.compile("^Run"))).to_be_disabled()
    other = visit("/finetune?run=to-be-tuned")
    other.get_by_role("button", name="Pause", exact=True).click()
    page.get_by_role("button", name="Go on").wait_for()
    other.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="Pause", exact=True).click()  # which is seen there, too
    page.get_by_role("button", name="Go on").wait_for()
    page.get_by_text("Loss", exact=True).scroll_into_view_if_needed()
    shoot(page, "70_finetune_paused_light_1280")
    check_access(page)

    page.get_by_role("button", name="Stop and keep the best").click()
    page.get_by_text("What was gained").wait_for()
    page.get_by_text(
        re.compile(r"Stopped in epoch \d+ of 5000; the weights of epoch \d+ are kept")
    ).wait_for()
    assert "result=" in page.url and "tuning=" not in page.url
    with page.expect_download() as download:
        page.get_by_role("button", name="Download curve (CSV)").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0].startswith("stage,epoch,epochs,learning_rate,loss") and len(lines) > 1

    again = visit("/finetune?run=to-be-tuned", dark=True, width=1920)
    again.get_by_text("What was gained").wait_for()
    again.locator(".js-plotly-plot").first.wait_for()
    shoot(again, "71_finetune_result_dark_1920")
    check_access(again)
    again.get_by_role("button", name="Open in Explore").last.click()
    again.get_by_text("Result: dense against pruned").wait_for()

"""A model of one's own in a real browser: what unfolds, what it says without a network, and a run of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.test_explore import button, status, wait_for

pytestmark = pytest.mark.browser

Visit = Callable[..., Any]
Shoot = Callable[[Any, str], None]
Check = Callable[[Any], None]


@pytest.mark.slow
def test_from_a_torchvision_name_to_its_result(visit: Visit, shoot: Shoot, check_access: Check) -> None:
    page = visit()
    wait_for(page, page, "layer3.2.conv1")
    page.get_by_role("combobox", name=re.compile("Model")).click()
    page.get_by_role("option", name=re.compile("torchvision model")).click()
    page.get_by_role("combobox", name=re.compile("Architecture")).fill("squeezenet1_1")
    page.get_by_role("option", name="squeezenet1_1").click()
    wait_for(
        page, status(page), "published weights of squeezenet1_1 are not on this machine and cannot be fetched"
    )
    wait_for(page, page, "9 blocks of channels can be pruned")
    shoot(page, "20_no_network_light_1280")
    check_access(page)

    button(page, "Use random weights").click()
    wait_for(page, status(page), "Choose data to calibrate with")
    page.reload()  # the address holds the choice
    wait_for(page, status(page), "Choose data to calibrate with")
    button(page, "Use noise").click()
    wait_for(page, status(page), "Ready")
    page.get_by_text("Finer settings").click()
    samples = page.get_by_role("spinbutton", name=re.compile("Samples"))
    samples.fill("8")
    samples.press("Enter")
    wait_for(page, page, "8 samples")
    page.get_by_text("Finer settings").click()
    button(page, "Run").click()
    wait_for(page, status(page), "Finished in")
    wait_for(page, page, "random weights: accuracy means nothing")
    wait_for(page, page, "The inputs are noise")
    figures = page.locator("[data-testid=stMetric]")
    assert "unknown" in figures.nth(2).inner_text()
    wait_for(page, page, "Its filters")
    shoot(page, "21_own_model_finished_light_1280")
    check_access(page)

    run = page.url.partition("run=")[2].partition("&")[0]
    other = visit(f"/?run={run}", dark=True, width=1920, height=1400)
    wait_for(other, status(other), "Finished in")
    wait_for(other, other, "Its filters")
    shoot(other, "22_own_model_finished_dark_1920")
    check_access(other)


@pytest.mark.slow
def test_heads_and_neurons_of_sentence_pairs(visit: Visit, shoot: Shoot, check_access: Check) -> None:
    pytest.importorskip("transformers")
    page = visit("/?model=nli_bert", dark=True, height=1400)
    wait_for(page, page, "0.attention.self.query")
    page.get_by_text("Finer settings").click()
    wait_for(page, page, "attention heads")
    check_access(page)
    page.get_by_text("Finer settings").click()
    button(page, "Run").click()
    wait_for(page, status(page), "Finished in")
    wait_for(page, page, "Look into a head")
    wait_for(page, page, "MACs per sentence pair")
    wait_for(page, page, "Its weights")
    shoot(page, "23_sentence_pairs_dark_1280")
    check_access(page)


@pytest.mark.slow
def test_stop_while_paused_ends_without_a_reload(visit: Visit) -> None:
    page = visit("/?model=torchvision:squeezenet1_1&weights=random&data=noise")
    wait_for(page, status(page), "Ready")
    button(page, "Step").click()
    wait_for(page, status(page), "Paused")
    button(page, "Stop").click()
    wait_for(page, status(page), "Stopped.*nothing was saved")
    assert page.get_by_text("Settings are locked").count() == 0

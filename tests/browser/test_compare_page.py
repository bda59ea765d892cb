"""Compare in a browser: choose two runs, read how they differ, and find the same view behind the shared address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.compared_runs import make

expect = pytest.importorskip("playwright.sync_api").expect


def click_point(page: Any, number: int) -> None:
    """Click one of the runs in the picture, counted as they are drawn."""
    point = page.locator(".js-plotly-plot").first.locator(".scatterlayer path.point").nth(number)
    point.wait_for()
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(300)  # plotly looks for the nearest point when the pointer moves
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def read(page: Any) -> list[str]:
    """What a person reads about the two chosen runs."""
    expect(page.get_by_text("Examples, A → B")).to_be_visible()
    expect(page.get_by_text("Accuracy by class, dense and A")).to_have_count(0)  # of the page run before
    said = page.get_by_text("B differs from A in:").locator("..")
    cards = page.locator('[class*="st-key-card_"] [data-testid="stMarkdown"]')
    changed = page.get_by_text("answers of 200 changed")
    return [said.inner_text(), *cards.all_inner_texts(), changed.inner_text()]


@pytest.mark.slow
def test_two_runs_are_compared_and_the_view_is_shared(
    visit: Callable[..., Any],
    runs_folder: Path,
    shoot: Callable[[Any, str], None],
    check_access: Callable[[Any], None],
) -> None:
    make(runs_folder)
    page = visit("/compare")
    page.set_default_timeout(25_000)
    page.get_by_text("Hover over a point to see what it is").wait_for()
    page.get_by_role("radio", name="Agreement").click()
    page.locator(".js-plotly-plot").get_by_text("Agreement with dense, %").wait_for()
    # The list ends with the dense model's star, which is no run.
    click_point(page, 0)
    page.get_by_text("Accuracy by class, dense and A").wait_for()
    click_point(page, 2)
    found = read(page)
    assert "selector" in found[0] or "keep" in found[0]
    page.get_by_text("Show the examples", exact=True).click()
    picture = page.locator('[role="tabpanel"] [data-testid="stImage"] img').first
    picture.wait_for()
    shoot(page, "30_compare_two_light_1280")
    check_access(page)
    address = page.url
    assert "runs=" in address and "y=Agreement" in address and "flips=true" in address

    other = visit(address.removeprefix(address.split("/compare")[0]), dark=True, width=1920)
    assert read(other) == found
    expect(other.get_by_role("radio", name="Agreement")).to_be_checked()
    other.locator('[role="tabpanel"] [data-testid="stImage"] img').first.wait_for()
    assert other.url == address
    shoot(other, "31_compare_two_dark_1920")
    check_access(other)


@pytest.mark.slow
def test_an_ended_sweep_can_be_shown_alone_and_closed(
    visit: Callable[..., Any], runs_folder: Path, shoot: Callable[[Any, str], None]
) -> None:
    if not (runs_folder / "wide").exists():
        make(runs_folder)
    page = visit("/compare")
    page.set_default_timeout(60_000)
    page.get_by_text("Set runs beside each other").wait_for()
    page.get_by_text("New sweep", exact=True).click()
    chosen = page.get_by_role("combobox", name="Model").first
    chosen.fill("mnist_mlp")
    page.get_by_role("option", name="mnist_mlp").click()
    page.get_by_text("6 runs of mnist_mlp").wait_for()
    page.get_by_role("button", name="Start the sweep").click()
    page.get_by_text("finished in").wait_for()
    page.get_by_role("button", name="Show only its runs").click()
    page.get_by_text("Showing 6 runs").wait_for()
    shoot(page, "32_compare_sweep_ended_light_1280")
    assert "part_of=sweep" in page.url and "of=mnist_mlp" in page.url
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_text("finished in")).to_have_count(0)
    expect(page.get_by_text("Showing 6 runs")).to_be_visible()
    assert "sweeping" not in page.url

    other = visit(page.url.removeprefix(page.url.split("/compare")[0]))
    other.get_by_text("Showing 6 runs").wait_for()

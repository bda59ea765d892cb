"""A budget in a browser: fill in the form, read target against measured, refresh, and find it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

expect = pytest.importorskip("playwright.sync_api").expect


def type_number(page: Any, label: str, value: str) -> None:
    field = page.get_by_role("spinbutton", name=label, exact=True)
    field.fill(value)
    field.press("Enter")


@pytest.mark.slow
def test_a_budget_is_met_and_survives_a_refresh(
    visit: Callable[..., Any], shoot: Callable[[Any, str], None], check_access: Callable[[Any], None]
) -> None:
    page = visit("/budget")
    page.get_by_text("1. Meet the budget").wait_for()
    shoot(page, "40_budget_empty_light_1280")
    check_access(page)
    page.get_by_role("combobox", name="Model").click()
    page.get_by_role("option", name="mnist_mlp").click()
    page.get_by_text("of the MACs, mnist_mlp:").wait_for()
    type_number(page, "Samples", "64")
    type_number(page, "At most", "30")
    page.get_by_text("At most 30 % of the MACs, mnist_mlp: 0.244 M of 0.813 M.").wait_for()
    page.wait_for_url("**budget_samples=64*")
    page.get_by_role("button", name="Meet the budget").click()
    said = page.get_by_text("Asked for at most 30 % of the MACs:")
    said.wait_for()
    expect(page.get_by_text("Met", exact=True)).to_be_visible()
    page.get_by_text("When one block alone is pruned").wait_for()
    shoot(page, "41_budget_met_light_1280")
    found, address = said.inner_text(), page.url
    assert "budget=" in address and "measuring" not in address

    page.reload()
    said.wait_for()
    assert said.inner_text() == found and page.url == address
    expect(page.get_by_role("spinbutton", name="At most", exact=True)).to_have_value("30")
    expect(page.get_by_role("combobox", name="Model")).to_have_value("mnist_mlp")
    check_access(page)

    other = visit(address.removeprefix(address.split("/budget")[0]), dark=True, width=1920)
    expect(other.get_by_text("Asked for at most 30 % of the MACs:")).to_have_text(found)
    other.get_by_text("Residual", exact=True).click()
    expect(other.get_by_text("residual of the block")).to_be_visible()
    shoot(other, "42_budget_met_dark_1920")
    check_access(other)
    other.get_by_role("button", name="Open in Explore").click()
    other.wait_for_url("**run=*")
    other.get_by_text("Finished", exact=True).wait_for()

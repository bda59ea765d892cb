"""Plots as PNG files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go


def write_png(figure: go.Figure, path: Path) -> None:
    """Write a figure that has a width and a height as a PNG, the way chromium shows it, with twice as many pixels each
    way; needs chromium and playwright."""
    from playwright.sync_api import ViewportSize, sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page(
            device_scale_factor=2,
            viewport=ViewportSize(width=figure.layout.width, height=figure.layout.height),
        )
        page.set_content(
            f"<body style='margin: 0'>{figure.to_html(include_plotlyjs=True, full_html=False)}</body>"
        )
        page.locator(".js-plotly-plot .legend").first.wait_for()
        page.screenshot(path=path)
        chromium.close()

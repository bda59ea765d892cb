"""A real server on a free port with runs of its own, and a real browser looking at it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOTS = Path(__file__).parent / "screenshots"
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_SECONDS = 120


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip("no chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def address(browser: Any, runs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app's address. Asks for the browser first, so that without one no server is started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        "app.py",
        "--server.port",
        str(port),
        "--server.headless",
        "true",
    ]
    with log.open("w") as output:
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            # No network, and none of the weights that this machine may have fetched: both would change what is said.
            env=os.environ
            | {
                "ISPASP_RUNS": str(runs_folder),
                "TORCH_HOME": str(log.parent / "torch"),
                "https_proxy": "http://127.0.0.1:9",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            limit = time.monotonic() + START_SECONDS
            while True:
                assert server.poll() is None and time.monotonic() < limit, log.read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=30)


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Open a page in a browser session of its own: ``visit("/?run=...", dark=True, width=1920)``."""
    contexts = []

    def open_page(path: str = "/", dark: bool = False, width: int = 1280, height: int = 900) -> Any:
        context = browser.new_context(
            color_scheme="dark" if dark else "light",
            viewport={"width": width, "height": height},
            accept_downloads=True,
            reduced_motion="reduce",
        )
        context.set_default_timeout(120_000)  # the first trace on a busy machine takes its time
        contexts.append(context)
        page = context.new_page()
        page.goto(address + path)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def shoot() -> Callable[[Any, str], None]:
    """Keep a picture of the page; git ignores the folder."""
    SHOTS.mkdir(exist_ok=True)

    def keep(page: Any, name: str) -> None:
        page.wait_for_timeout(800)  # let the plots and pictures of the last run arrive
        page.screenshot(path=SHOTS / f"{name}.png")

    return keep


@pytest.fixture
def check_access() -> Callable[[Any], None]:
    """Fail on any serious or critical finding of axe-core."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check(page: Any) -> None:
        page.wait_for_timeout(500)
        found = axe.run(page).response["violations"]
        bad = [f for f in found if f["impact"] in ("serious", "critical")]
        assert not bad, "\n".join(
            f"{f['id']}: {f['help']}: {[node['html'][:200] for node in f['nodes'][:3]]}" for f in bad
        )

    return check

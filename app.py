"""The app's entry: ``streamlit run app.py``. Pages and layout live in ``ui/`` and ``pages/``."""

import asyncio
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st

# Streamlit does not put this folder on the path, where ispasp and ui are.
ROOT = Path(__file__).resolve().parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def warm() -> None:
    """Load the library and read the first model's network, so that the first visitor need not wait."""
    from ui import library  # takes seconds, and the server is to answer meanwhile

    library.warm()


def open_page() -> None:
    """Open the app in the browser; where the port was taken, the option holds the one used instead."""
    webbrowser.open(f"http://{st.get_option('server.address') or 'localhost'}:{st.get_option('server.port')}")


@asynccontextmanager
async def page_opened(_: st.App) -> AsyncIterator[dict[str, object]]:
    """Open the page where there is a display: Streamlit itself does not when it runs an ``st.App``."""
    threading.Thread(target=warm, name="warm", daemon=True).start()
    if not st.get_option("server.headless"):
        # The server listens only once this start-up is over.
        asyncio.get_running_loop().call_later(1.0, open_page)
    yield {}


app = st.App("ui/main.py", lifespan=page_opened)

"""Navigation and page settings; runs before every page."""

import sys
from pathlib import Path

import streamlit as st

# Streamlit puts this file's folder on the path, not the one above it, where ispasp and ui are.
ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from ui import library, style  # noqa: E402

st.set_page_config(page_title="i-SpaSP Explorer", layout="wide")
library.settle_once()
style.apply()
page = st.navigation(
    [
        st.Page(ROOT / "pages" / "explore.py", title="Explore", default=True),
        st.Page(ROOT / "pages" / "compare.py", title="Compare", url_path="compare"),
        st.Page(ROOT / "pages" / "budget.py", title="Budget", url_path="budget"),
        st.Page(ROOT / "pages" / "finetune.py", title="Fine-tune", url_path="finetune"),
        st.Page(ROOT / "pages" / "deploy.py", title="Deploy", url_path="deploy"),
        st.Page(ROOT / "pages" / "theory.py", title="Theory", url_path="theory"),
        st.Page(ROOT / "pages" / "runs.py", title="Runs", url_path="runs"),
    ],
    position="top",
)
page.run()

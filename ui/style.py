"""The few rules of style that the theme in .streamlit/config.toml cannot say, and the theme in use."""

import streamlit as st

_CSS = """
<style>
/* The page begins right under the navigation, and lines of text stay readable on wide screens. */
[data-testid="stMainBlockContainer"] { padding-top: 4.5rem; padding-bottom: 3rem; max-width: 1760px; }
h1 { font-size: 1.7rem !important; padding: 0 0 0.5rem !important; }
h3 { font-size: 1.2rem !important; }
[data-testid="stMetric"] { padding: 0 !important; }
[data-testid="stMetric"] > div { padding: 0.55rem 0.9rem !important; }
.st-key-title [data-testid="stCaptionContainer"] { padding-bottom: 0.35rem; }
/* A line about a choice belongs to the choice above it; two lines of room, so that nothing jumps. */
.st-key-selector_line, .st-key-refit_line, .st-key-distil_line { margin-top: -0.6rem; min-height: 2.6rem; }
.st-key-own_model [data-testid="stCaptionContainer"] { margin-top: -0.6rem; }
.st-key-own_model { min-height: 8.4rem; }
.st-key-recalibrate_line { padding-bottom: 0.5rem; }
.st-key-block_title { min-height: 56px; }
.st-key-plan { min-height: 82px; }
[class*="st-key-section_"] { margin-top: 0.9rem; }
.st-key-budget_limits [role="radiogroup"] button, .st-key-budget_limits button[data-testid*="segmented"]
  { min-height: 40px; } /* as the fields beside it */
/* Above a legend, Vega leaves room for a title even where there is none. */
.st-key-tune_live [data-testid="stVegaLiteChart"] { margin-top: -1.7rem; }
.st-key-tune_live [data-testid="stMarkdown"] { position: relative; z-index: 1; }
.st-key-status [data-testid="stAlertContainer"] { padding: 0.55rem 0.9rem; min-height: 0; }
/* Small print and marked choices keep a contrast of 4.5 to 1 in both themes. */
[data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] p { color: inherit; opacity: 0.82; }
button:not(:disabled) kbd { opacity: 1 !important; color: inherit !important; }
[data-testid="stSliderThumbValue"] p, [data-testid="stButtonGroup"] [aria-checked="true"] p,
  [data-testid="stButtonGroup"] [aria-pressed="true"] p,
  [data-testid="stButtonGroup"] [data-testid$="Active"] p { color: %(marked)s !important; }
/* Folded, Streamlit fades it below that contrast. */
.st-key-finer summary, .st-key-tune_finer summary { opacity: 0.85 !important; }
[data-testid="stWidgetLabel"] p { color: %(text)s; } /* of locked settings, too: they are still read */
</style>
"""


def apply() -> None:
    """Put the rules on the page; call once per page run."""
    marked, text = ("#8fc8f5", "#e6ebf0") if dark() else ("#174f9f", "#1f2a37")
    st.html(_CSS % {"marked": marked, "text": text})


def dark() -> bool:
    """Whether the person sees the dark theme."""
    return st.context.theme.type == "dark"

"""How to prune, as a person meets it: selector, re-fit and distillation, each with one line about the choice."""

from __future__ import annotations

from typing import Any

import streamlit as st

from ispasp import selectors
from ispasp.settings import RECONSTRUCTIONS
from ispasp.vocabulary import refit_words, selector_words
from ui.words import HELP

STEPS = (0, 100, 200, 400, 1000)


def draw(locked: bool) -> dict[str, Any]:
    """The row of choices; the settings they amount to."""
    selector_place, refit_place, distil_place = st.columns([1.2, 1.2, 1], gap="medium")
    with selector_place:
        selector = st.selectbox(
            "Selector", selectors.names(), format_func=lambda name: selector_words(name).title, key="selector",
            help=HELP["selector"], disabled=locked,
        )  # fmt: skip
        _line("selector_line", selector_words(selector).line)
    with refit_place:
        reconstruct = st.selectbox(
            "Re-fit", RECONSTRUCTIONS, format_func=lambda name: refit_words(name)[0], key="reconstruct",
            help=HELP["reconstruct"], disabled=locked,
        )  # fmt: skip
        _line("refit_line", refit_words(reconstruct)[1])
    with distil_place:
        # A run from the command line may have any number of steps.
        options = sorted({*STEPS, st.session_state.distil})
        steps = st.selectbox(
            "Distil", options, format_func=lambda n: f"{n:,} steps" if n else "off", key="distil",
            help=HELP["distil"], disabled=locked,
        )  # fmt: skip
        _line("distil_line", distil_line(steps))
    return {"selector": selector, "reconstruct": reconstruct, "distil": steps}


def distil_line(steps: int) -> str:
    """What a number of distillation steps means."""
    if not steps:
        return "Nothing is trained; everything else is closed form."
    return f"{steps:,} gradient steps on the unlabelled data: may take minutes, can be stopped."


def _line(key: str, text: str) -> None:
    with st.container(key=key):
        st.caption(text)

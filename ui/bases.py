"""What a sweep or a budget starts from: a model with the settings last used on Explore, or as it comes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import streamlit as st

from ispasp import zoo
from ispasp.run_settings import RunSettings
from ui import library
from ui.words import source_words, unusual_words

HELP = (
    "The sample models, and every model that was set up on Explore in this browser session, with all its other "
    "settings."
)
_USUAL = dataclasses.asdict(RunSettings(library.FIRST_MODEL))


def bases() -> dict[str, RunSettings]:
    """By title: the settings last used on Explore for every model, and the sample models."""
    found: dict[str, RunSettings] = {}
    for key, value in st.session_state.items():
        if str(key).startswith("last_") and isinstance(value, RunSettings):
            found[source_words(value.model)] = value
    usual = {
        name: RunSettings(name, samples=library.sample_count(zoo.card(name).dataset)) for name in zoo.names()
    }
    return {**{name: found.get(name, base) for name, base in usual.items()}, **found}


def last(found: Collection[str]) -> str:
    """The title of the model last looked at on Explore; the first model where that is none of ``found``."""
    source, _ = st.session_state.get("panel_values", {}).get("samples_of", (library.FIRST_MODEL, ""))
    title = source_words(source)
    return title if title in found else library.FIRST_MODEL


def as_set(base: RunSettings, varied: Collection[str]) -> str:
    """``"As set on Explore: seed 3"``: what is not as usual; empty where all is.

    Args:
        varied: settings that the form itself sets.
    """
    rest = {key: value for key, value in dataclasses.asdict(base).items() if key not in varied}
    unusual = unusual_words(rest, _USUAL)
    return f"As set on Explore: {', '.join(unusual)}" if unusual else ""

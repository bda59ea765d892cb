"""The settings panel: widgets, their limits in words, and the settings they amount to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator as Place

from ispasp import selectors, zoo
from ispasp.errors import ISpaSPError
from ispasp.runs import RunSettings
from ispasp.settings import RECONSTRUCTIONS
from ui import library
from ui.words import DATASETS, HELP, SELECTORS
from ui.words import RECONSTRUCTIONS as RECONSTRUCTION_TITLES

FIRST_MODEL = "cifar10_resnet20"
KEEP = "above 0 and up to 1, such as 0.5"


@dataclass
class Draft:
    """What the widgets say: settings ready to run, or None where ``problems`` stand in the way."""

    model: str
    settings: RunSettings | None = None
    keep_groups: list[int] = field(default_factory=list)


def _slide() -> None:
    st.session_state.keep = st.session_state.keep_slider


def _type() -> None:
    keep = st.session_state.keep
    if keep is not None and 0 < keep <= 1:
        st.session_state.keep_slider = min(max(round(keep, 2), 0.01), 1.0)


def _other_model() -> None:
    """Block names and the number of images belong to the model."""
    st.session_state.pop("samples", None)


def panel(locked: bool) -> Draft:
    """Draw the panel.

    Args:
        locked: a job is under way, so nothing may be changed.
    """
    with st.container(border=True, key="settings"):
        model, data, slider, exact, blocks = st.columns([3, 2.1, 3, 1.2, 1.4], vertical_alignment="top")
        below = st.container(
            gap="small"
        )  # a sentence about a field stands under the field's row, at full width
        names = sorted(zoo.names(), key=lambda name: name != FIRST_MODEL)
        with model:
            name = st.selectbox(
                "Model", names, key="model", help=HELP["model"], disabled=locked,
                bind="query-params", on_change=_other_model,
            )  # fmt: skip
        card = zoo.card(name)
        most = library.image_count(card.dataset)
        with data:
            st.selectbox(
                "Data",
                [card.dataset],
                format_func=lambda d: f"{DATASETS.get(d, d)}, {most} images",
                help=HELP["data"],
                disabled=locked,
            )
        # Both widgets show one number; whichever is touched tells the other. The field is the exact one, and
        # drawn first: it takes its value from the address.
        with exact:
            keep: float | None = st.number_input(
                "Exact", value=0.5, step=0.05, format="%.4g", key="keep", on_change=_type,
                help=f"The same keep ratio as an exact number: {KEEP}.", disabled=locked, bind="query-params",
            )  # fmt: skip
            if keep is None or not 0 < keep <= 1:
                given = "the field is empty" if keep is None else f"{keep:g} was given"
                _problem(below, f"Keep ratio: {given}; give a number {KEEP}.")
                keep = None
        st.session_state.setdefault("keep_slider", _near(st.session_state.get("keep")))
        with slider:
            st.slider(
                "Keep ratio", 0.01, 1.0, step=0.01, key="keep_slider", on_change=_slide, help=HELP["keep"],
                disabled=locked, persist_state="session",
            )  # fmt: skip
        with blocks:
            by_block, sound = _by_block(name, below, locked)
        rest = _paper_settings(name, most, locked)
    draft = Draft(name)
    if keep is not None and rest is not None and sound:
        try:
            draft.settings = RunSettings(model=name, keep=keep, keep_by_block=by_block, **rest)
        except ISpaSPError as problem:
            _problem(st.container(), str(problem))
    return draft


def _near(keep: float | None) -> float:
    return min(max(round(keep, 2), 0.01), 1.0) if keep is not None and math.isfinite(keep) else 0.5


def _problem(place: Place, sentence: str) -> None:
    place.error(sentence)


def _by_block(model: str, below: Place, locked: bool) -> tuple[dict[str, float], bool]:
    """The table of single blocks' keep ratios; whether all of them can be used."""
    store = f"by_block_{model}"
    kept: dict[str, float] = st.session_state.get(store, {})
    st.space("small")
    changed = f" ({len(kept)})" if kept else ""
    with st.popover(f"Per block{changed}", disabled=locked, help=HELP["blocks"], width="stretch"):
        found = library.blocks(model)
        st.markdown("**Keep ratio of single blocks.** Empty cells take the common one.")
        table = pd.DataFrame(
            {
                "block": [b.name for b in found],
                "groups": [f"{b.groups} {b.kind}s" for b in found],
                "keep": pd.array([None] * len(found), dtype="Float64"),
            }
        )
        edited = st.data_editor(
            table,
            key=f"table_{model}",
            hide_index=True,
            disabled=["block", "groups"],
            alt="Keep ratio of every block",
            column_config={
                "block": st.column_config.TextColumn("Block", width="medium"),
                "groups": st.column_config.TextColumn("Groups", width="small"),
                "keep": st.column_config.NumberColumn(
                    "Keep", help=HELP["keep"], format="%.4g", width="small"
                ),
            },
        )
        given = {b: float(k) for b, k in zip(edited["block"], edited["keep"], strict=True) if not pd.isna(k)}
        wrong = [f"{b} was given {k:g}" for b, k in given.items() if not 0 < k <= 1]
        if wrong:
            _problem(st.container(), f"{'; '.join(wrong)}: give a keep ratio {KEEP}, or clear the cell.")
    if wrong:
        _problem(
            below, f"Keep ratio of a block: {'; '.join(wrong)}; give a number {KEEP}, or clear the cell."
        )
    elif given != kept:
        st.session_state[store] = given
        st.rerun()
    return given, not wrong


def _paper_settings(model: str, most: int, locked: bool) -> dict[str, Any] | None:
    """The second row; None where a field stands in the way."""
    columns = st.columns([1.5, 1.2, 1.2, 1, 1, 1, 1, 1.9])
    below = st.container(gap="small")
    more: dict[str, Any] = {"disabled": locked, "persist_state": "session"}
    with columns[0]:
        selector = st.selectbox(
            "Selector", selectors.names(), format_func=lambda n: SELECTORS.get(n, n), key="selector",
            help=HELP["selector"], **more,
        )  # fmt: skip
    with columns[1]:
        reconstruct = st.selectbox(
            "Re-fit", RECONSTRUCTIONS, format_func=lambda n: RECONSTRUCTION_TITLES.get(n, n), key="reconstruct",
            help=HELP["reconstruct"], **more,
        )  # fmt: skip
    with columns[2]:
        factor: float | None = st.number_input(
            "Candidates ×", value=2.0, step=0.5, format="%.3g", key="candidate_factor",
            help=HELP["candidate_factor"], **more,
        )  # fmt: skip
        factor = _within(below, "candidates", factor, 1, None)
    whole: dict[str, float | None] = {}
    fields = (
        ("iterations", "Iterations", 20, 1, None),
        ("multiple", "Multiple of", 8, 1, None),
        ("samples", "Samples", most, 1, most),
        ("seed", "Seed", 0, 0, None),
    )
    for column, (key, label, value, low, high) in zip(columns[3:7], fields, strict=True):
        with column:
            number = st.number_input(label, value=value, step=1, key=key, help=HELP[key], **more)
            whole[key] = _within(below, label.lower(), number, low, high)
    with columns[7]:
        found = library.devices()
        device = st.selectbox(
            "Device", list(found), format_func=lambda n: found[n], key="device", help=HELP["device"], **more
        )
    if factor is None or None in whole.values():
        return None
    return {
        "selector": selector, "reconstruct": reconstruct, "candidate_factor": factor, "device": device, **whole,
    }  # fmt: skip


def _within(place: Place, what: str, number: float | None, low: int, high: int | None) -> float | None:
    """The number, or None and a sentence by the field."""
    if number is not None and number >= low and (high is None or number <= high):
        return number
    given = "the field is empty" if number is None else f"{number:g} was given"
    accepted = f"{low} or more" if high is None else f"{low} to {high}, as there are {high} images"
    _problem(place, f"{what.capitalize()}: {given}; give {accepted}.")
    return None

"""The settings panel: widgets, their limits in words, and the settings they amount to."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator as Place
from streamlit.errors import StreamlitAPIException

from ispasp import zoo
from ispasp.errors import ISpaSPError, listing
from ispasp.runs import RunSettings
from ispasp.settings import ALLOCATIONS
from ispasp.vocabulary import SHARES
from ui import library, method, session
from ui.words import DATASETS, HELP

KEEP = "above 0 and up to 1, such as 0.5"
_DEFAULT = RunSettings(library.FIRST_MODEL)
_PLAIN = (
    "selector", "reconstruct", "distil", "allocation", "recalibrate", "candidate_factor", "iterations", "multiple",
    "seed", "device",
)  # fmt: skip


@dataclass
class Draft:
    """What the widgets say: settings ready to run, or None where ``problems`` stand in the way.

    ``last``: the newest settings of this model that could be run. ``table``: where the table of single
    blocks goes; it needs the network to be traced, so it is filled when the rest of the page stands.
    """

    model: str
    settings: RunSettings | None = None
    last: RunSettings | None = None
    problems: list[str] = field(default_factory=list)
    table: Place | None = None
    locked: bool = False


def read_keep(text: str) -> tuple[float | None, str]:
    """A keep ratio as typed: the number, or None and what to do about it."""
    text = text.strip()
    given = re.sub(r"([\\`*_\[\]<>$#:|~])", r"\\\1", text[:20])
    try:
        keep = float(text)
    except ValueError:
        if not text:
            return None, f"Keep ratio: the field is empty; give a number {KEEP}."
        if re.fullmatch(r"\d*,\d+", text):
            return None, f"Keep ratio: {given} was given; write it with a point: {text.replace(',', '.')}."
        return None, f"Keep ratio: {given} was given; give a number {KEEP}."
    if not 0 < keep <= 1:
        return None, f"Keep ratio: {given} was given; give a number {KEEP}."
    return keep, ""


def _slide() -> None:
    st.session_state.keep = f"{st.session_state.keep_slider:g}"


def _type() -> None:
    keep, _ = read_keep(st.session_state.keep)
    if keep is not None:
        st.session_state.keep_slider = _near(keep)


def _near(keep: float | None) -> float:
    return 0.5 if keep is None else min(max(round(keep, 2), 0.01), 1.0)


def _other_model() -> None:
    """Block names and the number of images belong to the model, and so does what was on the screen."""
    st.session_state.pop("samples", None)
    st.session_state.pop("unknown_model", None)
    session.forget_view()
    session.look_at("run", None)


def follow(id: str, used: RunSettings | None) -> None:
    """Show the settings of the run or job that has come on the screen; call before :func:`panel`.

    Args:
        id: of the run or job; empty where there is none.
        used: its settings, where they are known already.
    """
    state = st.session_state
    if not id:
        state.pop("panel_of", None)
    if not id or used is None or state.get("panel_of") == id:
        return
    state.panel_of = id
    state.panel_set = True
    for key in ("model", "keep"):
        with contextlib.suppress(StreamlitAPIException):  # bound already, so the widget itself corrects it
            st.query_params.pop(key, None)
    for key in ("model", "samples", *_PLAIN):
        state[key] = getattr(used, key)
    if used.device not in library.devices():
        state.device = "auto"
    state.candidate_factor = float(used.candidate_factor)
    state.keep, state.keep_slider = str(used.keep), _near(used.keep)
    _put_blocks(used.model, used.keep_by_block)


def _begin() -> None:
    """Give every widget its value: what it last was, on this page or before another one, else the default."""
    kept: dict[str, Any] = st.session_state.setdefault("panel_values", {})
    for key in ("model", *_PLAIN):
        st.session_state.setdefault(key, kept.get(key, getattr(_DEFAULT, key)))
    st.session_state.setdefault("keep", kept.get("keep", str(_DEFAULT.keep)))
    asked = st.query_params.get("model")
    if asked is not None and asked not in zoo.names():
        st.session_state.unknown_model = asked[:40]
    if asked := st.session_state.get("unknown_model"):
        st.warning(
            f"There is no sample model called “{asked}”. {listing(zoo.names())} are known; "
            f"{st.session_state.model} is chosen instead."
        )


def _end(samples_of: str) -> None:
    """Remember the values, which Streamlit forgets while another page is shown."""
    kept = st.session_state.panel_values
    kept |= {key: st.session_state[key] for key in ("model", "keep", "samples", *_PLAIN)}
    kept["samples_of"] = samples_of


def panel(locked: bool) -> Draft:
    """Draw the panel; what is wrong is in the draft's ``problems``, to be said where there is room for it.

    Args:
        locked: a job is under way, so nothing may be changed.
    """
    _begin()
    problems: list[str] = []
    # A bound widget takes its value from the address when a page is loaded, whatever was set here.
    bind: Literal["query-params"] | None = (
        None if st.session_state.pop("panel_set", False) else "query-params"
    )
    with st.container(border=True, key="settings"):
        model, slider, exact, blocks = st.columns([2.6, 3.4, 1.6, 1.4], vertical_alignment="top")
        with model:
            name = st.selectbox(
                "Model", sorted(zoo.names(), key=lambda name: name != library.FIRST_MODEL), key="model",
                help=HELP["model"], disabled=locked, bind=bind, on_change=_other_model,
            )  # fmt: skip
        card = zoo.card(name)
        # Both widgets show one number; whichever is touched tells the other. The field is the exact one, and
        # drawn first: it takes its value from the address. It takes text, because a number field would throw
        # away what it cannot read without a word.
        with exact:
            text = st.text_input(
                "Keep ratio, exact", key="keep", on_change=_type, disabled=locked, bind=bind,
                help=f"The same keep ratio as an exact number: {KEEP}.",
            )  # fmt: skip
            keep, problem = read_keep(text or "")
        st.session_state.setdefault("keep_slider", _near(keep))
        with slider:
            st.slider(
                "Keep ratio", 0.01, 1.0, step=0.01, key="keep_slider", on_change=_slide, help=HELP["keep"],
                disabled=locked,
            )  # fmt: skip
        by_block: dict[str, float] = st.session_state.get(f"by_block_{name}", {})
        with blocks:
            st.space("small")
            table = st.popover(
                f"Per block ({len(by_block)})" if by_block else "Per block", disabled=locked,
                help=HELP["blocks"], width="stretch",
            )  # fmt: skip
        problems += [problem] if problem else []
        if wrong := _wrong(by_block):
            problems.append(f"Keep ratio of a block: {wrong}; give a number {KEEP}, or clear the cell.")
        chosen = method.draw(locked)
        rest = _finer(name, card.dataset, locked, problems)
    _end(name)
    draft = Draft(name, problems=problems, table=table, locked=locked)
    if not problems:
        try:
            draft.settings = RunSettings(
                model=name, keep=keep or 0.0, keep_by_block=by_block, **chosen, **rest
            )
            st.session_state[f"last_{name}"] = draft.settings
        except ISpaSPError as error:
            problems.append(str(error))
    draft.last = st.session_state.get(f"last_{name}", RunSettings(name))
    return draft


def _wrong(by_block: dict[str, float]) -> str:
    return "; ".join(f"{block} was given {keep:g}" for block, keep in by_block.items() if not 0 < keep <= 1)


def _put_blocks(model: str, by_block: dict[str, float]) -> None:
    """Give the table new contents; under a new key, as it would keep its edits under the old one."""
    st.session_state[f"by_block_{model}"] = dict(by_block)
    st.session_state[f"table_of_{model}"] = st.session_state.get(f"table_of_{model}", 0) + 1


def block_table(draft: Draft) -> None:
    """Fill the table of single blocks' keep ratios; a change of it is a change of the settings."""
    if draft.table is None or draft.locked:
        return
    model = draft.model
    found = library.blocks(model)
    kept: dict[str, float] = st.session_state.get(f"by_block_{model}", {})
    key = f"table_{model}_{st.session_state.get(f'table_of_{model}', 0)}"
    if key not in st.session_state:
        st.session_state[f"base_{model}"] = kept  # what the cells begin with; edits come on top
    base = st.session_state[f"base_{model}"]
    with draft.table:
        st.markdown("**Keep ratio of single blocks.** Empty cells take the common one.")
        table = pd.DataFrame(
            {
                "block": [b.name for b in found],
                "groups": [f"{b.groups} {b.kind}s" for b in found],
                "keep": pd.array([base.get(b.name) for b in found], dtype="Float64"),
            }
        )
        edited = st.data_editor(
            table,
            key=key,
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
        if wrong := _wrong(given):
            st.error(f"{wrong}: give a keep ratio {KEEP}, or clear the cell.")
    if given != kept:
        st.session_state[f"by_block_{model}"] = given
        st.rerun()


def _finer(model: str, dataset: str, locked: bool, problems: list[str]) -> dict[str, Any]:
    """What a newcomer may leave alone: folded away, with its values in the line that unfolds it."""
    most = library.image_count(dataset)
    state, kept = st.session_state, st.session_state.panel_values
    state.setdefault("samples", kept["samples"] if kept.get("samples_of") == model else most)
    with st.expander(_in_short(), key="finer", type="compact"):
        columns = st.columns([2.1, 1.35, 1.25, 1.25, 1.25, 1, 2])
        with columns[0]:
            st.selectbox(
                "Data", [dataset], format_func=lambda d: f"{DATASETS.get(d, d)}, {most} images", help=HELP["data"],
                disabled=locked,
            )  # fmt: skip
        with columns[1]:
            factor: float | None = st.number_input(
                "Candidates ×", value=None, step=0.5, format="%.3g", key="candidate_factor",
                help=HELP["candidate_factor"], disabled=locked,
            )  # fmt: skip
            _check(problems, "candidates", factor, 1, None)
        whole: dict[str, float | None] = {}
        fields = (
            ("iterations", "Iterations", 1, None),
            ("multiple", "Multiple of", 1, None),
            ("samples", "Samples", 1, most),
            ("seed", "Seed", 0, None),
        )
        for column, (key, label, low, high) in zip(columns[2:6], fields, strict=True):
            with column:
                whole[key] = st.number_input(
                    label, value=None, step=1, key=key, help=HELP[key], disabled=locked
                )
                _check(problems, label.lower(), whole[key], low, high)
        with columns[6]:
            found = library.devices()
            device = st.selectbox(
                "Device", list(found), format_func=lambda n: found[n], key="device", help=HELP["device"],
                disabled=locked,
            )  # fmt: skip
        share_place, toggle_place = st.columns([1, 2.1], vertical_alignment="bottom")
        with share_place:
            allocation = st.selectbox(
                "Keep ratio, shared out", ALLOCATIONS, format_func=lambda name: SHARES.get(name, name),
                key="allocation", help=HELP["allocation"], disabled=locked,
            )  # fmt: skip
        with toggle_place, st.container(key="recalibrate_line"):
            recalibrate = st.toggle(
                "Recalibrate batch norms", key="recalibrate", help=HELP["recalibrate"], disabled=locked
            )
    return {
        "candidate_factor": factor, "device": device, "allocation": allocation, "recalibrate": recalibrate, **whole,
    }  # fmt: skip


def _in_short() -> str:
    """``"Finer settings: candidates × 2, 20 iterations, …"``, from what the fields will show."""
    state = st.session_state

    def number(key: str) -> str:
        return "–" if state[key] is None else f"{state[key]:g}"

    parts = [
        f"candidates × {number('candidate_factor')}", f"{number('iterations')} iterations",
        f"multiple of {number('multiple')}", f"{number('samples')} samples", f"seed {number('seed')}",
        *([f"shared out {SHARES.get(state.allocation, '')}"] if state.allocation != "uniform" else []),
        *(["batch norms recalibrated"] if state.recalibrate else []),
    ]  # fmt: skip
    return f"**Finer settings:** {', '.join(parts)}"


def _check(problems: list[str], what: str, number: float | None, low: int, high: int | None) -> None:
    """Add a sentence where the number cannot be used."""
    if number is not None and number >= low and (high is None or number <= high):
        return
    given = "the field is empty" if number is None else f"{number:g} was given"
    accepted = f"{low} or more" if high is None else f"{low} to {high}, as there are {high} images"
    problems.append(f"{what.capitalize()}: {given}; give {accepted}.")

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

from ispasp import selectors, zoo
from ispasp.errors import ISpaSPError, listing
from ispasp.run_settings import KINDS, RunSettings
from ispasp.settings import ALLOCATIONS, HIDDEN_SUMS, RECONSTRUCTIONS
from ui import finer, library, method, models, session, sources, words
from ui.sources import Chosen
from ui.words import HELP, MODEL_KINDS

KEEP = "above 0 and up to 1, such as 0.5"
_DEFAULT = RunSettings(library.FIRST_MODEL)
_PLAIN = (
    "selector", "reconstruct", "distil", "allocation", "recalibrate", "candidate_factor", "iterations", "multiple",
    "seed", "device", "hidden_sum", "evaluation",
)  # fmt: skip
_ADDRESS = ("model", "weights", "data")


@dataclass
class Draft:
    """What the widgets say: settings ready to run, or None where ``problems`` stand in the way.

    ``model``: as ``RunSettings`` has it; empty while it has no name. ``last``: the newest settings of this model
    that could be run. ``plan``: what its blocks can be shown with, before there are data to run it on. ``table``:
    where the table of single blocks goes; it needs the network to be traced, so it is filled when the rest of the
    page stands.
    """

    model: str
    settings: RunSettings | None = None
    last: RunSettings | None = None
    plan: RunSettings | None = None
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
    """Block names and the number of examples belong to the model, and so does what was on the screen."""
    for key in ("samples", "unknown_model", "kinds"):
        st.session_state.pop(key, None)
    if st.session_state.weights == sources.FILE:  # of another architecture
        st.session_state.weights = ""
    session.forget_view()
    session.look_at("run", None)


def _other_source() -> None:
    """Another kind of model: weights and data begin anew, too."""
    st.session_state.weights = st.session_state.data = ""
    _other_model()


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
    with contextlib.suppress(StreamlitAPIException):  # bound already, so the widget itself corrects it
        st.query_params.pop("keep", None)
    sources.put(used.model, used.weights, used.data)
    for key in ("samples", *_PLAIN):
        state[key] = getattr(used, key)
    state.kinds = list(used.kinds)
    if used.device not in library.devices():
        state.device = "auto"
    state.candidate_factor = float(used.candidate_factor)
    state.keep, state.keep_slider = str(used.keep), _near(used.keep)
    _put_blocks(used.model, used.keep_by_block)


def _begin() -> None:
    """Give every widget its value: what it last was, on this page or before another one, else the default."""
    state = st.session_state
    new = "panel_values" not in state
    kept: dict[str, Any] = state.setdefault("panel_values", {})
    if new and "model" not in state:
        _from_address()
        _plain_from_address()
    for key, value in sources.DEFAULTS.items():
        state.setdefault(key, kept.get(key, value))
    for key in _PLAIN:
        state.setdefault(key, kept.get(key, getattr(_DEFAULT, key)))
    state.setdefault("kinds", kept.get("kinds", list(KINDS)))
    state.setdefault("keep", kept.get("keep", str(_DEFAULT.keep)))
    if problem := state.get("unknown_model"):
        st.warning(f"{words.escaped(problem)} {state.model} is chosen instead.")


def _from_address() -> None:
    """The model and the data that the page's address names."""
    model, weights, data = (st.query_params.get(key, "") for key in _ADDRESS)
    if not model:
        return
    try:
        sources.put(model, weights, data)
        if st.session_state.model == "torchvision" and st.session_state.architecture not in models.names():
            st.session_state.model = library.FIRST_MODEL
            st.session_state.weights = st.session_state.data = ""
            raise ISpaSPError(f"torchvision has no classification model “{model[12:52]}”.")
    except ISpaSPError as error:
        known = f"{listing(zoo.names())} are known"
        st.session_state.unknown_model = (
            str(error) if ":" in model else f"There is no sample model called “{model[:40]}”. {known};"
        )
        for key in _ADDRESS:
            st.query_params.pop(key, None)
        return
    if st.session_state.model == "python" and not models.allow_code():
        st.session_state.model = library.FIRST_MODEL
        st.session_state.unknown_model = (
            f"{model[:60]} is a Python function, which this app may run only when it is started with "
            "ISPASP_ALLOW_CODE=1."
        )


def _plain_from_address() -> None:
    """The other settings that the address names; what no widget could hold is left out."""
    choices = {
        "selector": selectors.names(), "reconstruct": RECONSTRUCTIONS, "allocation": ALLOCATIONS,
        "hidden_sum": HIDDEN_SUMS, "device": library.devices(),
    }  # fmt: skip
    for key in ("samples", *_PLAIN):
        text = st.query_params.get(key, "")
        usual = getattr(_DEFAULT, key)
        if key in choices:
            if text in choices[key]:
                st.session_state[key] = text
        elif isinstance(usual, bool):
            if text in ("True", "False"):
                st.session_state[key] = text == "True"
        elif re.fullmatch(r"\d{1,9}", text) or (
            key == "candidate_factor" and re.fullmatch(r"\d{1,9}\.\d{1,9}", text)
        ):
            st.session_state[key] = float(text) if key == "candidate_factor" else int(text)


def _end(chosen: Chosen) -> None:
    """Remember the values, which Streamlit forgets while another page is shown; and put them in the address."""
    kept = st.session_state.panel_values
    keys = (*sources.DEFAULTS, "keep", "samples", "kinds", *_PLAIN)
    kept |= {key: st.session_state[key] for key in keys}
    kept["samples_of"] = (chosen.model, chosen.data)
    usual = {"model": library.FIRST_MODEL, "weights": "", "data": "", "samples": finer.usual_samples(chosen)}
    usual |= {key: getattr(_DEFAULT, key) for key in _PLAIN}
    for key, value in usual.items():
        now = getattr(chosen, key) if key in _ADDRESS else st.session_state[key]
        if now in ("", None, value):
            st.query_params.pop(key, None)
        elif st.query_params.get(key) != str(now):
            st.query_params[key] = str(now)


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
                "Model", sources.model_choices(), key="model", help=HELP["model"], disabled=locked,
                format_func=lambda name: MODEL_KINDS.get(name, name), on_change=_other_source,
            )  # fmt: skip
        chosen = Chosen("" if sources.is_own() else name)
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
        by_block: dict[str, float] = st.session_state.get(f"by_block_{sources.chosen_model()}", {})
        with blocks:
            st.space("small")
            table = st.popover(
                f"Per block ({len(by_block)})" if by_block else "Per block", disabled=locked,
                help=HELP["blocks"], width="stretch",
            )  # fmt: skip
        problems += [problem] if problem else []
        if wrong := _wrong(by_block):
            problems.append(f"Keep ratio of a block: {wrong}; give a number {KEEP}, or clear the cell.")
        own = sources.is_own()
        if own:
            with st.container(key="own_model"):
                sources.own_model(chosen, locked, _other_model)
        how = method.draw(locked)
        rest = finer.draw(chosen, locked, problems)
    problems += chosen.problems
    _end(chosen)
    draft = Draft(chosen.model, problems=problems, table=table, locked=locked)
    draft.last = st.session_state.get(f"last_{chosen.model}")
    if chosen.source is None or models.failure(chosen.source):
        return draft
    try:
        # Data do not matter for what the blocks will look like.
        draft.plan = RunSettings(
            chosen.model, keep or 0.0, by_block, weights=chosen.weights, data=chosen.data or sources.PLANNED[own],
            **how, **rest,
        )  # fmt: skip
        if not problems:
            draft.settings = draft.last = draft.plan
            st.session_state[f"last_{chosen.model}"] = draft.settings
    except ISpaSPError as error:
        if not problems:
            problems.append(str(error))
        draft.plan = draft.last or _usual(chosen)
    return draft


def _usual(chosen: Chosen) -> RunSettings | None:
    """The settings that this model begins with."""
    try:
        return RunSettings(chosen.model, weights=chosen.weights, data=sources.PLANNED[sources.is_own()])
    except ISpaSPError:
        return None


def _wrong(by_block: dict[str, float]) -> str:
    return "; ".join(f"{block} was given {keep:g}" for block, keep in by_block.items() if not 0 < keep <= 1)


def _put_blocks(model: str, by_block: dict[str, float]) -> None:
    """Give the table new contents; under a new key, as it would keep its edits under the old one."""
    st.session_state[f"by_block_{model}"] = dict(by_block)
    st.session_state[f"table_of_{model}"] = st.session_state.get(f"table_of_{model}", 0) + 1


def block_table(draft: Draft) -> None:
    """Fill the table of single blocks' keep ratios; a change of it is a change of the settings."""
    source = draft.plan.model_source() if draft.plan else None
    if (
        draft.plan is None
        or draft.table is None
        or draft.locked
        or source is None
        or not models.at_once(source)
    ):
        return
    model = draft.model
    try:
        with draft.table, st.spinner("Reading the model …"):
            found = [b for b in models.facts(source).blocks if b.kind in draft.plan.kinds]
    except ISpaSPError:
        return  # said above
    kept: dict[str, float] = st.session_state.get(f"by_block_{model}", {})
    key = f"table_{model}_{st.session_state.get(f'table_of_{model}', 0)}_{'_'.join(draft.plan.kinds)}"
    if key not in st.session_state:
        st.session_state[f"base_{model}"] = kept  # what the cells begin with; edits come on top
    base = st.session_state[f"base_{model}"]
    with draft.table:
        st.markdown("**Keep ratio of single blocks.** Empty cells take the common one.")
        table = pd.DataFrame(
            {
                "block": [b.name for b in found],
                "groups": [f"{b.groups} {words.KINDS[b.kind]}" for b in found],
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

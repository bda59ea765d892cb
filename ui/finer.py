"""The finer settings: what a newcomer may leave alone, folded away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from ispasp import zoo
from ispasp.errors import listing
from ispasp.run_settings import KINDS
from ispasp.settings import ALLOCATIONS, HIDDEN_SUMS
from ispasp.vocabulary import SHARES
from ui import library, models, sources, words
from ui.sources import Chosen
from ui.words import HELP

FEW = 128  # calibration samples to begin with for a model of one's own, which may be large


def draw(chosen: Chosen, locked: bool, problems: list[str]) -> dict[str, Any]:
    """What a newcomer may leave alone: folded away, with its values in the line that unfolds it."""
    state, kept = st.session_state, st.session_state.panel_values
    own = sources.is_own()
    most = _most(chosen)
    state.setdefault("samples", kept["samples"] if _same_examples(chosen, kept) else usual_samples(chosen))
    facts = models.known(chosen.source) if chosen.source else None
    with st.expander(_in_short(facts), key="finer", type="compact"):
        if not own:
            sources.sample_model(chosen, locked)
        columns = st.columns([1.3, 1.2, 1.2, 1.2, 1.2, 0.9, 1.9])
        with columns[0]:
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
            ("evaluation", "Tested on", 1, None),
            ("seed", "Seed", 0, None),
        )
        for column, (key, label, low, high) in zip(columns[1:6], fields, strict=True):
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
        share_place, toggle_place, kinds_place, sum_place = st.columns(
            [1.3, 1, 1.2, 1], vertical_alignment="bottom"
        )
        with share_place:
            allocation = st.selectbox(
                "Keep ratio, shared out", ALLOCATIONS, format_func=lambda name: SHARES.get(name, name),
                key="allocation", help=HELP["allocation"], disabled=locked,
            )  # fmt: skip
        with toggle_place, st.container(key="recalibrate_line"):
            recalibrate = st.toggle(
                "Recalibrate batch norms", key="recalibrate", help=HELP["recalibrate"], disabled=locked
            )
        with kinds_place:
            kinds = _kinds(facts, locked, problems)
        with sum_place:
            if facts and any(block.signed for block in facts.blocks):
                st.selectbox(
                    "Hidden sum", HIDDEN_SUMS, format_func=words.HIDDEN_SUMS.__getitem__, key="hidden_sum",
                    help=HELP["hidden_sum"], disabled=locked,
                )  # fmt: skip
    return {
        "candidate_factor": factor, "device": device, "allocation": allocation, "recalibrate": recalibrate,
        "kinds": kinds, "hidden_sum": state.hidden_sum, **whole,
    }  # fmt: skip


def usual_samples(chosen: Chosen) -> int:
    """How many calibration samples this model begins with."""
    return _most(chosen) or FEW


def _most(chosen: Chosen) -> int | None:
    """How many samples there are at most, where that is known."""
    # Which data a sample model gets is asked further down; the state knows it already.
    sample = "" if sources.is_own() else zoo.card(chosen.model).dataset
    return library.sample_count(sample) if sample and not st.session_state.data else None


def _same_examples(chosen: Chosen, kept: Mapping[str, Any]) -> bool:
    """Whether the number of samples was given for this model."""
    return "samples" in kept and kept.get("samples_of", ("", ""))[0] == sources.chosen_model()


def _kinds(facts: models.Facts | None, locked: bool, problems: list[str]) -> tuple[str, ...]:
    """What to prune, where the model has more than one kind of groups."""
    state = st.session_state
    if facts is None or len(facts.kinds) < 2:
        return tuple(state.kinds) if facts is None else KINDS
    state.kinds = [kind for kind in state.kinds if kind in facts.kinds]
    chosen = st.pills(
        "Prune", facts.kinds, selection_mode="multi", key="kinds", format_func=words.KINDS.__getitem__,
        help=HELP["kinds"], disabled=locked,
    )  # fmt: skip
    if not chosen:
        problems.append("Nothing is chosen to be pruned: choose at least one kind of groups.")
    return KINDS if not chosen or set(chosen) == set(facts.kinds) else tuple(k for k in KINDS if k in chosen)


def _in_short(facts: models.Facts | None) -> str:
    """``"Finer settings: candidates × 2, 20 iterations, …"``, from what the fields will show."""
    state = st.session_state

    def number(key: str) -> str:
        return "–" if state[key] is None else f"{state[key]:g}"

    every = set(facts.kinds if facts else KINDS)
    parts = [
        f"candidates × {number('candidate_factor')}", f"{number('iterations')} iterations",
        f"multiple of {number('multiple')}", f"{number('samples')} samples", f"seed {number('seed')}",
        *([] if set(state.kinds) >= every else [f"{listing(words.KINDS[k] for k in state.kinds)} only"]),
        *(["signed hidden sum"] if state.hidden_sum == "signed" else []),
        *([f"tested on {number('evaluation')}"] if state.evaluation != 1000 else []),
        *([f"shared out {SHARES.get(state.allocation, '')}"] if state.allocation != "uniform" else []),
        *(["batch norms recalibrated"] if state.recalibrate else []),
    ]  # fmt: skip
    return f"**Finer settings:** {', '.join(parts)}"


def _check(problems: list[str], what: str, number: float | None, low: int, high: int | None) -> None:
    """Add a sentence where the number cannot be used."""
    if number is not None and number >= low and (high is None or number <= high):
        return
    given = "the field is empty" if number is None else f"{number:g} was given"
    accepted = f"{low} or more" if high is None else f"{low} to {high}, as there are {high} examples"
    problems.append(f"{what.capitalize()}: {given}; give {accepted}.")

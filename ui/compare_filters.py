"""Filters of the Compare page: which model, and which of its runs. Model and sweep are always in the address."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import streamlit as st

from ispasp import comparison
from ispasp.comparison import Family, Row
from ispasp.sweeps import SweepStarted
from ispasp.vocabulary import refit_words, selector_words
from ui import compare_state
from ui.words import HELP, escaped, lineage_words, source_words

COSTS = {"MACs": "macs", "Parameters": "parameters", "Latency": "latency"}
GAINS = {"Accuracy": "accuracy", "Agreement": "agreement"}
ALL, SINGLE = "all runs", "runs of no sweep"
_UNKNOWN = "compare_unknown"
_HELP = {
    "of": "Runs are compared where they are of one dense model and were measured on the same data.",
    "kept": "Only runs whose keep ratio lies in this range. Runs with a keep ratio per block show at the full range.",
    "part_of": "The runs of one sweep or budget, or those that were started one by one.",
}


class View(NamedTuple):
    """What the filters leave: the family's rows, and what the picture's axes are."""

    family: Family
    rows: list[Row]
    total: int
    cost: str
    gain: str


def family_words(family: Family) -> str:
    """``"cifar10_resnet20"``, and what is not as usual."""
    parts = [
        family.model,
        *([f"weights {source_words(family.weights)}"] if family.weights else []),
        *([f"data {source_words(family.data)}"] if family.data else []),
        *([f"tested on {family.examples:,}"] if family.examples != 1000 else []),
    ]
    return ", ".join(parts)


def part_of(row: Row) -> str:
    """``"sweep ID"``; of several words, as a budget has them, the first. What was fine-tuned is part of nothing."""
    return next((f"{kind} {id}" for kind, id in row.lineage.items() if kind not in ("role", "tuned")), SINGLE)


def part_words(part: str) -> str:
    """What a filter's value is called: a sweep or a budget by ``lineage_words``."""
    kind, _, id = part.partition(" ")
    return part if part in (ALL, SINGLE) or not id else lineage_words(kind, id)


def draw(found: Sequence[Row], columns: Collection[str], started: SweepStarted | None) -> View:
    """Draw the filters.

    Args:
        found: the runs that can be compared; at least one.
        columns: of the table, which a link may name.
        started: the sweep that the page follows.
    """
    # The choices do not depend on one another, so that no value becomes foreign when another filter changes.
    about = {family_words(family): family for family in comparison.families(found)}
    selectors = sorted({selector_words(row.selector).title for row in found})
    refits = sorted({refit_words(row.reconstruct)[0] for row in found})
    parts = [ALL, *dict.fromkeys(part_of(row) for row in found)]
    _settle(found, about, parts, started)
    choices = {
        "selectors": selectors, "refits": refits, "x": COSTS, "y": GAINS, "columns": columns,
    }  # fmt: skip
    for key, known in choices.items():
        _say_unknown(key, [value for value in st.query_params.get_all(key) if value and value not in known])
    kept = st.query_params.get_all("kept")
    if kept and (len(kept) != 2 or not all(_is_share(value) for value in kept)):
        _say_unknown("kept", kept)
    # A widget has a default or a value of its own. Once it is known, the value also says that it is a range.
    usual: Any = None if "kept" in st.session_state else (0.0, 1.0)
    with st.container(border=True, key="compare_filters"):
        first = st.columns([2.2, 2.2, 1.8, 1.6, 2.1], vertical_alignment="bottom")
        name = first[0].selectbox(
            "Model", list(about), key="of", persist_state="session", help=_HELP["of"],
            on_change=_to_address, args=("of",),
        )  # fmt: skip
        some = first[1].multiselect(
            "Selectors", selectors, key="selectors", bind="query-params", persist_state="session",
            placeholder="all", help=HELP["selector"], on_change=forget,
        )  # fmt: skip
        fits = first[2].multiselect(
            "Re-fits", refits, key="refits", bind="query-params", persist_state="session",
            placeholder="all", help=HELP["reconstruct"], on_change=forget,
        )  # fmt: skip
        low, high = first[3].slider(
            "Keep ratio", 0.0, 1.0, usual, step=0.05, key="kept", bind="query-params",
            persist_state="session", help=_HELP["kept"], on_change=forget,
        )  # fmt: skip
        part = first[4].selectbox(
            "Part of", parts, key="part_of", persist_state="session", format_func=part_words,
            help=_HELP["part_of"], on_change=_to_address, args=("part_of",),
        )  # fmt: skip
        if unknown := st.session_state.get(_UNKNOWN):
            said = "; ".join(unknown.values())
            st.caption(f"⚠️ Not applied, as it is not among the choices here: {said}.")
    of_family = [row for row in found if row.family == about[name]]
    shown = [
        row
        for row in of_family
        if (not some or selector_words(row.selector).title in some)
        and (not fits or refit_words(row.reconstruct)[0] in fits)
        and ((low, high) == (0, 1) if row.keep is None else low - 1e-9 <= row.keep <= high + 1e-9)
        and part in (ALL, part_of(row))
    ]
    shown.sort(key=lambda row: (-row.macs, -(row.accuracy or 0), row.run_id))
    cost, gain = (st.session_state.get(key, usual) for key, usual in (("x", "MACs"), ("y", "Accuracy")))
    return View(about[name], shown, len(of_family), COSTS.get(cost, "macs"), GAINS.get(gain, "accuracy"))


def clear() -> None:
    """Let all runs of the model through."""
    for key, value in (("selectors", []), ("refits", []), ("kept", (0.0, 1.0)), ("part_of", ALL)):
        st.session_state[key] = value
    _to_address("part_of")


def forget() -> None:
    """Something else was chosen: what a link asked for in vain matters no more."""
    st.session_state.pop(_UNKNOWN, None)


def _settle(
    found: Sequence[Row], about: Collection[str], parts: Collection[str], started: SweepStarted | None
) -> None:
    """Have model and sweep as the address says, else as it implies, and write them there."""
    swept = st.session_state.pop("show_sweep", None)
    if of_sweep := next((row for row in found if swept and row.lineage.get("sweep") == swept), None):
        clear()
        st.session_state.of, st.session_state.part_of = family_words(of_sweep.family), part_of(of_sweep)
    else:
        asked = {key: st.query_params.get(key, "") for key in ("of", "part_of")}
        for key, known in (("of", about), ("part_of", parts)):
            if asked[key] in known:
                st.session_state[key] = asked[key]
            elif asked[key]:
                _say_unknown(key, [asked[key]])
        if asked["of"] not in about and (row := _implied(found, asked["part_of"], started)):
            st.session_state.of = family_words(row.family)
    for key, known in (("of", about), ("part_of", parts)):
        if st.session_state.get(key) not in known:
            st.session_state[key] = next(iter(known))
        _write(key)


def _implied(found: Sequence[Row], part: str, started: SweepStarted | None) -> Row | None:
    """A run of the model that is meant where the address names none: that of a chosen run, or of a sweep."""
    arriving = compare_state.arriving()
    if row := next((row for row in found if row.run_id == arriving), None):
        return row
    if part and (row := next((row for row in found if part_of(row) == part), None)):
        return row
    if started is None or "of" in st.session_state:
        return None
    model = started.settings[0].model
    own = next((row for row in found if row.lineage.get("sweep") == started.id), None)
    return own or next((row for row in found if row.family.model == model), None)


def _to_address(key: str) -> None:
    forget()
    _write(key)


def _write(key: str) -> None:
    value = st.session_state[key]
    if value == ALL:
        st.query_params.pop(key, None)
    elif st.query_params.get(key) != value:
        st.query_params[key] = value


def _say_unknown(key: str, values: Sequence[str]) -> None:
    names = {
        "of": "model",
        "part_of": "part of",
        "refits": "re-fits",
        "kept": "keep ratio",
        "x": "axis",
        "y": "axis",
    }
    if values:
        said = ", ".join(f"“{escaped(value)}”" for value in values)
        st.session_state[_UNKNOWN] = {
            **st.session_state.get(_UNKNOWN, {}), key: f"{names.get(key, key)} {said}",
        }  # fmt: skip


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False

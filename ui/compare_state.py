"""Which runs are compared in detail: kept in the address, so that a view can be shared, and in the session."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence

import streamlit as st

QUERY = "runs"
_SESSION = "compared"
MOST = 26  # as many as there are letters


def chosen() -> list[str]:
    """Ids of the chosen runs in the order of choice. The address wins over the session."""
    if QUERY in st.query_params:
        found = [id for id in st.query_params[QUERY].split(",") if id]
    else:
        found = st.session_state.get(_SESSION, [])
    found = list(dict.fromkeys(found))[:MOST]
    if found != st.session_state.get(_SESSION):
        st.session_state.compare_version = version() + 1  # the table is to show what the address says
    _keep(found)
    return found


def arriving() -> str | None:
    """The first run that the address names while the session knows of no such choice, as behind a link; else None."""
    named = st.query_params.get(QUERY, "")
    known = ",".join(st.session_state.get(_SESSION, []))
    return named.split(",")[0] if named and named != known else None


def choose(ids: Iterable[str]) -> None:
    """Compare these from now on, as chosen by something else than the table, which then shows it, too."""
    _keep(list(dict.fromkeys(ids))[:MOST])
    st.session_state.compare_version = version() + 1


def toggle(id: str) -> None:
    """A click on a run: it becomes the first or the second of two, or is none of them any more."""
    now = chosen()
    choose([one for one in now if one != id] if id in now else [*now[:1], id])


def take_table(ids: Sequence[str], rows: Iterable[int]) -> None:
    """The table's own selection: what it does not show stays chosen, and what was chosen first stays first.

    Args:
        ids: of the table's rows; empty for one that is no run.
        rows: the selected ones.
    """
    rows = [row for row in rows if row < len(ids)]
    selected = [ids[row] for row in rows if ids[row]]
    if len(selected) < len(rows):
        st.session_state.compare_version = version() + 1  # which takes the tick off what is no run
    now = chosen()
    left = [id for id in now if id in selected or id not in ids]
    _keep([*left, *(id for id in selected if id not in left)][:MOST])


def version() -> int:
    """Rises when something else than the table changes the choice."""
    return int(st.session_state.get("compare_version", 0))


def letters(ids: Sequence[str]) -> dict[str, str]:
    """A, B, C, ... by id."""
    return dict(zip(ids, string.ascii_uppercase, strict=False))


def _keep(ids: list[str]) -> None:
    st.session_state[_SESSION] = ids
    if ids:
        if st.query_params.get(QUERY) != ",".join(ids):
            st.query_params[QUERY] = ",".join(ids)
    else:
        st.query_params.pop(QUERY, None)

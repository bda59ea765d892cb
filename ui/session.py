"""What this browser session looks at: a job or a saved run, kept in the URL and in the session.

The URL survives a refresh, the session survives sidebar and top navigation, which drop the query.
"""

from __future__ import annotations

import streamlit as st

from ispasp.jobs import Job, registry
from ispasp.run_settings import RunSettings

_KINDS = ("job", "run")
_SETTINGS: dict[str, RunSettings] = {}
_REMEMBERED = 200


def remember(job: Job, settings: RunSettings) -> None:
    """Keep what a job works with, for whoever looks at it, from any browser."""
    _SETTINGS[job.id] = settings
    for id in list(_SETTINGS)[:-_REMEMBERED]:
        _SETTINGS.pop(id, None)


def settings_of(job: Job) -> RunSettings | None:
    """What the job works with; None for one that is no run."""
    return _SETTINGS.get(job.id)


def look_at(kind: str, id: str | None) -> None:
    """Look at a job or a run from now on; None looks at nothing."""
    for other in _KINDS:
        st.session_state.pop(f"seen_{other}", None)
        st.query_params.pop(other, None)
    if id is not None:
        st.session_state[f"seen_{kind}"] = id
        st.query_params[kind] = id


def seen() -> tuple[str, str] | None:
    """(``"job"`` or ``"run"``, its id), or None. The URL wins over the session."""
    for place in (st.query_params, {k: st.session_state.get(f"seen_{k}") for k in _KINDS}):
        for kind in _KINDS:
            if id := place.get(kind):
                if st.session_state.get(f"seen_{kind}") != id:
                    forget_view()
                    look_at(kind, id)
                elif st.query_params.get(kind) != id:
                    st.query_params[kind] = id
                return kind, id
    return None


def job() -> Job | None:
    """The job this session looks at; None when it looks at none or the server has forgotten it."""
    target = seen()
    return registry.get(target[1]) if target and target[0] == "job" else None


def follow_work() -> None:
    """Look at the block that the work is at."""
    st.session_state.pop("look_block", None)


def forget_view() -> None:
    """Follow the work again: no block, iteration or group was picked by the person."""
    for key in [k for k in st.session_state if str(k).startswith(("look_block", "look_t_", "look_group_"))]:
        del st.session_state[key]


def put(key: str, value: str) -> None:
    """Give a widget a value, as the callback of another one."""
    st.session_state[key] = value

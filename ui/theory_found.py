"""What an experiment of the Theory page found, just now or before: the job, the file, and which of them to show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import streamlit as st

from ispasp.jobs import Job, Snapshot, State
from ui.background import Follower, nothing

Asked = TypeVar("Asked")
Found = TypeVar("Found")


class Kind(NamedTuple, Generic[Asked, Found]):
    """A kind of experiment; the last event of its jobs has ``findings.experiment``.

    Attributes:
        follower: of its jobs.
        path_of, load: where the findings of one lie, and these; None where there are none.
        named: says which one it is, after "of".
    """

    follower: Follower
    path_of: Callable[[Asked, Path], Path]
    load: Callable[[Asked, Path], Found | None]
    named: Callable[[Asked], str]


def newest(
    kind: Kind[Asked, Found],
    job: Job | None,
    experiment: Asked | None,
    folder: Path,
    details: Callable[[Snapshot], None] = nothing,
) -> Found | None:
    """How the job goes, and what was found for the form's ``experiment``, else what the last job here found."""
    follower, key = kind.follower, f"asked_{kind.follower.query}"
    going = job is not None and not job.state.ended
    if job is not None and job.state is State.FINISHED:
        st.session_state[key] = job.snapshot().events[-1].findings.experiment
        follower.follow(None)
        job = None
    follower.watch(job, details=details)
    if (found := _read(kind, experiment, folder)) is not None:
        return found
    other: Asked | None = st.session_state.get(key)
    found = _read(kind, other, folder)
    if other is not None and found is not None and not going:
        st.caption(f"The last result, of {kind.named(other)}; press Run for the values above.")
    return found


def _read(kind: Kind[Asked, Found], experiment: Asked | None, folder: Path) -> Found | None:
    if experiment is None:
        return None
    path = kind.path_of(experiment, folder)
    return _load(path, path.stat().st_mtime_ns, kind, experiment, folder) if path.is_file() else None


@st.cache_data(show_spinner=False, max_entries=16)
def _load(
    path: Path, changed: int, _kind: Kind[Asked, Found], _experiment: Asked, _folder: Path
) -> Found | None:
    return _kind.load(_experiment, _folder)

"""The rest of the runs folder: runs that cannot be opened, runs that were deleted, and runs from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import streamlit as st

from ispasp import run_import, run_trash, store
from ispasp.errors import ISpaSPError
from ispasp.narrative import plural
from ispasp.store import RunSummary
from ui import runs_actions
from ui.words import escaped

_SHOWN = 8


def damaged(runs: Sequence[RunSummary]) -> None:
    """Runs that cannot be opened, each with its problem and a way to be rid of it."""
    if not runs:
        return
    st.subheader("Cannot be opened", anchor=False)
    for run in runs[:_SHOWN]:
        with st.container(
            horizontal=True, wrap=False, vertical_alignment="center", key=f"runs_bad_{run.run_id}"
        ):
            st.button(
                "Delete", key=f"runs_delete_{run.run_id}", on_click=runs_actions.delete, args=([run.run_id],)
            )
            st.markdown(
                f"⚠️ **{escaped(run.run_id)}** cannot be opened. {escaped(run.problem)}", width="stretch"
            )
    if len(runs) > _SHOWN:
        st.caption(f"And {len(runs) - _SHOWN:,} more.")


def bring() -> None:
    """Import, and what was deleted of late."""
    _import()
    _deleted()


def _import() -> None:
    turn = st.session_state.get("runs_imports", 0)
    with st.expander("Import runs", key="runs_import"):
        file = st.file_uploader(
            "An archive that was downloaded from a Runs page, with one or more runs",
            type="zip",
            key=f"runs_upload_{turn}",
            help="Everything in it is checked before a run is listed; nothing in it is ever run. Up to 2 GB.",
        )
        if file is None:
            return
        with st.spinner("Checking and unpacking"):
            try:
                done = run_import.import_archive(file, store.default_folder(), file.name)
            except ISpaSPError as problem:
                runs_actions.say(problems=[str(problem)])
            else:
                count = [f"{plural(len(done.run_ids), 'run')} imported."] if done.run_ids else []
                runs_actions.say(*count, *done.notes)
                st.session_state.runs_picked = [*done.run_ids, *done.known]
        # Another key empties the uploader, so that the next rerun does not import it again.
        st.session_state.runs_imports = turn + 1
        st.rerun()


def _deleted() -> None:
    found = run_trash.in_trash(store.default_folder())
    if not found:
        return
    with st.expander(f"Recently deleted ({len(found)})", key="runs_trash"):
        st.caption(f"Kept for at least {run_trash.KEPT.days} days.")
        for one in found[:_SHOWN]:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.button(
                    "Restore", key=f"runs_restore_{one.key}", on_click=runs_actions.restore, args=([one.key],)
                )
                name = f"**{escaped(one.name)}**, " if one.name else ""
                st.markdown(f"{name}`{one.run_id}`, deleted {_ago(one.deleted_at)}", width="content")
        if len(found) > _SHOWN:
            st.caption(f"And {len(found) - _SHOWN:,} deleted before these.")


def _ago(moment: datetime) -> str:
    minutes = int((datetime.now(UTC) - moment).total_seconds() // 60)
    for size, unit in ((1440, "day"), (60, "hour"), (1, "minute")):
        if minutes >= size:
            return f"{plural(minutes // size, unit)} ago"
    return "just now"

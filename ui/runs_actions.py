"""What can be done with the runs that were picked in the table, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from ispasp import run_trash, store
from ispasp.errors import ISpaSPError
from ispasp.narrative import plural
from ispasp.store import RunSummary
from ui import session
from ui.runs_table import title_of
from ui.words import escaped

PAGES = Path(__file__).resolve().parent.parent / "pages"
EXPLORE, COMPARE, DEPLOY, FINETUNE = (
    PAGES / f"{name}.py" for name in ("explore", "compare", "deploy", "finetune")
)
_HINT = (
    "Tick runs at the left of the table to open, compare, deploy, fine-tune, name, download or delete them."
)


def open_in_explore(kind: str, id: str) -> None:
    """Go to Explore, to look at a job or a run."""
    session.forget_view()
    session.look_at(kind, id)
    st.switch_page(EXPLORE, query_params={kind: id})


def say(*said: str, problems: Sequence[str] = (), undo: Sequence[str] = ()) -> None:
    """Show these lines above the table until the next action, with a way back for what was deleted.

    Args:
        undo: the keys of the deleted runs in the trash.
    """
    st.session_state.runs_said = {"said": said, "problems": tuple(problems), "undo": tuple(undo)}


def _hush() -> None:
    st.session_state.pop("runs_said", None)


def notice() -> None:
    """What came of the last action. It stays while the page is drawn anew, so that there is time for Undo."""
    last = st.session_state.get("runs_said")
    if not last:
        return
    for problem in last["problems"]:
        st.error(escaped(problem))
    with st.container(horizontal=True, vertical_alignment="center", key="runs_notice"):
        for line in last["said"]:
            st.markdown(escaped(line), width="content")
        if last["undo"]:
            st.button("Undo", key="runs_undo", on_click=restore, args=(last["undo"],))
        st.button("Dismiss", key="runs_dismiss", type="tertiary", on_click=_hush)


def delete(run_ids: Sequence[str]) -> None:
    """Move runs to the trash; a problem with one does not stop the others."""
    folder, keys, problems = store.default_folder(), [], []
    for run_id in run_ids:
        try:
            keys.append(run_trash.delete(folder, run_id).key)
        except ISpaSPError as problem:
            problems.append(str(problem))
    st.session_state.pop("runs_picked", None)
    lines = [f"{plural(len(keys), 'run')} deleted."] if keys else []
    say(*lines, problems=problems, undo=keys)


def restore(keys: Sequence[str]) -> None:
    """Bring runs back from the trash."""
    back, problems = 0, []
    for key in keys:
        try:
            run_trash.restore(store.default_folder(), key)
            back += 1
        except ISpaSPError as problem:
            problems.append(str(problem))
    lines = [f"{plural(back, 'run')} restored."] if back else []
    say(*lines, problems=problems)


def bar(picked: Sequence[RunSummary]) -> None:
    """The buttons for the runs that were picked; each says by being locked how many it takes."""
    one = picked[0] if len(picked) == 1 else None
    ids = [run.run_id for run in picked]
    with st.container(horizontal=True, vertical_alignment="center", key="runs_bar"):
        if st.button(
            "Open", key="runs_open", type="primary", disabled=one is None or "model" not in one.settings,
            help="Look at this run in Explore. One run that was made here or on the command line.",
        ) and one:  # fmt: skip
            open_in_explore("run", one.run_id)
        if st.button(
            "Compare", key="runs_compare", disabled=not picked,
            help="See these runs side by side with the dense model.",
        ):  # fmt: skip
            st.switch_page(COMPARE, query_params={"runs": ",".join(ids)})
        if st.button(
            "Deploy", key="runs_deploy", disabled=one is None,
            help="Export this run in several precisions, check the files, and measure them. One run.",
        ) and one:  # fmt: skip
            st.switch_page(DEPLOY, query_params={"run": one.run_id})
        if st.button(
            "Fine-tune", key="runs_finetune", disabled=one is None,
            help="Train this run to win accuracy back; the result is a run of its own. One run.",
        ) and one:  # fmt: skip
            st.switch_page(FINETUNE, query_params={"run": one.run_id})
        _naming(one)
        st.download_button(
            "Download",
            data=lambda: store.archive(*(run.path for run in picked)),
            file_name=f"{ids[0] if one else f'ispasp-{len(ids)}-runs'}.zip" if ids else "runs.zip",
            mime="application/zip",
            on_click="ignore",
            key="runs_download",
            disabled=not picked,
            help="One zip with the weights (safetensors), settings, reports and iterations. Import reads it elsewhere.",
        )
        st.button(
            "Delete", key="runs_delete", disabled=not picked, on_click=delete, args=(ids,),
            help=f"They can be restored for {run_trash.KEPT.days} days.",
        )  # fmt: skip
        size = sum(run.size for run in picked)
        chosen = f"**{plural(len(picked), 'run')}** picked, {megabytes(size)}" if picked else _HINT
        st.caption(chosen, width="content")


def megabytes(size: int) -> str:
    """``"2.4 MB"``, ``"1.2 GB"``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _naming(run: RunSummary | None) -> None:
    """Name and note of a run; the key counts up at every save, which closes the form."""
    turn = st.session_state.get("runs_named", 0)
    title = "Name and note"
    with st.popover(
        title, key=f"runs_name_{turn}", disabled=run is None, help="What you call one run, and say about it."
    ):
        if run is None:
            return
        with st.form(f"runs_about_{turn}_{run.run_id}", border=False):
            st.caption(escaped(title_of(run)))
            name, note = f"runs_new_name_{turn}_{run.run_id}", f"runs_new_note_{turn}_{run.run_id}"
            st.text_input("Name", run.name, store.MAX_NAME, key=name, placeholder="The model, if empty")
            st.text_area("Note", run.note, max_chars=store.MAX_NOTE, key=note, height=140)
            st.form_submit_button(
                "Save", key="runs_save", type="primary", on_click=_save, args=(run.path, name, note)
            )


def _save(path: Path, name: str, note: str) -> None:
    try:
        store.rename(path, st.session_state[name])
        store.set_note(path, st.session_state[note])
    except ISpaSPError as problem:
        say(problems=[str(problem)])
    else:
        say("Name and note saved.")
    st.session_state.runs_named = st.session_state.get("runs_named", 0) + 1

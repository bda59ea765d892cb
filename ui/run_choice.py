"""The choice of one finished run, on pages that do something with it: Fine-tune and Deploy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from ispasp.comparison import short_words
from ispasp.narrative import percent, quantity, tuned_words
from ispasp.plain_files import is_number
from ispasp.store import RunSummary
from ui import runs_table
from ui.words import escaped, moment

QUERY = "run"
_SESSION = "chosen_run"  # shared: whoever goes from one page to the other stays with the run


def choose(
    page: str,
    runs: Sequence[RunSummary],
    found: Sequence[RunSummary],
    help: str,
    buttons: Callable[[RunSummary], None],
) -> RunSummary | None:
    """The run that the address names, else the session, else the newest; None, and a sentence, for an unknown one.

    Args:
        page: begins the keys of the widgets.
        runs: those that can be chosen, at least one.
        found: these and the damaged ones.
        help: of the list, on hover.
        buttons: draws what can be done with the run instead, beside the list.
    """
    known = {run.run_id: run for run in runs}
    key = f"{page}_choice"
    named = st.query_params.get(QUERY)
    id = named or st.session_state.get(_SESSION) or st.session_state.get("seen_run")
    if id not in known:
        id = None if named else runs[0].run_id
    st.session_state[key] = id
    place, about = st.columns([1.35, 1], vertical_alignment="bottom", gap="medium")
    place.selectbox(
        f"Run ({len(known)})", list(known), key=key, placeholder="Choose a run",
        format_func=lambda one: title(known[one]), on_change=lambda: keep(st.session_state[key]), help=help,
    )  # fmt: skip
    if id is None:
        problem = next((run.problem for run in found if run.run_id == named), "")
        st.error(
            escaped(problem or f'There is no run "{named}" in the runs folder. Choose one of those above.')
        )
        return None
    keep(id)
    with about, st.container(horizontal=True, vertical_alignment="center"):
        buttons(known[id])
    if said := figures(known[id]):
        st.markdown(f"Pruned: {said}.")
    return known[id]


def keep(id: str) -> None:
    """Choose this run, in the address and in the session."""
    st.session_state[_SESSION] = id
    if st.query_params.get(QUERY) != id:
        st.query_params[QUERY] = id


def title(run: RunSummary) -> str:
    """``"cifar10_resnet20, keep 0.4, i-SpaSP, fine-tuned, quick, 23 Nov 2026, 05:37"``."""
    keep, selector = runs_table.keep_of(run), run.settings.get("selector")
    parts = [
        runs_table.title_of(run),
        keep if keep == "per block" else f"keep {keep}",
        short_words(selector) if isinstance(selector, str) else "",
        tuned_words(run.settings),
    ]
    return ", ".join([*filter(None, parts), moment(run.finished_at)])


def figures(run: RunSummary) -> str:
    """What the run came to, in one line; whatever it does not say is left out."""
    report = run.report

    def known(*keys: str) -> list[float] | None:
        values = [report.get(key) for key in keys]
        return values if all(map(is_number, values)) else None  # type: ignore[return-value]

    said = []
    if macs := known("macs_before", "macs_after"):
        said.append(f"**{quantity(macs[1], macs[0])}** of {quantity(macs[0])} MACs")
    if count := known("params_before", "params_after"):
        said.append(f"**{quantity(count[1], count[0])}** of {quantity(count[0])} parameters")
    if accuracy := known("accuracy_before", "accuracy_after"):
        said.append(f"accuracy **{percent(accuracy[1])}**, dense {percent(accuracy[0])}")
    elif agreement := known("agreement"):
        said.append(f"same answer as the dense model for **{percent(agreement[0])}**")
    return "; ".join(said)

"""The Deploy page: a run as files for other engines, checked against torch, timed, and explained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from ispasp import store
from ispasp.comparison import short_words
from ispasp.deployment import report
from ispasp.errors import ISpaSPError
from ispasp.jobs import Job, State
from ispasp.narrative import percent, quantity
from ispasp.plain_files import is_number
from ispasp.run_settings import RunSettings
from ispasp.store import RunSummary
from ui import deploy_files, deploy_latency, deploy_why, library, models, runs_table
from ui.background import OPERATIONS, Follower, of_run, under_way
from ui.deploy_records import exported
from ui.deploy_words import HELP, heading
from ui.runs_actions import EXPLORE, open_in_explore
from ui.words import escaped, moment

QUERY = "run"
_SESSION = "deploy_run"


def draw() -> None:
    """Draw the page."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="title"):
        st.title("Deploy", anchor=False, width="content")
        st.caption(
            "Take a run to where it will work: files in several precisions, each checked against torch; how fast they "
            "are, and why.",
            width="content",
        )
    try:
        found = store.list_runs(store.default_folder())
    except ISpaSPError as problem:
        st.error(escaped(str(problem)))
        return
    runs = [run for run in found if not run.problem]
    if not runs:
        _empty()
        return
    run = _choose(runs, found)
    if run is None:
        return
    try:
        RunSettings.of(library.open_run(run.run_id))
    except ISpaSPError as problem:
        st.error(escaped(str(problem)))
        return
    _sections(run)


def _empty() -> None:
    with st.container(border=True):
        st.markdown(
            "**No finished run to deploy yet.** Prune a model on Explore: every run that comes to its end can be "
            "exported, checked and measured here."
        )
        st.page_link(EXPLORE, label="Go to Explore")


# -- which run ------------------------------------------------------------------------------------------


def _choose(runs: Sequence[RunSummary], found: Sequence[RunSummary]) -> RunSummary | None:
    """The run that the address names, else the session, else the newest; None, and a sentence, for an unknown one."""
    known = {run.run_id: run for run in runs}
    named = st.query_params.get(QUERY)
    id = named or st.session_state.get(_SESSION) or st.session_state.get("seen_run")
    if id not in known:
        id = None if named else runs[0].run_id
    st.session_state.deploy_choice = id
    place, about = st.columns([1.35, 1], vertical_alignment="bottom", gap="medium")
    place.selectbox(
        f"Run ({len(known)})", list(known), key="deploy_choice", placeholder="Choose a run",
        format_func=lambda one: _title(known[one]), on_change=_chosen, help=HELP["run"],
    )  # fmt: skip
    if id is None:
        problem = next((run.problem for run in found if run.run_id == named), "")
        st.error(
            escaped(problem or f'There is no run "{named}" in the runs folder. Choose one of those above.')
        )
        return None
    _keep(id)
    with about, st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Open in Explore", key="deploy_open", help=HELP["open"]):
            open_in_explore("run", id)
    if figures := _figures(known[id]):
        st.markdown(f"Pruned: {figures}.")
    return known[id]


def _chosen() -> None:
    _keep(st.session_state.deploy_choice)


def _keep(id: str) -> None:
    st.session_state[_SESSION] = id
    if st.query_params.get(QUERY) != id:
        st.query_params[QUERY] = id


def _title(run: RunSummary) -> str:
    """``"cifar10_resnet20, keep 0.4, i-SpaSP, 23 Nov 2026, 05:37"``."""
    keep, selector = runs_table.keep_of(run), run.settings.get("selector")
    parts = [
        runs_table.title_of(run),
        keep if keep == "per block" else f"keep {keep}",
        short_words(selector) if isinstance(selector, str) else "",
    ]
    return ", ".join([*filter(None, parts), moment(run.finished_at)])


def _figures(run: RunSummary) -> str:
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


# -- the work -------------------------------------------------------------------------------------------


def _sections(run: RunSummary) -> None:
    path = run.path
    jobs = {name: _followed(of_run(name, path)) for name in OPERATIONS}
    busy = under_way(path) is not None
    try:
        files, problem = exported(path), ""
    except ISpaSPError as error:
        files, problem = None, str(error)
    deploy_files.draw(path, files, jobs["export"], busy, problem)
    deploy_latency.draw(path, files, jobs["bench"], busy)
    deploy_why.draw(path, files, jobs["profile"], busy)
    deploy_why.layers(path)
    _report(path)


def _followed(follower: Follower) -> Job | None:
    """Its job; none once it is finished, as what it has found is shown then."""
    job = follower.job()
    if job is not None and job.state is State.FINISHED:
        follower.follow(None)
        return None
    return job


def _report(path: Path) -> None:
    heading("5. Report", "report", help=HELP["report"])
    allow = models.allow_code()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "Download report",
            data=lambda: report.write(path, allow_code=allow),
            file_name=f"{path.name}.html",
            mime="text/html",
            on_click="ignore",
            key="deploy_report",
            help=HELP["report"],
        )
        st.caption(
            "All of the above and the run itself on one page, for a colleague without this app. Made on the click.",
            width="content",
        )

"""The Deploy page: a run as files for other engines, checked against torch, timed, and explained."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from ispasp import store
from ispasp.deployment import report
from ispasp.errors import ISpaSPError
from ispasp.jobs import Job, State
from ispasp.run_settings import RunSettings
from ispasp.store import RunSummary
from ui import deploy_files, deploy_latency, deploy_why, library, models, run_choice
from ui.background import OPERATIONS, Follower, of_run, under_way
from ui.deploy_records import exported
from ui.deploy_words import HELP, heading
from ui.runs_actions import EXPLORE, FINETUNE, open_in_explore
from ui.words import escaped


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
    run = run_choice.choose("deploy", runs, found, HELP["run"], _buttons)
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


def _buttons(run: RunSummary) -> None:
    if st.button("Open in Explore", key="deploy_open", help=HELP["open"]):
        open_in_explore("run", run.run_id)
    if st.button("Fine-tune", key="deploy_finetune", help=HELP["finetune"]):
        st.switch_page(FINETUNE, query_params={"run": run.run_id})


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

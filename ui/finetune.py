"""The Fine-tune page: a pruned run is trained to win accuracy back, and the result is a run of its own."""

from __future__ import annotations

import threading
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from ispasp import store
from ispasp.errors import ISpaSPError, SettingError
from ispasp.jobs import Job, State, registry
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from ispasp.store import RunSummary
from ispasp.tuning import runs
from ispasp.tuning.request import TuneRequest
from ispasp.tuning.runs import CutOff
from ui import (
    finetune_form,
    finetune_live,
    finetune_results,
    library,
    models,
    run_choice,
    runs_interrupted,
    runs_resumed,
    runs_table,
)
from ui.background import Follower, tuning_of
from ui.finetune_form import Asked
from ui.finetune_words import HELP
from ui.runs_actions import DEPLOY, EXPLORE, open_in_explore
from ui.words import escaped, moment

_BEGUN = "tunings_begun"  # how many this session has


def draw() -> None:
    """Draw the page."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="title"):
        st.title("Fine-tune", anchor=False, width="content")
        st.caption("Train a pruned run to win its accuracy back, and see how far it comes.", width="content")
    try:
        found = store.list_runs(store.default_folder())
    except ISpaSPError as problem:
        st.error(escaped(str(problem)))
        return
    _interrupted(store.default_folder())
    known = [run for run in found if not run.problem]
    if not known:
        _empty()
        return
    run = run_choice.choose("tune", known, found, HELP["run"], _buttons)
    if run is None:
        return
    try:
        record = library.open_run(run.run_id)
        settings = RunSettings.of(record)
    except ISpaSPError as problem:
        st.error(escaped(str(problem)))
        return
    follower = tuning_of(run.path)
    job = _followed(follower)
    going = job is not None and not job.state.ended
    results = finetune_results.results_of(run, known)
    with _room(not going and (not results or job is not None), going):
        asked = finetune_form.draw(run, record, settings, known)
        _start(asked, run, going)
    follower.watch(job, finetune_live.ended, finetune_live.details, finetune_live.line)
    if results:
        finetune_results.draw(run, results, known, going)
    elif not going:
        _first_steps()


def _room(first: bool, going: bool) -> DeltaGenerator:
    """For the form: open where it is what comes first, folded above what is learnt or was gained."""
    if first:
        return st.container(border=True, key="tune_form")
    title = "Settings for the next one" if going else "Fine-tune it again"
    # Under one key it would stay as it was opened; it is to fold when a fine-tuning begins.
    return st.expander(f"**{title}**", key=f"tune_form_{st.session_state.get(_BEGUN, 0)}")


def _interrupted(folder: Path) -> None:
    """Fine-tunings that were cut off: go on with them here, or discard them."""
    found = runs_resumed.tunings_cut_off(folder)
    if not found:
        return
    with st.container(border=True, key="tune_interrupted"):
        st.markdown("**Interrupted.** This ended before it was finished; what was done is kept.")
        for one in found:
            runs_interrupted.tuning_row(one, moment, _resume, _discard)


def _resume(tuning: CutOff) -> None:
    """Go on with a fine-tuning, and look at it."""
    path = store.default_folder() / tuning.parent
    if not (path / "run.json").is_file():
        tuning_of(path).refuse(runs.gone(tuning.parent))
        return
    try:
        job = runs_resumed.resume_tuning(tuning)
    except ISpaSPError as problem:
        tuning_of(path).refuse(problem)
        return
    run_choice.keep(path.name)
    tuning_of(path).follow(job)


def _discard(tuning: CutOff) -> None:
    try:
        runs_resumed.discard_tuning(tuning)
    except ISpaSPError as problem:
        tuning_of(store.default_folder() / tuning.parent).refuse(problem)


def _buttons(run: RunSummary) -> None:
    if st.button("Open in Explore", key="tune_open", help=HELP["open"]):
        open_in_explore("run", run.run_id)
    if st.button("Deploy", key="tune_deploy", help=HELP["deploy"]):
        st.switch_page(DEPLOY, query_params={"run": run.run_id})


def _followed(follower: Follower) -> Job | None:
    """Its job; none once it is finished, as its result is shown then."""
    job = follower.job()
    if job is None or job.state is not State.FINISHED:
        return job
    follower.follow(None)
    saved = next((one for one in reversed(job.snapshot().events) if isinstance(one, RunSaved)), None)
    if saved is not None:
        finetune_results.keep(saved.run_id)
    return None


def _start(asked: Asked, run: RunSummary, going: bool) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Run", key="tune_run", type="primary", shortcut="Ctrl+Enter", disabled=asked.request is None or going,
            on_click=_begin, args=(run, asked.request), help=HELP["start_button"],
        )  # fmt: skip
        st.caption(f"⚠️ {escaped(asked.problem)}" if asked.problem else asked.words, width="stretch")
    if asked.unlabelled and not going:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(
                "⚠️ The run's own data have no labels that fit the model. Choose data that have them, or:",
                width="content",
            )
            st.button(
                "Use the preset that needs no labels",
                key="tune_use_distil",
                on_click=finetune_form.use_distil,
            )


def _begin(run: RunSummary, request: TuneRequest) -> None:
    follower, stop = tuning_of(run.path), threading.Event()
    st.session_state[_BEGUN] = st.session_state.get(_BEGUN, 0) + 1
    allow, folder = models.allow_code(), store.default_folder()
    try:
        _check_idle(follower)
    except ISpaSPError as problem:
        follower.refuse(problem)
        return
    follower.submit(
        f"Fine-tune {runs_table.title_of(run)}, keep {runs_table.keep_of(run)}: {finetune_form.request_words(request)}",
        lambda: runs.execute(run.path, request, folder, stop=stop.is_set, allow_code=allow),
        request.device,
        follower.subjects[0],
        stop.set,
    )


def _check_idle(follower: Follower) -> None:
    """Raises SettingError where the run is being fine-tuned: a page drawn before that does not know."""
    if any(job.subject in follower.subjects and not job.state.ended for job in registry.jobs()):
        raise SettingError("This run is being fine-tuned already: wait until that ends, or stop it.")


def _empty() -> None:
    with st.container(border=True):
        st.markdown(
            "**No finished run to fine-tune yet.** Prune a model on Explore: every run that comes to its end can be "
            "trained further here."
        )
        st.page_link(EXPLORE, label="Go to Explore")


def _first_steps() -> None:
    with st.container(border=True):
        for place, (title, text) in zip(
            st.columns(3, gap="large"),
            (
                ("1. Choose how, press Run", "Quick is right for most. Without labels, take the third. The run itself "
                 "stays as it is; the result is a new one."),
                ("2. Watch it learn", "Loss and accuracy after every epoch, with the dense model's line. Leave the "
                 "page if you like; stop when it is good enough, the best weights are kept."),
                ("3. See what was gained", "Before, after and dense side by side. Then compare the answers, or "
                 "deploy it."),
            ),
            strict=True,
        ):  # fmt: skip
            place.markdown(f"**{title}**")
            place.markdown(text)

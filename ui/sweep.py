"""Sweeps on the Compare page: choose what to run, start it, watch it, and take up what was cut off.

The job's id is kept in the address and in the session, as for a single run; another browser sees the newest sweep
that is under way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from ispasp import selectors, store, sweeps, zoo
from ispasp.comparison import short_words
from ispasp.errors import ISpaSPError
from ispasp.jobs import Job, Snapshot, State, registry
from ispasp.narrative import duration, percent, plural
from ispasp.result import read_json
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from ispasp.settings import RECONSTRUCTIONS
from ispasp.store import RunSummary
from ispasp.sweeps import Sweep, SweepSettings, SweepStarted
from ispasp.vocabulary import refit_words, selector_words
from ui import library, models
from ui.words import HELP, escaped, source_words, unusual_words

SUBJECT = "sweep"
_QUERY, _SESSION = "sweeping", "seen_sweep"
_KEEPS = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
_VARIED = ("model", "keep", "selector", "reconstruct", "samples", "seed", "device")
_USUAL = dataclasses.asdict(RunSettings(library.FIRST_MODEL))
_HELP = {
    "model": "The sample models, and every model that was set up on Explore in this browser session, with all its "
    "other settings.",
    "keeps": "Each of these ratios is one run for every selector and re-fit.",
    "show": "Set the filters below to the runs of this sweep.",
    "stop": "End this sweep within one iteration. Runs that are finished stay, and the sweep can be resumed.",
    "resume": "Go on with the runs that are not finished; the finished ones are kept as they are.",
    "discard": "Forget that this sweep is not finished. Its finished runs stay.",
}


def panel(runs: Sequence[RunSummary], few: bool) -> None:
    """Draw the panel: a form, the sweep under way, and those that were cut off.

    Args:
        runs: those on disk, which tell how long one takes.
        few: there is hardly anything to compare yet, so the form is unfolded.
    """
    job = _seen()
    going = job is not None and not job.state.ended
    if job is not None:
        _watch(job)
    if refused := st.session_state.pop("sweep_refused", None):
        st.error(escaped(refused))
    _interrupted()
    unfold = few and not going
    # Under one key it would stay as it was first drawn, or opened; it is to fold when a sweep begins.
    turn = st.session_state.get("sweeps_begun", 0)
    with st.expander("New sweep", expanded=unfold, key=f"new_sweep_{unfold}_{turn}"):
        _form(runs)


def _seen() -> Job | None:
    """The sweep that this session follows, else the newest one under way."""
    id = st.query_params.get(_QUERY) or st.session_state.get(_SESSION)
    job = registry.get(id) if id else None
    if job is None or job.subject != SUBJECT:
        open_ones = [one for one in registry.jobs() if one.subject == SUBJECT and not one.state.ended]
        job = open_ones[-1] if open_ones else None
    _follow(job)
    return job


def _follow(job: Job | None) -> None:
    if job is None:
        st.session_state.pop(_SESSION, None)
        st.query_params.pop(_QUERY, None)
    elif st.query_params.get(_QUERY) != job.id:
        st.session_state[_SESSION] = job.id
        st.query_params[_QUERY] = job.id


# -- the form -------------------------------------------------------------------------------------------


def _bases() -> dict[str, RunSettings]:
    """What a sweep can start from, by title: the settings last used on Explore, and the sample models as they come."""
    found: dict[str, RunSettings] = {}
    for key, value in st.session_state.items():
        if str(key).startswith("last_") and isinstance(value, RunSettings):
            found[source_words(value.model)] = value
    usual = {name: RunSettings(name, samples=_samples(name)) for name in zoo.names()}
    return {**{name: found.get(name, base) for name, base in usual.items()}, **found}


def _samples(name: str) -> int:
    return library.sample_count(zoo.card(name).dataset)


def _form(runs: Sequence[RunSummary]) -> None:
    bases = _bases()
    last = st.session_state.get("panel_values", {}).get("model", library.FIRST_MODEL)
    st.session_state.setdefault("sweep_model", last if last in bases else library.FIRST_MODEL)
    if st.session_state.sweep_model not in bases:
        st.session_state.sweep_model = library.FIRST_MODEL
    first = st.columns([1.6, 2.6, 1, 1], vertical_alignment="bottom")
    base = bases[
        first[0].selectbox(
            "Model", list(bases), key="sweep_model", persist_state="session", help=_HELP["model"]
        )
    ]
    keeps = first[1].multiselect(
        "Keep ratios",
        _KEEPS,
        [0.3, 0.5, 0.7],
        key="sweep_keeps",
        persist_state="session",
        help=_HELP["keeps"],
    )
    samples = first[2].number_input(
        "Samples", 1, value=base.samples, step=1, key=f"sweep_samples_{base.model}", help=HELP["samples"]
    )
    seed = first[3].number_input(
        "Seed", 0, value=base.seed, step=1, key=f"sweep_seed_{base.model}", help=HELP["seed"]
    )
    second = st.columns([2.6, 1.6], vertical_alignment="bottom")
    ways = second[0].multiselect(
        "Selectors", selectors.names(), ["ispasp", "ispasp-contribution"], key="sweep_selectors",
        persist_state="session", format_func=lambda name: selector_words(name).title, help=HELP["selector"],
    )  # fmt: skip
    fits = second[1].multiselect(
        "Re-fits", RECONSTRUCTIONS, ["asymmetric"], key="sweep_refits", persist_state="session",
        format_func=lambda name: refit_words(name)[0], help=HELP["reconstruct"],
    )  # fmt: skip
    sweep, problem = _settings(base, samples, seed, keeps, ways, fits)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Start the sweep", key="sweep_start", type="primary", disabled=sweep is None,
            on_click=_submit, args=(sweep,),
        )  # fmt: skip
        if sweep is None:
            st.caption(f"⚠️ {escaped(problem)}")
        else:
            st.caption(_announced(sweep, runs))


def _settings(
    base: RunSettings,
    samples: int | None,
    seed: int | None,
    keeps: Sequence[float],
    ways: Sequence[str],
    fits: Sequence[str],
) -> tuple[SweepSettings | None, str]:
    """What the form amounts to, or why it amounts to nothing."""
    for what, given in (("keep ratio", keeps), ("selector", ways), ("re-fit", fits)):
        if not given:
            return None, f"Choose at least one {what}."
    if samples is None or seed is None:
        return None, "Give a number of samples and a seed."
    try:
        settings = dataclasses.replace(base, samples=samples, seed=seed)
        return SweepSettings(settings, tuple(sorted(keeps)), tuple(ways), tuple(fits)), ""
    except ISpaSPError as error:
        return None, str(error)


def _announced(sweep: SweepSettings, runs: Sequence[RunSummary]) -> str:
    """How many runs it will be, how long they would take, and what of the settings is not as usual."""
    count = len(sweep.runs())
    said = f"{plural(count, 'run')} of {escaped(source_words(sweep.base.model))}"
    took = _seconds(sweep.base, runs)
    if took is not None:
        said += (
            f". One by one they would take about {duration(took * count)}; a sweep does shared work only once"
        )
    rest = {k: v for k, v in dataclasses.asdict(sweep.base).items() if k not in _VARIED}
    if unusual := unusual_words(rest, _USUAL):
        said += f". As set on Explore: {', '.join(unusual)}"
    return f"{said}."


def _seconds(base: RunSettings, runs: Sequence[RunSummary]) -> float | None:
    """How long the newest single run of this model took, for as many samples; None where there was none."""
    for run in runs:
        samples, seconds = run.settings.get("samples"), run.report.get("seconds")
        same = run.settings.get("model") == base.model and run.settings.get("distil", 0) == base.distil
        if same and not run.lineage and isinstance(samples, int) and isinstance(seconds, (int, float)):
            return float(seconds) * base.samples / max(samples, 1)
    return None


# -- the job --------------------------------------------------------------------------------------------


def _submit(sweep: SweepSettings, id: str | None = None) -> None:
    """Begin a sweep, or go on with one, and follow it."""
    allow = models.allow_code()
    folder = store.default_folder()
    try:
        job = registry.submit(
            f"Sweep of {source_words(sweep.base.model)}, {plural(len(sweep.runs()), 'run')}",
            lambda: sweeps.execute(sweep, folder, id=id, allow_code=allow),
            library.slot(sweep.base.device),
            subject=SUBJECT,
        )
    except ISpaSPError as problem:
        st.session_state.sweep_refused = str(problem)
        return
    st.session_state.sweeps_begun = st.session_state.get("sweeps_begun", 0) + 1
    _follow(job)


def _watch(job: Job) -> None:
    """The sweep under way: one bar, one line per run; looked at every second."""
    state = job.state
    live = job.snapshot().live

    @st.fragment(run_every=1.0 if live else None)
    def draw() -> None:
        snapshot = job.snapshot()
        if (snapshot.state, snapshot.live) != (state, live):
            st.rerun()  # the picture and the table below have new runs
        with st.container(border=True, key="sweep_status"):
            st.progress(snapshot.done, text=_status(snapshot))
            if snapshot.error:
                st.error(escaped(snapshot.error))
            _buttons(job, snapshot)
            _lines(snapshot)

    draw()


def _status(snapshot: Snapshot) -> str:
    title = f"**{escaped(snapshot.title)}**"
    if snapshot.state is State.QUEUED:
        return f"{title}: waiting for the device; it starts by itself"
    if snapshot.state is State.RUNNING:
        left = "" if snapshot.seconds_left is None else f" · about {duration(snapshot.seconds_left)} left"
        doing = "ending" if snapshot.stopping else snapshot.doing or "starting"
        return f"{title}: {escaped(doing)}{left}"
    if snapshot.state is State.FINISHED:
        return f"{title}: finished in {duration(snapshot.seconds)}"
    return f"{title}: {snapshot.state.value}"


def _buttons(job: Job, snapshot: Snapshot) -> None:
    with st.container(horizontal=True):
        if snapshot.state.ended:
            started = _started(snapshot)
            if started is not None:
                st.button(
                    "Show only its runs", key="sweep_show", type="primary", on_click=_show, args=(started.id,),
                    help=_HELP["show"],
                )  # fmt: skip
            st.button("Close", key="sweep_close", on_click=_close)
            return
        if snapshot.state is State.PAUSED:
            st.button("Go on", key="sweep_go_on", on_click=job.run, disabled=snapshot.stopping)
        else:
            st.button(
                "Pause", key="sweep_pause", on_click=job.pause, help=HELP["pause"], disabled=snapshot.stopping
            )
        st.button(
            "Stop", key="sweep_stop", on_click=job.cancel, help=_HELP["stop"], disabled=snapshot.stopping
        )


def _show(id: str) -> None:
    """Have the filters below leave nothing but this sweep."""
    st.session_state.show_sweep = id


def _close() -> None:
    _follow(None)


def _started(snapshot: Snapshot) -> SweepStarted | None:
    return next((event for event in snapshot.events if isinstance(event, SweepStarted)), None)


def _lines(snapshot: Snapshot) -> None:
    """One line per run. They go on in step, block by block, so all that are not finished are under way."""
    started = _started(snapshot)
    if started is None:
        return
    folder = store.default_folder()
    landed = [folder / id for id in started.finished if id]
    landed += [event.path for event in snapshot.events if isinstance(event, RunSaved)]
    done = {_key(plain["settings"]): plain["report"] for path in landed if (plain := _plain(path))}
    left = (
        "not finished"
        if snapshot.state.ended
        else "paused"
        if snapshot.state is State.PAUSED
        else "under way"
    )
    rows = []
    for settings in started.settings:
        report = done.get(_key(dataclasses.asdict(settings)))
        rows.append(
            {
                "Keep": settings.keep,
                "Selector": short_words(settings.selector),
                "Re-fit": refit_words(settings.reconstruct)[0],
                "State": "finished" if report else left,
                "Accuracy": _shown(report, "accuracy_after"),
                "Agreement": _shown(report, "agreement"),
            }
        )  # fmt: skip
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        height=min(38 + 35 * len(rows), 260),
        column_config={"Keep": st.column_config.NumberColumn(format="%.3g", width="small")},
        alt="The runs of this sweep",
    )


def _key(settings: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(settings.get(key) for key in ("keep", "selector", "reconstruct"))


def _plain(path: Path) -> dict[str, Any] | None:
    try:
        return _read(str(path), (path / "run.json").stat().st_mtime)
    except (ISpaSPError, OSError):
        return None  # deleted meanwhile


@st.cache_data(show_spinner=False, max_entries=512)
def _read(path: str, changed: float) -> dict[str, Any]:
    plain = read_json(Path(path))
    report = {key: plain["report"].get(key) for key in ("accuracy_after", "agreement")}
    return {"settings": plain["settings"], "report": report}


def _shown(report: dict[str, Any] | None, key: str) -> str:
    if report is None:
        return ""
    return "unknown" if report[key] is None else percent(report[key])


# -- what was cut off -----------------------------------------------------------------------------------


def _interrupted() -> None:
    """Sweeps that were begun and are worked on by nobody, each with a way on and a way out."""
    open_ones = [job for job in registry.jobs() if job.subject == SUBJECT and not job.state.ended]
    if not all(_started(job.snapshot()) for job in open_ones):
        return  # to look at what a job is about to take up would keep it from doing so
    folder = store.default_folder()
    try:
        found = sweeps.unfinished(folder)
    except ISpaSPError as problem:
        st.warning(escaped(str(problem)))
        return
    for sweep in found:
        _interrupted_line(sweep)


def _interrupted_line(sweep: Sweep) -> None:
    finished = sum(one is not None for one in sweep.finished)
    with st.container(horizontal=True, vertical_alignment="center", key=f"interrupted_{sweep.id}"):
        st.markdown(
            f"⏸️ **A sweep of {escaped(source_words(sweep.settings.base.model))} was cut off**: "
            f"{finished} of {plural(len(sweep.finished), 'run')} finished.",
            width="content",
        )
        st.button(
            "Resume", key=f"resume_{sweep.id}", help=_HELP["resume"], on_click=_submit,
            args=(sweep.settings, sweep.id),
        )  # fmt: skip
        st.button(
            "Discard", key=f"discard_{sweep.id}", help=_HELP["discard"], on_click=_discard, args=(sweep.id,)
        )


def _discard(id: str) -> None:
    try:
        sweeps.discard(store.default_folder(), id)
    except ISpaSPError as problem:
        st.session_state.sweep_refused = str(problem)

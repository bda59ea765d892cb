"""Sweeps on the Compare page: choose what to run, start it, watch it, and take up what was cut off."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from ispasp import selectors, store, sweeps
from ispasp.comparison import short_words
from ispasp.errors import ISpaSPError
from ispasp.jobs import Snapshot, State
from ispasp.narrative import duration, percent, plural
from ispasp.result import read_json
from ispasp.run_settings import RunSettings
from ispasp.runs import RunSaved
from ispasp.settings import RECONSTRUCTIONS
from ispasp.store import RunSummary
from ispasp.sweeps import RunRefused, Sweep, SweepSettings, SweepStarted
from ispasp.vocabulary import refit_words, selector_words
from ui import bases, runs_resumed
from ui.background import SWEEPS, status
from ui.compare_filters import part_words
from ui.words import HELP, escaped, source_words

_KEEPS = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
_WORTH_SAYING = 10.0  # seconds; a run's own time leaves out tracing and measuring
_VARIED = ("model", "keep", "selector", "reconstruct", "samples", "seed", "device")
_HELP = {
    "keeps": "Each of these ratios is one run for every selector and re-fit.",
    "show": "Set the filters below to the runs of this sweep.",
    "resume": "Go on with the runs that are not finished; the finished ones are kept as they are.",
    "discard": "Forget that this sweep is not finished. Its finished runs stay.",
}


def panel(runs: Sequence[RunSummary], few: bool) -> SweepStarted | None:
    """Draw the panel: a form, the sweep under way, and those that were cut off; the sweep that the page follows.

    Args:
        runs: those on disk, which tell how long one takes.
        few: there is hardly anything to compare yet, so the form is unfolded.
    """
    job = SWEEPS.job()
    going = job is not None and not job.state.ended
    started = _started(job.snapshot()) if job else None
    cut_off = _cut_off()
    own = next((sweep for sweep in cut_off if started and sweep.id == started.id), None)
    SWEEPS.watch(job, lambda snapshot: _ended(snapshot, own), _lines, _line)
    for sweep in cut_off:
        if sweep is not own:  # the panel of its job offers the same
            _interrupted_line(sweep)
    unfold = few and not going
    # Under one key it would stay as it was first drawn, or opened; it is to fold when a sweep begins.
    turn = st.session_state.get("sweeps_begun", 0)
    with st.expander("New sweep", expanded=unfold, key=f"new_sweep_{unfold}_{turn}"):
        _form(runs)
    return started


# -- the form -------------------------------------------------------------------------------------------


def _form(runs: Sequence[RunSummary]) -> None:
    known = bases.bases()
    if st.session_state.get("sweep_model") not in known:
        st.session_state.sweep_model = bases.last(known)
    first = st.columns([1.6, 2.6, 1, 1], vertical_alignment="bottom")
    base = known[
        first[0].selectbox("Model", list(known), key="sweep_model", persist_state="session", help=bases.HELP)
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
            on_click=_start, args=(sweep,),
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
    if took is not None and took * count > _WORTH_SAYING:
        said += (
            f". One by one they would take about {duration(took * count)}; a sweep does shared work only once"
        )
    if as_set := bases.as_set(sweep.base, _VARIED):
        said += f". {as_set}"
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


def _start(sweep: SweepSettings, id: str | None = None) -> None:
    """Begin a sweep, or go on with one, and follow it."""
    try:
        job = runs_resumed.start_sweep(sweep, id)
    except ISpaSPError as problem:
        SWEEPS.refuse(problem)
        return
    st.session_state.sweeps_begun = st.session_state.get("sweeps_begun", 0) + 1
    SWEEPS.follow(job)


def _ended(snapshot: Snapshot, left: Sweep | None) -> None:
    """What can be done next: with ``left``, the rest of a sweep that did not come to its end, and with its runs."""
    started = _started(snapshot)
    if left is not None:
        _ways_on(left)
    if started is not None and _landed(snapshot, started):
        st.button(
            "Show only its runs", key="sweep_show", on_click=_show, args=(started.id,), help=_HELP["show"]
        )


def _line(snapshot: Snapshot) -> str:
    """As ``background.status``, with how many runs are finished once it was stopped, and their number said once."""
    started = _started(snapshot)
    if started is None:
        return status(snapshot)
    count = len(started.settings)
    if snapshot.state is State.CANCELLED:
        title = snapshot.title.removesuffix(f", {plural(count, 'run')}")
        finished = len(_landed(snapshot, started))
        return f"**{escaped(title)}**: stopped, {finished} of {plural(count, 'run')} finished"
    doing = snapshot.doing.removesuffix(f" of {plural(count, 'run')}")
    return status(dataclasses.replace(snapshot, doing=doing))


def _landed(snapshot: Snapshot, started: SweepStarted) -> list[Path]:
    """The runs of this sweep that are saved, of earlier attempts, too."""
    folder = store.default_folder()
    landed = [folder / id for id in started.finished if id]
    return landed + [event.path for event in snapshot.events if isinstance(event, RunSaved)]


def _show(id: str) -> None:
    """Have the filters below leave nothing but this sweep."""
    st.session_state.show_sweep = id


def _started(snapshot: Snapshot) -> SweepStarted | None:
    return next((event for event in snapshot.events if isinstance(event, SweepStarted)), None)


def _lines(snapshot: Snapshot) -> None:
    """One line per run. They go on in step, block by block: a state of its own is said where they differ."""
    started = _started(snapshot)
    if started is None:
        return
    landed = [plain for path in _landed(snapshot, started) if (plain := _plain(path))]
    done = {_key(plain["settings"]): plain["report"] for plain in landed}
    left = (
        "not finished"
        if snapshot.state.ended
        else "paused"
        if snapshot.state is State.PAUSED
        else "under way"
    )
    refused = {event.index: event.problem for event in snapshot.events if isinstance(event, RunRefused)}
    rows = []
    for index, settings in enumerate(started.settings):
        report = done.get(_key(dataclasses.asdict(settings)))
        rows.append(
            {
                "Keep": settings.keep,
                "Selector": short_words(settings.selector),
                "Re-fit": refit_words(settings.reconstruct)[0],
                "State": "finished" if report else "left out" if index in refused else left,
                "Accuracy": _shown(report, "accuracy_after"),
                "Agreement": _shown(report, "agreement"),
            }
        )  # fmt: skip
    frame = pd.DataFrame(rows)
    if not done:
        frame = frame[["Keep", "Selector", "Re-fit"]]
    elif frame["State"].nunique() == 1:
        frame = frame.drop(columns="State")
    st.dataframe(
        frame,
        hide_index=True,
        height=min(38 + 35 * len(rows), 260),
        column_config={"Keep": st.column_config.NumberColumn(format="%.3g", width="small")},
        alt="The runs of this sweep",
    )
    for problem in dict.fromkeys(refused.values()):
        st.warning(f"Left out: {escaped(problem)}")


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


def _cut_off() -> list[Sweep]:
    """Sweeps that were begun, are not complete, and are worked on by nobody."""
    try:
        return runs_resumed.sweeps_cut_off(store.default_folder())
    except ISpaSPError as problem:
        st.warning(escaped(str(problem)))
        return []


def _interrupted_line(sweep: Sweep) -> None:
    finished = sum(one is not None for one in sweep.finished)
    model = escaped(source_words(sweep.settings.base.model))
    with st.container(horizontal=True, vertical_alignment="center", key=f"interrupted_{sweep.id}"):
        st.markdown(
            f"⏸️ **S{part_words(f'sweep {sweep.id}')[1:]}, of {model}, was cut off**: "
            f"{finished} of {plural(len(sweep.finished), 'run')} finished.",
            width="content",
        )
        _ways_on(sweep)


def _ways_on(sweep: Sweep) -> None:
    """A way on and a way out."""
    st.button(
        "Resume", key=f"resume_{sweep.id}", help=_HELP["resume"], on_click=_start,
        args=(sweep.settings, sweep.id),
    )  # fmt: skip
    st.button(
        "Discard", key=f"discard_{sweep.id}", help=_HELP["discard"], on_click=_discard, args=(sweep.id,)
    )


def _discard(id: str) -> None:
    try:
        runs_resumed.discard(sweeps.discard, id)
    except ISpaSPError as problem:
        SWEEPS.refuse(problem)
        return
    job = SWEEPS.job()
    if job and (started := _started(job.snapshot())) and started.id == id:
        SWEEPS.follow(None)

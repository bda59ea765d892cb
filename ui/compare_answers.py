"""What the chosen runs answer differently: accuracy by class, and the examples whose prediction changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import streamlit as st

from ispasp import comparison, examples, pictures
from ispasp.comparison import FLIPS, Flip, Row
from ispasp.errors import ISpaSPError, RunError
from ispasp.examples import EvaluationExamples
from ispasp.models import parse
from ispasp.narrative import plural
from ispasp.pair_figures import class_figure, class_name
from ispasp.result import RunRecord
from ispasp.run_settings import RunSettings
from ui import library, models, style
from ui.words import escaped

CLASSES = 12  # the classes that changed most
FEW = 14  # flipped examples shown at first, of each kind
_SIDE = 104
_HELP = {
    "classes": f"The {CLASSES} classes whose accuracy changed most, on the evaluation examples of each.",
    "flips": "Evaluation examples that the two models answer differently. Those that were right before and are wrong "
    "now come first.",
    "show": "Reads the evaluation data of the run again, which may take a moment.",
}

Chosen = tuple[str, Row, RunRecord]


def _pairs(runs: list[Chosen]) -> dict[str, tuple[str, str]]:
    """What can be set against what: title, and the two names."""
    names = [letter for letter, _, _ in runs]
    found = {f"dense and {name}": ("dense", name) for name in names}
    return found if len(names) < 2 else {f"{names[0]} and {names[1]}": (names[0], names[1]), **found}


def _answers(
    runs: list[Chosen], pair: tuple[str, str]
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray, RunRecord]:
    """True classes, what each of the two predicts, and the run whose examples these are.

    Raises:
        RunError: they are not on record, or not about the same examples.
    """
    by_name = {letter: record for letter, _, record in runs}
    record = by_name[pair[1]]
    if pair[0] == "dense":
        seen = comparison.predictions(record)
        before, after = seen.dense, seen.pruned
    else:
        one, seen = comparison.check_same_examples(by_name[pair[0]], record)
        before, after = one.pruned, seen.pruned
    labels = None if seen.labels is None else seen.labels.numpy()
    return labels, before.numpy(), after.numpy(), record


def classes(runs: list[Chosen], pair: tuple[str, str] | None = None) -> None:
    """Accuracy by class, the largest change first; a sentence where there is none to tell."""
    pair = pair or next(iter(_pairs(runs).values()))
    st.markdown(f"**Accuracy by class, {pair[0]} and {pair[1]}**", help=_HELP["classes"])
    try:
        labels, before, after, record = _answers(runs, pair)
    except RunError as problem:
        st.info(escaped(str(problem)))
        return
    if labels is None:
        st.info("The data of this run have no labels, so accuracy by class is unknown.")
        return
    changes = comparison.class_changes(labels, before, after)
    st.plotly_chart(
        class_figure(changes[:CLASSES], _class_names(record), pair, style.dark()),
        key=f"classes_plot_{'_'.join(pair)}",
        config={"displaylogo": False, "toImageButtonOptions": {"filename": "ispasp-classes", "scale": 2}},
        alt=f"Accuracy of {pair[0]} and {pair[1]} on the classes that changed most",
    )


def draw(runs: list[Chosen]) -> None:
    """Accuracy by class of two runs, and the flipped examples."""
    pairs = _pairs(runs)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.subheader("Answers that changed", anchor="answers", width="content", help=_HELP["flips"])
        # At the same place for one run and for two: the address forgets a switch that is drawn elsewhere.
        show = st.toggle(
            "Show the examples", key="flips", bind="query-params", persist_state="session", help=_HELP["show"]
        )
        title = next(iter(pairs))
        if len(pairs) > 1:
            title = (
                st.segmented_control(
                    "Compare", list(pairs), default=title, required=True, key="pair", bind="query-params",
                    label_visibility="collapsed",
                )
                or title
            )  # fmt: skip
    pair = pairs[title]
    if len(pairs) > 1:
        left, right = st.columns([1, 1.35], gap="medium")
        with left:
            classes(runs, pair)
        with right:
            _flips(runs, pair, show)
    else:
        _flips(runs, pair, show)


def _flips(runs: list[Chosen], pair: tuple[str, str], show: bool) -> None:
    st.markdown(f"**Examples, {pair[0]} → {pair[1]}**", help=_HELP["flips"])
    try:
        labels, before, after, record = _answers(runs, pair)
    except RunError as problem:
        if len(runs) == 1:
            st.info(escaped(str(problem)))
        return
    found = comparison.flips(labels, before, after)
    if not found:
        st.markdown(f"All {plural(len(before), 'example')} have the same answer.")
        return
    counts = [(sum(flip.kind == kind for flip in found), kind) for kind in FLIPS]
    said = " · ".join(f"{count:,} {kind}" for count, kind in counts if count)
    st.markdown(f"{plural(len(found), 'answer')} of {len(before):,} changed: {said}.")
    if not show:
        return
    run_id = next(row.run_id for letter, row, _ in runs if letter == pair[1])
    shown = read(run_id, record)
    if shown is None:
        return
    if len(shown) != len(before):
        st.info("The answers of this run are counted token by token, so they are not shown one by one.")
    elif shown.pictures is None:
        _texts(found, shown, pair)
    else:
        _pictures(found, shown)


def read(run_id: str, record: RunRecord) -> EvaluationExamples | None:
    """The examples of a run; None, with a sentence or a button on the page, where they are not to be had."""
    try:
        source = RunSettings.of(record).model_source()
        own_code = "python:" in (str(record.settings.get("data", "")) + str(record.settings.get("model", "")))
        asked = st.session_state.setdefault("read_data_of", set())
        if run_id not in asked and (own_code or not models.at_once(source)):
            # A link alone neither fetches a model nor runs anybody's code.
            st.button("Read the data of this run", key="read_data", on_click=asked.add, args=(run_id,))
            return None
        path = library.run_path(run_id)
        return _examples(run_id, (path / "run.json").stat().st_mtime)
    except OSError:
        st.info("The run has vanished meanwhile.")
    except ISpaSPError as problem:
        st.info(escaped(str(problem)))
    return None


@st.cache_resource(show_spinner="Reading the evaluation data …", max_entries=3)
def _examples(run_id: str, changed: float) -> EvaluationExamples:
    record = library.open_run(run_id)
    loaded = models.loaded(RunSettings.of(record).model_source())
    return examples.evaluation_examples(record, loaded, allow_code=models.allow_code())


@st.cache_data(show_spinner=False, max_entries=64)
def _names_of(model: str, weights: str) -> tuple[str, ...]:
    return models.loaded(parse(model, weights)).classes


def _class_names(record: RunRecord) -> tuple[str, ...]:
    """Names of the classes, where they are known without fetching anything."""
    try:
        source = RunSettings.of(record).model_source()
        return _names_of(str(source), source.weights) if models.at_once(source) else ()
    except ISpaSPError:
        return ()


def _pictures(found: Sequence[Flip], shown: EvaluationExamples) -> None:
    assert shown.pictures is not None
    by_kind = {kind: [flip for flip in found if flip.kind == kind] for kind in FLIPS}
    by_kind = {kind: of_kind for kind, of_kind in by_kind.items() if of_kind}
    for tab, (kind, of_kind) in zip(
        st.tabs([kind.capitalize() for kind in by_kind]), by_kind.items(), strict=True
    ):
        many = st.session_state.get(f"flips_{kind}", FEW)
        with tab:
            with st.container(horizontal=True, gap="small"):
                for flip in of_kind[:many]:
                    with st.container(width=_SIDE, gap=None):
                        said = _said(flip, shown.classes)
                        st.image(pictures.photo(shown.pictures[flip.example], _SIDE), width=_SIDE, alt=said)
                        st.caption(escaped(said))
            _more(kind, len(of_kind), many)


def _said(flip: Flip, classes: Sequence[str]) -> str:
    """``"cat → dog"``; the true class too, where neither is it."""
    before, after = (class_name(label, classes) for label in (flip.before, flip.after))
    truth = "" if flip.label in (None, flip.before, flip.after) else class_name(flip.label or 0, classes)
    return f"{before} → {after}" + (f" (is {truth})" if truth else "")


def _texts(found: Sequence[Flip], shown: EvaluationExamples, pair: tuple[str, str]) -> None:
    def named(label: int | None) -> str:
        return "unknown" if label is None else class_name(label, shown.classes)

    st.dataframe(
        pd.DataFrame(
            [
                {
                    "Sentence pair": shown.texts[flip.example],
                    "True class": named(flip.label),
                    pair[0]: named(flip.before),
                    pair[1]: named(flip.after),
                    "Change": flip.kind,
                }
                for flip in found
            ]
        ),
        hide_index=True,
        column_config={"Sentence pair": st.column_config.TextColumn(width="large")},
        height=min(38 + 35 * len(found), 420),
        alt="Sentence pairs whose answer changed",
    )


def _more(kind: str, count: int, many: int) -> None:
    def widen() -> None:
        st.session_state[f"flips_{kind}"] = many + 2 * FEW

    if count > many:
        st.button(f"Show more ({count - many:,} left)", key=f"more_{kind}", on_click=widen)

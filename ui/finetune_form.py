"""The form of the Fine-tune page: how, on what data, and the finer settings."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from ispasp import datasets
from ispasp.errors import ISpaSPError, SettingError
from ispasp.result import RunRecord
from ispasp.run_settings import RunSettings
from ispasp.store import RunSummary
from ispasp.tuning import pace, runs
from ispasp.tuning import settings as tune_settings
from ispasp.tuning.request import TuneRequest
from ispasp.vocabulary import example_word
from ui import library, models, places, sources
from ui.finetune_words import HELP, OPTIMISERS, PRECISIONS, PRESETS, STARTS, WHAT, amount, time_words
from ui.words import DATASETS, data_words, moment, source_words

PRESET = "tune_preset"
_QUERY = "tune_train"  # the training data in the address


@dataclass(frozen=True)
class Asked:
    """What the form says.

    Attributes:
        request: None where it cannot be run.
        problem: why not; empty where it can.
        words: how much work it is, and about how long it takes.
        unlabelled: labels are asked for, and the run's own data are not known to have any.
    """

    request: TuneRequest | None
    problem: str
    words: str
    unlabelled: bool = False


def draw(run: RunSummary, record: RunRecord, settings: RunSettings, known: Sequence[RunSummary]) -> Asked:
    """The widgets, and what they amount to.

    Args:
        run, record: what is to be fine-tuned.
        settings: of that run.
        known: all runs, newest first.
    """
    preset = st.segmented_control(
        "How", list(PRESETS), default="quick", required=True, format_func=PRESETS.__getitem__, key=PRESET,
        bind="query-params", persist_state="session", help=HELP["preset"],
    ) or "quick"  # fmt: skip
    st.markdown(WHAT[preset])
    _from_address()
    train, examples, count, problem = _data(settings)
    if train and st.query_params.get(_QUERY) != train:
        st.query_params[_QUERY] = train
    elif not train:
        st.query_params.pop(_QUERY, None)
    changes, start, device = _finer(preset)
    request = None
    if not problem:
        try:
            request = TuneRequest.of_preset(
                preset, changes, train=train, train_examples=examples, start=start, device=device
            )
        except ISpaSPError as error:
            problem = str(error)
    if request is None:
        return Asked(None, problem, "")
    unlabelled = not train and request.settings.distil < 1 and run.report.get("accuracy_before") is None
    return Asked(request, "", _work(request, count, run, record, settings, known), unlabelled)


def use_distil() -> None:
    """Choose the preset that needs no labels, as a callback."""
    st.session_state[PRESET] = "distil"


# -- data -----------------------------------------------------------------------------------------------


def _from_address() -> None:
    """The training data that the address names, for a session that has not chosen any."""
    text = st.query_params.get(_QUERY)
    if text and "tune_data" not in st.session_state:
        with contextlib.suppress(ISpaSPError):
            places.put(datasets.parse(text), "tune_")


def _data(settings: RunSettings) -> tuple[str, int | None, int | None, str]:
    """Where the training data come from, how many at most, how many there are, and what is missing."""
    state, own = st.session_state, settings.data_source()
    sample = own.name if own.kind == "sample" else ""
    count = library.training_count(sample) if sample else None
    options = sources.data_choices(
        models.reads(settings.model_source()), sample, state.get("tune_data") or ""
    )
    options = [one for one in options if one != "noise"]
    if state.get("tune_data") not in options:
        state.tune_data = ""
    unit = example_word(own)

    def title(kind: str) -> str:
        if kind:
            return data_words(kind)
        many = "" if count is None else f", {count:,} {unit.split()[-1]}s"
        return f"the run's own: {DATASETS.get(sample, source_words(str(own)))}{many}"

    wide = bool(state.tune_data)
    columns = st.columns([1.4, 1.4, 0.8] if wide else [1.4, 0.8, 1.4], gap="medium")
    with columns[0]:
        kind = st.selectbox(
            "Training data", options, format_func=title, key="tune_data", persist_state="session", help=HELP["data"]
        )  # fmt: skip
    with columns[2 if wide else 1]:
        examples = st.number_input(
            "Examples at most", 1, value=None, step=1000, placeholder="all", key="tune_examples",
            bind="query-params", persist_state="session", help=HELP["examples"],
        )  # fmt: skip
    if kind:
        with columns[1]:
            try:
                return str(places.data_source(kind, False, "tune_")), examples, None, ""
            except SettingError as problem:
                return "", examples, None, str(problem)
    return "", examples, count if examples is None or count is None else min(examples, count), ""


# -- finer settings -------------------------------------------------------------------------------------


def _finer(preset: str) -> tuple[dict[str, Any], str, str]:
    """What differs from the preset, what it starts from, and the device. Each preset keeps values of its own."""
    usual, device = tune_settings.PRESETS[preset], st.session_state.get("tune_device", "auto")
    found = library.devices()
    if device not in found:
        st.session_state.tune_device = device = "auto"
    given: dict[str, Any] = {}

    def number(
        place: Any, name: str, label: str, help: str, least: float, most: float | None, step: float
    ) -> None:
        value = getattr(usual, name)
        whole = isinstance(value, int) and isinstance(step, int)
        given[name] = place.number_input(
            label, least, most, value, step, format=None if whole else "%g", key=f"tune_{name}_{preset}",
            placeholder="auto", bind="query-params", persist_state="session", help=HELP[help],
        )  # fmt: skip

    with st.expander("**Finer settings**", key="tune_finer", type="compact"):
        row = st.columns(7, vertical_alignment="bottom")
        number(row[0], "epochs", "Epochs", "epochs", 0, None, 1)
        number(row[1], "learning_rate", "Learning rate", "rate", 0.0, None, 0.001)
        number(row[2], "batch_size", "Batch size", "batch", 1, None, 16)
        number(row[3], "weight_decay", "Weight decay", "decay", 0.0, 1.0, 0.0001)
        number(row[4], "label_smoothing", "Smoothing", "smoothing", 0.0, 0.9, 0.05)
        number(row[5], "distil", "Distillation", "distil", 0.0, 1.0, 0.1)
        given["optimiser"] = row[6].selectbox(
            "Optimiser", list(OPTIMISERS), format_func=OPTIMISERS.__getitem__,
            index=list(OPTIMISERS).index(usual.optimiser), key=f"tune_optimiser_{preset}",
            bind="query-params", persist_state="session", help=HELP["optimiser"],
        )  # fmt: skip
        on_cuda = library.slot(device).startswith("cuda")
        row = st.columns([1, 1, 1, 1, 1.5, 1.5, *([1] if on_cuda else [])], vertical_alignment="bottom")
        number(row[0], "after_block", "After a block", "after_block", 0, None, 1)
        number(row[1], "patience", "Patience", "patience", 0, None, 1)
        number(row[2], "held_out", "Held out", "held_out", 0.001, 0.5, 0.05)
        number(row[3], "seed", "Seed", "seed", 0, None, 1)
        start = row[4].selectbox(
            "Begin with", list(STARTS), format_func=STARTS.__getitem__, key="tune_start", bind="query-params",
            persist_state="session", help=HELP["begin"],
        )  # fmt: skip
        device = row[5].selectbox(
            "Device", list(found), format_func=found.__getitem__, key="tune_device", bind="query-params",
            persist_state="session", help=HELP["device"],
        )  # fmt: skip
        if on_cuda:
            given["precision"] = row[6].selectbox(
                "Precision", tune_settings.PRECISIONS, format_func=PRECISIONS.__getitem__, key="tune_precision",
                bind="query-params", persist_state="session", help=HELP["precision"],
            )  # fmt: skip
    empty = {name for name, value in given.items() if value is None and getattr(usual, name) is not None}
    return {name: value for name, value in given.items() if name not in empty}, start, device


# -- how much -------------------------------------------------------------------------------------------


def _work(
    request: TuneRequest,
    count: int | None,
    run: RunSummary,
    record: RunRecord,
    settings: RunSettings,
    known: Sequence[RunSummary],
) -> str:
    """How much work it is, and about how long it takes where an earlier fine-tuning tells."""
    unit = "example" if request.train else example_word(settings.data_source()).split()[-1]
    said = amount(request, sum(not event.whole for event in record.blocks_pruned), count, unit)
    device = library.device_words(request.device)
    if count is not None:
        epochs = runs.epochs_of(record, request)
        if found := pace.expected(request, epochs, count, run, device, known):
            return (
                f"{said} {time_words(found.seconds).capitalize()} on {device}, by the pace of "
                f"{moment(found.finished_at)}."
            )
    return f"{said} How long that takes on {device} is told as soon as it runs."


def request_words(request: TuneRequest) -> str:
    """``"Quick, changed, from random weights"``."""
    more = ", from random weights" if request.start == "random" else ""
    return f"{PRESETS[request.preset]}{', changed' if request.changed else ''}{more}"

"""Where the model, its weights and the data come from: the widgets, and the three settings they amount to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import streamlit as st

from ispasp import datasets, zoo
from ispasp.errors import SettingError
from ispasp.models import RANDOM, ModelSource, parse
from ispasp.narrative import plural
from ui import library, models, places, session
from ui.words import DATASETS, HELP, KINDS, MODEL_KINDS, WEIGHTS, data_words, escaped

FILE = "file"
DEFAULTS: dict[str, str] = {
    "model": library.FIRST_MODEL, "architecture": "resnet18", "hub_name": "", "python_model": "", "weights": "",
    "weights_path": "", "data": "", "data_path": "", "data_set": "CIFAR10", "python_data": "",
}  # fmt: skip
"""Keys of the widgets, which live in the session's state, with their first values."""

PLANNED = {
    True: "noise",
    False: "",
}  # data to plan with before any are chosen, by whether the model is one's own

_OWN_FIELD = {"torchvision": "architecture", "huggingface": "hub_name", "python": "python_model"}


@dataclass
class Chosen:
    """What the widgets say.

    Attributes:
        model, weights, data: as ``RunSettings`` has them; the model is empty while it has no name, the data while
            none are chosen for a model that brings none.
        problems: what is missing or cannot be used, a sentence each.
    """

    model: str = ""
    weights: str = ""
    data: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def source(self) -> ModelSource | None:
        return parse(self.model, self.weights) if self.model else None


def is_own() -> bool:
    """Whether the chosen model is none of the samples."""
    return st.session_state.model in MODEL_KINDS


def model_choices() -> list[str]:
    """Samples, the first one first, then the other sources."""
    samples = sorted(zoo.names(), key=lambda name: name != library.FIRST_MODEL)
    own = [kind for kind in MODEL_KINDS if kind != "python" or models.allow_code()]
    if st.session_state.get("model") == "python" and "python" not in own:  # of a run that is looked at
        own.append("python")
    return [*samples, *own]


def put(model: str, weights: str, data: str) -> None:
    """Let the widgets say this; call before they are drawn.

    Raises:
        ISpaSPError: one of them is of no known form.
    """
    source = parse(model, weights)
    place = datasets.parse(data) if data else None
    state = st.session_state
    state.model = source.name if source.kind == "sample" else source.kind
    if source.kind != "sample":
        state[_OWN_FIELD[source.kind]] = source.name
    state.weights = weights if weights in ("", RANDOM) else FILE
    if state.weights == FILE:
        state.weights_path = weights
    state.data = ""
    if place is None or (source.kind == "sample" and data == f"sample:{zoo.card(source.name).dataset}"):
        return
    places.put(place)


def chosen_model() -> str:
    """The model as ``RunSettings`` has it; empty while it has no name."""
    state = st.session_state
    if not is_own():
        return str(state.model)
    name = (state.get(_OWN_FIELD[state.model]) or "").strip()
    return f"{state.model}:{name}" if name else ""


def own_model(chosen: Chosen, locked: bool, changed: Callable[[], None]) -> None:
    """The row that unfolds for a model of one's own.

    Args:
        chosen: is filled.
        changed: called when another model is chosen.
    """
    kind = st.session_state.model
    which, weights, data = st.columns([1.2, 1.2, 1], gap="medium")
    with which:
        if kind == "torchvision":
            st.selectbox(
                "Architecture", models.names(), key="architecture", help=HELP["architecture"], disabled=locked,
                on_change=changed,
            )  # fmt: skip
        elif kind == "huggingface":
            st.text_input(
                "Folder on this machine, or name on the hub", key="hub_name", help=HELP["hub_name"], disabled=locked,
                placeholder="path/to/folder or name/of-model", on_change=changed,
            )  # fmt: skip
        else:
            st.text_input(
                "File and function", key="python_model", help=HELP["python_model"], disabled=locked,
                placeholder="path/to/file.py:function", on_change=changed,
            )  # fmt: skip
    chosen.model = chosen_model()
    if not chosen.model:
        hub = kind == "huggingface"
        what = "a folder on this machine or a name on the hub" if hub else "path/to/file.py:function"
        chosen.problems.append(f"Choose the model: give {what}.")
    with weights:
        _weights(kind, chosen, locked)
    source = _checked(chosen)
    with data:
        _data(models.reads(source) if source else "", "", chosen, locked)
    with which:
        _say_model(source, chosen)


def sample_model(chosen: Chosen, locked: bool) -> None:
    """For a sample, other weights and other data: among the finer settings."""
    card = zoo.card(st.session_state.model)
    weights, data, _ = st.columns([1, 1, 1], gap="medium")
    with weights:
        _weights("sample", chosen, locked)
    with data:
        _data(card.kind, card.dataset, chosen, locked)
    _checked(chosen)


def _checked(chosen: Chosen) -> ModelSource | None:
    """The model's source; why it could not be read, or cannot be fetched, goes to the problems."""
    if (source := chosen.source) is None:
        return None
    if "python" in (source.kind, st.session_state.data) and not models.allow_code():
        chosen.problems.append(
            "A Python function may be run only where the app is started with ISPASP_ALLOW_CODE=1: start it so, or "
            "choose another model and other data."
        )
    if sentence := models.failure(source):
        chosen.problems.append(sentence)
    elif (found := models.known(source)) is not None and not found.blocks:
        chosen.problems.append(
            f"Nothing in {chosen.model} can be pruned: python -m ispasp blocks {chosen.model} says why."
        )
    return source


def _weights(kind: str, chosen: Chosen, locked: bool) -> None:
    state = st.session_state
    titles = WEIGHTS[kind]
    if state.weights not in titles:
        state.weights = ""
    weights = st.selectbox(
        "Weights", list(titles), format_func=titles.__getitem__, key="weights", help=HELP["weights"],
        disabled=locked,
    )  # fmt: skip
    if weights == FILE:
        given = places.path("weights", "Checkpoint file", "path/to/model.safetensors", locked, "weights_path")
        if not given:
            chosen.problems.append("Choose the checkpoint: give the path of a file, or upload one.")
        elif not places.exists(given, Path.is_file):
            chosen.problems.append(f"There is no checkpoint file {given}: check the path, or upload one.")
        else:
            chosen.weights = given
    elif weights == RANDOM:
        chosen.weights = RANDOM
        st.caption("⚠️ Untrained: sizes and speed are right, accuracy means nothing.")
    elif kind == "torchvision":
        _published(state.architecture, chosen, locked)


def _published(name: str, chosen: Chosen, locked: bool) -> None:
    """Whether the published weights are here or can be had, and the next click where they cannot."""
    size = f"{models.published_megabytes(name):,.0f} MB"
    if models.published_file(name).is_file():
        st.caption(f"{size}, on this machine.")
    elif locked:
        st.caption(f"{size}, fetched when a run needs them.")
    elif reason := models.reachable(name):
        chosen.problems.append(
            f"The published weights of {name} are not on this machine and cannot be fetched ({reason}): give a "
            "checkpoint file, or take random weights, with which accuracy means nothing."
        )
        with st.container(horizontal=True, gap="small"):
            st.button("Give a file", key="use_file", on_click=session.put, args=("weights", FILE))
            st.button("Use random weights", key="use_random", on_click=session.put, args=("weights", RANDOM))
            st.button("Try again", key="try_again", on_click=models.reachable.clear)
    else:
        st.caption(f"{size}, fetched once, when the run starts.")


def _say_model(source: ModelSource | None, chosen: Chosen) -> None:
    """What is known of the model, under its name; the way to read one that is not read without being asked."""
    if source is None or models.failure(source):
        return
    if found := models.known(source):
        counts = [
            f"{plural(sum(b.kind == kind for b in found.blocks), 'block')} of {KINDS[kind]}"
            for kind in found.kinds
        ]
        st.caption(f"{' and '.join(counts)} can be pruned.")
        if source.kind == "huggingface":
            st.caption(escaped(found.words))  # which class it is, and what may be missing beside it
    elif not models.at_once(source):
        st.button("Read the model", key="read_model", on_click=_ask, args=(source,), help=HELP["read_model"])


def _ask(source: ModelSource) -> None:
    models.forget(source)
    st.session_state.asked = str(source)


def asked(source: ModelSource) -> bool:
    """Whether the person has asked to read this very model, now."""
    return bool(st.session_state.pop("asked", "") == str(source))


def _data(reads: str, own: str, chosen: Chosen, locked: bool) -> None:
    """What to calibrate with.

    Args:
        reads: what the model reads; empty where that is not known yet.
        own: the sample data that belong to the model; empty for a model that brings none.
    """
    state = st.session_state
    options = data_choices(reads, own, state.data)
    if state.data not in options:
        state.data = ""
    count = library.sample_count(own) if own else 0
    unit = "sentence pairs" if reads == "text" else "images"

    def title(kind: str) -> str:
        if kind:
            return data_words(kind)
        return f"{DATASETS.get(own, own)}, {count} {unit}" if own else "choose …"

    kind = st.selectbox("Data", options, format_func=title, key="data", help=HELP["data"], disabled=locked)
    if not kind:
        if not own:
            example = (
                "sentence pairs"
                if reads == "text"
                else "a Python function with batches"
                if reads == "own"
                else "images"
            )
            chosen.problems.append(
                f"Choose data to calibrate with: {example} of your own"
                + {
                    "image": ", the sample images, or noise to look at sizes and speed alone.",
                    "own": ".",
                }.get(reads, ", or the sample ones.")
                if reads
                else "Choose data to calibrate with, or read the model first to see what it takes."
            )
            if reads == "image" and not locked:
                with st.container(horizontal=True, gap="small"):
                    st.button(
                        "Use sample images", key="use_sample", on_click=session.put, args=("data", "sample:cifar10"),
                        help=HELP["use_sample"],
                    )  # fmt: skip
                    st.button(
                        "Use noise",
                        key="use_noise",
                        on_click=session.put,
                        args=("data", "noise"),
                        help=HELP["use_noise"],
                    )
        return
    try:
        chosen.data = str(places.data_source(kind, locked))
    except SettingError as problem:
        chosen.problems.append(str(problem))


def data_choices(reads: str, own: str, given: str) -> list[str]:
    """Kinds of data that fit a model; empty for its own.

    Args:
        reads, own: as of the model.
        given: what is chosen now; it is among them wherever it may be.
    """
    fitting = {
        "image": ["sample:cifar10", "folder", "zip", "torchvision", "noise"],
        "text": ["pairs", "sample:nli"],
        "own": [],
        "": ["folder", "zip", "torchvision", "noise", "pairs"],
    }[reads]
    options = ["", *(kind for kind in fitting if kind != f"sample:{own}")]
    if (
        given.startswith("sample:") and given not in options and reads != "own"
    ):  # as the command line may have it
        options.append(given)
    if models.allow_code() or given == "python":
        options.append("python")
    return options

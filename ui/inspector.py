"""One group, looked into: its filters, what it answers to a few images, and why it stayed or went."""

from __future__ import annotations

from typing import Any

import streamlit as st

from ispasp.errors import ISpaSPError
from ispasp.narrative import plural
from ispasp.run_settings import RunSettings
from ispasp.stories import group_story
from ispasp.vocabulary import example_word
from ui import library, models
from ui.library import Answer, Examples
from ui.view import BlockView
from ui.words import HELP, escaped


def _key(block: BlockView) -> str:
    return f"look_group_{block.block.name}"


def group_in_view(block: BlockView, t: int) -> int:
    """The group the person picked in this block; at first the kept one with the largest score."""
    group = st.session_state.get(_key(block))
    if group is None or not 0 <= group < block.block.groups:
        iteration = block.trace[t - 1]
        group = max(iteration.selected, key=lambda kept: float(iteration.score[kept]))
        st.session_state[_key(block)] = group
    return group


def pick_in_map(block: BlockView) -> None:
    """Look at the group and iteration clicked in the map; runs before the page's widgets are drawn again."""
    if not (click := st.session_state.map.pick):
        return
    st.session_state[_key(block)] = int(click["group"])
    key = f"look_t_{block.block.name}"
    if key in st.session_state:
        st.session_state[key] = int(click["t"])


def pick_in_plot(block: BlockView, key: str) -> None:
    """Look at the group whose bar was clicked."""
    points: list[dict[str, Any]] = st.session_state[key]["selection"]["points"]
    if points:
        data: Any = points[0].get("customdata")
        st.session_state[_key(block)] = int(data[0] if isinstance(data, (list, tuple)) else data)


def draw(block: BlockView, t: int, settings: RunSettings, live: bool) -> None:
    """The inspector's column. Its pictures would flicker while the work goes on, so it waits."""
    kind = block.block.kind
    st.subheader(f"Look into a {kind}", anchor=False, help=HELP["group"])
    if live:
        st.caption(f"Press Pause, or wait for the end, to see a {kind}'s weights and answers.")
        return
    assert block.started is not None
    group = int(
        st.number_input(
            f"{kind.capitalize()} (0 to {block.block.groups - 1}), or click one in the map",
            min_value=0,
            max_value=block.block.groups - 1,
            step=1,
            key=_key(block),
        )
    )
    story = group_story(group, block.trace, t, block.started, settings.selector)
    st.badge(story.headline, color="blue" if story.kept else "orange")
    st.markdown(story.reason)
    st.caption(story.ranks)
    _examples(library.answers(block.started, group), kind, group, settings)
    _weights(block, group, settings)


_ANSWERS = {
    "channel": "Above the image, below the channel's feature map, brighter is stronger. All maps share one scale.",
    "neuron": "The neuron's activation for each example; where it answers to every token, one cell per token (padding "
    "included; blue is negative, white zero, orange positive) and their mean.",
    "head": "How strongly the head answers to each token, padding included: the root mean square of its features, one "
    "cell per token, and their mean.",
}


def _examples(answers: list[Answer], kind: str, group: int, settings: RunSettings) -> None:
    """A few calibration examples, and what the group answers to each."""
    try:
        with st.spinner("Reading the examples …"):
            shown = _shown(settings, len(answers))
    except ISpaSPError:  # the data or the model have gone since; the answers are of the run
        shown = Examples()
    example = example_word(settings.data_source())
    st.markdown(
        f"**What it answers** to {plural(len(answers), f'calibration {example}')}", help=_ANSWERS[kind]
    )
    if shown.texts:
        for text, answer in zip(shown.texts, answers, strict=False):
            st.caption(escaped(text))
            _answer(answer, kind, group)
        return
    for index, (column, answer) in enumerate(zip(st.columns(4, gap="small"), answers, strict=False)):
        with column:
            if index < len(shown.pictures):
                st.image(shown.pictures[index], width="stretch", alt="calibration image")
            _answer(answer, kind, group)


def _shown(settings: RunSettings, count: int) -> Examples:
    """Raises ISpaSPError where they cannot be read; nothing is read that would have to be asked for."""
    if not models.at_once(settings.model_source()):
        return Examples()
    return library.examples(
        settings.model, settings.weights, str(settings.data_source()), settings.samples, settings.seed, count
    )


def _answer(answer: Answer, kind: str, group: int) -> None:
    if answer.picture is not None:
        st.image(answer.picture, width="stretch", alt=f"answer of {kind} {group}")
    if answer.number is not None:
        st.caption(f"{answer.number:.2f}")


def _weights(block: BlockView, group: int, settings: RunSettings) -> None:
    """The weights that make the group, of the dense model."""
    kind, source = block.block.kind, settings.model_source()
    picture = None
    reason = "the model is read only when it is asked for"
    if models.at_once(source):
        try:
            with st.spinner("Reading the model …"):
                picture = library.filter_picture(settings.model, settings.weights, block.block.name, group)
        except ISpaSPError as problem:
            reason = str(problem)
    title = {"channel": "Its filters", "neuron": "Its weights as an image", "head": "Its weights"}[kind]
    st.markdown(f"**{title}**", help=_WEIGHTS[kind])
    if picture is None:
        st.caption(f"They cannot be shown: {escaped(reason)}")
        return
    st.image(picture, width=min(2 * picture.shape[1], 330), alt=f"weights of {kind} {group}")


_COLOURS = "blue is negative, white zero, orange positive."
_WEIGHTS = {
    "channel": f"The weights that make this channel, one picture per input channel (at most 64): {_COLOURS}",
    "neuron": f"The weights that make this neuron, one per feature it reads: {_COLOURS}",
    "head": "The rows of the first projection that make this head, usually its queries (with keys and values below, "
    f"where one layer makes all three): {_COLOURS}",
}

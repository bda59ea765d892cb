"""One group, looked into: its filters, what it answers to a few images, and why it stayed or went."""

from __future__ import annotations

from typing import Any

import streamlit as st

from ispasp import zoo
from ispasp.runs import RunSettings
from ispasp.stories import group_story
from ui import library
from ui.view import BlockView
from ui.words import HELP


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
        st.caption(f"Press Pause, or wait for the end, to see a {kind}'s filters and answers.")
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
    card = zoo.card(settings.model)
    answers = library.responses(block.started, group)
    photos = library.photos(card.dataset, settings.samples, settings.seed, len(answers))
    st.markdown(
        f"**What it answers** to {len(answers)} calibration images",
        help="Above the image, below the channel's feature map, brighter is stronger. All maps share one scale."
        if kind == "channel"
        else "The neuron's activation for each image.",
    )
    for column, photo, answer in zip(st.columns(4, gap="small"), photos, answers, strict=False):
        with column:
            st.image(photo, width="stretch", alt="calibration image")
            if isinstance(answer, float):
                st.caption(f"{answer:.2f}")
            else:
                st.image(answer, width="stretch", alt=f"answer of {kind} {group}")
    picture = library.filter_picture(settings.model, block.block.name, group)
    st.markdown(
        f"**Its filters**{'' if kind == 'channel' else ' as an image'}",
        help="The weights that make this group, one picture per input channel (at most 64): "
        "blue is negative, white zero, orange positive.",
    )
    st.image(picture, width=min(2 * picture.shape[1], 330), alt=f"filters of {kind} {group}")

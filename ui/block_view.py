"""The block in view: map, residual, scores, the sentence, and the inspector beside them."""

from __future__ import annotations

import streamlit as st

from ispasp import figures
from ispasp.figures import LOOKS
from ispasp.runs import RunSettings
from ui import components, inspector, session, style
from ui.view import BlockView, View
from ui.words import HELP

SCORES_HEIGHT = 330
MANY_GROUPS = 256


def picked(view: View) -> int | None:
    """The block to look at: the one the person chose, else the one most worth it."""
    chosen = view.index(st.session_state.get("look_block"))
    return chosen if chosen is not None else view.first_look


def pick(view: View) -> None:
    """Take the click on the strip over; on the block that is shown by itself it means to follow the work."""
    name = st.session_state.strip.pick
    if name and view.index(name) == view.first_look:
        session.follow_work()
    elif name:
        st.session_state.look_block = name


def draw(view: View, settings: RunSettings, live: bool, locked: bool) -> None:
    """Draw the block in view; heights are the same for every state, so that nothing jumps.

    Args:
        settings: those of the run in view.
        live: the work is going on, so draw only what redraws without flicker.
        locked: the work is not at its end.
    """
    index = picked(view)
    block = view.blocks[index] if index is not None else None
    left, right = st.columns([2.35, 1], gap="medium")
    with left:
        if block is None or block.started is None or not block.trace:
            name = "The first block" if block is None else f"**{block.block.name}**"
            with st.container(horizontal=True, vertical_alignment="center"):
                st.info(
                    f"{name} has not been reached yet: it shows here as soon as its first iteration is done."
                )
                if locked and block is not None and index != view.current:
                    _follow()
            st.space(_map_height(view.blocks[0]) + SCORES_HEIGHT)
            return
        t = _iteration(block, live, locked and index != view.current)
        _sentence(block, t, settings)
        group = inspector.group_in_view(block, t)
        _map_and_residual(block, t, group, live)
        _scores(block, t, group, live)
    with right:
        inspector.draw(block, t, settings, live)


def _map_height(block: BlockView) -> int:
    return 200 if block.block.groups <= MANY_GROUPS else 380


def _follow() -> None:
    st.button("Follow the work", key="follow_work", on_click=session.follow_work, help=HELP["follow"])


def _iteration(block: BlockView, live: bool, elsewhere: bool) -> int:
    """Heading and the chooser of iterations; while the work goes on the newest is shown.

    Args:
        elsewhere: the work is at another block.
    """
    newest = block.trace[-1].t
    with st.container(horizontal=True, vertical_alignment="center", height=56, border=False):
        st.subheader(f"Block {block.block.name}", anchor=False, width="content")
        readers = " and ".join(block.block.consumers)
        st.caption(f"{block.block.groups} {block.block.kind}s, read by {readers}", width="content")
        if elsewhere:
            _follow()
        if live or newest == 1:
            st.caption(f"iteration {newest}" + ("" if live else ", the only one"), width="content")
            return newest
        key = f"look_t_{block.block.name}"
        if st.session_state.get(key) not in range(1, newest + 1):
            st.session_state[key] = newest
        options = list(range(1, newest + 1))
        t = st.segmented_control(
            "Iteration", options, key=key, required=True, label_visibility="collapsed",
            format_func=lambda i: f"{'Iteration ' if i == 1 else ''}{i}",
        )  # fmt: skip
        return t or newest


def _sentence(block: BlockView, t: int, settings: RunSettings) -> None:
    assert block.started is not None
    previous = block.trace[t - 2] if t > 1 else None
    words = figures.sentence(block.trace[t - 1], previous, block.started, settings.candidate_factor)
    with st.container(height=58, border=False, key="sentence"):
        st.markdown(words)


def _map_and_residual(block: BlockView, t: int, group: int | None, live: bool) -> None:
    assert block.started is not None
    map_column, residual_column = st.columns([1.9, 1], gap="medium")
    with map_column:
        dark = style.dark()
        st.markdown(f"**{block.block.kind.capitalize()}s by iteration**", help=HELP["map"])
        st.html(
            "<div style='font-size:0.85rem;display:flex;flex-wrap:wrap;gap:0 0.9rem'>"
            + "".join(
                f"<span title='{look.meaning}'><span aria-hidden='true' style='color:{look.colour(dark)}'>"
                f"{look.mark}</span> {look.title(t)}</span>"
                for look in LOOKS.values()
            )
            + "</div>"
        )
        info = figures.map_info(block.started, block.trace)
        bands = 1 if block.started.one_iteration_decides else 4
        height = _map_height(block)
        components.group_map("map", info, t, group, height, bands, lambda: inspector.pick_in_map(block))
    with residual_column:
        st.markdown("**Relative residual**", help=HELP["residual"])
        residual = figures.residual_info(block.trace)
        if live:
            components.live_residual("residual", residual, height + 30)
        else:
            st.plotly_chart(
                figures.residual_figure(residual, style.dark(), height + 30),
                key=f"residual_plot_{block.block.name}_{len(block.trace)}",
                config={"displayModeBar": False},
                alt="Relative residual per iteration",
            )


def _scores(block: BlockView, t: int, group: int | None, live: bool) -> None:
    assert block.started is not None
    iteration = block.trace[t - 1]
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**Importance and hidden sum at iteration {t}**", help=HELP["scores"], width="content")
        order = None if live else st.segmented_control(
            "Order", ["number", "importance", "hidden sum"], default="number", required=True, key="look_order",
            format_func=lambda o: f"by {o}", label_visibility="collapsed",
        )  # fmt: skip
    info = figures.score_info(block.started, iteration, order or "number")
    if live:
        components.live_scores("scores", info, SCORES_HEIGHT)
        return
    # The key does not name the group: a new group is a change of this plot and not another plot.
    key = f"scores_plot_{block.block.name}_{t}_{order}"
    st.plotly_chart(
        figures.score_figure(info, style.dark(), group, SCORES_HEIGHT),
        key=key,
        on_select=lambda: inspector.pick_in_plot(block, key),
        selection_mode="points",
        config={"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]},
        alt=f"Importance and hidden sum of every {block.block.kind} at iteration {t}",
    )

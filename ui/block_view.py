"""The block in view: map, residual, scores, the sentence, and the inspector beside them."""

from __future__ import annotations

from typing import Any

import streamlit as st

from ispasp import figures
from ispasp.figures import LOOKS
from ispasp.runs import RunSettings
from ui import components, inspector, style
from ui.view import BlockView, View
from ui.words import HELP

MAP_HEIGHT = 200
SCORES_HEIGHT = 330


def picked(view: View) -> int | None:
    """The block to look at: the one the person chose, else the one begun last."""
    chosen = view.index(st.session_state.get("look_block"))
    return chosen if chosen is not None else view.current


def pick() -> None:
    """Take the click on the strip over."""
    name = st.session_state.strip.pick
    if name:
        st.session_state.look_block = name


def draw(view: View, settings: RunSettings, live: bool) -> None:
    """Draw the block in view; heights are the same for every state, so that nothing jumps.

    Args:
        settings: those of the run in view.
        live: the work is going on, so draw only what redraws without flicker.
    """
    index = picked(view)
    block = view.blocks[index] if index is not None else None
    left, right = st.columns([2.35, 1], gap="medium")
    with left:
        if block is None or block.started is None or not block.trace:
            name = "The first block" if block is None else f"**{block.block.name}**"
            st.info(f"{name} has not been reached yet: it shows here as soon as its first iteration is done.")
            st.space(MAP_HEIGHT + SCORES_HEIGHT)
            return
        t = _iteration(block, live)
        _sentence(block, t, settings)
        group = inspector.group_in_view(block, t)
        _map_and_residual(block, t, group, live)
        _scores(block, t, group, live)
    with right:
        inspector.draw(block, t, settings, live)


def _iteration(block: BlockView, live: bool) -> int:
    """Heading and the chooser of iterations; while the work goes on the newest is shown."""
    newest = block.trace[-1].t
    with st.container(horizontal=True, vertical_alignment="center", height=56, border=False):
        st.subheader(f"Block {block.block.name}", anchor=False, width="content")
        readers = " and ".join(block.block.consumers)
        st.caption(f"{block.block.groups} {block.block.kind}s, read by {readers}", width="content")
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
                f"{look.mark}</span> {look.label}</span>"
                for look in LOOKS.values()
            )
            + "</div>"
        )
        info = figures.map_info(block.started, block.trace)
        bands = 1 if block.started.one_iteration_decides else 4
        click = components.group_map("map", info, t, group, MAP_HEIGHT, bands)
        if click and not live:
            inspector.look_at(block, int(click["group"]), int(click["t"]))
    with residual_column:
        st.markdown("**Relative residual**", help=HELP["residual"])
        residual = figures.residual_info(block.trace)
        if live:
            components.live_residual("residual", residual, MAP_HEIGHT + 30)
        else:
            st.plotly_chart(
                figures.residual_figure(residual, style.dark(), MAP_HEIGHT + 30),
                key=f"residual_plot_{block.block.name}_{len(block.trace)}",
                config={"displayModeBar": False},
                alt="Relative residual per iteration",
            )


def _scores(block: BlockView, t: int, group: int | None, live: bool) -> None:
    assert block.started is not None
    iteration = block.trace[t - 1]
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**Importance and hidden sum at iteration {t}**", help=HELP["scores"], width="content")
        order = st.segmented_control(
            "Order", ["number", "importance", "hidden sum"], default="number", required=True, key="look_order",
            format_func=lambda o: f"by {o}", label_visibility="collapsed",
        )  # fmt: skip
    info = figures.score_info(block.started, iteration, order or "number")
    if live:
        components.live_scores("scores", info, SCORES_HEIGHT)
        return
    chosen: Any = st.plotly_chart(
        figures.score_figure(info, style.dark(), group, SCORES_HEIGHT),
        key=f"scores_plot_{block.block.name}_{t}_{order}_{group}",
        on_select="rerun",
        selection_mode="points",
        config={"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]},
        alt=f"Importance and hidden sum of every {block.block.kind} at iteration {t}",
    )
    points: list[dict[str, Any]] = chosen["selection"]["points"]
    if points:
        data: Any = points[0].get("customdata")
        inspector.look_at(block, int(data[0] if isinstance(data, (list, tuple)) else data), t)

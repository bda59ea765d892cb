"""The block in view: map, residual, scores, the sentence, and the inspector beside them."""

from __future__ import annotations

import streamlit as st

from ispasp import figures, narrative
from ispasp.figures import LOOKS, GroupState
from ispasp.run_settings import RunSettings
from ispasp.vocabulary import Way, panel_names, selector_words
from ui import components, inspector, session, style
from ui.view import BlockView, View
from ui.words import HELP, KINDS, score_help

SCORES_HEIGHT = 330
MANY_GROUPS = 256
MANY_ITERATIONS = 8
_ONCE = (GroupState.KEPT, GroupState.CANDIDATE, GroupState.OUT)


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
            st.space(_map_height(view.blocks[0], settings) + SCORES_HEIGHT)
            return
        t = _iteration(block, live, locked and index != view.current)
        _sentence(block, t, settings)
        group = inspector.group_in_view(block, t)
        _map_and_residual(block, t, group, settings, live)
        _scores(block, t, group, settings, live)
    with right:
        inspector.draw(block, t, settings, live)


def _map_height(block: BlockView, settings: RunSettings) -> int:
    """The same for all states of a block, known before its first iteration."""
    one_by_one = selector_words(settings.selector).way in (Way.ADDS, Way.REMOVES)
    return 380 if one_by_one or block.block.groups > MANY_GROUPS else 200


def _follow() -> None:
    st.button("Follow the work", key="follow_work", on_click=session.follow_work, help=HELP["follow"])


def _iteration(block: BlockView, live: bool, elsewhere: bool) -> int:
    """Heading and the chooser of iterations; while the work goes on the newest is shown.

    Args:
        elsewhere: the work is at another block.
    """
    newest = block.trace[-1].t
    with st.container(horizontal=True, vertical_alignment="center", key="block_title"):
        st.subheader(f"Block {block.block.name}", anchor=False, width="content")
        readers = " and ".join(block.block.consumers)
        st.caption(f"{block.block.groups} {KINDS[block.block.kind]}, read by {readers}", width="content")
        if elsewhere:
            _follow()
        if live or newest == 1:
            assert block.started is not None
            only = not live and (block.pruned is not None or block.started.one_iteration_decides)
            st.caption(f"iteration {newest}" + (", the only one" if only else ""), width="content")
            return newest
        key = f"look_t_{block.block.name}"
        if st.session_state.get(key) not in range(1, newest + 1):
            st.session_state[key] = newest
        options = list(range(1, newest + 1))
        if newest > MANY_ITERATIONS:
            return int(
                st.slider(
                    "Iteration",
                    1,
                    newest,
                    key=key,
                    label_visibility="collapsed",
                    width=320,
                    format="iteration %d",
                )
            )
        t = st.segmented_control(
            "Iteration", options, key=key, required=True, label_visibility="collapsed",
            format_func=lambda i: f"{'Iteration ' if i == 1 else ''}{i}",
        )  # fmt: skip
        return t or newest


def _sentence(block: BlockView, t: int, settings: RunSettings) -> None:
    assert block.started is not None
    previous = block.trace[t - 2] if t > 1 else None
    words = figures.sentence(
        block.trace[t - 1], previous, block.started, settings.candidate_factor, settings.selector
    )
    refit = narrative.refit_sentence(block.pruned)
    height = {"none": 58, "symmetric": 84}.get(settings.reconstruct, 110)
    with st.container(height=height, border=False, key="sentence"):
        st.markdown(f"{words}  \n{refit}" if refit else words)
    for note in block.pruned.notes if block.pruned else ():
        st.warning(note)


def _map_and_residual(block: BlockView, t: int, group: int | None, settings: RunSettings, live: bool) -> None:
    assert block.started is not None
    way = selector_words(settings.selector).way
    once = way is Way.RANKS or (way is Way.COMPARES and block.started.one_iteration_decides)
    entries = figures.legend(settings.selector, t)
    if once:  # nothing was there to be added to or dropped from
        entries = {state: entry for state, entry in entries.items() if state in _ONCE}
    map_column, residual_column = st.columns([1.9, 1], gap="medium")
    with map_column:
        dark = style.dark()
        st.markdown(f"**{block.block.kind.capitalize()}s by iteration**", help=HELP["map"])
        st.html(
            "<div style='font-size:0.85rem;display:flex;flex-wrap:wrap;gap:0 0.9rem'>"
            + "".join(
                f"<span title='{entry.meaning}'><span aria-hidden='true' "
                f"style='color:{LOOKS[state].colour(dark)}'>{LOOKS[state].mark}</span> {entry.title}</span>"
                for state, entry in entries.items()
            )
            + "</div>"
        )
        info = figures.map_info(block.started, block.trace, settings.selector)
        height = _map_height(block, settings)
        components.group_map(
            "map", info, settings.selector, t, group, height, 1 if once else 4,
            lambda: inspector.pick_in_map(block),
        )  # fmt: skip
    with residual_column:
        residual = figures.residual_info(block.trace, None if live else block.pruned)
        title = "Relative residual" if residual.refit is None else "Relative residual, and the re-fit"
        more = "" if residual.refit is None else f" {HELP['refit']}"
        st.markdown(f"**{title}**", help=HELP["residual"] + more)
        if live:
            components.live_residual("residual", residual, height + 30)
        else:
            st.plotly_chart(
                figures.residual_figure(residual, style.dark(), height + 30),
                key=f"residual_plot_{block.block.name}_{len(block.trace)}",
                config={"displayModeBar": False},
                alt="Relative residual per iteration, and the error before and after the re-fit",
            )


def _scores(block: BlockView, t: int, group: int | None, settings: RunSettings, live: bool) -> None:
    assert block.started is not None
    iteration, selector = block.trace[t - 1], settings.selector
    words = selector_words(selector)
    panels = panel_names(iteration, words)
    title = " and ".join(panels)
    title = f"{title[0].upper()}{title[1:]} at iteration {t}"
    help = score_help(words, len(panels), block.block.signed, settings.hidden_sum)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{title}**", help=help, width="content")
        orders = {"number": "by number", "importance": "by importance", "score": f"by {words.score}"}
        if len(panels) == 1:
            del orders["importance"]
        order = None if live else st.segmented_control(
            "Order", list(orders), default="number", required=True, key=f"look_order_{len(panels)}",
            format_func=orders.__getitem__, label_visibility="collapsed",
        )  # fmt: skip
    info = figures.score_info(block.started, iteration, order or "number", selector)
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
        alt=f"{title}, of every {block.block.kind}",
    )

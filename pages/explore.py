"""Prune a model step by step, see what every iteration does, and take the result away."""

import streamlit as st

from ispasp.models import ModelSource
from ispasp.narrative import decided_at_once, distil_sentence, duration, tuned_sentence
from ui import (
    block_view,
    components,
    controls,
    export,
    library,
    models,
    results,
    run_list,
    settings,
    sources,
    target,
)
from ui.settings import Draft
from ui.target import Target
from ui.view import View
from ui.words import escaped


def main() -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", key="title"):
        st.title("i-SpaSP Explorer", anchor=False, width="content")
        st.caption(f"Prune a network, step by step · Device: {library.device_name()}", width="content")
    seen = target.resolve()
    settings.follow(seen.id, seen.settings)
    draft = settings.panel(seen.locked)
    controls.buttons(seen.job, seen.state, draft, seen.settings, seen.ending)
    if seen.id:
        _work(seen, draft)
    else:
        _plan(seen, draft)
    if seen.record is not None and seen.settings is not None:
        path = library.run_path(seen.run_id)
        results.draw(seen.view(draft), seen.settings, seen.record.settings, export.report_of(path))
        export.draw(path)
    settings.block_table(draft)


def _plan(seen: Target, draft: Draft) -> None:
    """Before any work. All that needs no trace of the network, which may take seconds, is drawn first."""
    steps = draft.settings.distil if draft.settings else 0
    own = sources.is_own()
    controls.status(None, View(), problems=draft.problems, steps=steps, own=own)
    figures = st.empty()
    with figures.container():
        results.headline(draft.plan, None)
    strip = st.container(key="plan")  # as high as the strip will be, so that nothing jumps when it comes
    run_list.under_way()
    _first_steps(draft)
    source = draft.plan.model_source() if draft.plan else None
    unread = source is not None and models.known(source) is None
    with strip:
        view = seen.view(draft)
        if unread and source is not None and _says_more(source, own):
            st.rerun()  # the panel offers what the model has, or says why it cannot be read
        if not view.blocks:
            return
        planned = draft.settings or (draft.plan if controls.only_asks(draft.problems) else None)
        settled = planned is not None and planned.allocation == "uniform"
        components.strip(view, None, lambda: None, stale=not settled)
        largest = max((b.block.groups for b in view.blocks), default=0)
        if draft.settings is not None and draft.settings.multiple > largest:
            st.caption(
                f"A multiple of {draft.settings.multiple:,} is larger than any block here (at most {largest:,} "
                "groups), so nothing is rounded: every block keeps the exact count."
            )
        if draft.settings is not None and draft.settings.allocation != "uniform":
            st.caption(
                "The counts above are those of the same ratio everywhere. The run first measures how sensitive every "
                "block is, which takes a while, and then shares them out for no more cost."
            )
        elif draft.settings is not None:
            pairs = [(b.block.groups, b.keep_groups) for b in view.blocks]
            if said := decided_at_once(pairs, draft.settings.candidate_factor, draft.settings.selector):
                st.caption(said)


def _says_more(source: ModelSource, own: bool) -> bool:
    """Whether the panel has more to offer, or to say, now that the model was read."""
    found = models.known(source)
    if found is None:
        return bool(models.failure(source))
    return own or len(found.kinds) > 1 or any(block.signed for block in found.blocks)


def _work(seen: Target, draft: Draft) -> None:
    """Status, figures, strip and block; looked at twice a second while the work goes on."""
    live = seen.state is not None and seen.state.live

    @st.fragment(run_every=0.5 if seen.live else None)
    def draw() -> None:
        snapshot = seen.job.snapshot() if seen.job else None
        if snapshot is not None and (snapshot.state, snapshot.live) != (seen.state, seen.live):
            st.rerun()  # once per change of state: buttons, locks and plots differ
        view = seen.view(draft)
        controls.status(snapshot, view, _opened(seen), draft.problems)
        if snapshot is not None and snapshot.error:
            st.error(f"{escaped(snapshot.error)} Then press Run to start again.")
        used = seen.settings or draft.last
        results.headline(used, view.report)
        if not view.blocks or used is None:
            return
        components.strip(view, block_view.picked(view), lambda: block_view.pick(view))
        if view.current is not None or seen.locked:
            block_view.draw(view, used, live, seen.locked)

    draw()


def _opened(seen: Target) -> str:
    """What to say about a run that is finished."""
    if seen.record is None:
        return ""
    report = seen.record.report
    more = tuned_sentence(report) or distil_sentence(report) or "It is listed under Runs."
    return (
        f"**Finished** in {duration(report['seconds'])} on {report['device']} and saved. {more} "
        "[The result and the export](#result) are below."
    )


def _first_steps(draft: Draft) -> None:
    """What a newcomer reads where nothing was done yet."""
    last = draft.settings or draft.last
    share = f"{100 * last.keep:.4g} % of every block's groups" if last else "a part of every block"
    first = (
        "1. Press Run",
        f"A sample model is chosen and {share} will be kept. One press prunes it block by block, in seconds.",
    )
    if sources.is_own():
        first = (
            "1. Choose, then press Run",
            f"Choose the model, its weights and the data above; {share} will be kept. Labels are not needed: without "
            "them accuracy stays unknown, and agreement with the dense model counts.",
        )
    with st.container(border=True):
        for column, (title, text) in zip(
            st.columns(3, gap="large"),
            (
                first,
                ("2. See what it does", "Which groups are kept, added and dropped in every iteration, how far the "
                 "output moves, and why one stayed or went."),
                ("3. Take it away", "Accuracy and size against the dense model; then an ONNX file, checked "
                 "against torch and timed."),
            ),
            strict=True,
        ):  # fmt: skip
            with column:
                st.markdown(f"**{title}**")
                st.markdown(text)


main()

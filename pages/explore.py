"""Prune a sample model step by step, see what every iteration does, and take the result away."""

import streamlit as st

from ispasp.narrative import duration
from ui import block_view, components, controls, export, inspector, library, results, settings, target
from ui.settings import Draft
from ui.target import Target


def main() -> None:
    inspector.take_over()
    st.title("Prune a network, step by step", anchor=False)
    seen = target.resolve()
    draft = settings.panel(seen.locked)
    controls.buttons(seen.job, seen.state, draft)
    _work(seen, draft)
    if seen.record is not None and seen.settings is not None:
        results.draw(seen.view(draft), seen.settings)
        export.draw(library.run_path(seen.run_id))


def _work(seen: Target, draft: Draft) -> None:
    """Status, figures, strip and block; looked at twice a second while the work goes on."""
    live = seen.state is not None and seen.state.live

    @st.fragment(run_every=0.5 if live else None)
    def draw() -> None:
        snapshot = seen.job.snapshot() if seen.job else None
        if snapshot is not None and snapshot.state is not seen.state:
            st.rerun()  # once per change of state: buttons, locks and plots differ
        view = seen.view(draft)
        controls.status(snapshot, view, _opened(seen, draft), draft.settings is not None)
        if snapshot is not None and snapshot.error:
            st.error(f"{snapshot.error} Then press Run to start again.")
        used = seen.settings or draft.settings
        results.headline(used.model if used else draft.model, view.report)
        if not view.blocks or used is None:
            return
        components.strip(view, block_view.picked(view), block_view.pick)
        if seen.job is None and seen.record is None:
            _first_steps()
        elif view.current is not None or seen.locked:
            block_view.draw(view, used, live)

    draw()


def _opened(seen: Target, draft: Draft) -> str:
    """What to say about a run that is finished, and whether the settings above are still its own."""
    if seen.record is None or seen.settings is None:
        return ""
    used, seconds = seen.settings, seen.record.report["seconds"]
    words = (
        f"**Finished** in {duration(seconds)} on {seen.record.report['device']} and saved; Runs lists it. "
    )
    if draft.settings is not None and draft.settings != used:
        return words + (
            f"Shown is the run with {used.model}, keep {used.keep:g}, seed {used.seed}; "
            "Run makes a new one with the settings above."
        )
    return words + "The result and the export stand below."


def _first_steps() -> None:
    """What a newcomer reads where nothing was done yet."""
    with st.container(border=True):
        for column, (title, text) in zip(
            st.columns(3, gap="large"),
            (
                ("1. Press Run", "A sample model is chosen and half of every block will be kept. One press prunes it "
                 "block by block, in seconds."),
                ("2. See what it does", "Which channels are kept, added and dropped in every iteration, how far the "
                 "output moves, and why a channel stayed or went."),
                ("3. Take it away", "Accuracy and size against the dense model; then an ONNX file, checked "
                 "against torch and timed."),
            ),
            strict=True,
        ):  # fmt: skip
            with column:
                st.markdown(f"**{title}**")
                st.markdown(text)


main()

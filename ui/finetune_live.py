"""A fine-tuning under way on the Fine-tune page: where it is, its last epoch, and curves that grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from ispasp.errors import NoLabelsError
from ispasp.jobs import Snapshot, State
from ispasp.looks import DENSE, LOOKS, GroupState
from ispasp.narrative import epoch_sentence
from ispasp.records import BlockStarted, Started
from ispasp.tuning.figures import CurvesInfo, curves_info
from ispasp.tuning.memory import CheckpointMissed
from ispasp.tuning.records import Began, EpochDone
from ui import background, finetune_form, style
from ui.finetune_words import HELP
from ui.words import escaped

_HEIGHT = 290  # of the whole chart, in pixels
_ROOM = 355  # of the sentence and the charts, kept free for them so that nothing jumps, in pixels


def line(snapshot: Snapshot) -> str:
    """How it goes, with the block that it is at."""
    if snapshot.state is State.CANCELLED and snapshot.started is None:
        return f"**{escaped(snapshot.title)}**: stopped before it began; the run itself is as it was"
    if snapshot.state is State.CANCELLED:
        return f"**{escaped(snapshot.title)}**: discarded; the run itself is as it was"
    if snapshot.state is State.FAILED:
        return f"**{escaped(snapshot.title)}**: failed; the run itself is as it was"
    said = background.status(snapshot)
    started = next((one for one in snapshot.events if isinstance(one, Started)), None)
    at = next((one for one in reversed(snapshot.events) if isinstance(one, BlockStarted)), None)
    if started is None or at is None or snapshot.state is not State.RUNNING:
        return said
    last = _curve(snapshot)[-1:]
    if last and not last[0].stage:  # all blocks are pruned
        return said
    return f"{said} · block {at.index + 1} of {len(started.blocks)}"


def details(snapshot: Snapshot) -> None:
    """The last epoch in a sentence, the curves so far, and what could not be written down."""
    curve = _curve(snapshot)
    if snapshot.events and isinstance(missed := snapshot.events[-1], CheckpointMissed):
        st.warning(
            f"{escaped(missed.problem)} The work goes on, and the next epoch tries again; until then a killed server "
            "would lose what is not written down."
        )
    if not curve:
        if snapshot.state.live:
            with st.container(height=_ROOM, border=False):
                st.caption("The curves begin with the first epoch.")
        return
    st.markdown(escaped(epoch_sentence(curve[-1])))
    # And not what the run's report says, which may have been measured on other examples.
    began = next((one for one in snapshot.events if isinstance(one, Began)), Began(None, None, None))
    info = curves_info(curve, began.dense_accuracy)
    shows, before = "accuracy", began.accuracy
    if info.shows != "accuracy":
        shows, before = "agreement", began.agreement
    epochs = _room(snapshot, curve)
    with st.container(key="tune_live"):
        left, right = st.columns(2, gap="medium")
    with left:
        st.markdown(f"**{shows.capitalize()}, %**", help=HELP[shows])
        _chart(_values(info, before, epochs), ("fine-tuned", "dense", "before"), epochs, "tune_accuracy")
    with right:
        st.markdown("**Loss**", help=HELP["loss"])
        _chart(_losses(info), ("held out", "training"), epochs, "tune_loss")


def ended(snapshot: Snapshot) -> None:
    """What to do about one that failed."""
    if snapshot.failure is not None and issubclass(snapshot.failure, NoLabelsError):
        st.button(
            "Use the preset that needs no labels", key="tune_no_labels", type="primary",
            on_click=finetune_form.use_distil,
        )  # fmt: skip


def _curve(snapshot: Snapshot) -> list[EpochDone]:
    return [event for event in snapshot.events if isinstance(event, EpochDone)]


def _room(snapshot: Snapshot, curve: Sequence[EpochDone]) -> int:
    """How many epochs the axes have room for: those after all blocks, and those of the end once they have begun."""
    blocks = next((len(one.blocks) for one in snapshot.events if isinstance(one, Started)), 0)
    after = blocks * curve[0].epochs if curve[0].stage else 0
    return max(2, after if curve[-1].stage else len(curve) - curve[-1].epoch + curve[-1].epochs)


def _values(info: CurvesInfo, before: float | None, epochs: int) -> pd.DataFrame:
    """Accuracy or agreement by epoch, in per cent; level lines for the dense model and for the run before."""
    levels = [
        (at, value, what)
        for what, value in (("dense", info.dense), ("before", None if before is None else 100 * before))
        if value is not None
        for at in (0, epochs)
    ]
    return _frame([*((i + 1, value, "fine-tuned") for i, value in enumerate(info.values.tolist())), *levels])


def _losses(info: CurvesInfo) -> pd.DataFrame:
    return _frame(
        [
            (i + 1, value, what)
            for what, values in (("held out", info.held_out), ("training", info.loss))
            for i, value in enumerate(values.tolist())
        ]
    )


def _frame(rows: Sequence[tuple[int, float, str]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["epoch", "value", "what"])
    return frame[np.isfinite(frame["value"])].astype({"value": np.float32})


def _chart(frame: pd.DataFrame, names: Sequence[str], epochs: int, key: str) -> None:
    """Lines by epoch, on an axis that has room for all of them, so that nothing jumps while it grows."""
    dark = style.dark()
    colours = {
        "fine-tuned": LOOKS[GroupState.KEPT].colour(dark), "training": LOOKS[GroupState.KEPT].colour(dark),
        "held out": LOOKS[GroupState.ADDED].colour(dark), "dense": DENSE[dark],
        "before": LOOKS[GroupState.CANDIDATE].colour(dark),
    }  # fmt: skip
    dashes = {"dense": [6, 4], "before": [2, 3], "training": [2, 3]}
    names = [name for name in names if name in set(frame["what"])]
    legend: dict[str, Any] = {
        "orient": "top", "title": None, "symbolType": "stroke", "symbolSize": 300,
        "offset": 6, "padding": 0, "titlePadding": 0,
    }  # fmt: skip
    lines = {
        "x": {"field": "epoch", "type": "quantitative", "scale": {"domain": [0, epochs]},
              "axis": {"tickMinStep": 1, "title": "epoch", "titlePadding": 2, "grid": False}},
        "y": {"field": "value", "type": "quantitative", "scale": {"zero": False},
              "axis": {"title": None, "tickCount": 5}},
        "color": {"field": "what", "type": "nominal", "legend": legend,
                  "scale": {"domain": names, "range": [colours[name] for name in names]}},
        "strokeDash": {"field": "what", "type": "nominal", "legend": legend,
                       "scale": {"domain": names, "range": [dashes.get(name, [1, 0]) for name in names]}},
    }  # fmt: skip
    st.vega_lite_chart(
        frame,
        {
            "height": _HEIGHT,
            "padding": {"top": 0, "bottom": 0, "left": 0, "right": 8},
            "encoding": lines,
            "layer": [
                {"mark": {"type": "line", "strokeWidth": 2}},
                {
                    "mark": {"type": "point", "filled": True, "size": 34, "tooltip": True},
                    "transform": [{"filter": "datum.what != 'dense' && datum.what != 'before'"}],
                    "encoding": {"strokeDash": {"value": [1, 0]}},
                },
            ],
        },
        key=key,
    )

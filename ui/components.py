"""The two drawn parts of the page: a canvas that redraws in place, and the strip of blocks."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from ispasp.figures import LOOKS, GroupState, MapInfo, ResidualInfo, ScoreInfo, legend
from ui import style
from ui.view import View

_HERE = Path(__file__).parent
LONG_NAME = 20  # letters; longer ones do not fit into the strip
_CANVAS_HTML = (
    '<div class="frame"><canvas role="img"></canvas></div>'
    '<div class="hint" hidden>scroll for more ↓</div><div class="tip" hidden></div>'
)
_CANVAS_CSS = """
:host, div { box-sizing: border-box; }
[hidden] { display: none; }
.frame { width: 100%; position: relative; scrollbar-width: thin; scrollbar-gutter: stable; }
canvas { display: block; }
.hint { position: absolute; z-index: 4; right: 18px; bottom: 2px; pointer-events: none; padding: 1px 8px;
  border-radius: 5px; font: 12px var(--st-font); color: var(--st-text-color);
  background: var(--st-secondary-background-color); border: 1px solid var(--st-border-color); }
.tip { position: absolute; z-index: 5; pointer-events: none; padding: 3px 8px; border-radius: 5px;
  font: 13px var(--st-font); color: var(--st-background-color); background: var(--st-text-color); }
"""
_STRIP_CSS = """
.strip { display: flex; flex-wrap: wrap; gap: 6px; padding: 2px; }
button { flex: 1 1 104px; min-width: 104px; max-width: 260px; padding: 6px 8px 5px; cursor: pointer; text-align: left;
  font: 13px/1.35 var(--st-font); color: var(--st-text-color); background: var(--st-background-color);
  border: 1px solid var(--st-border-color); border-radius: 6px; }
button:hover { background: var(--st-secondary-background-color); }
button:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 1px; }
button.waiting { border-style: dashed; }
button.picked { box-shadow: inset 0 0 0 2px var(--st-primary-color); }
span { display: block; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.name { font-weight: 600; }
.bar { height: 8px; margin: 4px 0; border-radius: 3px; background: var(--st-border-color); }
.bar > span { height: 100%; border-radius: 3px; background: var(--st-primary-color); transition: width 0.2s; }
button.current .bar > span { background: repeating-linear-gradient(45deg, var(--st-primary-color) 0 5px,
  var(--st-border-color) 5px 8px); }
.stale .bar > span { background: var(--st-border-color); }
.stale .kept, .stale .name { font-style: italic; font-weight: 400; }
.kept { font-variant-numeric: tabular-nums; }
"""


def _mount(name: str, html: str, css: str) -> Any:
    return st.components.v2.component(
        f"ispasp_{name}", html=html, css=css, js=(_HERE / f"{name}.js").read_text(encoding="utf-8")
    )


@st.cache_resource(show_spinner=False)
def _canvas_component() -> Any:
    return _mount("canvas", _CANVAS_HTML, _CANVAS_CSS)


@st.cache_resource(show_spinner=False)
def _strip_component() -> Any:
    return _mount(
        "strip", '<div class="strip" role="group" aria-label="Blocks of the network"></div>', _STRIP_CSS
    )


def _text(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode("ascii")


def _canvas(
    key: str,
    kind: str,
    height: int,
    label: str,
    on_pick: Callable[[], None] = lambda: None,
    titles: Mapping[GroupState, str] | None = None,
    **data: Any,
) -> Any:
    dark = style.dark()
    looks = {
        int(state): {"label": (titles or {}).get(state, look.label), "colour": look.colour(dark)}
        for state, look in LOOKS.items()
    }
    return _canvas_component()(
        key=key,
        data={"kind": kind, "height": height, "label": label, "looks": looks, **data},
        height=height,
        on_pick_change=on_pick,
    )


def group_map(
    key: str,
    info: MapInfo,
    selector: str,
    t: int,
    group: int | None,
    height: int,
    bands: int,
    on_pick: Callable[[], None],
) -> None:
    """The iteration x group map; a click calls ``on_pick`` with ``{"group": ..., "t": ...}`` under
    ``st.session_state[key].pick``.

    Args:
        selector: how the groups were chosen, which decides what the marks are called.
        bands: iterations to make room for.
    """
    entries = legend(selector, info.iterations[-1] if info.iterations else 1)
    counts = ", ".join(
        f"{int((info.states[-1] == state).sum())} {entry.title}"
        for state, entry in entries.items()
        if len(info.states)
    )
    _canvas(
        key,
        "map",
        height,
        f"{info.groups} {info.kind}s of {info.block} over {len(info.iterations)} iterations; last: {counts}",
        states=_text(info.states, "uint8"),
        groups=info.groups,
        bands=bands,
        iterations=list(info.iterations),
        unit=info.kind,
        t=t,
        group=group,
        titles={state: entry.title for state, entry in legend(selector, 2).items()},
        first=LOOKS[GroupState.ADDED].title(1),
        on_pick=on_pick,
    )


def live_residual(key: str, info: ResidualInfo, height: int) -> None:
    """The residual per iteration while it changes."""
    label = "relative residual per iteration: " + ", ".join(f"{v:.3g}" for v in info.relative)
    _canvas(
        key,
        "line",
        height,
        label,
        values=_text(info.relative, "<f4"),
        iterations=[int(t) for t in info.t],
    )


def live_scores(key: str, info: ScoreInfo, height: int) -> None:
    """What decides, while it changes."""
    _canvas(
        key,
        "bars",
        height,
        f"{' and '.join(info.titles)} of {len(info.order)} {info.kind}s at iteration {info.t}",
        panels=[
            {"title": title, "values": _text(values, "<f4")}
            for title, values in zip(info.titles, info.values, strict=True)
        ],
        states=_text(info.states, "uint8"),
    )


def _label(name: str) -> str:
    """A block's name, from its first number on where it is long: ``"0.attention.self.query"``."""
    number = re.search(r"\d", name) if len(name) > LONG_NAME else None
    return name[number.start() :] if number else name


def strip(view: View, picked: int | None, on_pick: Callable[[], None], stale: bool = False) -> None:
    """The network as a strip; a click on a block calls ``on_pick``, the name is in ``st.session_state.strip``.

    Args:
        stale: drawn in grey, as a run would give something else: the settings cannot be used and this is what
            they last amounted to, or the counts are yet to be shared out.
    """
    _strip_component()(
        key="strip",
        data={
            "picked": picked,
            "stale": stale,
            "blocks": [
                {
                    "name": b.block.name,
                    "label": _label(b.block.name),
                    "groups": b.block.groups,
                    "kept": b.keep_groups,
                    "unit": b.block.kind,
                    "state": b.state,
                }
                for b in view.blocks
            ],
        },
        on_pick_change=on_pick,
    )

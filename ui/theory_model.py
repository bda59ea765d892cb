"""The Theory page's part on a model of one's own: how compressible the rows of its blocks are."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from ispasp import compressibility
from ispasp.compressibility import KEEPS, BlockRows, CompressibilityDone
from ispasp.compressibility_figures import nearest, promise_figure, promise_info, rows_figure
from ispasp.jobs import State
from ispasp.narrative import plural
from ispasp.run_settings import RunSettings
from ui import bases, models, style
from ui.background import ROW_LOOKS, ROWS
from ui.words import escaped, source_words

_HELP = {
    "look": "One pass of the calibration data through the dense model; at every block the norms of its rows are taken "
    "and Algorithm 1 prunes it alone at three kept fractions. Seconds for the sample models.",
    "p": "Of the straight line through the sorted norms on log scales. Small: a few rows hold nearly all.",
    "fit": "R², how well that line fits: 1 is perfect, from 0.95 on it counts as a power law here.",
    "law": "What the fitted law leaves out of the rows' squared size. The theorem's rate is how this falls.",
    "measured": "The residual of the block's output when it alone is pruned by Algorithm 1, squared error over squared "
    "size, on the calibration data.",
    "promise": "Three steps from theory to measurement, as shares of the squared size. By the fitted law: what a "
    "perfect power law with this p would leave out. By the real rows: what the smallest rows really hold. Measured: "
    "what the next layer makes of the rows that Algorithm 1 leaves out.",
}
_PLOT = {"displaylogo": False}


def draw(folder: Path) -> None:
    """Which model, the job, and what was found about its blocks."""
    with st.container(key="section_rows"):
        st.subheader("Your model", anchor=False)
    st.markdown(
        "How compressible are the hidden rows of a real model's blocks, and what does the theorem make of them? A "
        "power law is fitted to the rows, and what it promises stands beside the residual that pruning really leaves."
    )
    known = bases.bases()
    if st.session_state.get("theory_model", st.query_params.get("theory_model")) not in known:
        st.session_state.theory_model = bases.last(known)
    job = ROW_LOOKS.job()
    going = job is not None and not job.state.ended
    with st.container(border=True, horizontal=True, vertical_alignment="bottom", key="rows_form"):
        name = st.selectbox(
            "Model", list(known), key="theory_model", bind="query-params", persist_state="session", width=420,
            help=bases.HELP,
        )  # fmt: skip
        settings = known[name]
        st.button(
            "Look at its rows", key="rows_look", disabled=going, on_click=_start, args=(settings, folder),
            help=_HELP["look"],
        )  # fmt: skip
        st.caption(f"{settings.samples:,} calibration examples.", width="content")
    if job is not None and job.state is State.FINISHED:
        last = job.snapshot().events[-1]
        if isinstance(last, CompressibilityDone) and last.path == compressibility.path_of(settings, folder):
            ROW_LOOKS.follow(None)
            job = None
    ROW_LOOKS.watch(job)
    blocks = compressibility.load(settings, folder)
    if blocks:
        _results(blocks)
    elif not going:
        st.caption("The rows of this model were not looked at yet.")


def _start(settings: RunSettings, folder: Path) -> None:
    allow = models.allow_code()
    ROW_LOOKS.submit(
        f"Rows of {source_words(settings.model)}",
        lambda: compressibility.execute(settings, folder, allow_code=allow),
        settings.device,
        ROWS,
    )


def _results(blocks: list[BlockRows]) -> None:
    st.markdown(escaped(_sentence(blocks)))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("**Theory and measurement, block by block**", help=_HELP["promise"], width="content")
        keep = st.segmented_control(
            "Kept fraction", KEEPS, default=KEEPS[1], required=True, key="rows_keep", label_visibility="collapsed",
            format_func=lambda k: f"keep {k:g}", persist_state="session",
        ) or KEEPS[1]  # fmt: skip
    _table(blocks, keep)
    left, right = st.columns(2, gap="large")
    with left:
        with st.container(height=58, border=False, vertical_alignment="center"):
            st.markdown("**What is left out**")
        st.plotly_chart(
            promise_figure(promise_info(blocks, keep), style.dark()), key="rows_promise", config=_PLOT
        )
    with right:
        names = [block.block for block in blocks if block.law]
        if not names:
            return
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute", height=58,
                          border=False):  # fmt: skip
            st.markdown("**The rows of one block**", width="content")
            name = st.selectbox("Block", names, key=f"rows_block_{len(blocks)}_{names[0]}", width=320,
                                label_visibility="collapsed")  # fmt: skip
        block = next(block for block in blocks if block.block == name)
        st.plotly_chart(rows_figure(block, style.dark()), key="rows_norms", config=_PLOT)


def _sentence(blocks: list[BlockRows]) -> str:
    """What the theorem has to say about the model."""
    laws = [block.law for block in blocks if block.law]
    if not laws:
        return "No block has enough rows that are alive to fit a law to."
    fitting = [law for law in laws if law.fits]
    covered = [law for law in fitting if law.rate is not None]
    exponents = sorted(law.exponent for law in laws)
    best = f"the best line has p = {exponents[0]:.1f}. "
    if len(laws) > 1:
        best = f"the best lines have p from {exponents[0]:.1f} to {exponents[-1]:.1f}. "
    dead = sum(law.dead for law in laws)
    said = f"Of {plural(len(laws), 'block')}, {_count(len(fitting))} rows that follow a power law; {best}"
    if covered:
        said += f"The theorem promises a decay for {len(covered)} of them."
    else:
        said += "So the theorem promises no decay here. The residual falls all the same as more is kept: the rows come "
        said += "to an end."
    return said + (f" {plural(dead, 'row')} gave nothing at all." if dead else "")


def _count(number: int) -> str:
    return "none has" if number == 0 else "1 has" if number == 1 else f"{number} have"


def _table(blocks: list[BlockRows], keep: float) -> None:
    rows = []
    for block in blocks:
        at = nearest(block, keep) if block.kept else None
        rows.append(
            {
                "Block": block.block,
                "Rows": block.groups,
                "p": None if block.law is None else block.law.exponent,
                "Fit R²": None if block.law is None else block.law.goodness,
                "The theorem": compressibility.verdict(block),
                "Kept": None if at is None else f"{block.kept[at]:,}",
                "By the fitted law": None
                if at is None or block.promised is None
                else f"{block.promised[at]:.2g}",
                "By the real rows": None if at is None else f"{block.left_out[at]:.2g}",
                "Measured residual": None if at is None else f"{block.residual[at]:.2g}",
            }
        )
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        placeholder="–",
        alt="The rows of every block: the power law, what it promises, what was measured",
        column_config={
            "p": st.column_config.NumberColumn(format="%.2f", help=_HELP["p"]),
            "Fit R²": st.column_config.NumberColumn(format="%.2f", help=_HELP["fit"]),
            "By the fitted law": st.column_config.TextColumn(help=_HELP["law"]),
            "Measured residual": st.column_config.TextColumn(help=_HELP["measured"]),
        },
    )

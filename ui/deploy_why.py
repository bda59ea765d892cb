"""The third and fourth section of the Deploy page: where the time goes, and what became of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from ispasp.deployment import model_diff, operator_figures
from ispasp.deployment import profile as profiles
from ispasp.deployment.bench import MOST_BATCH, MOST_THREADS
from ispasp.deployment.diff_figures import diff_figure
from ispasp.deployment.model_diff import LayerDiff
from ispasp.errors import ISpaSPError, RunError
from ispasp.jobs import Job
from ispasp.narrative import plural
from ispasp.store import EXPORT
from ui import models, style
from ui.background import begin, of_run
from ui.deploy_records import Exported
from ui.deploy_words import HELP, PRECISIONS, Standing, heading, standing
from ui.words import escaped

_BARS = {"MACs": "macs", "Parameters": "params", "Width": "width"}
_COUNT = st.column_config.NumberColumn(format="compact")
_COLUMNS = {
    "Layer": st.column_config.TextColumn(width=150),
    "Weight before": st.column_config.TextColumn(help=HELP["weight"]),
    "Weight after": st.column_config.TextColumn(help=HELP["weight"]),
    "MACs before": _COUNT,
    "MACs after": _COUNT,
    "Share of latency": st.column_config.TextColumn(help=HELP["share"]),
    "Parameters before": _COUNT,
    "Parameters after": _COUNT,
    "Block": st.column_config.TextColumn(),
    "Role": st.column_config.TextColumn(help=HELP["role"]),
    "Kind": st.column_config.TextColumn(),
}
_LONG = st.column_config.TextColumn(width=300)  # names of transformers differ in their last part
_LAYERS = 18  # rows of the table; more scroll inside it
_MOST = 2**53  # of a count: more is no network's, and the table cannot show it


def draw(path: Path, exported: Exported | None, job: Job | None, busy: bool) -> None:
    """Where the time goes; arguments as of ``deploy_files.draw``."""
    profile = profiles.profile_report(path)
    damaged = profile is None and (path / EXPORT / profiles.FILE).is_file()
    heading(
        "3. Why", "why", Standing.DAMAGED if damaged else standing(job, profile is not None), HELP["profile"]
    )
    if exported is None:
        st.caption("Export first: the files are what is profiled.")
        return
    _form(path, exported, busy, profile is not None)
    of_run("profile", path).watch(job)
    if damaged:
        st.error("The profile cannot be read: the file is damaged. Profile again.")
    if profile is not None:
        _results(profile)


def _form(path: Path, exported: Exported, busy: bool, again: bool) -> None:
    ready = [one for one in PRECISIONS if one in exported.precisions]
    with st.container(border=True, horizontal=True, vertical_alignment="bottom", key="deploy_profile_form"):
        precision = st.segmented_control(
            "Precision", ready, default=ready[0] if ready else None, required=True,
            format_func=PRECISIONS.__getitem__, key=f"deploy_profiled_{'_'.join(ready)}",
            persist_state="session", help=HELP["profile_precision"],
        )  # fmt: skip
        batch = st.number_input(
            "Batch size", 1, MOST_BATCH, 1, step=1, key="deploy_profile_batch", persist_state="session",
            width=130, help=HELP["profile_batch"],
        )  # fmt: skip
        threads = st.number_input(
            "Threads", 1, MOST_THREADS, 1, step=1, key="deploy_profile_threads", persist_state="session",
            width=130, help=HELP["profile_threads"],
        )  # fmt: skip
        st.button(
            "Profile again" if again else "Profile", key="deploy_profile", type="secondary" if again else "primary",
            disabled=busy or not precision or not batch or not threads, on_click=_begin,
            args=(path, precision, batch, threads), help=HELP["profile"],
        )  # fmt: skip


def _begin(path: Path, precision: str, batch: int, threads: int) -> None:
    allow = models.allow_code()
    begin(
        "profile",
        path,
        f"Profile of {path.name}",
        lambda: profiles.profile_run(
            path, batch=batch, threads=threads, precision=precision, allow_code=allow
        ),
    )


def _results(profile: dict[str, Any]) -> None:
    with st.container(key="deploy_sentences"):
        st.markdown("\n".join(f"- {escaped(sentence)}" for sentence in profile["sentences"]))
    if profile["suggestion"] is not None:
        st.info(
            "To try it, press **Open in Explore** at the top of this page, set **Multiple of** under Finer settings "
            f"there to {profile['suggestion']['multiple']}, run again, and choose the new run here."
        )
    measured = f"batch {profile['batch']}, {plural(profile['threads'], 'thread')}, on the CPU"
    words = PRECISIONS[profile["precision"]]
    st.caption(
        f"From the profile of {words}, {measured}; the machine's peak is "
        f"{profile['machine']['peak_gflops']:.3g} GFLOP/s."
    )
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("**Time by block**", help=HELP["by_block"])
        st.plotly_chart(
            operator_figures.block_times_figure(profiles.block_rows(profile), style.dark()),
            key="deploy_blocks",
            config={"displaylogo": False},
            alt="Time of one call by block, dense and pruned",
        )
    with right:
        st.markdown("**Heavy operators, share of the machine's peak**", help=HELP["operators"])
        operators = profiles.operator_rows(profile)
        if not operator_figures.peak_info(operators).names:
            st.caption("The peak is measured in FP32 and says nothing about files that compute in integers.")
            return
        st.plotly_chart(
            operator_figures.peak_figure(operators, style.dark()),
            key="deploy_operators",
            config={"displaylogo": False},
            alt="Share of the machine's peak that every heavy operator reaches, dense and pruned",
        )


# -- layers ---------------------------------------------------------------------------------------------


def layers(path: Path) -> None:
    """What became of every layer: a bar and a row for each."""
    try:
        diffs, problem = model_diff.read_diff(path), ""
        if any(
            max(d.macs_dense, d.macs_pruned, d.params_dense, d.params_pruned) > _MOST for d in diffs or ()
        ):
            raise RunError("A count in the list of layers is too large to be one: export the run again.")
    except ISpaSPError as error:
        diffs, problem = None, str(error)
    how = Standing.DAMAGED if problem else Standing.DONE if diffs is not None else Standing.NOT_DONE
    heading("4. What became of every layer", "layers", how, HELP["layers"])
    if problem:
        st.error(escaped(problem))
    elif diffs is None:
        st.caption("An export of the run writes it down; one that came from elsewhere may lack it.")
    else:
        _layers(diffs, profiles.profile_report(path))


def _layers(diffs: Sequence[LayerDiff], profile: dict[str, Any] | None) -> None:
    left, right = st.columns([1, 1.35], gap="medium")
    with left:
        shown = st.segmented_control(
            "Bars", list(_BARS), default="MACs", required=True, key="deploy_bars", persist_state="session",
            label_visibility="collapsed",
        ) or "MACs"  # fmt: skip
        st.plotly_chart(
            diff_figure(diffs, _BARS[shown], style.dark()), key="deploy_diff", config={"displaylogo": False},
            alt=f"{shown} of every layer before and after; the table has the figures",
        )  # fmt: skip
    with right:
        shares = None if profile is None else model_diff.shares(profiles.operator_rows(profile))
        frame = pd.DataFrame(model_diff.as_rows(diffs, shares))
        st.dataframe(
            frame,
            hide_index=True,
            height="content" if len(frame) <= _LAYERS else 38 + 35 * _LAYERS,
            column_order=[name for name in _COLUMNS if name in frame],
            column_config=_COLUMNS | ({"Layer": _LONG} if max(map(len, frame["Layer"])) > 20 else {}),
            alt="Every layer before and after",
        )

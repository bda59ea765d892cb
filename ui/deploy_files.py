"""The first section of the Deploy page: files in several precisions, and whether they answer as torch does."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from ispasp import pictures
from ispasp.deployment import exporting, inference_script
from ispasp.deployment.precisions import PRECISIONS
from ispasp.errors import ISpaSPError
from ispasp.jobs import Job
from ispasp.narrative import percent, plural
from ui import compare_answers, library, models, style
from ui.background import begin, of_run
from ui.deploy_records import Exported, File
from ui.deploy_words import HELP, Standing, heading, standing
from ui.deploy_words import PRECISIONS as TITLES
from ui.words import escaped

OPSETS = exporting.OPSETS
_OWN = "the exporter's own"
_SIDE = 168  # pixels of the worst example
_MARKS = {False: ("#00795a", "#b3261e"), True: ("#2fc99b", "#ff9d94")}
"""Colours of what passed and of what failed, on a light and on a dark page; the words say it, too."""
_COLUMNS = {
    "Precision": st.column_config.TextColumn(),
    "Model": st.column_config.TextColumn(),
    "File": st.column_config.TextColumn(help=HELP["size"]),
    "Of dense FP32": st.column_config.TextColumn(help=HELP["of_dense"]),
    "Check": st.column_config.TextColumn(help=HELP["parity"]),
    "Same answer": st.column_config.TextColumn(help=HELP["same"]),
    "Accuracy, torch → file": st.column_config.TextColumn(help=HELP["accuracy"]),
    "Max. difference": st.column_config.TextColumn(help=HELP["difference"]),
    "Relative": st.column_config.TextColumn(help=HELP["relative"]),
    "Mean": st.column_config.TextColumn(help=HELP["mean"]),
    "Asked for": st.column_config.TextColumn(help=HELP["asked"]),
    "Opset": st.column_config.TextColumn(help=HELP["opset"]),
}


def draw(path: Path, exported: Exported | None, job: Job | None, busy: bool, problem: str = "") -> None:
    """Draw the section.

    Args:
        path: the run's folder.
        exported: what its last export has on record; None before it.
        job: the job of this section that the page follows.
        busy: whether something is done to this run at the moment.
        problem: why the record cannot be read; empty where it can.
    """
    how = Standing.DAMAGED if problem and job is None else standing(job, exported is not None)
    heading("1. Files", "files", how, HELP["parity"])
    if problem:
        st.error(escaped(problem))
    _form(path, exported, busy)
    of_run("export", path).watch(job)
    if exported is None:
        return
    _verdict(exported)
    _table(exported)
    left, right = st.columns([1.25, 1], gap="large")
    with left:
        chosen = _downloads(path, exported)
    with right:
        if chosen is not None:
            _worst(path, chosen)


def _form(path: Path, exported: Exported | None, busy: bool) -> None:
    others = [one for one in PRECISIONS if one != "fp32"]
    asked = {file.made.precision for file in exported.files} if exported else {"int8-static"}
    with st.container(border=True, key="deploy_export_form"):
        with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
            more = st.pills(
                "Precisions, besides FP32", others, selection_mode="multi",
                default=[one for one in others if one in asked], format_func=TITLES.__getitem__,
                key=f"deploy_precisions_{path.name}", persist_state="session", help=HELP["precisions"],
            )  # fmt: skip
            opset = st.selectbox(
                "Opset", [0, *OPSETS], key="deploy_opset", persist_state="session", width=190,
                format_func=lambda one: str(one or _OWN), help=HELP["opset"],
            )  # fmt: skip
            st.button(
                "Export again" if exported else "Export", key="deploy_export",
                type="secondary" if exported else "primary", disabled=busy, on_click=_begin,
                args=(path, ("fp32", *more), opset or None), help=HELP["export_again" if exported else "export"],
            )  # fmt: skip
        if exported is None:
            st.caption(
                "Dense and pruned are written as ONNX, compared with torch on the evaluation data, and timed once. "
                "Half a minute for a small model, minutes for a large one."
            )


def _begin(path: Path, precisions: tuple[str, ...], opset: int | None) -> None:
    allow = models.allow_code()
    begin(
        "export",
        path,
        f"Export {path.name}",
        lambda: exporting.export_run(path, precisions=precisions, opset=opset, allow_code=allow),
    )


# -- what came of it ------------------------------------------------------------------------------------


def _verdict(exported: Exported) -> None:
    """How many files passed, and what is wrong with each of the others."""
    failed = [one for one in exported.files if not one.passed]
    count = plural(len(exported.files), "file")
    if failed:
        others = "; the others answer as torch does" if len(failed) < len(exported.files) else ""
        st.markdown(f":red-badge[✗ {len(failed)} failed] of {count}{others}.")
    else:
        st.markdown(
            f":green-badge[✓ passed] All {count} answer as torch does, within what is allowed for each."
        )
    for one in failed:
        said = one.made.problem or (one.parity.sentence if one.parity else "It was not compared with torch.")
        st.error(f"**{_words(one)}:** {escaped(said)}")
    if not any(one.parity and one.parity.accuracy_onnx is not None for one in exported.files):
        st.caption(
            "The evaluation data have no labels that fit, so accuracy is unknown; the answers are compared."
        )
    for note in exported.notes:
        st.caption(escaped(note))


def _words(one: File) -> str:
    """``"Pruned, INT8 static"``."""
    return f"{one.made.side.capitalize()}, {TITLES[one.made.precision]}"


def _table(exported: Exported) -> None:
    frame = pd.DataFrame([_row(one, exported) for one in exported.files], columns=list(_COLUMNS))
    passed, failed = _MARKS[style.dark()]
    st.dataframe(
        frame.style.map(
            lambda said: f"color: {passed if said.startswith('✓') else failed}; font-weight: 600",
            subset=["Check"],
        ),
        hide_index=True,
        height="content",
        column_config=_COLUMNS,
        placeholder="–",
        alt="Exported files, their size and whether they answer as torch does",
    )


def _row(one: File, exported: Exported) -> dict[str, str | None]:
    made, parity, dense = one.made, one.parity, exported.of("dense", "fp32")
    row: dict[str, str | None] = {
        "Precision": TITLES[made.precision],
        "Model": made.side,
        "Check": "✓ passed" if one.passed else "✗ failed" if made.path else "✗ not made",
    }
    if made.path:
        row |= {"File": _megabytes(one), "Opset": str(made.opset)}
        if dense is not None and dense.made.bytes:
            row["Of dense FP32"] = f"{100 * made.bytes / dense.made.bytes:.0f} %"
    if parity is not None:
        row["Same answer"] = None if parity.top1_agreement is None else percent(parity.top1_agreement)
        if parity.accuracy_torch is not None and parity.accuracy_onnx is not None:
            row["Accuracy, torch → file"] = (
                f"{percent(parity.accuracy_torch)} → {percent(parity.accuracy_onnx)}"
            )
        row["Max. difference"] = None if parity.max_abs_diff is None else f"{parity.max_abs_diff:.2g}"
        row["Relative"] = None if parity.max_rel_diff is None else f"{parity.max_rel_diff:.1g}"
        row["Mean"] = None if parity.mean_abs_diff is None else f"{parity.mean_abs_diff:.1g}"
        bound = percent(parity.tolerance) if parity.criterion == "top1_agreement" else f"{parity.tolerance:g}"
        row["Asked for"] = (
            f"same answer ≥ {bound}" if parity.criterion == "top1_agreement" else f"relative ≤ {bound}"
        )
    return row


def _megabytes(one: File) -> str:
    return f"{one.made.bytes / 1e6:.2f} MB"


def _downloads(path: Path, exported: Exported) -> File | None:
    """Choose a file and take it; the chosen one."""
    there = {Path(one.made.path).name: one for one in exported.files if one.made.path}
    if not there:
        return None
    if st.session_state.get("deploy_file") not in there:
        st.session_state.deploy_file = "model.onnx" if "model.onnx" in there else next(iter(there))
    name = st.selectbox(
        "Take a file", list(there), key="deploy_file", persist_state="session",
        format_func=lambda name: _file_title(there[name]), help=HELP["file"],
    )  # fmt: skip
    one = there[name]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "Download ONNX" if one.passed else "Download, though it failed its check",
            data=(path / one.made.path).read_bytes,
            file_name=name if one.passed else f"{Path(name).stem}-failed-check.onnx",
            mime="application/octet-stream",
            type="primary" if one.passed else "secondary",
            on_click="ignore",
            key="deploy_download",
        )
        st.download_button(
            "Download inference.py",
            data=lambda: inference_script.script(path, side=one.made.side, precision=one.made.precision),
            file_name="inference.py",
            mime="text/x-python",
            on_click="ignore",
            key="deploy_script",
            help=HELP["script"],
        )
    return one


def _file_title(one: File) -> str:
    return f"{_words(one)}, {_megabytes(one)}{'' if one.passed else ' – failed its check'}"


def _worst(path: Path, one: File) -> None:
    """The example with the largest difference, as a person can look at it."""
    parity = one.parity
    if parity is None or parity.worst is None:
        return
    differs = (
        "a value that is no number"
        if parity.worst_diff is None
        else f"a difference of {parity.worst_diff:.2g}"
    )
    st.markdown(
        f"**Worst example:** number {parity.worst + 1:,} of {parity.examples:,}, {differs}",
        help=HELP["worst"],
    )
    if not st.toggle("Show it", key="deploy_worst", persist_state="session"):
        return
    try:
        shown = compare_answers.read(path.name, library.open_run(path.name))
    except ISpaSPError as problem:
        st.info(escaped(str(problem)))
        return
    if shown is None:
        return
    if parity.worst >= len(shown):
        st.info("The evaluation data have fewer examples by now.")
    elif shown.pictures is not None:
        st.image(
            pictures.photo(shown.pictures[parity.worst], _SIDE), width=_SIDE,
            alt=f"Evaluation example {parity.worst + 1}, for which the file differs most from torch",
        )  # fmt: skip
    else:
        st.markdown(f"> {escaped(shown.texts[parity.worst])}")

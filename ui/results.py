"""Dense against pruned: the figures at the top, the table of blocks, and what a person should know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from ispasp import figures, narrative, zoo
from ispasp.errors import ISpaSPError
from ispasp.models import RANDOM, ModelSource
from ispasp.run_settings import RunSettings
from ispasp.vocabulary import example_word
from ui import models, style
from ui.view import View
from ui.words import HELP, escaped, source_words


def headline(settings: RunSettings | None, report: dict[str, Any] | None) -> None:
    """Four figures that are always there: the dense model's at first, then what became of them.

    Args:
        settings: of the run, or of the plan; None while no model is chosen, or it cannot be read.
        report: of the run, once it is finished.
    """
    example = example_word(settings.data_source()) if settings else "image"
    source = settings.model_source() if settings else None
    if (
        settings
        and source
        and not report
        and not models.reads(source)
        and settings.data_source().kind == "noise"
    ):
        example = "example"  # not read yet, so nobody knows what it reads
    parameters, macs = _costs(source)
    dense = {
        "Parameters": (parameters, "dense model", HELP["parameters"]),
        f"MACs per {example}": (macs, "dense model", HELP["macs"]),
        "Accuracy": ("–", "known after the run", HELP["accuracy_own"]),
        "Agreement": ("–", "known after the run", HELP["agreement"]),
    }
    over: dict[str, str] = {}
    found = {row.label: row for row in narrative.comparisons(report, example)} if report else {}
    if report:
        shipped = "shipped " if settings and settings.data_source().kind == "sample" else ""
        tested = f", {report['examples']:,} {shipped}test {example.split()[-1]}s"
        over = {label: tested for label in ("Accuracy", "Agreement") if label in found}
        dense["Accuracy"] = ("unknown", "no labels that fit the model", HELP["accuracy_own"])
    elif settings and source and source.kind == "sample" and not (source.weights or settings.data):
        card = zoo.card(source.name)
        dense["Accuracy"] = (narrative.percent(card.accuracy_test), "dense model", HELP["accuracy_card"])
        over = {"Accuracy": f", {card.test_examples:,} test {example.split()[-1]}s"}
    for column, (label, (value, note, help)) in zip(st.columns(4), dense.items(), strict=True):
        row = found.get(label)
        title = label + over.get(label, "")
        with column:
            if row is None:
                st.metric(title, value, note, delta_color="off", delta_arrow="off", help=help, border=True)
            else:
                said = f"{row.change}{f', dense {row.dense}' if row.dense else ''}"
                if label == "Agreement" and settings and settings.weights == RANDOM:
                    said = "random weights: means nothing"
                st.metric(
                    title,
                    row.pruned,
                    said,
                    delta_color="off" if row.better is None else "green" if row.better else "red",
                    delta_arrow="off",
                    help=HELP["accuracy"] if label == "Accuracy" else help,
                    border=True,
                )


def _costs(source: ModelSource | None) -> tuple[str, str]:
    """Parameters and MACs of the dense model in words; of a model that was not read yet, only a sample's."""
    found = models.known(source) if source else None
    if found:
        return narrative.quantity(found.parameters), narrative.quantity(found.macs)
    if source is None or source.kind != "sample":
        return "–", "–"
    try:
        parameters, macs = models.costs(source)
    except ISpaSPError:
        return "–", "–"
    return narrative.quantity(parameters), narrative.quantity(macs)


def draw(view: View, settings: RunSettings, said: Mapping[str, Any], exported: dict[str, Any] | None) -> None:
    """The finished run in full.

    Args:
        said: all that the run has on record beside its report: ``words`` about the model, ``notes`` about the data.
        exported: the report of its export, once there is one.
    """
    assert view.report is not None
    st.subheader("Result: dense against pruned", anchor="result")
    example = example_word(settings.data_source())
    own = settings.model_source().kind != "sample" or settings.weights or settings.data
    if own and (model := said.get("words")):
        st.caption(f"{escaped(model)}. Data: {escaped(source_words(settings.data or 'its own'))}.")
    st.dataframe(
        pd.DataFrame(narrative.result_rows(view.report, exported, example)),
        hide_index=True,
        alt="Dense against pruned",
        column_config={
            "Parameters": st.column_config.TextColumn(help=HELP["parameters"]),
            f"MACs per {example}": st.column_config.TextColumn(help=HELP["macs"]),
            "Accuracy": st.column_config.TextColumn(help=HELP["accuracy"]),
            "Agreement": st.column_config.TextColumn(help=HELP["agreement"]),
            "Latency": st.column_config.TextColumn(help=HELP["latency"]),
            "File size": st.column_config.TextColumn(help=HELP["onnx"]),
        },
    )
    for note in said.get("notes", ()):
        st.info(escaped(str(note)))
    for remark in narrative.remarks(view.report, settings.keep, settings.keep_by_block, settings.allocation):
        st.warning(remark)
    left, right = st.columns([1, 1.5], gap="medium")
    with left:
        st.markdown("**What is left of the dense model**")
        st.plotly_chart(
            figures.comparison_figure(view.report, style.dark(), 280),
            key="comparison_plot",
            config={"displayModeBar": False},
            alt="Parameters and MACs of the pruned model in per cent of the dense one",
        )
    with right:
        done = [b.pruned for b in view.blocks if b.pruned]
        if any(block.target != "none" for block in done):
            title, help = (
                "Error of every block before and after the re-fit",
                f"{HELP['refit']} Drift: {HELP['drift']}",
            )
        else:
            title, help = "Residual of every block, and drift from the dense network", HELP["drift"]
        st.markdown(f"**{title}**", help=help)
        st.plotly_chart(
            figures.blocks_figure(done, style.dark()),
            key="blocks_plot",
            config={"displayModeBar": False},
            alt=f"{title}; drift",
        )
    with st.expander("Every block in figures"):
        st.dataframe(
            _table(view, settings), hide_index=True, alt="Every block in figures", column_config=_COLUMNS
        )


_COLUMNS = {
    "asked": st.column_config.NumberColumn("Keep asked", format="%.3g"),
    "kept fraction": st.column_config.ProgressColumn(
        "Keep effective", format="%.3g", min_value=0, max_value=1, help="After rounding to the multiple."
    ),
    "residual": st.column_config.NumberColumn("Residual", format="%.3g", help=HELP["residual"]),
    "target": st.column_config.TextColumn("Re-fit", help=HELP["refit"]),
    "before": st.column_config.NumberColumn("Error before", format="%.3g", help=HELP["refit"]),
    "after": st.column_config.NumberColumn("Error after", format="%.3g", help=HELP["refit"]),
    "drift": st.column_config.NumberColumn("Drift", format="%.3g", help=HELP["drift"]),
}


def _table(view: View, settings: RunSettings) -> pd.DataFrame:
    assert view.report is not None
    refitted = any(b.get("target", "none") != "none" for b in view.report["blocks"])
    return pd.DataFrame(
        [
            {
                "Block": b["name"],
                "Groups": b["groups"],
                "Kept": b["kept"],
                **(
                    {"asked": settings.keep_by_block.get(b["name"], settings.keep)}
                    if settings.allocation == "uniform"
                    else {}
                ),
                "kept fraction": b["kept"] / b["groups"],
                "Iterations": b["iterations"],
                "residual": b["relative_residual"],
                **(
                    {"target": b["target"], "before": b["error_before"], "after": b["error_after"]}
                    if refitted
                    else {}
                ),
                "drift": b["drift"],
            }
            for b in view.report["blocks"]
        ]
    )

"""Dense against pruned: the figures at the top, the table of blocks, and what a person should know."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from ispasp import figures, narrative, zoo
from ispasp.runs import RunSettings
from ui import library, style
from ui.view import View
from ui.words import HELP


def headline(model: str, report: dict[str, Any] | None) -> None:
    """Four figures that are always there: the dense model's at first, then what became of them."""
    card = zoo.card(model)
    labels = ("Parameters", "MACs per image", "Accuracy", "Agreement")
    helps = (HELP["parameters"], HELP["macs"], HELP["accuracy"], HELP["agreement"])
    dense = (
        narrative.quantity(card.parameters),
        narrative.quantity(library.macs(model)),
        narrative.percent(card.accuracy_test),
        "–",
    )
    found = {row.label: row for row in narrative.comparisons(report)} if report else {}
    for column, label, help, value in zip(st.columns(4), labels, helps, dense, strict=True):
        row = found.get(label)
        with column:
            if row is None:
                note = {
                    "Accuracy": f"dense, {card.test_images:,} test images",
                    "Agreement": "known after the run",
                }
                st.metric(
                    label, value, note.get(label, "dense model"), delta_color="off", delta_arrow="off", help=help,
                    border=True,
                )  # fmt: skip
            else:
                st.metric(
                    label,
                    row.pruned,
                    f"{row.change}{f', dense {row.dense}' if row.dense else ''}",
                    delta_color="off" if row.better is None else "green" if row.better else "red",
                    delta_arrow="off",
                    help=help,
                    border=True,
                )


def draw(view: View, settings: RunSettings) -> None:
    """The finished run in full."""
    assert view.report is not None
    st.subheader("Result: dense against pruned", anchor="result")
    for remark in narrative.remarks(view.report, settings.keep, settings.keep_by_block):
        st.warning(remark)
    left, right = st.columns([1, 1.5], gap="medium")
    with left:
        st.markdown("**What is left of the dense model**")
        st.plotly_chart(
            figures.comparison_figure(view.report, style.dark(), 280),
            key="comparison_plot",
            config={"displayModeBar": False},
            alt="Parameters, MACs and accuracy of the pruned model in per cent of the dense one",
        )
    with right:
        st.markdown("**Residual of every block, and drift from the dense network**", help=HELP["drift"])
        done = [b.pruned for b in view.blocks if b.pruned]
        st.plotly_chart(
            figures.blocks_figure(done, style.dark()),
            key="blocks_plot",
            config={"displayModeBar": False},
            alt="Residual and drift of every block",
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
    "drift": st.column_config.NumberColumn("Drift", format="%.3g", help=HELP["drift"]),
}


def _table(view: View, settings: RunSettings) -> pd.DataFrame:
    assert view.report is not None
    return pd.DataFrame(
        [
            {
                "Block": b["name"],
                "Groups": b["groups"],
                "Kept": b["kept"],
                "asked": settings.keep_by_block.get(b["name"], settings.keep),
                "kept fraction": b["kept"] / b["groups"],
                "Iterations": b["iterations"],
                "residual": b["relative_residual"],
                "drift": b["drift"],
            }
            for b in view.report["blocks"]
        ]
    )

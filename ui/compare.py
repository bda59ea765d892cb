"""The Compare page: filters, the trade-off picture, the table of differences, and the chosen runs in detail."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from ispasp import comparison, store
from ispasp.compare_figures import GAINS, trade_off, trade_off_figure
from ispasp.comparison import Family, Row, short_words
from ispasp.errors import ISpaSPError
from ispasp.narrative import percent, plural, quantity
from ispasp.run_settings import RunSettings
from ispasp.vocabulary import example_word
from ui import compare_details, compare_filters, compare_state, style, sweep
from ui.compare_filters import COSTS, SINGLE, View, part_of, part_words
from ui.compare_filters import GAINS as GAIN_NAMES
from ui.runs_actions import EXPLORE
from ui.words import HELP, escaped

_HELP = {
    "part_of": "The runs of one sweep or budget, or those that were started one by one.",
    "cost": "What a run costs. Latency is measured by the export of a run, and unknown without one.",
    "gain": "Accuracy is unknown where the data have no labels; agreement with the dense model needs none.",
    "efficient": "No other run shown here costs as little or less and is as accurate or more.",
    "speedup": "Dense over pruned latency, as measured by the run's export; empty where it was not exported.",
}


def draw() -> None:
    """Draw the page."""
    st.title("Compare", anchor=False)
    st.caption("Set runs beside each other; start a sweep to get many at once.")
    try:
        runs = store.list_runs(store.default_folder())
    except ISpaSPError as problem:
        st.error(escaped(str(problem)))
        return
    found, unfit = comparison.rows(runs)
    started = sweep.panel(runs, few=len(found) < 2)
    _say_unfit([run.run_id for run in unfit if run.problem])
    if not found:
        _empty()
        return
    view = compare_filters.draw(found, _CHOICES, started)
    chosen = compare_state.chosen()
    if view.rows:
        _picture(view, chosen)
        _table(view, chosen)
    else:
        st.info(
            f"No run passes these filters; {plural(view.total, 'run')} of this model would without them.",
            icon="🔍",
        )
        st.button("Clear the filters", on_click=compare_filters.clear)
    reports = {run.run_id: run.report for run in runs}
    compare_details.draw(view, {row.run_id: row for row in found}, reports, chosen)


def _empty() -> None:
    with st.container(border=True):
        st.markdown(
            "**No finished run to compare yet.** Start a sweep above: it prunes one model at several keep ratios, and "
            "every run that comes to its end appears here as a point. Or prune one model at a time on Explore."
        )
        st.page_link(EXPLORE, label="Go to Explore")


def _say_unfit(damaged: Sequence[str]) -> None:
    if damaged:
        first = ", ".join(f"`{id}`" for id in damaged[:2])
        rest = f" and {len(damaged) - 2} more" if len(damaged) > 2 else ""
        st.caption(f"⚠️ Left out, as they cannot be read: {first}{rest}. The Runs page says why.")


def _picture(view: View, chosen: list[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", key="compare_axes"):
        gain = st.segmented_control(
            "Show", list(GAIN_NAMES), default="Accuracy", required=True, key="y", bind="query-params",
            persist_state="session", help=_HELP["gain"], on_change=compare_filters.forget,
        )  # fmt: skip
        cost = st.segmented_control(
            "Against", list(COSTS), default="MACs", required=True, key="x", bind="query-params",
            persist_state="session", help=_HELP["cost"], on_change=compare_filters.forget,
        )  # fmt: skip
        st.caption(_dense_words(view), width="stretch")
    cost, gain = COSTS[cost or "MACs"], GAIN_NAMES[gain or "Accuracy"]
    info = trade_off(view.rows, cost, gain)
    if not len(info.x):
        st.info(_nothing_known(cost, gain))
        return
    letters = compare_state.letters(chosen)
    key = f"trade_off_{compare_state.version()}"
    st.plotly_chart(
        trade_off_figure(view.rows, cost, gain, letters, style.dark()),
        key=key,
        on_select=lambda: _clicked(key),
        selection_mode="points",
        config={
            "displaylogo": False,
            "modeBarButtonsToRemove": ["select2d", "lasso2d"],
            "toImageButtonOptions": {
                "filename": f"ispasp-{view.family.model.replace(':', '-').replace('/', '-')}-{gain}-by-{cost}",
                "scale": 2,
            },
        },
        alt=f"{GAINS[gain]} of {plural(len(info.x), 'run')} against {cost}; the table below has the figures",
    )
    said = "Hover over a point to see what it is; click one or two to compare them below."
    if info.left_out:
        lacks = "a measured latency (export it on Explore)" if cost == "latency" else gain
        said += f" {plural(info.left_out, 'run')} left out: without {lacks}."
    st.caption(said)


def _nothing_known(cost: str, gain: str) -> str:
    if cost == "latency":
        return (
            "None of these runs has a measured latency: open one and export it, or choose MACs or Parameters."
        )
    return (
        f"None of these runs has a known {gain}: choose {'Agreement' if gain == 'accuracy' else 'Accuracy'}."
    )


def _dense_words(view: View) -> str:
    dense = view.rows[0].dense
    accuracy = "accuracy unknown"
    if dense.accuracy is not None:
        accuracy = f"accuracy {percent(dense.accuracy)} on {tested_on(view.family)}"
    count = plural(len(view.rows), "run")
    of = "" if len(view.rows) == view.total else f" of {view.total:,}"
    return (
        f"**Dense model:** {accuracy}, {quantity(dense.macs)} MACs, {quantity(dense.parameters)} parameters. "
        f"Showing {count}{of}."
    )


def tested_on(family: Family) -> str:
    """``"1,000 test images"``."""
    try:
        kind = example_word(RunSettings(family.model, weights=family.weights, data=family.data).data_source())
    except ISpaSPError:
        kind = "example"
    return plural(family.examples, f"test {kind}")


def _clicked(key: str) -> None:
    points = st.session_state[key].selection.points
    ids = [point["customdata"][0] for point in points if point.get("customdata")]
    if ids:
        compare_state.toggle(ids[-1])


_COLUMNS = {
    "": st.column_config.TextColumn(help="The letter of a chosen run.", width=30),
    "Run": st.column_config.TextColumn(width="medium"),
    "Keep": st.column_config.NumberColumn(format="%.3g", help=HELP["keep"]),
    "Selector": st.column_config.TextColumn(help=HELP["selector"]),
    "Re-fit": st.column_config.TextColumn(help=HELP["reconstruct"]),
    "Accuracy": st.column_config.NumberColumn(format="%.1f %%", help=HELP["accuracy"]),
    "Change, points": st.column_config.NumberColumn(
        format="%+.1f", help="Accuracy minus that of the dense model, in points."
    ),
    "Agreement": st.column_config.NumberColumn(format="%.1f %%", help=HELP["agreement"]),
    "MACs": st.column_config.NumberColumn(format="compact", help=HELP["macs"]),
    "MACs left, %": st.column_config.NumberColumn(
        format="%.0f", help=f"Of the dense model's. {HELP['macs']}"
    ),
    "Parameters": st.column_config.NumberColumn(format="compact", help=HELP["parameters"]),
    "Parameters left, %": st.column_config.NumberColumn(
        format="%.0f", help=f"Of the dense model's. {HELP['parameters']}"
    ),
    "Speed-up": st.column_config.NumberColumn(format="%.2f ×", help=_HELP["speedup"]),
    "Efficient": st.column_config.TextColumn(help=_HELP["efficient"]),
    "Distilled": st.column_config.NumberColumn(format="%d", help=HELP["distil"]),
    "Samples": st.column_config.NumberColumn(format="%d", help=HELP["samples"]),
    "Seed": st.column_config.NumberColumn(format="%d", help=HELP["seed"]),
    "Seconds": st.column_config.NumberColumn(format="%.1f", help="How long the run took."),
    "Part of": st.column_config.TextColumn(help=_HELP["part_of"]),
    "Finished": st.column_config.DatetimeColumn(format="D MMM YYYY, HH:mm"),
}
_CHOICES = [name for name in _COLUMNS if name not in ("", "Run")]
_USUAL = ["Keep", "Selector", "Re-fit", "Accuracy", "Change, points", "Agreement", "MACs left, %", "Parameters left, %",
          "Speed-up", "Efficient"]  # fmt: skip


def _table(view: View, chosen: list[str]) -> None:
    # The buttons stand beside the title: at the right, the table's own toolbar would cover them.
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.subheader("Differences from the dense model", anchor=False, width="content")
        with st.container(horizontal=True, width="content"):
            with st.popover("Columns"):
                columns = st.pills(
                    "Columns", _CHOICES, selection_mode="multi", default=_USUAL, key="columns",
                    bind="query-params", persist_state="session", label_visibility="collapsed",
                    on_change=compare_filters.forget,
                )  # fmt: skip
            st.download_button(
                "Download CSV",
                data=lambda: comparison.table_csv(view.rows),
                file_name=f"ispasp-{view.family.model.replace(':', '-').replace('/', '-')}.csv",
                mime="text/csv",
                on_click="ignore",
                key="download_csv",
                help="The runs shown here, every column, as comma-separated values.",
            )
    ids = ["", *(row.run_id for row in view.rows)]  # the dense model first
    key = f"compare_table_{compare_state.version()}_{hash(tuple(ids)) & 0xFFFFFFFF:x}"
    st.dataframe(
        _frame(view, compare_state.letters(chosen)),
        key=key,
        hide_index=True,
        height=min(38 + 35 * len(ids), 460),
        column_order=["", "Run", *(name for name in _CHOICES if name in columns)],
        column_config=_COLUMNS,
        on_select=lambda: compare_state.take_table(ids, st.session_state[key].selection.rows),
        selection_mode="multi-row",
        selection_default={"selection": {"rows": [ids.index(id) for id in chosen if id in ids]}},
        placeholder="",
        alt="Every run shown, against the dense model",
    )
    st.caption(
        "Tick one run to see what it does differently from the dense model, or two to see how they differ. A click on "
        "a column's title sorts."
    )


def _frame(view: View, letters: dict[str, str]) -> pd.DataFrame:
    efficient = {view_row.run_id for view_row in _efficient(view)}
    dense = view.rows[0].dense
    base = {
        "Run": "dense model", "Keep": 1.0, "Accuracy": _per_cent(dense.accuracy), "Agreement": 100.0,
        "MACs": dense.macs, "MACs left, %": 100.0, "Parameters": dense.parameters, "Parameters left, %": 100.0,
        "Speed-up": 1.0,
    }  # fmt: skip
    rows = [
        {
            "": letters.get(row.run_id, ""),
            "Run": _label(row),
            "Keep": row.keep,
            "Selector": short_words(row.selector),
            "Re-fit": row.reconstruct,
            "Accuracy": _per_cent(row.accuracy),
            "Change, points": _per_cent(row.change),
            "Agreement": _per_cent(row.agreement),
            "MACs": row.macs,
            "MACs left, %": 100 * row.macs / max(dense.macs, 1),
            "Parameters": row.parameters,
            "Parameters left, %": 100 * row.parameters / max(dense.parameters, 1),
            "Speed-up": row.speedup,
            "Efficient": "✓" if row.run_id in efficient else "",
            "Distilled": row.distil,
            "Samples": row.samples,
            "Seed": row.seed,
            "Seconds": row.seconds,
            "Part of": "" if part_of(row) == SINGLE else part_words(part_of(row)),
            "Finished": row.finished_at,
        }
        for row in view.rows
    ]
    frame = pd.DataFrame([base, *rows], columns=list(_COLUMNS))
    frame["Finished"] = pd.to_datetime(frame["Finished"], errors="coerce", utc=True)
    return frame


def _label(row: Row) -> str:
    """What a person calls the run, else its id without the model, which all of them share."""
    return row.name if row.name != row.run_id else row.run_id.replace(f"-{row.family.model}", "")


def _efficient(view: View) -> list[Row]:
    info = trade_off(view.rows, view.cost, view.gain)
    return [info.rows[i] for i in info.frontier]


def _per_cent(value: float | None) -> float | None:
    return None if value is None else 100 * value

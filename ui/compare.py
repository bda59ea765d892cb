"""The Compare page: filters, the trade-off picture, the table of differences, and the chosen runs in detail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import streamlit as st

from ispasp import comparison, store
from ispasp.compare_figures import GAINS, trade_off, trade_off_figure
from ispasp.comparison import Family, Row, short_words
from ispasp.errors import ISpaSPError
from ispasp.narrative import percent, plural, quantity
from ispasp.vocabulary import refit_words, selector_words
from ui import compare_details, compare_state, style, sweep
from ui.runs_actions import EXPLORE
from ui.words import HELP, escaped, source_words

_COSTS = {"MACs": "macs", "Parameters": "parameters", "Latency": "latency"}
_GAINS = {"Accuracy": "accuracy", "Agreement": "agreement"}
_ALL, _SINGLE = "all runs", "runs of no sweep"
_HELP = {
    "of": "Runs are compared where they are of one dense model and were measured on the same data.",
    "kept": "Only runs whose keep ratio lies in this range. Runs with a keep ratio per block show at the full range.",
    "part_of": "The runs of one sweep or budget, or those that were started one by one.",
    "cost": "What a run costs. Latency is measured by the export of a run, and unknown without one.",
    "gain": "Accuracy is unknown where the data have no labels; agreement with the dense model needs none.",
    "efficient": "No other run shown here costs as little or less and is as accurate or more.",
    "speedup": "Dense over pruned latency, as measured by the run's export; empty where it was not exported.",
}


class View(NamedTuple):
    """What the filters leave: the family's rows, and what the picture's axes are."""

    family: Family
    rows: list[Row]
    total: int
    cost: str
    gain: str


def draw() -> None:
    """Draw the page."""
    st.title("Compare", anchor=False)
    try:
        runs = store.list_runs(store.default_folder())
    except ISpaSPError as problem:
        st.error(escaped(str(problem)))
        return
    found, unfit = comparison.rows(runs)
    sweep.panel(runs, few=len(found) < 2)
    _say_unfit([run.run_id for run in unfit if run.problem])
    if not found:
        _empty()
        return
    view = _filters(found)
    chosen = compare_state.chosen()
    if view.rows:
        _picture(view, chosen)
        _table(view, chosen)
    else:
        st.info(
            f"No run passes these filters; {plural(view.total, 'run')} of this model would without them.",
            icon="🔍",
        )
        st.button("Clear the filters", on_click=_clear)
    reports = {run.run_id: run.report for run in runs}
    compare_details.draw(view.rows, {row.run_id: row for row in found}, reports, chosen)


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


def family_words(family: Family) -> str:
    """``"cifar10_resnet20"``, and what is not as usual."""
    parts = [
        family.model,
        *([f"weights {source_words(family.weights)}"] if family.weights else []),
        *([f"data {source_words(family.data)}"] if family.data else []),
        *([f"tested on {family.examples:,}"] if family.examples != 1000 else []),
    ]
    return ", ".join(parts)


def _part_words(row: Row) -> str:
    """``"sweep 1f3a"``; of several words, as a budget has them, the first."""
    return next((f"{kind} {id}" for kind, id in row.lineage.items() if kind != "role"), _SINGLE)


def _filters(found: list[Row]) -> View:
    # The choices do not depend on one another, so that no value becomes foreign when another filter changes.
    about = {family_words(family): family for family in comparison.families(found)}
    selectors = {selector_words(row.selector).title: row.selector for row in found}
    refits = {refit_words(row.reconstruct)[0]: row.reconstruct for row in found}
    arrived = next((row for row in found if row.run_id == compare_state.arriving()), None)
    if arrived and "of" not in st.query_params:
        st.session_state.of = family_words(arrived.family)
    if (swept := st.session_state.pop("show_sweep", None)) and (
        of_sweep := next((row for row in found if row.lineage.get("sweep") == swept), None)
    ):
        _clear()
        st.session_state.of, st.session_state.part_of = family_words(of_sweep.family), _part_words(of_sweep)
    parts = [_ALL, *dict.fromkeys(_part_words(row) for row in found)]
    with st.container(border=True, key="compare_filters"):
        first = st.columns([2.2, 2.2, 1.8, 1.6, 1.7], vertical_alignment="bottom")
        name = first[0].selectbox(
            "Model", list(about), key="of", bind="query-params", persist_state="session", help=_HELP["of"]
        )
        some = first[1].multiselect(
            "Selectors", sorted(selectors), key="selectors", bind="query-params", persist_state="session",
            placeholder="all", help=HELP["selector"],
        )  # fmt: skip
        fits = first[2].multiselect(
            "Re-fits", sorted(refits), key="refits", bind="query-params", persist_state="session",
            placeholder="all", help=HELP["reconstruct"],
        )  # fmt: skip
        low, high = first[3].slider(
            "Keep ratio", 0.0, 1.0, (0.0, 1.0), step=0.05, key="kept", bind="query-params",
            persist_state="session", help=_HELP["kept"],
        )  # fmt: skip
        part = first[4].selectbox(
            "Part of", parts, key="part_of", bind="query-params", persist_state="session",
            help=_HELP["part_of"],
        )  # fmt: skip
    of_family = [row for row in found if row.family == about[name]]
    shown = [
        row
        for row in of_family
        if (not some or selector_words(row.selector).title in some)
        and (not fits or refit_words(row.reconstruct)[0] in fits)
        and ((low, high) == (0, 1) if row.keep is None else low - 1e-9 <= row.keep <= high + 1e-9)
        and part in (_ALL, _part_words(row))
    ]
    shown.sort(key=lambda row: (-row.macs, -(row.accuracy or 0), row.run_id))
    cost, gain = (st.session_state.get(key, usual) for key, usual in (("x", "MACs"), ("y", "Accuracy")))
    return View(about[name], shown, len(of_family), _COSTS.get(cost, "macs"), _GAINS.get(gain, "accuracy"))


def _clear() -> None:
    for key, value in (("selectors", []), ("refits", []), ("kept", (0.0, 1.0)), ("part_of", _ALL)):
        st.session_state[key] = value


def _picture(view: View, chosen: list[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", key="compare_axes"):
        gain = st.segmented_control(
            "Show", list(_GAINS), default="Accuracy", required=True, key="y", bind="query-params",
            persist_state="session", help=_HELP["gain"],
        )  # fmt: skip
        cost = st.segmented_control(
            "Against", list(_COSTS), default="MACs", required=True, key="x", bind="query-params",
            persist_state="session", help=_HELP["cost"],
        )  # fmt: skip
        st.caption(_dense_words(view), width="stretch")
    cost, gain = _COSTS[cost or "MACs"], _GAINS[gain or "Accuracy"]
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
    accuracy = "accuracy unknown" if dense.accuracy is None else f"accuracy {percent(dense.accuracy)}"
    count = plural(len(view.rows), "run")
    of = "" if len(view.rows) == view.total else f" of {view.total:,}"
    return (
        f"**Dense model:** {accuracy}, {quantity(dense.macs)} MACs, {quantity(dense.parameters)} parameters. "
        f"Showing {count}{of}."
    )


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
    "Change": st.column_config.NumberColumn(
        format="%+.1f", help="Accuracy minus that of the dense model, in points."
    ),
    "Agreement": st.column_config.NumberColumn(format="%.1f %%", help=HELP["agreement"]),
    "MACs": st.column_config.NumberColumn(format="compact", help=HELP["macs"]),
    "MACs of dense": st.column_config.NumberColumn(
        "MACs, %", format="%.0f %%", help=f"Of the dense model's. {HELP['macs']}"
    ),
    "Parameters": st.column_config.NumberColumn(format="compact", help=HELP["parameters"]),
    "Parameters of dense": st.column_config.NumberColumn(
        "Parameters, %", format="%.0f %%", help=f"Of the dense model's. {HELP['parameters']}"
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
_USUAL = ["Keep", "Selector", "Re-fit", "Accuracy", "Change", "Agreement", "MACs of dense", "Parameters of dense",
          "Speed-up", "Efficient"]  # fmt: skip


def _table(view: View, chosen: list[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute"):
        st.subheader("Differences from the dense model", anchor=False, width="content")
        with st.container(horizontal=True, width="content"):
            with st.popover("Columns"):
                columns = st.pills(
                    "Columns", _CHOICES, selection_mode="multi", default=_USUAL, key="columns",
                    bind="query-params", persist_state="session", label_visibility="collapsed",
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
        "MACs": dense.macs, "MACs of dense": 100.0, "Parameters": dense.parameters, "Parameters of dense": 100.0,
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
            "Change": _per_cent(row.change),
            "Agreement": _per_cent(row.agreement),
            "MACs": row.macs,
            "MACs of dense": 100 * row.macs / max(dense.macs, 1),
            "Parameters": row.parameters,
            "Parameters of dense": 100 * row.parameters / max(dense.parameters, 1),
            "Speed-up": row.speedup,
            "Efficient": "✓" if row.run_id in efficient else "",
            "Distilled": row.distil,
            "Samples": row.samples,
            "Seed": row.seed,
            "Seconds": row.seconds,
            "Part of": "" if _part_words(row) == _SINGLE else _part_words(row),
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

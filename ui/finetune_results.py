"""What fine-tunings of a run have given: the sentence, the figures, and where to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from ispasp.errors import ISpaSPError
from ispasp.narrative import duration, percent, tuned_sentence, tuned_words
from ispasp.result import RunRecord
from ispasp.store import RunSummary
from ispasp.tuning.figures import curves_figure, report_info
from ispasp.tuning.records import DIVERGED
from ispasp.tuning.request import check_report
from ui import library, run_choice, style
from ui.finetune_words import HELP, best_words, gained
from ui.runs_actions import COMPARE, DEPLOY, open_in_explore
from ui.words import escaped, moment

QUERY = "result"


def results_of(run: RunSummary, known: Sequence[RunSummary]) -> list[RunSummary]:
    """The fine-tunings of a run, newest first; then the run itself where it is one."""
    return [one for one in (*known, run) if _is_result(one, run)]


def _is_result(one: RunSummary, run: RunSummary) -> bool:
    if one is not run and one.lineage.get("tuned") != run.run_id:
        return False
    try:
        check_report(one.report.get("tuning"))
    except ValueError:
        return False
    return True


def keep(id: str) -> None:
    """Show this result."""
    if st.query_params.get(QUERY) != id:
        st.query_params[QUERY] = id


def draw(run: RunSummary, results: Sequence[RunSummary], known: Sequence[RunSummary], going: bool) -> None:
    """The result that the address names, else the newest.

    Args:
        run: that was fine-tuned, or is the only result.
        results: as of ``results_of``, at least one.
        known: all runs.
        going: the run is being fine-tuned again.
    """
    there = {one.run_id: one for one in results}
    id = st.query_params.get(QUERY)
    one = there.get(id or "", results[0])
    if id not in there:
        st.query_params.pop(QUERY, None)
    with st.container(key="section_gained"):
        title, choice = st.columns([1.2, 1], vertical_alignment="bottom")
        title.subheader("What an earlier one has gained" if going else "What was gained", anchor="gained")
        if len(there) > 1:
            st.session_state.tune_result = one.run_id
            choice.selectbox(
                f"Fine-tunings so far ({len(there)})", list(there), key="tune_result",
                format_func=lambda id: _title(there[id], run),
                on_change=lambda: keep(st.session_state.tune_result), help=HELP["tunings"],
            )  # fmt: skip
    try:
        record = library.open_run(one.run_id)
    except ISpaSPError as problem:
        st.error(escaped(str(problem)))
        return
    parent = next((other for other in known if other.run_id == one.lineage.get("tuned")), None)
    _sentences(record)
    _buttons(record, one, run, parent)
    if record.report["tuning"]["curve"]:
        st.plotly_chart(
            curves_figure(report_info(record.report), style.dark()),
            key="tune_curves",
            config={"displaylogo": False},
            alt="Accuracy and losses by epoch",
        )
    if len(there) > 1:
        _table(results, run)


def _sentences(record: RunRecord) -> None:
    report = record.report
    tuning = report["tuning"]
    before = _before(report)
    st.subheader(gained(report, before), anchor=False, help=HELP["accuracy"])
    said = tuned_sentence({"tuning": {**tuning, "stopped": ""}})  # the accuracy is said above
    st.markdown(
        f"{escaped(said)} {tuning['train_examples']:,} training examples on {escaped(report['device'])}."
    )
    if before is None and tuning["after_block"]:
        st.caption("How good the run before is on the same examples is not known.")
    if DIVERGED in tuning["stopped"]:
        st.warning(f"**The training diverged.** {escaped(tuning['stopped'])}")
    elif tuning["stopped"]:
        st.info(escaped(tuning["stopped"]))
    for note in record.settings.get("notes", ()):
        st.caption(escaped(str(note)))


def _buttons(record: RunRecord, one: RunSummary, run: RunSummary, parent: RunSummary | None) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Open in Explore", key="tune_open_result", type="primary", help=HELP["open"]):
            open_in_explore("run", one.run_id)
        if parent is not None and st.button("Compare with before", key="tune_compare", help=HELP["compare"]):
            st.switch_page(COMPARE, query_params={"runs": f"{parent.run_id},{one.run_id}"})
        if st.button("Deploy it", key="tune_deploy_result", help=HELP["deploy"]):
            st.switch_page(DEPLOY, query_params={"run": one.run_id})
        if one is not run:
            st.button(
                "Fine-tune further", key="tune_further", on_click=_further, args=(one.run_id,),
                help=HELP["further"],
            )  # fmt: skip
        st.download_button(
            "Download curve (CSV)",
            data=lambda: pd.DataFrame(record.report["tuning"]["curve"]).to_csv(index=False),
            file_name=f"{one.run_id}-curve.csv",
            mime="text/csv",
            on_click="ignore",
            key="tune_csv",
            disabled=not record.report["tuning"]["curve"],
            help=HELP["curve"],
        )


def _further(id: str) -> None:
    st.query_params.pop(QUERY, None)
    run_choice.keep(id)


def _title(one: RunSummary, run: RunSummary) -> str:
    """``"fine-tuned, quick, 23 Nov 2026, 05:37"``."""
    own = ", the run itself" if one is run else ""
    return f"{tuned_words(one.settings)}, {moment(one.finished_at)}{own}"


def _table(results: Sequence[RunSummary], run: RunSummary) -> None:
    """All of them, for the control beside the others."""
    rows = [_row(one.report) for one in results]
    st.dataframe(
        pd.DataFrame(
            [{"Fine-tuning": _title(one, run), **row} for one, row in zip(results, rows, strict=True)]
        ),
        hide_index=True,
        height="content",
        placeholder="–",
        column_config={
            "Before": st.column_config.TextColumn(
                help="Accuracy before, on the same test examples; agreement where accuracy is unknown."
            ),
            "Accuracy": st.column_config.TextColumn(help=HELP["accuracy"]),
            "Agreement": st.column_config.TextColumn(
                help="Share of the test examples answered as the dense model does."
            ),
        },
        alt="Every fine-tuning of this run",
    )


def _row(report: Mapping[str, Any]) -> dict[str, str | None]:
    tuning = report["tuning"]
    accuracy, agreement = report.get("accuracy_after"), report.get("agreement")
    before = _before(report)
    return {
        "Before": None if before is None else percent(before),
        "Accuracy": None if accuracy is None else percent(accuracy),
        "Agreement": None if agreement is None else percent(agreement),
        "Epochs": f"{tuning['epochs_done']:,}",
        "Best": best_words(tuning),
        "Examples": f"{tuning['train_examples']:,}",
        "Time": duration(tuning["seconds"]),
    }


def _before(report: Mapping[str, Any]) -> float | None:
    """Accuracy of the run that was fine-tuned, or agreement where accuracy is unknown; None where it was measured on
    other examples."""
    tuning, what = report["tuning"], "agreement" if report.get("accuracy_after") is None else "accuracy"
    value: float | None = tuning.get(f"run_{what}") if tuning["after_block"] else tuning[f"{what}_before"]
    return value

"""Below the table of the Compare page: what one or two chosen runs do differently, and the residuals of all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from ispasp import comparison
from ispasp.compare_figures import PANELS, residuals_by_keep, residuals_figure
from ispasp.comparison import Row, short_words
from ispasp.errors import ISpaSPError
from ispasp.narrative import duration, percent, quantity
from ispasp.pair_figures import overlap_figure
from ispasp.result import RunRecord
from ispasp.vocabulary import SHARES, refit_words
from ui import compare_answers, compare_state, library, style
from ui.compare_filters import View, family_words
from ui.runs_actions import PAGES, open_in_explore
from ui.words import HELP, SETTINGS, escaped, setting_words

RUNS = PAGES / "runs.py"
_GONE = (
    "This run is not here: it was deleted, or belongs to another machine. What was deleted of late can be brought back "
    "on Runs, under Recently deleted."
)
_HELP = {
    "overlap": "Of each block's groups, how many both runs keep, only one of them, or neither. The Jaccard index is "
    "the groups that both keep over those that at least one keeps: 100 % for equal sets, 0 % where they share none.",
    "residual": f"{HELP['residual']} The kept fraction is the one after rounding. A line joins runs that differ in "
    "nothing but the keep ratio.",
}


def draw(
    view: View,
    found: Mapping[str, Row],
    reports: Mapping[str, Mapping[str, Any]],
    chosen: list[str],
) -> None:
    """Draw the details.

    Args:
        view: what the filters leave.
        found: every run that can be compared, by its id.
        reports: of all runs on disk, by their ids.
        chosen: ids of the chosen runs; some may not be there any more.
    """
    if chosen:
        st.subheader("Chosen runs" if len(chosen) > 1 else "Chosen run", anchor="chosen")
        with st.container(key="chosen_cards"):  # one place, so that what follows keeps its own
            good = _cards(view, found, reports, chosen)
        if 1 <= len(good) <= 2:
            _compare([(letter, found[id], record) for letter, id, record in good])
        elif good:
            st.caption(
                f"{len(good)} runs are chosen. Leave one or two ticked to compare their sets, classes and answers."
            )
    rows = [row for row in view.rows if row.run_id in chosen] if len(chosen) > 2 else view.rows
    if len(rows) > 1:
        _residuals(rows, reports)


def _cards(
    view: View, found: Mapping[str, Row], on_disk: Collection[str], chosen: list[str]
) -> list[tuple[str, str, RunRecord]]:
    """A line per chosen run with its buttons; letter, id and record of those that can be read."""
    good = []
    shown = {row.run_id for row in view.rows}
    for id, letter in compare_state.letters(chosen).items():
        with st.container(horizontal=True, vertical_alignment="center", key=f"card_{letter}"):
            problem, record = "", None
            try:
                record = library.open_run(id) if id in on_disk else None
                if record and id not in found:
                    problem = "It was made from Python, from a model of its own."
            except ISpaSPError as error:
                problem = str(error)
            if id not in on_disk:
                st.warning(f"**{letter}** {escaped(id)}: {_GONE}")
                st.page_link(RUNS, label="Runs")
            elif problem or record is None:
                st.warning(f"**{letter}** {escaped(id)} cannot be compared. {escaped(problem)}")
            else:
                row = found[id]
                name = "" if row.name == id else f"**{escaped(row.name)}** · "
                other = "" if row.family == view.family else f" of {escaped(family_words(row.family))}"
                apart = "" if id in shown else f"{other} – not among the runs shown above"
                st.markdown(f"**{letter}** {name}{row.title}{apart} :small[`{id}`]", width="stretch")
                good.append((letter, id, record))
                if st.button("Open", key=f"open_{letter}", help="Look at this run on Explore."):
                    open_in_explore("run", id)
            st.button(
                "Leave out", key=f"leave_{letter}", on_click=compare_state.choose,
                args=([other for other in chosen if other != id],),
            )  # fmt: skip
    return good


def _compare(runs: list[tuple[str, Row, RunRecord]]) -> None:
    left, right = st.columns([1, 1.35], gap="medium")
    with left:
        _figures(runs)
    with right:
        if len(runs) == 2:
            _overlap(runs)
        else:
            compare_answers.classes(runs)
    compare_answers.draw(runs)


def _figures(runs: list[tuple[str, Row, RunRecord]]) -> None:
    """Dense, A and B side by side, and which settings differ."""
    st.markdown("**Figures**")
    dense = runs[0][1].dense
    lines: list[tuple[str, str, list[str], str]] = []

    def line(title: str, base: str, values: list[str], difference: str = "") -> None:
        lines.append((title, base, values, difference))

    rows = [row for _, row, _ in runs]
    same = len({row.family for row in rows}) == 1
    for title, key, help in (("Parameters", "parameters", dense.parameters), ("MACs", "macs", dense.macs)):
        values = [getattr(row, key) for row in rows]
        line(
            title,
            quantity(help) if same else "–",
            [f"{quantity(v, help)} ({percent(v / help)})" if help else quantity(v) for v in values],
            _relative(values),
        )
    for title, known, base in (
        ("Accuracy", [row.accuracy for row in rows], dense.accuracy),
        ("Agreement", [row.agreement for row in rows], 1.0),
    ):
        line(title, _percent(base) if same else "–", [_percent(v) for v in known], _points(known))
    if any(row.speedup for row in rows):
        line(
            "Speed-up", "1.00 ×", [f"{row.speedup:.2f} ×" if row.speedup else "not exported" for row in rows]
        )
    line("Took", "", [duration(row.seconds) if row.seconds >= 1 else "under 1 s" for row in rows])
    table = {"": [title for title, *_ in lines], "Dense": [base for _, base, *_ in lines]}
    for at, (letter, _, _) in enumerate(runs):
        table[letter] = [values[at] for _, _, values, _ in lines]
    if len(runs) == 2:
        table["B against A"] = [difference.replace("-", "−") for *_, difference in lines]
    st.dataframe(pd.DataFrame(table), hide_index=True, alt="Figures of the chosen runs", height="content")
    if len(runs) == 2:
        st.markdown(_settings(runs))


def _relative(values: Sequence[int]) -> str:
    if len(values) != 2 or not values[0]:
        return ""
    return "the same" if values[0] == values[1] else f"{100 * (values[1] / values[0] - 1):+.1f} %"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else percent(value)


def _points(values: list[float | None]) -> str:
    if len(values) != 2 or values[0] is None or values[1] is None:
        return ""
    return f"{100 * (values[1] - values[0]):+.1f} points"


def _settings(runs: list[tuple[str, Row, RunRecord]]) -> str:
    """Which settings of two runs differ, in a sentence."""
    first, second = (record.settings for _, _, record in runs)
    apart = differing(first, second)
    if not apart:
        return "Their settings are the same" + (
            "." if set(SETTINGS) & set(first) == set(SETTINGS) & set(second) else ", as far as both say them."
        )
    return f"**B differs from A in:** {'; '.join(apart)}."


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What the second run's settings have for the first's: ``"re-fit none (A: asymmetric)"``."""
    keeps = [_keep(one) for one in (first, second)]
    words = []
    if keeps[0] != keeps[1]:
        words.append(f"{keeps[1]} (A: {keeps[0]})")
    elif (first.get("keep_by_block") or {}) != (second.get("keep_by_block") or {}):
        words.append("other keep ratios per block")
    plain = [_spoken(one) for one in (second, first)]
    return words + [said.replace("(above: ", "(A: ") for said in setting_words(*plain)]


def _keep(settings: Mapping[str, Any]) -> str:
    if settings.get("keep_by_block"):
        return "a keep ratio per block"
    keep = settings.get("keep")
    return f"keep {keep:g}" if isinstance(keep, (int, float)) else "an unknown keep ratio"


def _spoken(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With the words of a person for names of the code; without the keep ratio."""
    words: dict[str, Callable[[str], str]] = {
        "selector": short_words,
        "reconstruct": lambda name: refit_words(name)[0].split(",")[0],
        "allocation": lambda name: SHARES.get(name, name),
    }
    return {
        key: words[key](value) if key in words and isinstance(value, str) else value
        for key, value in settings.items()
        if key not in ("keep", "keep_by_block")
    }


def _overlap(runs: list[tuple[str, Row, RunRecord]]) -> None:
    st.markdown("**Groups that both keep, by block**", help=_HELP["overlap"])
    try:
        found = comparison.overlaps(runs[0][2], runs[1][2])
    except ISpaSPError as problem:
        st.info(escaped(str(problem)))
        return
    both = sum(o.both for o in found)
    either = sum(o.both + o.only_a + o.only_b for o in found)
    st.caption(
        f"{'In the one block' if len(found) == 1 else f'Over all {len(found)} blocks'}, {both:,} of the {either:,} "
        "groups that at least one of them keeps are kept by both: a Jaccard index of "
        f"{percent(both / max(either, 1))}."
    )
    with st.container(height=560 if len(found) > 16 else "content", border=False):
        st.plotly_chart(
            overlap_figure(found, style.dark()),
            key="overlap_plot",
            config={"displaylogo": False, "toImageButtonOptions": {"filename": "ispasp-overlap", "scale": 2}},
            alt="Groups that both runs keep, only one of them, or neither, by block",
        )


def _residuals(rows: Sequence[Row], reports: Mapping[str, Mapping[str, Any]]) -> None:
    st.subheader("Residual of every block against keep ratio", anchor="residuals", help=_HELP["residual"])
    usable = [(row, reports[row.run_id]) for row in rows if _has_blocks(reports.get(row.run_id, {}))]
    info = residuals_by_keep(usable)
    if not info.blocks:
        st.caption("None of these runs says what its blocks lost.")
        return
    if info.hidden:
        st.caption(
            f"The {PANELS} blocks with the largest residuals; {info.hidden} more are in the runs themselves."
        )
    st.plotly_chart(
        residuals_figure(info, style.dark()),
        key="residuals_plot",
        config={"displaylogo": False, "toImageButtonOptions": {"filename": "ispasp-residuals", "scale": 2}},
        alt="Relative residual of every block against the fraction kept of it",
    )


def _has_blocks(report: Mapping[str, Any]) -> bool:
    blocks = report.get("blocks")
    return isinstance(blocks, list) and all(
        isinstance(b, dict)
        and isinstance(b.get("relative_residual"), (int, float))
        and isinstance(b.get("groups"), int)
        and b["groups"] > 0
        and isinstance(b.get("kept"), int)
        for b in blocks
    )

"""What an iteration and a run did, in words: pure functions from records to sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ispasp.records import BlockStarted, Iteration


def plural(count: int, kind: str) -> str:
    """``"1 channel"``, ``"3 channels"``."""
    return f"{count:,} {kind}" if count == 1 else f"{count:,} {kind}s"


def quantity(value: float, beside: float = 0.0) -> str:
    """A count with three significant digits and its prefix: ``"99 k"``, ``"0.27 M"`` from 0.1 million up.

    Args:
        beside: a larger count that it will be compared with; both get the same prefix then.
    """
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if max(abs(value), beside) >= size * (0.1 if size >= 1e6 else 1):
            return f"{value / size:.3g} {prefix}"
    return f"{value:.0f}"


def percent(value: float) -> str:
    """A fraction as per cent with one decimal: ``"87.9 %"``."""
    return f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """``"0.4 s"``, ``"12 s"``, ``"3 min 05 s"``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def residual(value: float) -> str:
    """A relative residual with three digits, however small: ``"0.157"``, ``"2.1e-07"``."""
    return f"{value:.3f}" if value >= 0.0995 or value == 0 else f"{value:.3g}"


def sentence(
    iteration: Iteration,
    previous: Iteration | None,
    started: BlockStarted,
    candidate_factor: float | None = None,
) -> str:
    """What this iteration did, for example ``"Iteration 2: 3 channels in, 3 out; residual 0.157 → 0.149; converged."``

    Args:
        iteration: the iteration to tell.
        previous: the iteration before it in the same block; None for the first.
        started: the block's start, for its kind and sizes.
        candidate_factor: c of Algorithm 1, to show why every group was a candidate; optional.
    """
    kind, groups = started.block.kind, started.block.groups
    if previous is None:
        did = f"{len(iteration.selected):,} of {plural(groups, kind)} chosen"
        moved = f"residual {residual(iteration.relative_residual)} of the block's output"
    elif not iteration.added and not iteration.dropped:
        did = f"no {kind} changed"
        moved = f"residual stays at {residual(iteration.relative_residual)}"
    else:
        did = f"{plural(len(iteration.added), kind)} in, {len(iteration.dropped):,} out"
        moved = f"residual {residual(previous.relative_residual)} → {residual(iteration.relative_residual)}"
    words = f"Iteration {iteration.t}: {did}; {moved}{'; converged' if iteration.converged else ''}."
    if started.keep_groups >= groups:
        return f"{words} The keep ratio keeps every {kind} of this block."
    if started.one_iteration_decides:
        product = (
            ""
            if candidate_factor is None
            else f" ({candidate_factor:g} × {started.keep_groups:,} ≥ {groups:,})"
        )
        return f"{words} Every {kind} was a candidate{product}, so this one iteration decides."
    return words


def rank(values: np.ndarray, index: int) -> int:
    """Place of ``values[index]`` from the largest, from 1; equal values share the better place."""
    return int((values > values[index]).sum()) + 1


def ordinal(number: int) -> str:
    """``"1st"``, ``"2nd"``, ``"13th"``."""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


class GroupStory(NamedTuple):
    """One group at one iteration: its places among all groups and why it stayed or went."""

    kept: bool
    headline: str
    reason: str
    importance_rank: int
    hidden_rank: int


def group_story(group: int, trace: Sequence[Iteration], t: int, started: BlockStarted) -> GroupStory:
    """Why ``group`` is kept or not after iteration ``t`` of ``trace`` (one block's iterations, from t = 1).

    Follows steps 2 to 4 of Algorithm 1: a group must first be among the merged groups (the candidates by
    importance, and those selected before) and then among the largest hidden sums of these.
    """
    kind, groups, keep = started.block.kind, started.block.groups, started.keep_groups
    iteration = trace[t - 1]
    before = set(trace[t - 2].selected) if t > 1 else set()
    importance, hidden = iteration.importance.numpy(), iteration.hidden_sum.numpy()
    by_importance, by_hidden = rank(importance, group), rank(hidden, group)
    kept, candidate = group in iteration.selected, group in iteration.candidates
    merged = set(iteration.candidates) | before
    larger = int(sum(hidden[other] > hidden[group] for other in merged))
    place = f"{ordinal(larger + 1)} of the {plural(len(merged), kind)} compared"
    if kept:
        since = t
        while since > 1 and group in trace[since - 2].selected:
            since -= 1
        headline = f"Kept since iteration {since}"
        how = "a candidate by its importance" if candidate else "no candidate, but selected before"
        reason = f"It was {how}, and by hidden sum it is the {place}; the first {keep:,} stay."
    else:
        left = [i.t for i in trace[:t] if group in i.dropped]
        headline = f"Dropped in iteration {left[-1]}" if left else "Not kept"
        if group in merged:
            reason = f"It was compared, but by hidden sum it is only the {place}; the first {keep:,} stay."
        else:
            reason = (
                f"It was no candidate: its importance is the {ordinal(by_importance)} of {groups:,}, "
                f"and only the first {len(iteration.candidates):,} are compared by hidden sum."
            )
    return GroupStory(kept, headline, reason, by_importance, by_hidden)


class Comparison(NamedTuple):
    """One quantity of the dense and of the pruned model, as words ready to be read."""

    label: str
    dense: str
    pruned: str
    change: str
    better: bool | None


def comparisons(report: Mapping[str, Any]) -> list[Comparison]:
    """Dense against pruned: parameters, MACs, accuracy (where labels were known) and agreement."""
    rows = []
    for label, key in (("Parameters", "params"), ("MACs per image", "macs")):
        before, after = report[f"{key}_before"], report[f"{key}_after"]
        change = f"{100 * (after / before - 1):+.0f} %".replace("-", "−") if before else ""
        rows.append(
            Comparison(label, quantity(before), quantity(after, before), change, after < before or None)
        )
    before, after = report.get("accuracy_before"), report.get("accuracy_after")
    if before is not None and after is not None:
        points = round(100 * (after - before), 1)
        change = f"{points:+.1f} points".replace("-", "−")
        rows.append(
            Comparison("Accuracy", percent(before), percent(after), change, points > 0 if points else None)
        )
    if report.get("agreement") is not None:
        rows.append(
            Comparison("Agreement", "", percent(report["agreement"]), "same answer as the dense model", None)
        )
    return rows


def result_rows(report: Mapping[str, Any], export: Mapping[str, Any] | None = None) -> list[dict[str, str]]:
    """Dense against pruned as two rows of words, ready for a table.

    Args:
        report: of a finished run.
        export: of its export (``runs.export_report``); without one, latency and file size are not known.
    """
    rows: tuple[dict[str, str], dict[str, str]] = ({"Model": "dense"}, {"Model": "pruned"})
    for row in comparisons(report):
        rows[0][row.label] = row.dense or "–"
        rows[1][row.label] = f"{row.pruned}, {row.change}" if row.dense else row.pruned
    for values, name, file in zip(rows, ("dense", "pruned"), ("dense_onnx", "onnx"), strict=True):
        latency = export["latency"] if export else None
        values["Latency"] = f"{latency[name]['median_ms']:.3g} ms" if latency else "after export"
        values["File size"] = f"{export[file]['bytes'] / 1e6:.2f} MB" if export else "after export"
    if export:
        rows[1]["Latency"] += f", {export['latency']['ratio']:.2f}×"
    return list(rows)


def remarks(
    report: Mapping[str, Any], keep: float, keep_by_block: Mapping[str, float] | None = None
) -> list[str]:
    """What a person should know about the outcome: blocks that kept everything, ratios changed by rounding."""
    asked_for = {b["name"]: (keep_by_block or {}).get(b["name"], keep) for b in report["blocks"]}
    whole = [b["name"] for b in report["blocks"] if b["kept"] >= b["groups"] and asked_for[b["name"]] < 1]
    moved = [
        f"{b['name']} keeps {b['kept']:,} of {b['groups']:,} ({b['kept'] / b['groups']:.2f} instead of "
        f"{asked_for[b['name']]:.2f})"
        for b in report["blocks"]
        if b["name"] not in whole and abs(b["kept"] / b["groups"] - asked_for[b["name"]]) >= 0.005
    ]
    words = []
    if whole:
        names = ", ".join(whole)
        verb = "block keeps all of its" if len(whole) == 1 else "blocks keep all of their"
        words.append(
            f"{len(whole)} {verb} groups although fewer were asked for ({names}): rounding to the multiple "
            "leaves nothing to remove there. A smaller multiple or a lower keep ratio prunes them."
        )
    if moved:
        shown = "; ".join(moved[:3]) + (f"; and {len(moved) - 3} more" if len(moved) > 3 else "")
        words.append(f"Rounding to the multiple changed the kept fraction: {shown}.")
    return words

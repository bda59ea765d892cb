"""What an iteration and a run did, in words: pure functions from records to sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ispasp.algorithm import candidate_count
from ispasp.records import BlockPruned, BlockStarted, Iteration
from ispasp.tuning.records import EpochDone
from ispasp.tuning.settings import PRESETS
from ispasp.vocabulary import Way, selector_words


def plural(count: int, kind: str) -> str:
    """``"1 channel"``, ``"3 channels"``."""
    return f"{count:,} {kind}" if count == 1 else f"{count:,} {kind}s"


def quantity(value: float, beside: float = 0.0) -> str:
    """A count with three significant digits and its prefix: ``"99 k"``, ``"0.27 M"`` from 0.1 million up.

    Args:
        beside: a larger count that it will be compared with; both get the same prefix then, unless that leaves less
            than 0.01 of this one.
    """
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        large = max(abs(value), beside) >= size * (0.1 if size >= 1e6 else 1)
        if large and abs(value) >= 0.01 * size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.0f}"


def percent(value: float) -> str:
    """A fraction as per cent with one decimal: ``"87.9 %"``."""
    return f"{100 * value:.1f} %"


def significant(value: float) -> str:
    """Three significant digits, whole from 100 up: ``"0.643"``, ``"10"``, ``"1,222"``."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


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
    selector: str = "ispasp",
) -> str:
    """What this iteration did, for example ``"Iteration 2: 3 channels in, 3 out; residual 0.157 → 0.149; converged."``

    Args:
        iteration: the iteration to tell.
        previous: the iteration before it in the same block; None for the first.
        started: the block's start, for its kind and sizes.
        candidate_factor: c of Algorithm 1, to show why every group was a candidate; optional.
        selector: how the groups are chosen, which decides how an iteration reads.
    """
    words = selector_words(selector)
    kind, groups, keep = started.block.kind, started.block.groups, started.keep_groups
    now = residual(iteration.relative_residual)
    if keep >= groups:
        return f"Iteration {iteration.t}: all {plural(groups, kind)} stay; the keep ratio asks for every one."
    if previous is None:
        moved = f"residual {now} of the block's output"
    elif now == (before := residual(previous.relative_residual)):
        moved = f"residual stays at {now}"
    else:
        moved = f"residual {before} → {now}"
    match words.way:
        case Way.RANKS:
            chosen = f"{len(iteration.selected):,} of {plural(groups, kind)} chosen by {words.score}"
            return f"Iteration {iteration.t}: {chosen}; {moved}. It ranks the {kind}s once, so this is all."
        case Way.ADDS:
            more = len(iteration.added)
            what = f"{plural(more, kind)} chosen" if previous is None else f"{plural(more, kind)} more"
            over = (
                f"all {keep:,} are chosen"
                if len(iteration.selected) >= keep
                else f"{len(iteration.selected):,} of {keep:,} chosen so far"
            )
            return f"Iteration {iteration.t}: {what}; {moved}; {over}."
        case Way.REMOVES:
            left = len(iteration.selected)
            gone = groups - left if previous is None else len(iteration.dropped)
            over = (
                f"the {keep:,} left {'stays' if keep == 1 else 'stay'}"
                if left <= keep
                else f"{left:,} of {groups:,} left, {keep:,} will stay"
            )
            return f"Iteration {iteration.t}: {plural(gone, kind)} removed; {moved}; {over}."
    if previous is None:
        did = f"{len(iteration.selected):,} of {plural(groups, kind)} chosen"
    elif not iteration.added and not iteration.dropped:
        did = f"no {kind} changed"
    else:
        did = f"{plural(len(iteration.added), kind)} in, {len(iteration.dropped):,} out"
    said = f"Iteration {iteration.t}: {did}; {moved}{'; converged' if iteration.converged else ''}."
    if len(iteration.candidates) >= groups and iteration.converged and previous is None:
        product = "" if candidate_factor is None else f" ({candidate_factor:g} × {keep:,} ≥ {groups:,})"
        return f"{said} Every {kind} was a candidate{product}, so this one iteration decides."
    return said


def decided_at_once(sizes: Sequence[tuple[int, int]], candidate_factor: float, selector: str) -> str:
    """In how many blocks one iteration will decide, because every group is a candidate; empty where in none.

    Args:
        sizes: groups and kept groups of every block.
        candidate_factor: c of Algorithm 1.
        selector: one that ranks, adds or removes has no candidates to speak of.
    """
    pruned = [(groups, kept) for groups, kept in sizes if kept < groups]
    at_once = [1 for groups, kept in pruned if candidate_count(groups, kept, candidate_factor) >= groups]
    if not at_once or selector_words(selector).way is not Way.COMPARES:
        return ""
    which = "every block" if len(at_once) == len(pruned) else f"{len(at_once)} of {len(pruned)} blocks"
    return (
        f"One iteration decides in {which}: {candidate_factor:g} times the kept groups is as many as there are, "
        "so every group is a candidate. Keep less to see the set change from iteration to iteration."
    )


_CLEARLY = 1.2  # times the residual: the two are relative to slightly different outputs


def refit_sentence(pruned: BlockPruned | None) -> str:
    """What the re-fit did to a block: ``"Re-fit at the end, symmetric: error 0.412 → 0.058 of its target, 86 % less."``

    Empty where there was none, or where the block is not done yet. Where the error before it is clearly above the
    block's own residual, the sentence says where the rest comes from.
    """
    if pruned is None or pruned.target == "none" or pruned.error_before is None or pruned.error_after is None:
        return ""
    before, after = residual(pruned.error_before), residual(pruned.error_after)
    rest = ""
    if pruned.target == "asymmetric" and pruned.error_before > _CLEARLY * pruned.relative_residual:
        rest = " What is above the residual comes from the blocks before."
    if before == after:
        return f"Re-fit at the end, {pruned.target}: error stays at {after} of its target.{rest}"
    less = 100 * (1 - pruned.error_after / pruned.error_before)
    share = f"{less:.0f} %" if less < 99.5 else "over 99 %"
    return f"Re-fit at the end, {pruned.target}: error {before} → {after} of its target, {share} less.{rest}"


def rank(values: np.ndarray, index: int) -> int:
    """Place of ``values[index]`` from the largest, from 1; equal values share the better place."""
    return int((values > values[index]).sum()) + 1


def ordinal(number: int) -> str:
    """``"1st"``, ``"2nd"``, ``"13th"``."""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


class Comparison(NamedTuple):
    """One quantity of the dense and of the pruned model, as words ready to be read."""

    label: str
    dense: str
    pruned: str
    change: str
    better: bool | None


def comparisons(report: Mapping[str, Any], example: str = "image") -> list[Comparison]:
    """Dense against pruned: parameters, MACs, accuracy (where labels were known) and agreement.

    Args:
        report: of a finished run.
        example: what one example is called (``vocabulary.example_word``).
    """
    rows = []
    for label, key in (("Parameters", "params"), (f"MACs per {example}", "macs")):
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


def distil_sentence(report: Mapping[str, Any]) -> str:
    """What distillation did, for example ``"Distilled in 400 steps, 1 min 02 s: accuracy 70.9 % → 76.0 %."``

    Empty where there was none.
    """
    distil = report.get("distil")
    if not distil:
        return ""
    took = f"Distilled in {plural(distil['steps'], 'step')}, {duration(distil['seconds'])}"
    before, after = distil.get("accuracy_before"), report.get("accuracy_after")
    if before is not None and after is not None:
        return f"{took}: accuracy {percent(before)} → {percent(after)}."
    return f"{took}: objective {distil['objective_before']:.3g} → {distil['objective_after']:.3g}."


def epoch_sentence(done: EpochDone) -> str:
    """``"Epoch 3 of 15 after block fc1: loss 0.412, held out 0.431, accuracy 87.9 %; the best so far."``"""
    after = f" after block {done.stage}" if done.stage else ""
    accuracy = "" if done.accuracy is None else f", accuracy {percent(done.accuracy)}"
    best = "; the best so far" if done.best else ""
    return (
        f"Epoch {done.epoch} of {done.epochs}{after}: loss {done.loss:.3g}, held out {done.held_out_loss:.3g}{accuracy}"
        f"{best}."
    )


def tuned_sentence(report: Mapping[str, Any]) -> str:
    """What fine-tuning did: ``"Fine-tuned for 15 epochs, the best is the 12th, 8 min 05 s: accuracy 70.9 % → 76.0 %."``

    What ended it early follows. Empty where there was none.
    """
    tuning = report.get("tuning")
    if not tuning:
        return ""
    done, best = tuning["epochs_done"], tuning["best_epoch"]
    kept = f", the best is the {ordinal(best)}" if best else ", none better than before" if done else ""
    if tuning["after_block"]:
        kept = " after the blocks and at the end"
    said = f"Fine-tuned for {plural(done, 'epoch')}{kept}, {duration(tuning['seconds'])}"
    before, after = tuning.get("accuracy_before"), report.get("accuracy_after")
    if before is not None and after is not None:
        began = " of the dense model" if tuning["after_block"] else ""
        said += f": accuracy {percent(before)}{began} → {percent(after)}"
    return f"{said}. {tuning['stopped']}".strip()


def tuned_words(settings: Mapping[str, Any]) -> str:
    """How a run was fine-tuned last: ``"fine-tuned, quick"``; empty for one that was only pruned."""
    tuning = settings.get("tuning")
    if not isinstance(tuning, Mapping):
        return ""
    random = " from random weights" if tuning.get("start") == "random" else ""
    again = " again" if tuning.get("earlier") and not random else ""
    preset = tuning.get("preset")
    known = f", {preset}" if isinstance(preset, str) and preset in PRESETS else ""
    return f"fine-tuned{again}{random}{known}"


class _Stage(NamedTuple):
    """One of the models that a run has figures of, by its name; its accuracy and agreement before the last."""

    name: str
    accuracy: float | None = None
    agreement: float | None = None


def _stages(report: Mapping[str, Any]) -> list[_Stage]:
    """The models between the dense one and the last, and that."""
    distil, tuning = report.get("distil"), report.get("tuning")
    if tuning and tuning["after_block"]:
        return [_Stage("pruned and fine-tuned")]
    refitted = any(block.get("target", "none") != "none" for block in report["blocks"])
    names = ["pruned and re-fitted" if refitted else "pruned"]
    befores = []
    if distil:
        befores.append(distil)
        names.append("then distilled")
    if tuning:
        befores.append(tuning)
        if tuning["start"] == "random":
            names = ["random weights"]
        elif tuning.get("earlier"):
            names[-1] = "fine-tuned before"
        names.append("then fine-tuned")
    figures = [(each.get("accuracy_before"), each.get("agreement_before")) for each in befores]
    return [_Stage(name, *of) for name, of in zip(names, [*figures, (None, None)], strict=True)]


def model_stages(report: Mapping[str, Any]) -> list[str]:
    """The models that a run has figures of: ``["dense", "pruned and re-fitted", "then distilled"]``."""
    return ["dense", *(stage.name for stage in _stages(report))]


def result_rows(
    report: Mapping[str, Any], export: Mapping[str, Any] | None = None, example: str = "image"
) -> list[dict[str, str]]:
    """Dense against pruned, distilled and fine-tuned as far as that was done, as rows of words ready for a table.

    Args:
        report: of a finished run.
        export: of its export (``store.export_report``); without one, latency and file size are not known.
        example: what one example is called.
    """
    rows = [{"Model": name} for name in model_stages(report)]
    dense, last = rows[0], rows[-1]
    for row in comparisons(report, example):
        if row.label == "Agreement" and "Accuracy" not in dense:
            dense["Accuracy"] = last["Accuracy"] = "unknown"  # there were examples, but no labels
        dense[row.label] = row.dense or "–"
        last[row.label] = f"{row.pruned}, {row.change}" if row.dense else row.pruned
    for values, name, file in ((dense, "dense", "dense_onnx"), (last, "pruned", "onnx")):
        latency = export["latency"] if export else None
        values["Latency"] = f"{latency[name]['median_ms']:.3g} ms" if latency else "after export"
        values["File size"] = f"{export[file]['bytes'] / 1e6:.2f} MB" if export else "after export"
    if export:
        last["Latency"] += f", {export['latency']['ratio']:.2f}×"
    for stage, between in zip(_stages(report)[:-1], rows[1:-1], strict=True):
        # The same network with other weights: size and speed are those of the last row.
        then = {**report, "accuracy_after": stage.accuracy, "agreement": stage.agreement}
        for row in comparisons(then, example):
            between[row.label] = f"{row.pruned}, {row.change}" if row.dense else row.pruned
        between |= {"Latency": "as below", "File size": "as below"}
        between |= {name: "unknown" for name in last if name not in between}
    return rows


def remarks(
    report: Mapping[str, Any],
    keep: float,
    keep_by_block: Mapping[str, float] | None = None,
    allocation: str = "uniform",
) -> list[str]:
    """What a person should know about the outcome: blocks that kept everything, ratios changed by rounding,
    and the warnings of the re-fit, equal ones together.

    Args:
        report: of a finished run.
        keep, keep_by_block, allocation: what was asked for; only a uniform ratio can be changed by rounding.
    """
    words = []
    asked_for = {b["name"]: (keep_by_block or {}).get(b["name"], keep) for b in report["blocks"]}
    whole = [b["name"] for b in report["blocks"] if b["kept"] >= b["groups"] and asked_for[b["name"]] < 1]
    moved = [
        f"{b['name']} keeps {b['kept']:,} of {b['groups']:,} ({b['kept'] / b['groups']:.2f} instead of "
        f"{asked_for[b['name']]:.2f})"
        for b in report["blocks"]
        if b["name"] not in whole and _moved(b["kept"], asked_for[b["name"]] * b["groups"])
    ]
    if whole and allocation == "uniform":
        names = ", ".join(whole)
        verb = "block keeps all of its" if len(whole) == 1 else "blocks keep all of their"
        words.append(
            f"{len(whole)} {verb} groups although fewer were asked for ({names}): rounding to the multiple "
            "leaves nothing to remove there. A smaller multiple or a lower keep ratio prunes them."
        )
    if moved and allocation == "uniform":
        shown = "; ".join(moved[:3]) + (f"; and {len(moved) - 3} more" if len(moved) > 3 else "")
        words.append(f"Rounding to the multiple changed the kept fraction: {shown}.")
    return words + note_lines(report)


def _moved(kept: int, asked: float) -> bool:
    """Whether rounding to the multiple changed a count worth telling: by a whole group, and above 10 per cent."""
    return abs(kept - asked) >= max(1, 0.1 * asked)


def note_lines(report: Mapping[str, Any]) -> list[str]:
    """The blocks' warnings, ``"layer1.0.conv1: sentence"``; blocks with the same warning stand together."""
    blocks_of: dict[str, list[str]] = {}
    for block in report["blocks"]:
        for note in block.get("notes", ()):
            blocks_of.setdefault(note, []).append(block["name"])
    return [f"{', '.join(names)}: {note}" for note, names in blocks_of.items()]

"""What ``run.json`` and the tensors beside it must hold to be the record of a run.

Whatever passes can be shown by every page and table: the types are those of the records, the sets lie within their
blocks, and the events belong together.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ispasp.errors import RunError
from ispasp.evaluate import Predictions
from ispasp.plain_files import check_fields, is_number, tuples
from ispasp.records import ROLES, Block, BlockPruned, BlockStarted, Cut, Distilled, Iteration, Started
from ispasp.tuning import request as tuning

Event = TypeVar("Event", Iteration, BlockStarted, BlockPruned, Distilled)


def fields_of(
    plain: Mapping[str, Any], arrays: Mapping[str, Tensor], finished: bool = True
) -> dict[str, Any]:
    """The fields of a ``RunRecord``.

    Args:
        plain: what ``run.json`` holds; its settings and its report are dicts.
        arrays: what ``trace.safetensors`` holds.
        finished: whether it is a whole run; otherwise it is one block of a run that was cut off.

    Raises:
        AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError: it is no such record.
    """
    blocks = {values["name"]: block_of(values) for values in plain["blocks"]}
    started = check_fields(Started(tuple(blocks.values()), tuple(plain["keep_groups"])))
    trace = [_iteration(i, values, blocks, arrays) for i, values in enumerate(plain["trace"])]
    blocks_started = [
        _event(BlockStarted, values, blocks, sample=arrays[f"sample.{values['block']}"])
        for values in plain["blocks_started"]
    ]
    blocks_pruned = [_event(BlockPruned, values, blocks) for values in plain["blocks_pruned"]]
    _check_events(started, trace, blocks_started, blocks_pruned)
    if finished:
        events: list[BlockStarted | BlockPruned] = [*blocks_started, *blocks_pruned]
        for event in events:
            if not 0 <= event.index < len(blocks) or started.blocks[event.index] is not event.block:
                raise ValueError(f"block {event.block.name} has the place {event.index}")
        check_settings(plain["settings"])
        check_report(plain["report"], list(blocks))
        if (plain["settings"].get("tuning") is None) != (plain["report"].get("tuning") is None):
            raise ValueError("its settings and its report do not agree on whether it was fine-tuned")
    return {
        "settings": plain["settings"],
        "report": plain["report"],
        "trace": trace,
        "started": started,
        "blocks_started": blocks_started,
        "blocks_pruned": blocks_pruned,
        "distilled": _event(Distilled, plain["distilled"], blocks) if plain.get("distilled") else None,
        "predictions": _predictions(arrays),
    }


def block_of(values: Mapping[str, Any]) -> Block:
    """A block from plain values, also from those of formats 1 and 2. Raises as ``fields_of``."""
    values = dict(values)
    if "cuts" in values:
        values["cuts"] = [Cut(**cut) for cut in values["cuts"]]
    else:
        riders, consumers = values.pop("riders"), values.pop("consumers")
        size = values["group_size"]
        values["cuts"] = [
            Cut(values["name"], "producer"),
            *(Cut(name, "rider") for name in riders),
            *(Cut(name, "consumer", size) for name in consumers),
        ]
    block = check_fields(Block(**tuples(values)))
    for cut in block.cuts:
        check_fields(cut)
        if cut.role not in ROLES or min(cut.size, cut.repeats) < 1:
            raise ValueError(f"block {block.name} has the cut {cut}")
    if block.groups < 1 or block.group_size < 1:
        raise ValueError(f"block {block.name} has {block.groups} groups of {block.group_size}")
    if block.prunable and not block.consumers:
        raise ValueError(f"block {block.name} has no consumer")
    return block


def _event(
    kind: Callable[..., Event], values: Mapping[str, Any], blocks: Mapping[str, Block], **tensors: Tensor
) -> Event:
    values = tuples(values)
    if kind in (BlockStarted, BlockPruned):
        values["block"] = blocks[values["block"]]
    return check_fields(kind(**values, **tensors))


def _iteration(
    number: int, values: Mapping[str, Any], blocks: Mapping[str, Block], arrays: Mapping[str, Tensor]
) -> Iteration:
    hidden_sum = arrays[f"hidden_sum.{values['block']}"]
    # Runs of the first format have no score: in Algorithm 1 it is the hidden sum.
    score = arrays.get(f"score.{number}", hidden_sum)
    importance = arrays[f"importance.{number}"]
    found = _event(Iteration, values, blocks, importance=importance, hidden_sum=hidden_sum, score=score)
    groups = blocks[found.block].groups
    for name in ("importance", "hidden_sum", "score"):
        if (tensor := getattr(found, name)).shape != (groups,) or not tensor.is_floating_point():
            raise ValueError(f"{name} of block {found.block} is {tuple(tensor.shape)} {tensor.dtype}")
        if tensor.isnan().any():
            raise ValueError(f"{name} of block {found.block} holds NaN")
    for name in ("candidates", "selected", "added", "dropped"):
        _check_set(f"{name} of block {found.block}", getattr(found, name), groups)
    return found


def _check_events(
    started: Started,
    trace: Sequence[Iteration],
    blocks_started: Sequence[BlockStarted],
    blocks_pruned: Sequence[BlockPruned],
) -> None:
    """Every block began, was iterated on and ended, with what the plan and its last iteration say."""
    names = sorted(block.name for block in started.blocks)
    if not names or len(started.keep_groups) != len(names):
        raise ValueError(f"{len(names)} blocks keep {str(started.keep_groups)[:60]}")
    for events in (blocks_started, blocks_pruned):
        if sorted(event.block.name for event in events) != names:
            raise ValueError("not every block began and ended once")
    kept = dict(zip((block.name for block in started.blocks), started.keep_groups, strict=True))
    iterations: dict[str, list[Iteration]] = {name: [] for name in names}
    for iteration in trace:
        iterations[iteration.block].append(iteration)
    for begin in blocks_started:
        name, groups, shape = begin.block.name, begin.block.groups, begin.sample.shape
        if not begin.keep_groups == kept[name] <= groups:
            raise ValueError(f"block {name} was to keep {begin.keep_groups} of {groups} groups")
        if len(shape) < 2 or shape[1] != groups or 0 in shape or not begin.sample.is_floating_point():
            raise ValueError(f"the sample of block {name} is {tuple(shape)} {begin.sample.dtype}")
    for end in blocks_pruned:
        name, chosen, groups = end.block.name, end.selected, end.block.groups
        _check_set(f"what block {name} keeps", chosen, groups)
        if not chosen or len(chosen) != kept[name]:
            raise ValueError(f"block {name} keeps {str(chosen)[:60]} of {groups} groups")
        own = iterations[name]
        if [each.t for each in own] != list(range(1, end.iterations + 1)) or own[-1].selected != chosen:
            raise ValueError(f"the iterations of block {name} do not lead to what it keeps")


def _check_set(name: str, groups: Sequence[int], limit: int) -> None:
    """Sorted, no group twice, all in [0, limit)."""
    rising = all(map(operator.lt, groups, groups[1:]))
    if groups and (not rising or groups[0] < 0 or groups[-1] >= limit):
        raise ValueError(f"{name} is {str(groups)[:60]} of {limit} groups")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Make sure that what pages read of a run's settings, where it is there, can be read. Raises ValueError."""
    keep, by_block = settings.get("keep"), settings.get("keep_by_block")
    for key, given in (("keep", keep), ("keep_by_block", by_block)):
        numbers = given.values() if isinstance(given, dict) else [given]
        if given is not None and not all(map(is_number, numbers)):
            raise ValueError(f"its setting {key} is {str(given)[:60]}")
    if by_block is not None and not isinstance(by_block, dict):
        raise ValueError("its setting keep_by_block does not name the blocks")
    for key in ("model", "source", "words"):
        if not isinstance(settings.get(key, ""), (str, type(None))):
            raise ValueError(f"its setting {key} is no text")
    if not isinstance(settings.get("notes", []), list):
        raise ValueError("its setting notes is no list")
    try:
        tuning.epochs_made(settings)
    except RunError as error:
        raise ValueError(str(error)) from error


def check_report(report: Mapping[str, Any], names: Sequence[str]) -> None:
    """Make sure that every list and page can show a report.

    Args:
        report: as in ``RunRecord``.
        names: of the blocks.

    Raises:
        ValueError: it lacks something, or holds something else.
    """
    _check_values(
        "report", report, ("params_before", "params_after", "macs_before", "macs_after"), whole=True
    )
    _check_values("report", report, ("examples",), whole=True)
    _check_values("report", report, ("seconds",))
    _check_values("report", report, ("accuracy_before", "accuracy_after", "agreement"), optional=True)
    if not isinstance(report.get("device"), str):
        raise ValueError("its report does not name the device")
    if (distil := report.get("distil")) is not None:
        if not isinstance(distil, dict):
            raise ValueError("its report has no figures of the distillation")
        _check_values("distillation", distil, ("steps",), whole=True)
        _check_values("distillation", distil, ("seconds", "objective_before", "objective_after"))
        _check_values("distillation", distil, ("accuracy_before", "agreement_before"), optional=True)
    if report.get("tuning") is not None:
        tuning.check_report(report["tuning"])
    blocks = report.get("blocks")
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise ValueError("its report does not say what every block kept")
    if sorted(str(block.get("name")) for block in blocks) != sorted(names):
        raise ValueError("its report does not say what every block kept")
    for block in blocks:
        _check_values(f"report of block {block['name']}", block, ("groups", "kept", "iterations"), whole=True)
        _check_values(f"report of block {block['name']}", block, ("relative_residual", "drift"))
        _check_values(
            f"report of block {block['name']}", block, ("error_before", "error_after"), optional=True
        )
        notes = block.get("notes", [])
        if block["groups"] < 1 or not isinstance(notes, list) or not all(isinstance(n, str) for n in notes):
            raise ValueError(f"its report of block {block['name']} has no groups, or notes that are no text")
    # Runs of the first format knew no re-fit.
    told = [{"target", "error_before", "error_after"} <= set(block) for block in blocks]
    if any("target" in block for block in blocks) and not (
        all(told) and all(isinstance(block["target"], str) for block in blocks)
    ):
        raise ValueError("its report does not say what every block was re-fitted to")


def _check_values(
    what: str, values: Mapping[str, Any], keys: Sequence[str], *, whole: bool = False, optional: bool = False
) -> None:
    """Numbers of at least 0 under all of ``keys``; ``whole`` ones, or ``optional`` ones that may lack."""
    for key in keys:
        value = values.get(key)
        if optional and value is None:
            continue
        if not is_number(value) or (whole and not isinstance(value, int)):
            raise ValueError(f"its {what} has no {'whole ' if whole else ''}number for {key}")


def _predictions(arrays: Mapping[str, Tensor]) -> Predictions | None:
    found = [arrays.get(f"predicted.{name}") for name in ("dense", "pruned", "labels")]
    dense, pruned, labels = found
    if dense is None or pruned is None:
        return None
    if not dense.numel() or any(
        a is not None and (a.dtype != torch.int32 or a.shape != dense.shape or a.ndim != 1) for a in found
    ):
        raise ValueError("the predictions are not of one length")
    return Predictions(dense, pruned, labels)

"""What a fine-tuning leaves: the record of a saved run, with settings and report that tell of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from ispasp import device as devices
from ispasp import evaluate, processes, reports
from ispasp.evaluate import Predictions
from ispasp.records import BlockPruned, BlockStarted, Iteration
from ispasp.result import PruneResult
from ispasp.tuning.drawing import held_out
from ispasp.tuning.loss import precision_on
from ispasp.tuning.records import Began, EpochDone, Tuned
from ispasp.tuning.request import TuneRequest


@dataclass
class BlockByBlock:
    """The blocks that are pruned so far; of the stages before the present one, the epochs and what ended them early."""

    trace: list[Iteration] = field(default_factory=list)
    started: list[BlockStarted] = field(default_factory=list)
    pruned: list[BlockPruned] = field(default_factory=list)
    curve: list[EpochDone] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What came of a fine-tuning.

    Attributes:
        model: the result, in eval mode.
        blocks: what was pruned anew; nothing where the run's own sets were kept.
        last: the stage at the end; None where there was none.
        before, after: predictions of what the fine-tuning started from, and of the result.
        examples: of the training data.
        device: where the work was done.
        threads: of torch on the CPU.
        seconds: of work, an earlier attempt's included.
    """

    model: nn.Module
    blocks: BlockByBlock
    last: Tuned | None
    before: Predictions | None
    after: Predictions | None
    examples: int
    device: torch.device
    threads: int
    seconds: float


def beginning(parent: PruneResult, request: TuneRequest, start: Predictions | None) -> Began:
    """What there is before the first epoch.

    Args:
        parent: the run that is fine-tuned.
        request: what is asked for.
        start: predictions of what the fine-tuning starts from.
    """
    before = start
    if request.by_block:
        before = parent.predictions if _same_examples(parent.predictions, start) else None
    return Began(
        dense_accuracy=start.accuracy_before if start else None,
        accuracy=before.accuracy_after if before else None,
        agreement=before.agreement if before else None,
    )


def result(
    parent: PruneResult,
    request: TuneRequest,
    outcome: Outcome,
    notes: tuple[str, ...] = (),
    lineage: Mapping[str, str] | None = None,
) -> PruneResult:
    """The fine-tuned run.

    Args:
        parent: the run that was fine-tuned.
        request: what was asked for.
        outcome: what came of it.
        notes: sentences about the training data.
        lineage: what the result belongs to.
    """
    earlier = _earlier(parent, request)
    began = beginning(parent, request, outcome.before)
    tuning = _tuning(request, outcome) | {"earlier": len(earlier)}
    if request.by_block:  # what it began with is the dense model
        tuning |= {"run_accuracy": began.accuracy, "run_agreement": began.agreement}
    report = parent.report | evaluate.report(outcome.after) | {"tuning": tuning}
    seen = [*parent.settings.get("notes", ()), *notes]
    if parent.predictions and outcome.after and not _same_examples(parent.predictions, outcome.after):
        seen.append(
            f"Measured on {report['examples']:,} examples of its own, before and after, since some that the run before "
            "was measured on are trained on."
        )
        if report.get("distil"):  # whose figures are of the run's own examples
            report["distil"] = report["distil"] | {"accuracy_before": None, "agreement_before": None}
    report |= {
        "device": devices.describe(outcome.device),
        "seconds": outcome.seconds,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    settings = {k: v for k, v in parent.settings.items() if k not in ("lineage", "threads")}
    made = {"made": tuning["epochs_done"]} if tuning["stopped"] else {}
    settings |= {
        "tuning": request.plain() | made | {"earlier": earlier},
        "versions": reports.versions(),
        "notes": list(dict.fromkeys(map(str, seen))),
    }
    settings |= {"threads": outcome.threads} if outcome.device.type == "cpu" else {}
    settings |= {"lineage": dict(lineage)} if lineage else {}
    kept: dict[str, Any] = {}
    if request.by_block:
        report["blocks"] = [reports.block(event) for event in outcome.blocks.pruned]
        kept = {
            "trace": outcome.blocks.trace,
            "blocks_started": outcome.blocks.started,
            "blocks_pruned": outcome.blocks.pruned,
        }
    if request.by_block or request.start == "random":  # nothing of the run's distillation is left
        settings["distil"] = 0
        report["distil"], kept["distilled"] = None, None
    return dataclasses.replace(
        parent,
        **kept,
        settings=settings,
        report=report,
        predictions=outcome.after,
        model=outcome.model.to(evaluate.device_of(parent.model)),
    )


def _same_examples(one: Predictions | None, other: Predictions | None) -> bool:
    """Whether both are of the same evaluation data, as far as labels tell; without these, as their number tells."""
    if one is None or other is None:
        return False
    if one.labels is None or other.labels is None:
        return len(one.dense) == len(other.dense)
    return torch.equal(one.labels, other.labels)


def _tuning(request: TuneRequest, outcome: Outcome) -> dict[str, Any]:
    """The part of the report that is about the fine-tuning; its seconds are those of the epochs alone."""
    last = outcome.last
    curve = [*outcome.blocks.curve, *(last.curve if last else ())]
    ended = [*outcome.blocks.stops, last.stopped if last else ""]
    tried, settings = bool(curve or last), request.settings
    held, _ = held_out(outcome.examples, settings.held_out, settings.seed)
    return {
        "preset": request.preset,
        "start": request.start,
        "after_block": settings.after_block,
        "epochs_done": len(curve),
        "best_epoch": last.best_epoch if last else 0,
        "stopped": " ".join(filter(None, ended)),
        "accuracy_before": outcome.before.accuracy_after if outcome.before else None,
        "agreement_before": outcome.before.agreement if outcome.before else None,
        "train_examples": outcome.examples,
        "held_out_examples": len(held) if tried else 0,
        "processes": processes.here().size,
        "precision": precision_on(outcome.device, settings.precision) if tried else "",
        "seconds": sum(one.seconds for one in curve),
        "curve": [dataclasses.asdict(one) for one in curve],
    }


def _earlier(parent: PruneResult, request: TuneRequest) -> list[dict[str, Any]]:
    """What the run was fine-tuned by before; nothing where it is pruned again."""
    last = parent.settings.get("tuning")
    if request.by_block or not last:
        return []
    return [*last.get("earlier", ()), {name: value for name, value in last.items() if name != "earlier"}]

"""How long a fine-tuning is likely to take, by the pace of an earlier one on the same machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ispasp.plain_files import is_number
from ispasp.store import RunSummary
from ispasp.tuning.request import TuneRequest, check_report


class Expected(NamedTuple):
    """How many seconds a fine-tuning is likely to take, and when the one was finished whose pace that is."""

    seconds: float
    finished_at: str


def expected(
    request: TuneRequest,
    epochs: int,
    examples: int,
    run: RunSummary,
    device: str,
    earlier: Iterable[RunSummary],
) -> Expected | None:
    """From the newest fine-tuning of the same model on the same device, by the multiply-adds there are to do.

    Args:
        request: what is asked for.
        epochs: of all stages together.
        examples: that it trains on.
        run: what is fine-tuned.
        device: as reports name it.
        earlier: runs, newest first.

    Returns:
        None where there is no such fine-tuning, or a run does not say what it costs.
    """
    work = _work(epochs, examples, request.settings.distil, run.report)
    for other in earlier:
        if work and other.report.get("device") == device and _model(other) == _model(run):
            seconds, done = _made(other)
            if done:
                return Expected(seconds * work / done, other.finished_at)
    return None


def _model(run: RunSummary) -> object:
    return run.settings.get("model")


def _work(epochs: int, examples: int, distil: float, report: Mapping[str, Any]) -> float:
    """Multiply-adds: forth and back is three passes of the pruned model, with one of the dense; and the evaluation."""
    found = [report.get(key) for key in ("macs_before", "macs_after", "examples")]
    if not all(map(is_number, found)):
        return 0.0
    dense, pruned, evaluated = (float(value) for value in found)  # type: ignore[arg-type]
    return epochs * (examples * (3 * pruned + (dense if distil > 0 else 0)) + evaluated * pruned)


def _made(run: RunSummary) -> tuple[float, float]:
    """Seconds and multiply-adds of the epochs that a run was fine-tuned for; zeros where it does not say."""
    tuning, settings = run.report.get("tuning"), run.settings.get("tuning")
    try:
        check_report(tuning)
    except ValueError:
        return 0.0, 0.0
    distil = settings.get("distil") if isinstance(settings, Mapping) else None
    if tuning is None or not is_number(distil) or tuning["processes"] != 1:
        return 0.0, 0.0
    return float(tuning["seconds"]), _work(
        tuning["epochs_done"], tuning["train_examples"], float(distil), run.report  # type: ignore[arg-type]
    )  # fmt: skip

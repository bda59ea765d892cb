"""Whether an exported file, in whichever precision, still answers as the model it was made from."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ispasp import evaluate
from ispasp.calibration import Batch
from ispasp.errors import SettingError, listing
from ispasp.evaluate import Predictions
from ispasp.parity import Differences, ShapeError, cpu_copy, open_session, run_both
from ispasp.records import Progress


@dataclass(frozen=True)
class Tolerance:
    """What a file of some precision must hold to pass.

    Attributes:
        max_rel_diff: the largest relative difference allowed.
        top1_agreement: asked for in its place of an output that has classes: the least share of equal answers.
        reason: why these figures.
    """

    max_rel_diff: float
    reason: str
    top1_agreement: float | None = None


_INT8 = Tolerance(
    0.25,
    "8 bits move single logits by up to 0.8 of the largest, and yet 97 % of the answers or more stayed the same on the "
    "sample models, dense and pruned; with useless scales it was 29 to 39 %. Without classes, a quarter of the largest "
    "output is more than 8 bits cost any sample model of images.",
    top1_agreement=0.95,
)

TOLERANCES = {
    "fp32": Tolerance(
        1e-4, "The same arithmetic in another order: 5e-6 at most on the sample models, dense and pruned."
    ),
    "fp16": Tolerance(
        2e-2,
        "Half precision keeps 11 bits, 5e-4 of a value, and layers add up: 7e-3 at most on the sample models, with "
        "999 of 1,000 answers or more unchanged. What its range of 6e-8 to 65,504 does not hold differs by far more.",
    ),
    "int8-dynamic": _INT8,
    "int8-static": _INT8,
}
"""What each precision is held to."""


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """How far onnxruntime's outputs are from those of torch in float32, both on the CPU, and whether that will do.

    Padding is not compared. The differences are None where they cannot be had: a value is not finite, or the
    shapes differ; such a file has not passed.

    Attributes:
        precision: of the file.
        examples: number of examples compared.
        max_abs_diff: largest absolute difference over all outputs and examples.
        max_rel_diff: for each output its largest absolute difference over the largest absolute value that torch
            gives for it; then the largest over the outputs.
        mean_abs_diff: mean absolute difference over all values.
        top1_agreement: share of equal top-1 classes, in [0, 1], over the examples, or over the tokens where each has
            a class; None where the output has no classes.
        accuracy_torch, accuracy_onnx: top-1 accuracy in [0, 1]; None without one label for each answer.
        worst: position of the example with the largest absolute difference, or of the first one with a value that
            is not finite; None where the shapes differ.
        worst_diff: its largest absolute difference.
        criterion: ``"max_rel_diff"`` or ``"top1_agreement"``, which of the figures is held against ``tolerance``.
        tolerance: the largest ``max_rel_diff``, or the least ``top1_agreement``, with which a file passes.
        passed: whether it did.
        sentence: all of this in words.
    """

    precision: str
    examples: int
    max_abs_diff: float | None = None
    max_rel_diff: float | None = None
    mean_abs_diff: float | None = None
    top1_agreement: float | None = None
    accuracy_torch: float | None = None
    accuracy_onnx: float | None = None
    worst: int | None = None
    worst_diff: float | None = None
    criterion: str
    tolerance: float
    passed: bool
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def measure(
    model: nn.Module, path: str | os.PathLike[str], batches: Sequence[Batch], precision: str
) -> Generator[Progress, None, ParityReport]:
    """Compare a file with the model it was made from on all of ``batches``; to be used with ``yield from``.

    Args:
        model: the torch model; a copy in float32, on the CPU and in evaluation mode is used.
        path: the ONNX file, in any precision.
        batches: inputs, with labels where they are known.
        precision: which of ``TOLERANCES`` the file is held to.

    Raises:
        SettingError: the precision is unknown.
        CalibrationError: there is no example.
        ExportError: the file is missing or damaged, or does not run on a batch. A difference, however large, is
            reported and not raised.
    """
    if precision not in TOLERANCES:
        raise SettingError(f"precision is {precision!r}; choose one of {listing(TOLERANCES)}.")
    name, tolerance = Path(path).name, TOLERANCES[precision]
    yield Progress(0.0, f"opening {name}")
    ready, session = cpu_copy(model), open_session(path, deterministic=True)
    differences, answer = Differences(), 0
    torchs: list[Tensor] = []
    onnxs: list[Tensor] = []
    for number, batch in enumerate(batches, start=1):
        yield Progress(
            (number - 1) / len(batches), f"comparing {name} with torch, batch {number} of {len(batches)}"
        )
        try:
            outputs = run_both(ready, session, batch)
        except ShapeError as error:
            return ParityReport(
                precision=precision,
                examples=differences.examples,
                criterion="max_rel_diff",
                tolerance=tolerance.max_rel_diff,
                passed=False,
                sentence=f"{precision}: {str(error).rstrip('.')}: failed.",
            )
        differences.add(outputs)
        answer = outputs.answer
        expected, found = outputs.expected[answer], outputs.found[answer]
        if (classes := evaluate.class_dimension(expected)) is not None:
            torchs.append(expected.argmax(classes).int())
            onnxs.append(found.argmax(classes).int())
    differences.check()
    predictions = evaluate.compare(torchs, onnxs, batches) if any(map(len, torchs)) else None
    return _report(precision, tolerance, differences, answer, predictions)


def _report(
    precision: str,
    tolerance: Tolerance,
    differences: Differences,
    answer: int,
    predictions: Predictions | None,
) -> ParityReport:
    finite = not differences.broken
    absolute = differences.absolute if finite else None
    relative = differences.relative if finite and math.isfinite(differences.relative) else None
    examples = _count(differences.examples, "example")
    if predictions is not None and tolerance.top1_agreement is not None:
        criterion, asked = "top1_agreement", tolerance.top1_agreement
        passed = finite and predictions.agreement >= asked
        answers = len(predictions.dense)
        among = examples if answers == differences.examples else f"{answers:,} answers in {examples}"
        share = _percent(predictions.agreement)
        found = f"same answer for {share} of {among} (at least {100 * asked:g} % is asked)"
        beside = differences.relative_beside(answer)
        if not beside <= tolerance.max_rel_diff:
            passed = False
            found += (
                f", but another output differs by up to {_far(beside)} of its largest value "
                f"(at most {tolerance.max_rel_diff:g} is allowed)"
            )
    else:
        criterion, asked = "max_rel_diff", tolerance.max_rel_diff
        passed = relative is not None and relative <= asked
        found = (
            f"differs by up to {_far(differences.relative)} of the largest output over {examples} "
            f"(at most {asked:g} is allowed)"
        )
    if not differences.largest:
        found += ", and torch gives nothing but 0, so that this shows little"
    if not finite:
        found = f"{differences.engine} gives NaN or infinity for {differences.broken:,} of {examples}"
    return ParityReport(
        precision=precision,
        examples=differences.examples,
        max_abs_diff=absolute,
        max_rel_diff=relative,
        mean_abs_diff=differences.mean if finite else None,
        top1_agreement=predictions.agreement if predictions else None,
        accuracy_torch=predictions.accuracy_before if predictions else None,
        accuracy_onnx=predictions.accuracy_after if predictions else None,
        worst=differences.worst,
        worst_diff=absolute,
        criterion=criterion,
        tolerance=asked,
        passed=passed,
        sentence=f"{precision}: {found}{_fallen(predictions)}: {'passed' if passed else 'failed'}.",
    )


def _fallen(predictions: Predictions | None) -> str:
    """How many points of accuracy were lost, in words; empty where none were."""
    if predictions is None or predictions.accuracy_before is None or predictions.accuracy_after is None:
        return ""
    before, after = predictions.accuracy_before, predictions.accuracy_after
    if before - after < 0.0005:
        return ""
    return f", accuracy fell by {100 * (before - after):.1f} points, from {100 * before:.1f} % to {100 * after:.1f} %"


def _far(relative: float) -> str:
    return f"{relative:.3g}" if math.isfinite(relative) else "everything"


def _percent(share: float) -> str:
    """Rounded down, so that what is too little never reads as enough."""
    return f"{math.floor(1000 * share + 1e-9) / 10:.1f} %"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"

"""Batches from a function in a user's own Python file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ispasp import calibration as batches
from ispasp import user_code
from ispasp.calibration import Batch, as_batch
from ispasp.datasets.request import MAX_INPUT_BYTES, Data, Request
from ispasp.errors import CalibrationError


def python_data(spec: str, request: Request, *, allow_code: bool) -> Data:
    """What the function returns: an iterable of batches, or a (calibration, evaluation) pair of them.

    Of one iterable the first examples calibrate and those after them evaluate, whatever else is trained on; the seed
    changes nothing. No more is read than is asked for, so an endless generator will do.

    Raises:
        UserCodeError: running code is not allowed, or the user's code raises.
        CalibrationError: what it gives cannot be used, or would not fit into memory.
    """
    given = user_code.call(spec, allow_code=allow_code)
    notes: list[str] = []
    with user_code.blamed_on(spec):
        if isinstance(given, tuple) and len(given) == 2 and not _is_batch(given):
            calibration, _ = _take(_iterate(given[0]), request.samples, request.purpose)
            evaluation, _ = _take(_iterate(given[1]), request.evaluation)
        elif request.purpose == "training":
            calibration, evaluation = _training(_iterate(given), request)
        else:
            stream = _iterate(given)
            calibration, rest = _take(stream, request.samples, request.purpose)
            evaluation, _ = _take(_after(rest, stream), request.evaluation)
            if not evaluation:
                calibration, evaluation = _share(calibration, request.evaluation)
    calibration = batches.read(calibration, request.purpose)
    evaluation = batches.read(evaluation, "evaluation")
    notes += request.fewer(sum(map(len, calibration)), "examples")
    if copied := batches.copies(evaluation, calibration):
        notes.append(
            f"{copied:,} of the evaluation examples are {request.purpose} examples too, so the measurements are partly "
            f"of {request.purpose} data: give others to evaluate with."
        )
    labelled = all(batch.labels is not None for batch in evaluation)
    if not labelled:
        notes.append("The evaluation batches have no labels, so accuracy is unknown.")
    plain = [_plain(batch) for batch in calibration]
    return Data(
        plain,
        [_plain(batch) for batch in evaluation],
        classes=request.model_classes if labelled else (),
        notes=tuple(notes),
    )


def _is_batch(given: object) -> bool:
    """Whether it is one batch rather than an iterable of them."""
    if isinstance(given, (Tensor, Mapping, Batch)):
        return True
    if not isinstance(given, tuple) or not given or not all(isinstance(part, Tensor) for part in given):
        return False
    return as_batch(given).labels is not None


def _iterate(given: object) -> Iterator[Any]:
    if _is_batch(given):
        return iter([given])
    try:
        return iter(given)  # type: ignore[call-overload]
    except TypeError:
        raise CalibrationError(
            f"The function returns a {type(given).__name__}: return an iterable of batches, such as a "
            "DataLoader, or a (calibration, evaluation) pair of them."
        ) from None


def _take(stream: Iterator[Any], count: int, purpose: str = "evaluation") -> tuple[list[Batch], Batch | None]:
    """Batches of ``count`` examples together, and what is left of the last one."""
    taken: list[Batch] = []
    room = MAX_INPUT_BYTES
    for given in stream:
        batch = as_batch(given)
        if not all(isinstance(value, Tensor) and value.ndim and len(value) for value in batch.tensors):
            batches.read([batch])  # says what is wrong with it
        taken.append(batch.first(count))
        room -= sum(value.nbytes for value in taken[-1].tensors)
        if room < 0:
            raise CalibrationError(
                f"The inputs take more than {MAX_INPUT_BYTES // 2**30} GiB: ask for fewer {purpose} examples."
            )
        if len(batch) >= count:
            return taken, batch.after(count) if len(batch) > count else None
        count -= len(batch)
    return taken, None


def _after(rest: Batch | None, stream: Iterator[Any]) -> Iterator[Any]:
    if rest is not None:
        yield rest
    yield from stream


def _training(stream: Iterator[Any], request: Request) -> tuple[list[Batch], list[Batch]]:
    """Examples to train on, and for the evaluation the first of those that a run with these data was measured on.

    These are all of them, unless that leaves too few to train on: then a fifth of what there is.
    """
    found, _ = _take(stream, max(request.samples, request.calibration) + request.evaluation, request.purpose)
    total = sum(map(len, found))
    if total <= request.calibration:
        training, evaluation = _share(found, request.evaluation)
    else:
        before, after = _cut(found, request.calibration)
        evaluation, after = _cut(after, request.measured(total))
        training = [*before, *after]
    return _cut(training, request.samples)[0], evaluation


def _share(found: list[Batch], most: int) -> tuple[list[Batch], list[Batch]]:
    """Leave the last fifth of too few examples for the evaluation, and at most so many."""
    total = sum(map(len, found))
    if total < 2:
        raise CalibrationError(
            f"The function gives {total} examples: give at least two, one of them to evaluate with."
        )
    return _cut(found, total - min(most, max(1, total // 5)))


def _cut(found: list[Batch], at: int) -> tuple[list[Batch], list[Batch]]:
    """Batches of the first ``at`` examples, and of the others."""
    first, rest = _take(iter(found), at) if at else ([], None)
    return first, [*([rest] if rest is not None else []), *found[len(first) :]]


def _plain(batch: Batch) -> Any:
    """A copy of a batch as a tensor, a tuple or a dict, on the CPU."""
    batch = batch.to(torch.device("cpu"))
    if batch.keywords:
        return batch.keywords if batch.labels is None else {**batch.keywords, "labels": batch.labels}
    if batch.labels is None:
        return batch.inputs[0] if len(batch.inputs) == 1 else batch.inputs
    return (*batch.inputs, batch.labels)

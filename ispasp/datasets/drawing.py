"""Drawing calibration and evaluation examples that never overlap, and skipping what is unusable."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from ispasp.datasets.request import Request
from ispasp.errors import CalibrationError, listing

SKIPPED_SHARE = 0.1  # of the examples needed; beyond it the data are refused
NAMED = 3  # unusable examples named in a message

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass
class Skipped:
    """The unusable among ``needed`` examples.

    Attributes:
        what: what one is, in the plural: ``"images"``.
        needed: how many examples are wanted.
        place: where they come from, as a sentence begins: ``"The folder x"``.
        named: name and reason of the first three.
        count: how many there were.
    """

    what: str
    needed: int
    place: str
    named: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, name: str, reason: str) -> None:
        """Note one.

        Raises:
            CalibrationError: there are more than ``SKIPPED_SHARE`` of the needed.
        """
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append(f"{name} ({reason})")
        if self.count > SKIPPED_SHARE * self.needed:
            raise CalibrationError(
                f"{self.place} has {self.count:,} or more {self.what} that cannot be used, above "
                f"{SKIPPED_SHARE:.0%} of the {self.needed:,} needed: {self._examples()}; repair or remove them."
            )

    def notes(self) -> list[str]:
        """One sentence where there were any."""
        if not self.count:
            return []
        return [f"{self.count:,} of the {self.what} could not be used and were skipped: {self._examples()}."]

    def _examples(self) -> str:
        more = self.count - len(self.named)
        return listing([*self.named, f"{more:,} more"] if more else self.named)


def shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    """All items in an order that the seed alone decides."""
    generator = torch.Generator().manual_seed(seed)
    return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]


def planned(pool: int, other: int | None, request: Request) -> tuple[int, int]:
    """How many examples are drawn for calibration or training, and for evaluation; at most, where some are copies.

    Args:
        pool: examples to calibrate with, and to evaluate with where ``other`` is None.
        other: examples of a separate evaluation part, or None.
        request: the numbers asked for.

    Where both come from one pool that is too small, a fifth of it is left for the evaluation.
    """
    wanted = max(request.samples, request.calibration)
    if other is not None:
        return min(wanted, pool), min(request.evaluation, other)
    calibration = min(wanted, pool - _spared(pool, request))
    return calibration, min(request.evaluation, pool - calibration)


def draw(
    pool: Sequence[Item],
    other: Sequence[Item] | None,
    request: Request,
    read: Callable[[Item], tuple[Value, Hashable] | None],
    what: str,
    read_trained: Callable[[Item], tuple[Value, Hashable] | None] | None = None,
) -> tuple[list[Value], list[Value], list[str]]:
    """Calibration or training examples, evaluation examples, and notes about what falls short.

    Calibration takes the seed's order from the front, evaluation from the back (or from ``other``): so a
    smaller number of either is part of a larger one, and what was drawn for one never serves the other,
    not even as a copy under another name.

    To train on are those that calibrate and then all others, but for copies of evaluation examples. These come first,
    so that a run which was trained and is opened again is measured on those that it was measured on before.

    Args:
        pool, other: as for ``planned``, the examples themselves in a fixed order.
        request: numbers and seed.
        read: an example's value and an identity of its content, or None to skip it.
        what: what the examples are, in the plural.
        read_trained: the same as ``read`` for training examples that calibrate nothing, where that is another.

    Raises:
        CalibrationError: there are not enough for one of each.
    """
    wanted, _ = planned(len(pool), None if other is None else len(other), request)
    if wanted < 1 or (other is not None and not other):
        raise CalibrationError(
            f"Found {len(pool)} {what} for {request.purpose} and "
            f"{'none apart from these' if other is None else len(other)} to evaluate with: "
            "give at least one for each."
        )
    order = shuffled(pool, request.seed)
    spared = _spared(len(pool), request) if other is None else 0
    training = request.purpose == "training"
    count = request.calibration if training else request.samples
    most = request.measured(len(pool)) if training and other is None else request.evaluation
    first, seen, used, _ = _take(order[: len(order) - spared], count, read, frozenset())
    rest = order[used:][::-1] if other is None else shuffled(other, request.seed)
    evaluation, apart, tried, copies = _take(rest, most, read, seen)
    said = f"{what} to evaluate with are copies of {request.purpose} {what}"
    if training:
        others = order[used : len(order) - tried] if other is None else order[used:]
        more, _, _, copies = _take(others, max(0, request.samples - len(first)), read_trained or read, apart)
        first = [*first, *more][: request.samples]
        said = f"{what} to train on are copies of {what} to evaluate with"
    notes = [f"{copies:,} of the {said}: left out."] if copies else []
    for part, found in ((request.purpose, first), ("evaluation", evaluation)):
        if not found:
            raise CalibrationError(
                f"None of the {what} can be used for {part}: give more {what} that differ from each other."
            )
    # The number to evaluate with is a default more often than a wish.
    return first, evaluation, notes + request.fewer(len(first), what)


def _spared(pool: int, request: Request) -> int:
    """How many examples of a shared pool are never drawn for calibration."""
    return min(request.evaluation, max(1, pool // 5), pool)


def _take(
    order: Iterable[Item],
    count: int,
    read: Callable[[Item], tuple[Value, Hashable] | None],
    exclude: frozenset[Hashable],
) -> tuple[list[Value], frozenset[Hashable], int, int]:
    """The first ``count`` usable values, their identities, how many items were tried, how many excluded."""
    values: list[Value] = []
    identities: set[Hashable] = set()
    tried = copies = 0
    for item in order:
        if len(values) == count:
            break
        tried += 1
        if (found := read(item)) is None:
            continue
        value, identity = found
        if identity in exclude:
            copies += 1
            continue
        values.append(value)
        identities.add(identity)
    return values, frozenset(identities), tried, copies

"""Which of a model's outputs each class of the data is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ispasp.datasets.request import Request
from ispasp.errors import listing


@dataclass(frozen=True)
class Match:
    """The result of matching.

    Attributes:
        labels: the output of each class, in the order given; None where unknown.
        classes: names in the order of the outputs; empty where labels are unknown.
        notes: how it was decided, where it was not by name.
    """

    labels: list[int] | None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def match_classes(found: Sequence[str], request: Request) -> Match:
    """Match sorted class names of the data to a model's outputs.

    By name (case, blanks, hyphens and underscores apart; "tench" is also "tench, Tinca tinca"); else by
    the number that each name is, where the outputs have no names of their own or are as many; else,
    where there are as many as outputs, in sorted order.
    """
    if not found:
        return Match(None, notes=("The images have no class folders, so accuracy is unknown.",))
    outputs = request.classes
    table = by_name(request.model_classes)
    named = [table.get(_plain(name)) for name in found]
    if all(label is not None for label in named) and len(set(named)) == len(named):
        return Match([label for label in named if label is not None], request.model_classes)
    # A model's own names count only where the order of the folders does not contradict them.
    partly = any(label is not None for label in named)
    classes = request.model_classes if len(request.model_classes) == outputs else ()
    told = not all(re.fullmatch(r"label \d+", _plain(name)) for name in request.model_classes)
    if (
        outputs
        and not partly
        and (len(found) == outputs or not told)
        and (numbers := _numbers(found, outputs))
    ):
        return Match(
            numbers,
            classes or tuple(str(position) for position in range(outputs)),
            ("The classes of the data are numbers, taken as the positions of the model's outputs.",),
        )
    if len(found) == outputs and not partly:
        return Match(
            list(range(outputs)),
            classes or tuple(found),
            (
                f"The {outputs} classes of the data were matched to the model's {outputs} outputs in sorted order, "
                "since their names are not the model's.",
            ),
        )
    return Match(None, notes=(_why_unknown(found, named, outputs),))


def _why_unknown(found: Sequence[str], named: Sequence[int | None], outputs: int | None) -> str:
    unmatched = [repr(name) for name, label in zip(found, named, strict=True) if label is None]
    more = [f"{len(unmatched) - 3:,} more"] if len(unmatched) > 3 else []
    why = (
        f"the model has no class {listing([*unmatched[:3], *more])}"
        if unmatched
        else "two are the same class"
    )
    return (
        f"Labels are unknown ({why}, and {len(found)} classes of the data stand against "
        f"{outputs or 'an unknown number of'} outputs), so accuracy is unknown too."
    )


def by_name(classes: Sequence[str]) -> dict[str, int]:
    """Position of each class by its plain name; names that several classes share are left out."""
    table: dict[str, set[int]] = {}
    for position, name in enumerate(classes):
        table.setdefault(_plain(name), set()).add(position)
    synonyms: dict[str, set[int]] = {}
    for position, name in enumerate(classes):
        for part in name.split(","):
            synonyms.setdefault(_plain(part), set()).add(position)
    return {name: min(at) for name, at in {**synonyms, **table}.items() if len(at) == 1}


def position(name: str, table: dict[str, int]) -> int | None:
    """Where a table of ``by_name`` has a class, however its name is written."""
    return table.get(_plain(name))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _numbers(found: Sequence[str], outputs: int) -> list[int] | None:
    """What each name is as a number: the outputs themselves, or their order where they count from 1."""
    if not all(re.fullmatch(r"[0-9]{1,6}", name) for name in found):
        return None
    numbers = [int(name) for name in found]
    if len(set(numbers)) == len(numbers) and max(numbers) < outputs:
        return numbers
    if sorted(numbers) == list(range(1, outputs + 1)):
        return [number - 1 for number in numbers]
    return None

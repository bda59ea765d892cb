"""What the commands share: values as they are typed, progress, tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ispasp.display import watched
from ispasp.errors import RunError, SettingError
from ispasp.records import Progress

T = TypeVar("T")


def value_of(name: str, text: str, kind: Callable[[str], Any]) -> Any:
    """What was typed for ``name`` as ``int``, ``float`` or ``str``.

    Raises:
        SettingError: it is no such number.
    """
    try:
        return kind(text)
    except ValueError:
        words = "a whole number" if kind is int else "a number"
        raise SettingError(f"{name} is {text!r}; give {words}.") from None


def values_of(name: str, text: str, kind: Callable[[str], Any] = str) -> tuple[Any, ...]:
    """Values separated by commas, at least one.

    Raises:
        SettingError: there is none, or one is no such number.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise SettingError(f"{name} is {text!r}; give a value, several separated by commas.")
    return tuple(value_of(name, part, kind) for part in parts)


def watch(events: Iterable[T]) -> list[T]:
    """Follow work with a progress bar on standard error; all events but the progress."""
    return [event for event in watched(events) if not isinstance(event, Progress)]


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Cells in columns, as wide as the widest of each."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *lines)
    )


def write_new(out: Path, content: bytes, what: str, as_json: bool) -> None:
    """Write a new file and print its name; ``what`` is the word for it.

    Raises:
        RunError: something is there already, or it cannot be written.
    """
    try:
        with out.open("xb") as file:
            file.write(content)
    except OSError as error:
        raise RunError(f"The {what} cannot be written to {out}: {error}. Give another --out.") from error
    print(json.dumps({"out": str(out)}) if as_json else out)

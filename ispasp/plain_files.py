"""JSON files: written whole or not at all, read without trust in who wrote them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ispasp.errors import RunError

DEEPEST = 50
"""Levels of lists and objects within each other that are read. What is deeper breaks whatever walks through it."""

Record = TypeVar("Record")


def write_json(path: Path, plain: Any) -> None:
    """Write plain values to ``path``; its folder is made, and what was there stays until the new file is whole.

    Raises:
        RunError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n")
        partial.replace(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be written: {error}. Choose a folder you can write to.") from error
    finally:
        with contextlib.suppress(OSError):  # where the folder itself is none
            partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The values in ``path``; None where there is no such file, or no JSON in it that ``parse`` reads."""
    try:
        return parse(path.read_text())
    except (OSError, ValueError):
        return None


def parse(text: str | bytes) -> Any:
    """The values that a JSON text holds.

    Raises:
        ValueError: it is no JSON, or has more than ``DEEPEST`` levels.
    """
    try:
        plain = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [plain]
    for _ in range(DEEPEST):
        inner = (
            each.values() if isinstance(each, dict) else each
            for each in level
            if isinstance(each, (dict, list))
        )
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
        if not level:
            return plain
    raise ValueError("it is nested too deeply")


def digest(plain: Any) -> str:
    """16 characters that follow from plain values, for the name of the file that answers them."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def is_number(value: object) -> bool:
    """Whether JSON gave a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond floating point
        return False


def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values for a record: JSON has lists where the records have tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def check_fields(record: Record) -> Record:
    """The dataclass ``record``, every field of which is what its annotation says; numbers are finite.

    Raises:
        ValueError: a field is something else.
    """
    made: type = type(record)
    for name, kind in _kinds(made).items():
        if not _fits(value := getattr(record, name), kind):
            raise ValueError(f"{name} of a {type(record).__name__} is {str(value)[:60]!r}")
    return record


@functools.cache
def _kinds(record: type) -> dict[str, Any]:
    return get_type_hints(record)


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is tuple and parts[0] in (int, str):  # these are long
        return type(value) is tuple and set(map(type, value)) <= {parts[0]}
    if kind is Any:
        return True
    if kind is float:
        return is_number(value)
    if origin is UnionType:
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        return type(value) is tuple and all(_fits(each, parts[0]) for each in value)
    if origin is dict:
        return type(value) is dict and all(
            isinstance(key, str) and _fits(each, parts[1]) for key, each in value.items()
        )
    return type(value) is (NoneType if kind is None else kind)

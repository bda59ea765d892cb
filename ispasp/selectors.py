"""The ways to choose which groups stay. A new one is one function and one line in the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ispasp.algorithm import SelectorSettings, ispasp
from ispasp.errors import SettingError, listing
from ispasp.records import Iteration
from ispasp.statistics import Statistics

Selector = Callable[[Statistics, int, SelectorSettings], Iterator[Iteration]]

SELECTORS: dict[str, Selector] = {
    "ispasp": ispasp,
}


def names() -> list[str]:
    """Names of all selectors, the default first."""
    return list(SELECTORS)


def get(name: str) -> Selector:
    """The selector called ``name``.

    Raises:
        SettingError: unknown name; the message lists the known ones.
    """
    if not isinstance(name, str) or name not in SELECTORS:
        raise SettingError(f"Unknown selector {name!r}; choose one of {listing(SELECTORS)}.")
    return SELECTORS[name]

"""The ways to choose which groups stay. A new one is one function and one line in the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ispasp import ranking
from ispasp.algorithm import SelectorSettings, ispasp, ispasp_contribution
from ispasp.cosamp import cosamp
from ispasp.errors import SettingError, listing
from ispasp.greedy import gfs
from ispasp.obs import obs
from ispasp.records import Iteration
from ispasp.statistics import Statistics

Selector = Callable[[Statistics, int, SelectorSettings], Iterator[Iteration]]

SELECTORS: dict[str, Selector] = {
    "ispasp": ispasp,
    "ispasp-contribution": ispasp_contribution,
    "cosamp": cosamp,
    "gfs": gfs,
    "obs": obs,
    "l1": ranking.l1,
    "l2": ranking.l2,
    "activation": ranking.activation,
    "taylor": ranking.taylor,
    "random": ranking.random,
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


def describe(name: str) -> str:
    """What the selector called ``name`` does, in one line: the first line of its docstring.

    Raises:
        SettingError: as ``get``.
    """
    return (get(name).__doc__ or "").strip().partition("\n")[0]

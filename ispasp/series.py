"""How a few series look side by side in a plot, and how log axes are marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ispasp.looks import LOOKS, GroupState

_STATES = (GroupState.KEPT, GroupState.DROPPED, GroupState.ADDED, GroupState.CANDIDATE)
_SYMBOLS = ("circle", "square", "diamond", "triangle-up")
DASHES = ("solid", "dash", "dot", "dashdot")
MOST_TICKS = 10


def look(number: int, dark: bool) -> dict[str, Any]:
    """Colour and symbol of the series with this number; more than four begin anew."""
    return {"color": LOOKS[_STATES[number % 4]].colour(dark), "symbol": _SYMBOLS[number % 4]}


def signed(value: float) -> str:
    """Two decimals, with a minus sign that is as wide as a plus."""
    return f"{value:.2f}".replace("-", "−")


def faint(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def log_ticks(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """A log axis over ``values``: 1, 2 and 5 of every decade where few are enough, else whole decades; every number
    where even those are too few."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known) & (known > 0)]
    if not len(known):
        return {"type": "log"}
    low, high = math.log10(known.min()), math.log10(known.max())
    powers = range(math.floor(low) - 1, math.ceil(high) + 2)
    for steps in ((1, 2, 5), range(1, 10)):
        marks = [(step, power) for power in powers for step in steps]
        within = [(s, k) for s, k in marks if low - 0.1 <= math.log10(s) + k <= high + 0.1]
        if len(within) > 2:
            break
    if len(within) > MOST_TICKS:
        every = max(1, math.ceil((high - low) / MOST_TICKS))
        within = [(s, k) for s, k in within if s == 1 and k % every == 0]
    return {
        "type": "log",
        "tickvals": [step * 10.0**power for step, power in within],
        "ticktext": [
            f"{step * 10.0**power:,.4g}" if low > -4 else f"10<sup>{power}</sup>".replace("-", "−")
            for step, power in within
        ],
        "minor": {"ticks": ""},
    }

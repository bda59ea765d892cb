"""The settings of a run and what they accept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from ispasp import selectors
from ispasp.algorithm import SelectorSettings
from ispasp.errors import SettingError, listing

RECONSTRUCTIONS = ("none", "symmetric", "asymmetric")
HIDDEN_SUMS = ("absolute", "signed")
ALLOCATIONS = ("uniform", "macs", "params")


@dataclass(frozen=True)
class PruneSettings:
    """How to prune, apart from what and how much.

    Attributes:
        selector: which way to choose groups; see ``ispasp.selectors.names()``.
        reconstruct: what the consumer's weights are re-fitted to (``ispasp.reconstruct``); ``"none"``
            leaves them.
        multiple: kept groups are rounded to multiples of this; 1 for the paper's exact counts.
        candidate_factor: c, candidates per kept group; 2 in the paper.
        iterations: most iterations per block; 20 in the paper.
        seed: for selectors and distillation, where they draw at random; below 2^63.
        recalibrate: measure the statistics of the batch norms that pruning reaches anew.
        distil: gradient steps towards the dense model after slicing; 0 for none.
        hidden_sum: what Algorithm 1 ranks by where a hidden representation may be negative (GELU, attention):
            ``"absolute"``, the sum of its absolute values, or ``"signed"``, the plain sum as in the paper,
            whose activations are never negative.
        allocation: ``"uniform"`` keeps the same fraction of every block; ``"macs"`` and ``"params"``
            share the same MACs or parameters out by sensitivity (``ispasp.allocation``).

    Raises:
        SettingError: a value is unknown or out of range.
    """

    selector: str = "ispasp"
    reconstruct: str = "none"
    multiple: int = 8
    candidate_factor: float = 2.0
    iterations: int = 20
    seed: int = 0
    recalibrate: bool = False
    distil: int = 0
    allocation: str = "uniform"
    hidden_sum: str = "absolute"

    def __post_init__(self) -> None:
        selectors.get(self.selector)
        if self.reconstruct not in RECONSTRUCTIONS:
            raise SettingError(
                f"Unknown reconstruct {self.reconstruct!r}; choose one of {listing(RECONSTRUCTIONS)}."
            )
        if self.allocation not in ALLOCATIONS:
            raise SettingError(
                f"Unknown allocation {self.allocation!r}; choose one of {listing(ALLOCATIONS)}."
            )
        if self.hidden_sum not in HIDDEN_SUMS:
            raise SettingError(
                f"Unknown hidden_sum {self.hidden_sum!r}; choose one of {listing(HIDDEN_SUMS)}."
            )
        check_whole_number("multiple", self.multiple, at_least=1)
        check_whole_number("iterations", self.iterations, at_least=1)
        check_whole_number("seed", self.seed, at_least=0, at_most=2**63 - 1)
        check_whole_number("distil", self.distil, at_least=0)
        if not isinstance(self.recalibrate, bool):
            raise SettingError(f"recalibrate is {self.recalibrate!r}; give True or False.")
        factor = self.candidate_factor
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 <= factor <= 1e9:
            raise SettingError(
                f"candidate_factor is {factor!r}; give a number of 1 or more (the paper uses 2)."
            )

    def for_selector(self) -> SelectorSettings:
        """What of it a selector is told."""
        return SelectorSettings(self.candidate_factor, self.iterations, self.seed)


def check_whole_number(name: str, value: object, at_least: int, at_most: int | None = None) -> None:
    """Refuse anything but an int from ``at_least`` to ``at_most`` with a SettingError."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < at_least or (at_most is not None and value > at_most):  # type: ignore[operator]
        accepted = f"of {at_least} or more" if at_most is None else f"from {at_least} to {at_most}"
        raise SettingError(f"{name} is {value!r}; give a whole number {accepted}.")


def check_keep(keep: object, name: str = "keep") -> float:
    """``keep`` as a float in (0, 1].

    Raises:
        SettingError: it is not a number, is NaN, or is out of range.
    """
    try:
        value = float(keep) if isinstance(keep, Real) and not isinstance(keep, bool) else math.nan
    except OverflowError:
        value = math.inf
    if not 0 < value <= 1:
        raise SettingError(
            f"{name} is {keep!r}; give the fraction to keep, above 0 and up to 1, such as 0.4."
        )
    return value


def groups_to_keep(groups: int, keep: float, multiple: int = 1) -> int:
    """How many of ``groups`` stay: keep * groups rounded down, or to the nearest ``multiple``; at least one.

    Multiples of 8 or 16 are what fast convolution kernels are built for. A layer of at most
    ``multiple`` groups has no smaller multiple to round to and keeps the exact count.
    """
    if multiple == 1 or groups <= multiple or keep == 1:
        # 0.29 * 100 is 28.999999999999996 in floating point.
        return max(1, min(groups, math.floor(keep * groups + 1e-9)))
    rounded = math.floor(keep * groups / multiple + 0.5) * multiple
    return min(groups, max(multiple, rounded))

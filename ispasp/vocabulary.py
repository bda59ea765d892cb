"""What the ways to choose groups are called, what they do in one line, and the names of their scores.

Sentences, figures and pages take their words from here, so a new selector reads right everywhere with one
entry; one without an entry goes by its registered name and the first line of its docstring.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import numpy as np

from ispasp import data, selectors
from ispasp.datasets import DataSource
from ispasp.records import Iteration


class Way(Enum):
    """How a selector comes to its set, which is how its iterations are to be read."""

    COMPARES = 1  # candidates by importance, of these the largest scores; repeated
    RANKS = 2  # every group has a score, the largest stay; once
    ADDS = 3  # from no group to s
    REMOVES = 4  # from all groups to s


class SelectorWords(NamedTuple):
    """One selector in words.

    Attributes:
        title: what a person chooses.
        line: what it does, in one line.
        way: how its iterations are to be read.
        score: what ``Iteration.score`` is called, without an article: "hidden sum".
        score_means: what it says about a group.
        importance_means: the same of ``Iteration.importance``, where that decides the candidates.
    """

    title: str
    line: str
    way: Way = Way.COMPARES
    score: str = "score"
    score_means: str = "decides which groups stay"
    importance_means: str = "how much a group would reduce the residual's squared size if added"


_SELECTORS: dict[str, SelectorWords] = {
    "ispasp": SelectorWords(
        "i-SpaSP, as in the paper",
        "Candidates by importance, of these the largest hidden sums, until nothing changes.",
        Way.COMPARES,
        "hidden sum",
        "the sum of a group's activations over the calibration data",
    ),
    "ispasp-contribution": SelectorWords(
        "i-SpaSP, by contribution",
        "As i-SpaSP, but of the candidates those stay that add most to the next layer's output.",
        Way.COMPARES,
        "contribution",
        "the size of the part of the next layer's output that a group makes by itself",
    ),
    "cosamp": SelectorWords(
        "CoSaMP",
        "As i-SpaSP, with a least-squares fit of the compared groups in every iteration.",
        Way.COMPARES,
        "fitted weight",
        "the size of the part of the output that a group makes once the compared groups are fitted",
        "how much of the present error the group could explain by itself",
    ),
    "gfs": SelectorWords(
        "Greedy forward selection",
        "Starts from none and adds, one by one, the group that lowers the residual most.",
        Way.ADDS,
        "greedy gain",
        "what a group took off the residual when it was added, or would take off now",
    ),
    "obs": SelectorWords(
        "Backward elimination (OBS)",
        "Starts from all and removes, one by one, the group that costs least with the others re-fitted.",
        Way.REMOVES,
        "removal cost",
        "what a group cost when it was removed, or would cost now, with the others re-fitted",
    ),
    "l1": SelectorWords(
        "Weight norm, L1",
        "Ranks once by the sum of a group's absolute weights; looks at no data.",
        Way.RANKS,
        "L1 weight norm",
        "the sum of the absolute weights that make the group",
    ),
    "l2": SelectorWords(
        "Weight norm, L2",
        "Ranks once by the root of a group's summed squared weights; looks at no data.",
        Way.RANKS,
        "L2 weight norm",
        "the root of the summed squared weights that make the group",
    ),
    "activation": SelectorWords(
        "Activation",
        "Ranks once by how strongly a group answers to the calibration data.",
        Way.RANKS,
        "activation",
        "the root mean square of the group's answers to the calibration data",
    ),
    "taylor": SelectorWords(
        "Taylor, uses labels",
        "Ranks once by how much the loss would change without a group, by gradient; uses labels.",
        Way.RANKS,
        "Taylor score",
        "how much the labelled loss would change without the group, to first order",
    ),
    "random": SelectorWords(
        "Random",
        "Draws once, by the seed: what every other way should beat.",
        Way.RANKS,
        "random number",
        "drawn by the seed; it says nothing about the group",
    ),
}

REFITS: dict[str, tuple[str, str]] = {
    "none": (
        "none, as in the paper",
        "Selection alone: the next layer keeps its weights.",
    ),
    "symmetric": (
        "symmetric",
        "Least squares: the next layer makes up for what its own block lost.",
    ),
    "asymmetric": (
        "asymmetric",
        "Least squares towards the dense network: also mends what earlier blocks lost.",
    ),
}
"""Title and one line per ``reconstruct``."""

SHARES: dict[str, str] = {
    "uniform": "the same for every block",
    "macs": "by sensitivity, for the same MACs",
    "params": "by sensitivity, for the same parameters",
}
"""Title per ``allocation``."""


def selector_words(name: str) -> SelectorWords:
    """The words for the selector ``name``; one without an entry here goes by its name and docstring."""
    if name in _SELECTORS:
        return _SELECTORS[name]
    return SelectorWords(name, selectors.describe(name) if name in selectors.SELECTORS else "")


def panel_names(iteration: Iteration, words: SelectorWords) -> tuple[str, ...]:
    """The scores worth showing: importance and score, or the score alone where importance says no more."""
    alone = words.way in (Way.ADDS, Way.REMOVES) or np.array_equal(
        iteration.importance.numpy(), iteration.score.numpy(), equal_nan=True
    )
    return (words.score,) if alone else ("importance", words.score)


def refit_words(name: str) -> tuple[str, str]:
    """Title and one line of ``reconstruct``."""
    return REFITS.get(name, (name, ""))


def example_word(source: DataSource) -> str:
    """What one example of a source is called: ``"image"``, ``"sentence pair"``, or ``"example"`` where unknown."""
    if source.kind == "python":
        return "example"
    texts = source.kind == "pairs" or (source.kind == "sample" and source.name in data.PAIR_DATASETS)
    return "sentence pair" if texts else "image"

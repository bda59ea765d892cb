"""What the experiment with two-layer networks is asked, and what it finds (``ispasp.two_layer``)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ispasp import datasets, selectors
from ispasp.errors import SettingError, listing
from ispasp.settings import check_keep, check_whole_number

REFITS = ("none", "symmetric")  # with a single block, asymmetric is symmetric
SELECTORS = ("ispasp", "gfs", "l1", "activation", "random")


@dataclass(frozen=True)
class TwoLayerExperiment:
    """What to try.

    Attributes:
        sizes: hidden neurons d, 1 to 20,000 each.
        keeps: kept fractions.
        seeds: each trains a network of its own for every size.
        selectors: some of ``ispasp.selectors.names()``; ``"taylor"``, which needs labels, is not taken.
        reconstruct: some of ``REFITS``.
        samples: calibration examples; 1,280 in the paper.
        epochs: of training.
        tuning_epochs: of fine-tuning each pruned network once more; 0 for none.
        evaluated_seconds: for evaluated greedy selection at each size and kept fraction, before its time is
            extrapolated; 0 leaves it out.
        source: ``sample:mnist``, ``torchvision:MNIST@FOLDER``, or another source of digits.

    Raises:
        SettingError: a value is unknown, out of range, or missing.
    """

    sizes: tuple[int, ...] = (100, 200, 500, 1000, 2000, 5000, 10_000)
    keeps: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    seeds: tuple[int, ...] = (0,)
    selectors: tuple[str, ...] = SELECTORS
    reconstruct: tuple[str, ...] = REFITS
    samples: int = 1280
    epochs: int = 10
    tuning_epochs: int = 2
    evaluated_seconds: float = 3.0
    source: str = "sample:mnist"

    def __post_init__(self) -> None:
        for name in ("sizes", "keeps", "seeds", "selectors", "reconstruct"):
            if not getattr(self, name):
                raise SettingError(f"{name} is empty; give at least one.")
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))  # each once
        for size in self.sizes:
            check_whole_number("A size", size, at_least=1, at_most=20_000)
        for keep in self.keeps:
            check_keep(keep)
        for seed in self.seeds:
            check_whole_number("A seed", seed, at_least=0, at_most=2**63 - 1)
        known = [name for name in selectors.names() if name != "taylor"]
        for what, given, accepted in (
            ("selector", self.selectors, known),
            ("reconstruct", self.reconstruct, list(REFITS)),
        ):
            if foreign := [name for name in given if name not in accepted]:
                raise SettingError(f"Unknown {what} {foreign[0]!r}; choose some of {listing(accepted)}.")
        check_whole_number("samples", self.samples, at_least=1)
        check_whole_number("epochs", self.epochs, at_least=1)
        check_whole_number("tuning_epochs", self.tuning_epochs, at_least=0)
        if not 0 <= self.evaluated_seconds < math.inf:
            raise SettingError(
                f"evaluated_seconds is {self.evaluated_seconds!r}; give a number from 0, such as 3."
            )
        datasets.parse(self.source)


@dataclass(frozen=True)
class NetworkTrained:
    """A dense network is trained; ``accuracy`` in [0, 1] on the test digits, ``seconds`` wall time."""

    neurons: int
    seed: int
    accuracy: float
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class TwoLayerPoint:
    """One pruned network.

    Attributes:
        neurons: hidden neurons d of the dense network.
        keep: kept fraction.
        kept: neurons kept, s.
        seed: of the network, and of a random selection.
        selector: which way they were chosen.
        reconstruct: ``"none"``, or ``"symmetric"`` for a re-fitted output layer.
        tuned: whether the pruned network was fine-tuned.
        accuracy: in [0, 1], on the test digits.
        residual: ||V||_F^2 / ||A(H)||_F^2 of the selection, on the calibration digits, before any re-fit.
        iterations: that the selector took.
        seconds: processor seconds to choose the neurons from H: statistics and iterations (for gfs the Gram matrix).
        refit_seconds: the same of the re-fit; 0 without one.
        tuning_seconds: wall time of the fine-tuning; 0 without it.
    """

    neurons: int
    keep: float
    kept: int
    seed: int
    selector: str
    reconstruct: str
    tuned: bool
    accuracy: float
    residual: float
    iterations: int
    seconds: float = field(compare=False)
    refit_seconds: float = field(compare=False)
    tuning_seconds: float = field(compare=False)


@dataclass(frozen=True)
class EvaluatedGreedy:
    """Greedy forward selection as published, timed.

    Attributes:
        neurons, keep, kept, seed: as of ``TwoLayerPoint``.
        seconds: processor seconds; where not all evaluations were made, of so many at the same rate.
        evaluations: how many there are: d + (d - 1) + ... in s steps.
        timed: how many were made.
        equal: whether it chose the neurons that gfs chose; None where not all were evaluated, or gfs was not asked for.
    """

    neurons: int
    keep: float
    kept: int
    seed: int
    seconds: float = field(compare=False)
    evaluations: int
    timed: int = field(compare=False)
    equal: bool | None = field(compare=False)

    @property
    def extrapolated(self) -> bool:
        """Whether the seconds are of evaluations that were not made."""
        return self.timed < self.evaluations


@dataclass(frozen=True)
class TwoLayerFindings:
    """All that an experiment found, in the order it was found.

    Attributes:
        experiment: what was asked.
        training_digits, test_digits: how many there were.
        networks, points, evaluated: one per network, per pruned network, and per size, kept fraction and seed.
    """

    experiment: TwoLayerExperiment
    training_digits: int
    test_digits: int
    networks: tuple[NetworkTrained, ...]
    points: tuple[TwoLayerPoint, ...]
    evaluated: tuple[EvaluatedGreedy, ...]

    @property
    def standard_error(self) -> float:
        """Of the dense networks' mean accuracy, in points, from the number of test digits alone."""
        mean = sum(network.accuracy for network in self.networks) / len(self.networks)
        return 100 * math.sqrt(mean * (1 - mean) / self.test_digits)


Found = NetworkTrained | TwoLayerPoint | EvaluatedGreedy

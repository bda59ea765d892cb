"""The laboratory for the paper's theorem: two-layer networks whose hidden rows are compressible by construction.

As in the paper's synthetic experiment (Wolfe & Kyrillidis 2022, arXiv 2112.04905): a hidden representation H of d rows
whose i-th largest norm is i^(-1/p), never negative as behind a ReLU, and a Gaussian consumer A. Algorithm 1 itself
(``ispasp.algorithm``) keeps s rows. The theorem's rate is ||V||_F ~ s^(1/2 - 1/p), the slope 1 - 2/p of log ||V||_F^2
against log s. Beside it: how the residual falls from iteration to iteration, what the candidate factor does, and what
of all this is left on a network whose rows nobody has arranged, before and after it is trained.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import product, starmap
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ispasp import algorithm, data, statistics
from ispasp.algorithm import SelectorSettings
from ispasp.compressibility import PowerLaw, fit, line, theorem_rate
from ispasp.errors import SettingError
from ispasp.progress import part, result
from ispasp.records import Block, Iteration, Progress, Shown
from ispasp.residual import Consumer
from ispasp.settings import check_whole_number
from ispasp.statistics import Statistics

EXPONENTS = (0.3, 0.5, 0.7, 0.9)
"""The paper's p."""
FACTORS = (1.0, 1.5, 2.0, 4.0)
"""Candidate factors that are compared."""
FITTED = (0.05, 0.5)  # kept fractions between which the slope is taken: below, few rows; above, the tail ends
SIZES = 14  # numbers of rows kept, unless they are given
COMPARED_TRIALS, COMPARED_SIZES = 10, 6  # for each candidate factor
TRAINED_TRIALS, TRAINING_STEPS, LEARNING_RATE = 3, 200, 3e-3  # of the networks that are trained
MOST_HIDDEN, MOST_OUTPUTS, MOST_SAMPLES, MOST_TRIALS = 2000, 1000, 5000, 200


@dataclass(frozen=True)
class Experiment:
    """What the laboratory is asked.

    Attributes:
        hidden: d, rows of H.
        outputs: rows of A, whose entries have the variance 1/d. The more there are, the more alike are the factors by
            which A changes the lengths of sparse vectors.
        samples: columns of H.
        exponents: values of p, above 0.
        sizes: numbers s of rows kept, each in [1, d - 1]; by default spread over a log scale from 5 % of d up.
        trials: networks that are drawn; they are the same for every p.
        candidate_factor: c of Algorithm 1, 1 or more.
        iterations: T of Algorithm 1.
        seed: of all that is drawn.

    Raises:
        SettingError: a value is out of its range.
    """

    hidden: int = 100
    outputs: int = 20
    samples: int = 100
    exponents: tuple[float, ...] = EXPONENTS
    sizes: tuple[int, ...] = ()
    trials: int = 20
    candidate_factor: float = 2.0
    iterations: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole_number("hidden", self.hidden, 20, MOST_HIDDEN)
        check_whole_number("outputs", self.outputs, 1, MOST_OUTPUTS)
        check_whole_number("samples", self.samples, 20, MOST_SAMPLES)
        check_whole_number("trials", self.trials, 1, MOST_TRIALS)
        check_whole_number("iterations", self.iterations, 1)
        check_whole_number("seed", self.seed, 0, 2**31)
        for name, value, least, most in [("candidate_factor", self.candidate_factor, 1.0, 100.0)] + [
            ("an exponent", exponent, 0.1, 2.0) for exponent in self.exponents
        ]:
            if not least <= value < most:
                raise SettingError(
                    f"{name} is {value!r}; give a number from {least:g} up and below {most:g}."
                )
        if not self.exponents:
            raise SettingError("There is no exponent; give at least one, such as 0.5.")
        object.__setattr__(self, "exponents", tuple(sorted(set(self.exponents))))
        object.__setattr__(self, "sizes", tuple(sorted(set(self.sizes or spread(self.hidden)))))
        for size in self.sizes:
            check_whole_number("a size", size, 1, self.hidden - 1)
        if len(self.fitted) < 2:
            low, high = (math.ceil(share * self.hidden) for share in FITTED)
            raise SettingError(
                f"The slope is taken between {low} and {high} rows kept, and {len(self.fitted)} of the sizes "
                f"{'lies' if len(self.fitted) == 1 else 'lie'} there; give two or more."
            )

    @property
    def fitted(self) -> tuple[int, ...]:
        """The sizes between which the slope is taken."""
        return tuple(s for s in self.sizes if FITTED[0] <= s / self.hidden <= FITTED[1])

    def outputs_needed(self, size: int) -> int:
        """Below which A is no restricted isometry for 4 s rows: as many of its columns depend on each other."""
        return min(4 * size, self.hidden)

    @property
    def cases(self) -> list[Case]:
        """What is pruned to see the decay."""
        return self._cases(self.trials, (self.candidate_factor,), self.sizes)

    @property
    def compared(self) -> list[Case]:
        """What is pruned to compare candidate factors: a few of the networks and sizes, with all of ``FACTORS``."""
        small = [s for s in self.sizes if s <= FITTED[1] * self.hidden]
        places = np.linspace(0, len(small) - 1, min(COMPARED_SIZES, len(small)))
        sizes = [small[round(place)] for place in places.tolist()]
        return self._cases(min(COMPARED_TRIALS, self.trials), FACTORS, sizes)

    @property
    def trained(self) -> int:
        """How many networks are trained on digits."""
        return min(TRAINED_TRIALS, self.trials)

    def _cases(self, trials: int, factors: Sequence[float], sizes: Sequence[int]) -> list[Case]:
        return list(starmap(Case, product(range(trials), self.exponents, factors, sizes)))


class Case(NamedTuple):
    """One network, by number and exponent, to be pruned with one candidate factor to one size."""

    trial: int
    exponent: float
    candidate_factor: float
    size: int


@dataclass(frozen=True)
class Trial(Shown):
    """One network of the laboratory, pruned to one size.

    Attributes:
        exponent: p.
        trial: which of the networks, from 0.
        size: s, rows kept.
        candidate_factor: c.
        residuals: ||V||_F^2 after every iteration; the last is what Algorithm 1 comes to.
        energy: ||A(H)||_F^2.
        ideal: ||V||_F^2 where the s largest rows are kept.
        recovered: share of the s largest rows that are kept.
    """

    exponent: float
    trial: int
    size: int
    candidate_factor: float
    residuals: tuple[float, ...]
    energy: float
    ideal: float
    recovered: float

    @property
    def residual(self) -> float:
        """||V||_F^2 in the end."""
        return self.residuals[-1]


@dataclass(frozen=True)
class Network(Shown):
    """A two-layer ReLU network on MNIST digits, as it is drawn or after training.

    Attributes:
        trained: whether it was trained.
        trial: which of the networks, from 0; a trained one starts from the drawn one of the same number.
        accuracy: on the test digits.
        law: the power law through its hidden rows; None where nearly all are dead.
        sizes: rows kept.
        residuals: ||V||_F^2 / ||A(H)||_F^2 at these.
    """

    trained: bool
    trial: int
    accuracy: float
    law: PowerLaw | None
    sizes: tuple[int, ...]
    residuals: tuple[float, ...]


@dataclass(frozen=True)
class Findings(Shown):
    """What the laboratory found: ``trials`` with the experiment's candidate factor, ``factors`` with all of
    ``FACTORS``, ``networks`` on digits."""

    experiment: Experiment
    trials: tuple[Trial, ...]
    factors: tuple[Trial, ...]
    networks: tuple[Network, ...]


@dataclass(frozen=True)
class Decay(Shown):
    """How the residual decays with the rows kept.

    Attributes:
        exponent: p.
        slope: of log ||V||_F^2 against log s, the mean over the trials.
        spread: the standard deviation of a single trial's slope, estimated from all; 0 for a single one.
        rate: the theorem's slope 1 - 2/p.
        sizes: all sizes.
        residuals: the geometric mean of ||V||_F^2 over the trials, for each size.
        low, high: its smallest and largest value.
    """

    exponent: float
    slope: float
    spread: float
    rate: float
    sizes: tuple[int, ...]
    residuals: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def spread(hidden: int, count: int = SIZES) -> tuple[int, ...]:
    """About ``count`` numbers of rows from 5 % to all but one, evenly on a log scale."""
    sizes = np.geomspace(max(1, FITTED[0] * hidden), hidden - 1, count)
    return tuple(sorted({round(size) for size in sizes.tolist()}))


def run(experiment: Experiment, whole: bool = True) -> Generator[Progress, None, Findings]:
    """The decay, and where the ``whole`` is wanted the candidate factors and the networks on digits."""
    if not whole:
        return Findings(experiment, (yield from trial_steps(experiment, experiment.cases)), (), ())
    trials = yield from part(trial_steps(experiment, experiment.cases), 0.0, 0.5)
    factors = yield from part(trial_steps(experiment, experiment.compared), 0.5, 0.8)
    networks = yield from part(network_steps(experiment), 0.8, 1.0)
    return Findings(experiment, trials, factors, networks)


def find(experiment: Experiment, whole: bool = True) -> Findings:
    """The same at one go."""
    return result(run(experiment, whole))


def trial_steps(
    experiment: Experiment, cases: Sequence[Case]
) -> Generator[Progress, None, tuple[Trial, ...]]:
    """Prune networks of the experiment."""
    found: list[Trial] = []
    latest = None
    for case in cases:
        yield Progress(len(found) / len(cases), f"pruning network {case.trial + 1}")
        if (case.trial, case.exponent) != latest:
            latest = (case.trial, case.exponent)
            collected = collect(*drawn(experiment, case.exponent, case.trial))
        found.append(_trial(collected, case, experiment.iterations))
    return tuple(found)


def drawn(experiment: Experiment, exponent: float, trial: int) -> tuple[Tensor, Tensor]:
    """One network: H (samples, d), the norms of whose columns are i^(-1/p) in some order, and the consumer's weight
    (outputs, d), both float64. But for the norms they are the same for every p."""
    generator = torch.Generator().manual_seed(experiment.seed * MOST_TRIALS + trial)
    wide, count = torch.float64, experiment.hidden
    hidden = torch.randn(experiment.samples, count, generator=generator, dtype=wide).relu()
    hidden /= torch.linalg.vector_norm(hidden, dim=0).clamp_min(torch.finfo(wide).tiny)
    weight = torch.randn(experiment.outputs, count, generator=generator, dtype=wide) / math.sqrt(count)
    ranks = torch.randperm(count, generator=generator) + 1
    return hidden * ranks.to(wide) ** (-1 / exponent), weight


def collect(hidden: Tensor, weight: Tensor) -> Statistics:
    """The statistics of a block made of H (n, d) and a linear consumer's weight (outputs, d)."""
    graph = fx.Graph()
    read = graph.call_function(
        torch.ops.aten.linear.default, (graph.placeholder("h"), graph.placeholder("w"))
    )
    block = Block("hidden", groups=hidden.shape[1], kind="neuron", prunable=True)
    return statistics.collect(block, [Consumer(read, weight)], [hidden], hidden.new_empty(hidden.shape[1], 0))


@torch.no_grad()
def _iterations(collected: Statistics, size: int, settings: SelectorSettings) -> list[Iteration]:
    return list(algorithm.ispasp(collected, size, settings))


def _trial(collected: Statistics, case: Case, iterations: int) -> Trial:
    steps = _iterations(collected, case.size, SelectorSettings(case.candidate_factor, iterations))
    energy = collected.output.energy
    ideal = algorithm.largest(collected.hidden_rms, case.size)
    return Trial(
        exponent=case.exponent,
        trial=case.trial,
        size=case.size,
        candidate_factor=case.candidate_factor,
        residuals=tuple(step.residual for step in steps),
        energy=energy,
        ideal=collected.output.select(ideal),
        recovered=int(ideal[list(steps[-1].selected)].sum()) / case.size,
    )


def decays(findings: Findings) -> list[Decay]:
    """One record for each p, rising."""
    experiment = findings.experiment
    fitted = [experiment.sizes.index(size) for size in experiment.fitted]
    found = []
    for exponent in experiment.exponents:
        own = [trial.residual for trial in findings.trials if trial.exponent == exponent]
        values = np.array(own).reshape(-1, len(experiment.sizes))  # (trials, sizes)
        slopes = [line(experiment.fitted, row[fitted])[0] for row in values]
        found.append(
            Decay(
                exponent=exponent,
                slope=float(np.mean(slopes)),
                spread=float(np.std(slopes, ddof=1)) if len(slopes) > 1 else 0.0,
                rate=theorem_rate(exponent),
                sizes=experiment.sizes,
                residuals=tuple(np.exp(np.log(values).mean(0)).tolist()),
                low=tuple(values.min(0).tolist()),
                high=tuple(values.max(0).tolist()),
            )
        )
    return found


# -- networks that nobody has arranged ------------------------------------------------------------------


def network_steps(experiment: Experiment) -> Generator[Progress, None, tuple[Network, ...]]:
    """Two-layer networks of d neurons on the shipped MNIST digits at half size, as drawn and after training.

    The 512 digits to calibrate with are what they are trained on and what H comes from.
    """
    digits, labels = _digits("calibration")
    test, answers = _digits("test")
    found = []
    for trial in range(experiment.trained):
        generator = torch.Generator().manual_seed(experiment.seed * MOST_TRIALS + trial)
        inner = torch.randn(experiment.hidden, digits.shape[1], generator=generator) / math.sqrt(
            digits.shape[1]
        )
        outer = torch.randn(10, experiment.hidden, generator=generator) / math.sqrt(experiment.hidden)
        offset = torch.zeros(experiment.hidden)
        parameters = [value.requires_grad_() for value in (inner, offset, outer)]
        found.append(_network(False, trial, parameters, digits, test, answers, experiment))
        optimiser = torch.optim.Adam(parameters, LEARNING_RATE)
        for step in range(TRAINING_STEPS):
            done = (trial + step / TRAINING_STEPS) / experiment.trained
            yield Progress(done, f"training network {trial + 1}")
            with torch.enable_grad():
                loss = F.cross_entropy((digits @ inner.T + offset).relu() @ outer.T, labels)
                gradients = torch.autograd.grad(loss, parameters)
            for value, gradient in zip(parameters, gradients, strict=True):
                value.grad = gradient
            optimiser.step()
        found.append(_network(True, trial, parameters, digits, test, answers, experiment))
    return tuple(found)


def _digits(split: str) -> tuple[Tensor, Tensor]:
    """Digits of 14 x 14 pixels, (n, 196) with the mean 0 and the deviation 1 of all, and their classes (n,)."""
    images = data.sample_images("mnist", split)
    small = F.avg_pool2d(images.images.float(), 2).flatten(1)
    return (small - small.mean()) / small.std(), images.labels


@torch.no_grad()
def _network(
    trained: bool,
    trial: int,
    parameters: Sequence[Tensor],
    digits: Tensor,
    test: Tensor,
    answers: Tensor,
    experiment: Experiment,
) -> Network:
    inner, offset, outer = (value.detach() for value in parameters)
    right = ((test @ inner.T + offset).relu() @ outer.T).argmax(1) == answers
    collected = collect((digits @ inner.T + offset).relu().double(), outer.double())
    settings = SelectorSettings(experiment.candidate_factor, experiment.iterations)
    last = [_iterations(collected, size, settings)[-1] for size in experiment.sizes]
    return Network(
        trained=trained,
        trial=trial,
        accuracy=float(right.float().mean()),
        law=fit(collected.hidden_rms.cpu().numpy()),
        sizes=experiment.sizes,
        residuals=tuple(step.relative_residual for step in last),
    )

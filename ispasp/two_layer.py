"""The paper's experiment on MNIST: two-layer networks of many widths, i-SpaSP against greedy forward selection.

Networks 784 - d - 10 with ReLU are trained on MNIST, as in the paper's experiment with two-layer networks (Wolfe &
Kyrillidis, 2022), and s of their d hidden neurons are kept: by several selectors; with the output layer's own weights
and with re-fitted ones; and each of these with and without fine-tuning. All selectors start from the same stored hidden
representation H (``ispasp.hidden_layer``); evaluated greedy selection is timed as long as is asked for, and the exact
number of its evaluations gives the rest.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ispasp import datasets, reconstruct, zoo
from ispasp.calibration import Batch, read
from ispasp.errors import CalibrationError
from ispasp.hidden_layer import (
    ROUNDS,
    HiddenLayer,
    Selection,
    evaluated_gfs,
    evaluations_needed,
    hidden_of,
    select,
)
from ispasp.progress import part
from ispasp.records import Progress
from ispasp.settings import groups_to_keep
from ispasp.tuning.drawing import repeatable
from ispasp.tuning.loop import tune_steps
from ispasp.tuning.records import Tuned
from ispasp.tuning.settings import TuneSettings
from ispasp.tuning.training_set import TrainingSet
from ispasp.two_layer_records import (
    EvaluatedGreedy,
    Found,
    NetworkTrained,
    TwoLayerExperiment,
    TwoLayerFindings,
    TwoLayerPoint,
)
from sample_models.architectures import TwoLayerNet

CLASSES = tuple(str(digit) for digit in range(10))
MOST_TEST_DIGITS = 10_000
TRAINING_SHARE = 0.4  # of the time that a network takes, roughly, for the progress
RATE = 0.05  # of SGD, to train and to fine-tune


def run(experiment: TwoLayerExperiment) -> Generator[Progress | Found, None, TwoLayerFindings]:
    """Train, prune, re-fit and fine-tune networks of every size, on the CPU.

    It can be closed between any two events. Up to 2,000 neurons these are tenths of a second apart; at 10,000 the Gram
    matrix of gfs takes seconds in one step, and 2.4 GB.

    Yields:
        ``Progress``, a ``NetworkTrained`` per size and seed, and behind it its ``EvaluatedGreedy`` and
        ``TwoLayerPoint`` records, kept fraction after kept fraction.

    Raises:
        CalibrationError, ModelError: the digits are missing, damaged, or without labels.
        SettingError: a Gram matrix would not fit.
    """
    yield Progress(0.0, "loading the digits")
    digits = load_digits(experiment)
    found: list[Found] = []
    networks = [(size, seed) for size in experiment.sizes for seed in experiment.seeds]
    work = [size + 300 for size, _ in networks]  # small ones take time, too
    for number, (size, seed) in enumerate(networks):
        trial = Trial(experiment, digits, size, seed)
        before = sum(work[:number])
        for event in part(trial.steps(), before / sum(work), (before + work[number]) / sum(work)):
            if not isinstance(event, Progress):
                found.append(event)
            yield event
    yield Progress(1.0, "finished")
    return TwoLayerFindings(
        experiment,
        len(digits.training),
        sum(map(len, digits.test)),
        tuple(one for one in found if isinstance(one, NetworkTrained)),
        tuple(one for one in found if isinstance(one, TwoLayerPoint)),
        tuple(one for one in found if isinstance(one, EvaluatedGreedy)),
    )


@dataclass(frozen=True, eq=False)
class Digits:
    """The training digits, the first of them as calibration inputs (n, 1, 28, 28), and test batches."""

    training: TrainingSet
    calibration: Tensor
    test: list[Batch]


def load_digits(experiment: TwoLayerExperiment) -> Digits:
    """The digits of the experiment's source.

    Raises:
        CalibrationError, ModelError: they are missing or damaged, or have no labels.
    """
    preparation = zoo.preparation("mnist_mlp")
    source = datasets.parse(experiment.source)
    found = datasets.load_training(
        source, preparation, CLASSES, outputs=len(CLASSES), evaluation=MOST_TEST_DIGITS
    )
    if not (found.set.labelled and found.classes):
        raise CalibrationError(
            f"{experiment.source} gives no labels from 0 to 9; use sample:mnist or torchvision:MNIST@FOLDER."
        )
    samples = min(experiment.samples, len(found.set))
    [first] = found.set.batches([list(range(samples))])
    return Digits(found.set, first.tensors[0], read(found.evaluation, "evaluation"))


class Trial:
    """One network, pruned in every way.

    Attributes:
        network: the dense one, once it is trained.
    """

    network: TwoLayerNet

    def __init__(self, experiment: TwoLayerExperiment, digits: Digits, neurons: int, seed: int) -> None:
        self.experiment, self.digits, self.neurons, self.seed = experiment, digits, neurons, seed

    def steps(self) -> Generator[Progress | Found, None, None]:
        """All of it, with progress from 0 to 1."""
        experiment = self.experiment
        began = time.perf_counter()
        doing = f"{self.neurons:,} neurons: training"
        training = self._trained(_fresh(self.neurons, self.seed), experiment.epochs, doing)
        tuned = yield from part(training, 0.0, TRAINING_SHARE)
        self.network = cast(TwoLayerNet, tuned.model)
        self.layer = HiddenLayer.of(self.network, self.digits.calibration)
        self.test = [hidden_of(self.network, batch.tensors[0]) for batch in self.digits.test]
        yield NetworkTrained(
            self.neurons,
            self.seed,
            self._accuracy(self._logits(self.network)),
            time.perf_counter() - began,
        )
        share = (1 - TRAINING_SHARE) / len(experiment.keeps)
        for number, keep in enumerate(experiment.keeps):
            begin = TRAINING_SHARE + share * number
            yield from part(self._pruned(keep), begin, begin + share)

    def _pruned(self, keep: float) -> Generator[Progress | Found, None, None]:
        """The network pruned to a kept fraction in every way."""
        experiment, kept = self.experiment, groups_to_keep(self.neurons, keep)
        share = 1 / (len(experiment.selectors) + (experiment.evaluated_seconds > 0))
        greedy: Selection | None = None
        for number, selector in enumerate(experiment.selectors):
            yield Progress(number * share, f"{self.neurons:,} neurons, {kept:,} kept: {selector}")
            chosen = select(self.layer, selector, kept, self.seed, rounds=1 if selector == "gfs" else ROUNDS)
            greedy = chosen if selector == "gfs" else greedy
            yield from part(self._measured(keep, selector, chosen), number * share, (number + 1) * share)
        if experiment.evaluated_seconds > 0:
            yield from part(self._evaluated(keep, kept, greedy), 1 - share, 1.0)

    def _measured(
        self, keep: float, selector: str, chosen: Selection
    ) -> Generator[Progress | Found, None, None]:
        """A selection with every kind of re-fit, with and without fine-tuning."""
        experiment, kept = self.experiment, len(chosen.selected)
        share = 1 / len(experiment.reconstruct)
        for number, how in enumerate(experiment.reconstruct):
            weight, bias, refit_seconds = self._output_layer(chosen, how)

            def point(accuracy: float, tuning_seconds: float | None = None) -> TwoLayerPoint:
                return TwoLayerPoint(
                    neurons=self.neurons,
                    keep=keep,
                    kept=kept,
                    seed=self.seed,
                    selector=selector,
                    reconstruct=how,  # noqa: B023 - called within this round
                    tuned=tuning_seconds is not None,
                    accuracy=accuracy,
                    residual=chosen.residual,
                    iterations=chosen.iterations,
                    seconds=chosen.seconds,
                    refit_seconds=refit_seconds,  # noqa: B023
                    tuning_seconds=tuning_seconds or 0.0,
                )

            index = list(chosen.selected)
            logits = [hidden[:, index] @ weight.T + bias for hidden in self.test]
            yield point(self._accuracy(logits))
            if not experiment.tuning_epochs:
                continue
            network = _fresh(kept, self.seed)
            network.load_state_dict(
                {
                    "fc1.weight": self.network.fc1.weight[index],
                    "fc1.bias": self.network.fc1.bias[index],
                    "fc2.weight": weight,
                    "fc2.bias": bias,
                }
            )
            doing = f"{self.neurons:,} neurons, {kept:,} kept by {selector}: fine-tuning"
            training = self._trained(network, experiment.tuning_epochs, doing)
            tuned = yield from part(training, number * share, (number + 1) * share)
            yield point(self._accuracy(self._logits(tuned.model)), tuned.seconds)

    def _evaluated(
        self, keep: float, kept: int, greedy: Selection | None
    ) -> Generator[Progress | Found, None, None]:
        """Evaluated greedy selection, or as much of it as there is time for."""
        work = evaluated_gfs(
            self.layer.hidden, self.layer.consumer.weight, kept, self.experiment.evaluated_seconds
        )
        while True:
            try:
                done = next(work)
            except StopIteration as stop:
                order, timed, seconds = stop.value
                break
            yield Progress(done, f"{self.neurons:,} neurons, {kept:,} kept: evaluated greedy selection")
        needed = evaluations_needed(self.neurons, kept)
        equal = tuple(sorted(order)) == greedy.selected if greedy and timed == needed else None
        yield EvaluatedGreedy(
            self.neurons, keep, kept, self.seed, seconds * needed / timed, needed, timed, equal
        )

    @torch.no_grad()
    def _output_layer(self, chosen: Selection, how: str) -> tuple[Tensor, Tensor, float]:
        """Weight (10, s) and bias (10,) behind the chosen neurons, and the processor seconds of the re-fit."""
        layer, bias = self.layer, self.network.fc2.bias.detach()
        if how == "none":
            return layer.consumer.weight[:, list(chosen.selected)], bias, 0.0
        begin = time.thread_time()
        found = layer.statistics()
        selected = found.mask(chosen.selected)
        found.output.select(selected)
        kept, lost = found.output.kept[0], found.output.lost[0]
        refit = reconstruct.refit(layer.consumer, [layer.hidden], selected, 1, kept, lost, intercept=True)
        assert refit.intercept is not None
        return refit.weight, bias + refit.intercept, time.thread_time() - begin

    def _trained(self, network: TwoLayerNet, epochs: int, doing: str) -> Generator[Progress, None, Tuned]:
        """``network`` trained on the digits; the best epoch by held-out digits."""
        settings = TuneSettings(
            epochs=epochs, optimiser="sgd", learning_rate=RATE, augment=False, seed=self.seed
        )
        steps = tune_steps(network, None, self.digits.training, [], settings, device=torch.device("cpu"))
        while True:
            try:
                event = next(steps)
            except StopIteration as stop:
                return cast(Tuned, stop.value)
            if isinstance(event, Progress):
                yield Progress(event.done, doing)

    @torch.no_grad()
    def _logits(self, network: nn.Module) -> list[Tensor]:
        return [network(batch.tensors[0]) for batch in self.digits.test]

    def _accuracy(self, logits: Sequence[Tensor]) -> float:
        """Share of the test digits whose largest output is the right one."""
        labels = [cast(Tensor, batch.labels) for batch in self.digits.test]
        right = sum(int((out.argmax(1) == true).sum()) for out, true in zip(logits, labels, strict=True))
        return right / sum(map(len, labels))


def _fresh(neurons: int, seed: int) -> TwoLayerNet:
    """A network with weights drawn from the seed; the caller's random state is left alone."""
    with repeatable(torch.device("cpu"), seed):
        return TwoLayerNet(hidden=neurons)

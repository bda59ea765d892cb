"""The experiment with two-layer networks from settings to disk: one JSON file in the runs folder for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from ispasp import plain_files, two_layer
from ispasp.compressibility import FOLDER
from ispasp.errors import ISpaSPError
from ispasp.plain_files import check_fields, tuples
from ispasp.records import Progress
from ispasp.settings import groups_to_keep
from ispasp.two_layer_records import (
    EvaluatedGreedy,
    Found,
    NetworkTrained,
    TwoLayerExperiment,
    TwoLayerFindings,
    TwoLayerPoint,
)

FORMAT = 1

Record = TypeVar("Record", NetworkTrained, TwoLayerPoint, EvaluatedGreedy)


@dataclass(frozen=True)
class TwoLayerDone:
    """The experiment is finished; ``path`` is where the findings lie."""

    findings: TwoLayerFindings
    path: Path


def execute(
    experiment: TwoLayerExperiment, runs_folder: Path
) -> Generator[Progress | Found | TwoLayerDone, None, None]:
    """Make an experiment and keep what it found; the last event is ``TwoLayerDone``.

    Raises:
        ISpaSPError: as ``two_layer.run``, or the folder cannot be written.
    """
    findings = yield from two_layer.run(experiment)
    path = path_of(experiment, runs_folder)
    plain_files.write_json(path, {"format": FORMAT, **dataclasses.asdict(findings)})
    yield TwoLayerDone(findings, path)


def path_of(experiment: TwoLayerExperiment, runs_folder: Path) -> Path:
    """Where the findings of an experiment lie."""
    return runs_folder / FOLDER / f"digits-{plain_files.digest(dataclasses.asdict(experiment))}.json"


def load(experiment: TwoLayerExperiment, runs_folder: Path) -> TwoLayerFindings | None:
    """What the same experiment found before; None where it was not made, or the file is damaged."""
    plain = plain_files.read_json(path_of(experiment, runs_folder))
    try:
        if plain["format"] != FORMAT or TwoLayerExperiment(**tuples(plain["experiment"])) != experiment:
            return None
        found = check_fields(
            TwoLayerFindings(
                experiment,
                plain["training_digits"],
                plain["test_digits"],
                _all(NetworkTrained, plain["networks"]),
                _all(TwoLayerPoint, plain["points"]),
                _all(EvaluatedGreedy, plain["evaluated"]),
            )
        )
    except (AttributeError, KeyError, TypeError, ValueError, ISpaSPError):
        return None
    return found if _whole(found) else None


def _whole(found: TwoLayerFindings) -> bool:
    """Whether everything that was asked for is there, and can be what was found."""
    asked = found.experiment
    networks = list(product(asked.sizes, asked.seeds))
    greedy = asked.keeps if asked.evaluated_seconds > 0 else ()
    tuned = (False, True) if asked.tuning_epochs else (False,)
    ways = product(asked.sizes, asked.seeds, asked.keeps, asked.selectors, asked.reconstruct, tuned)
    points = [(p.neurons, p.seed, p.keep, p.selector, p.reconstruct, p.tuned) for p in found.points]
    return (
        [(n.neurons, n.seed) for n in found.networks] == networks
        and points == list(ways)
        and [(e.neurons, e.seed, e.keep) for e in found.evaluated]
        == [(*n, k) for n in networks for k in greedy]
        and all(0 <= n.accuracy <= 1 for n in found.networks)
        and all(0 <= p.accuracy <= 1 and p.seconds >= 0 for p in found.points)
        and all(p.kept == groups_to_keep(p.neurons, p.keep) for p in found.points)
        and all(0 < e.timed <= e.evaluations and e.seconds >= 0 for e in found.evaluated)
        and min(found.training_digits, found.test_digits) > 0
    )


def _all(kind: type[Record], plain: list[dict[str, Any]]) -> tuple[Record, ...]:
    return tuple(check_fields(kind(**tuples(values))) for values in plain)

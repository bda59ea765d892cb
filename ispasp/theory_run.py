"""The laboratory's findings from settings to disk: one JSON file in the runs folder for each experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ispasp import plain_files, theory
from ispasp.compressibility import FOLDER, law_of
from ispasp.errors import SettingError
from ispasp.plain_files import check_fields, tuples
from ispasp.records import Progress
from ispasp.theory import Case, Experiment, Findings, Network, Trial

FORMAT = 1


@dataclass(frozen=True)
class TheoryDone:
    """The experiment is finished; ``path`` is where the findings lie."""

    findings: Findings
    path: Path


def execute(experiment: Experiment, runs_folder: Path) -> Generator[Progress | TheoryDone, None, None]:
    """Make an experiment and keep what it found; the last event is ``TheoryDone``.

    Raises:
        ISpaSPError: the shipped digits are missing, or the folder cannot be written.
    """
    findings = yield from theory.run(experiment)
    path = path_of(experiment, runs_folder)
    plain_files.write_json(path, plain(findings))
    yield Progress(1.0, "finished")
    yield TheoryDone(findings, path)


def plain(findings: Findings) -> dict[str, Any]:
    """Ready for JSON."""
    return {"format": FORMAT, **dataclasses.asdict(findings)}


def path_of(experiment: Experiment, runs_folder: Path) -> Path:
    """Where the findings of an experiment lie."""
    return runs_folder / FOLDER / f"synthetic-{plain_files.digest(dataclasses.asdict(experiment))}.json"


def load(experiment: Experiment, runs_folder: Path) -> Findings | None:
    """What the same experiment found before; None where it was not made, or the file is damaged."""
    values = plain_files.read_json(path_of(experiment, runs_folder))
    try:
        if values["format"] != FORMAT or Experiment(**tuples(values["experiment"])) != experiment:
            return None
        return _checked(
            Findings(
                experiment,
                tuple(_trial(each) for each in values["trials"]),
                tuple(_trial(each) for each in values["factors"]),
                tuple(_network(each) for each in values["networks"]),
            )
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, SettingError):
        return None


def _checked(findings: Findings) -> Findings:
    """Raises ValueError where something is missing, or answers another question."""
    asked = findings.experiment
    for found, cases in ((findings.trials, asked.cases), (findings.factors, asked.compared)):
        if [Case(one.trial, one.exponent, one.candidate_factor, one.size) for one in found] != cases:
            raise ValueError("trials are missing")
    networks = [(one.trial, one.trained, one.sizes) for one in findings.networks]
    if networks != [(t, trained, asked.sizes) for t in range(asked.trained) for trained in (False, True)]:
        raise ValueError("networks are missing")
    return findings


def _trial(values: dict[str, Any]) -> Trial:
    trial = check_fields(Trial(**tuples(values)))
    if not trial.residuals or min(*trial.residuals, trial.energy, trial.ideal) <= 0:
        raise ValueError("a residual is not above 0")
    return trial


def _network(values: dict[str, Any]) -> Network:
    law = None if values["law"] is None else law_of(values["law"])
    network = check_fields(Network(**{**tuples(values), "law": law}))
    if len(network.sizes) != len(network.residuals) or min(network.residuals) < 0:
        raise ValueError("a network is not whole")
    return network

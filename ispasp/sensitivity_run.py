"""Sensitivities from settings to disk: open a model and its data, measure every block, keep the curves.

They lie in the runs folder under ``.sensitivity``, one JSON file for each choice of the settings that matter.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ispasp import plain_files, sensitivity, taylor
from ispasp.errors import SettingError, listing
from ispasp.opened import Opened, open_all
from ispasp.plain_files import check_fields, tuples
from ispasp.reading import block_of
from ispasp.records import Block, Progress
from ispasp.run_settings import RunSettings
from ispasp.sensitivity import FINE, Curve
from ispasp.settings import check_keep

FOLDER = ".sensitivity"  # in the runs folder
FORMAT = 1


@dataclass(frozen=True)
class SensitivityDone:
    """Every block was measured; ``path`` is where the curves lie."""

    curves: list[Curve]
    path: Path


def blocks_of(opened: Opened, settings: RunSettings) -> list[Block]:
    """What may be pruned, of the kinds in the settings, in network order.

    Raises:
        SettingError: nothing.
    """
    blocks = [block for block in opened.subject.blocks if block.prunable and block.kind in settings.kinds]
    if not blocks:
        raise SettingError(
            f"The model {settings.model} has no prunable {listing(f'{kind}s' for kind in settings.kinds)}; "
            "choose other kinds."
        )
    return blocks


def execute(
    settings: RunSettings,
    runs_folder: Path,
    fractions: Sequence[float] = FINE,
    *,
    allow_code: bool = False,
) -> Generator[Progress | SensitivityDone, None, None]:
    """Measure every block alone and keep the curves; the last event is ``SensitivityDone``.

    What is on disk is used where model and data are still the same.

    Args:
        settings: model, data and how to prune; keep ratios, allocation and distillation do not matter.
        runs_folder: where runs are kept.
        fractions: kept fractions at which to measure, each in (0, 1).
        allow_code: whether a Python file that the settings name may be run.

    Raises:
        ISpaSPError: what was given cannot be used, or the folder cannot be written.
    """
    opened = yield from open_all(settings, allow_code=allow_code)
    curves = yield from curves_of(opened, settings, runs_folder, fractions)
    yield Progress(1.0, "finished")
    yield SensitivityDone(curves, path_of(settings, runs_folder, fractions))


def curves_of(
    opened: Opened, settings: RunSettings, runs_folder: Path, fractions: Sequence[float] = FINE
) -> Generator[Progress, None, list[Curve]]:
    """The curves of an opened model: from disk where it and its data are still the same, else measured and kept.

    Raises:
        ISpaSPError: as ``execute``.
    """
    for fraction in fractions:
        if check_keep(fraction, "a fraction") == 1:
            raise SettingError("A fraction is 1, at which nothing is pruned; give fractions below 1.")
    subject, blocks = opened.subject, blocks_of(opened, settings)
    path = path_of(settings, runs_folder, fractions)
    content = _content(opened)
    plain = plain_files.read_json(path)
    known = _curves(plain)
    if known and plain.get("content") == content and [curve.block for curve in known] == blocks:
        return known
    scores = {}
    if settings.selector == "taylor":
        scores = taylor.scores(subject.traced, blocks, subject.batches)
    curves = yield from sensitivity.measure(
        subject.traced, blocks, subject.batches, settings.prune_settings(), scores, fractions
    )
    plain_curves = [dataclasses.asdict(curve) for curve in curves]
    plain = {"format": FORMAT, "settings": _deciding(settings, fractions), "content": content}
    plain_files.write_json(path, plain | {"curves": plain_curves})
    return curves


def load(settings: RunSettings, runs_folder: Path, fractions: Sequence[float] = FINE) -> list[Curve] | None:
    """The curves that were measured last with such settings; None where none were, or the file is damaged."""
    return _curves(plain_files.read_json(path_of(settings, runs_folder, fractions)))


def path_of(settings: RunSettings, runs_folder: Path, fractions: Sequence[float] = FINE) -> Path:
    """Where the curves of such settings lie."""
    return runs_folder / FOLDER / f"{plain_files.digest(_deciding(settings, fractions))}.json"


def _deciding(settings: RunSettings, fractions: Sequence[float]) -> dict[str, Any]:
    """The settings that decide what the curves are."""
    names = ("model", "weights", "selector", "multiple", "candidate_factor", "iterations", "samples", "seed")
    return {name: getattr(settings, name) for name in (*names, "hidden_sum")} | {
        "data": str(settings.data_source()),
        "kinds": sorted(settings.kinds),
        # With every block before it dense, the asymmetric target is the symmetric one.
        "refit": settings.reconstruct != "none",
        "fractions": sorted(fractions),
    }


def _content(opened: Opened) -> str:
    """SHA-256 of weights and calibration data: a file may have changed behind its name."""
    sha = hashlib.sha256(opened.subject.digest.encode())
    for name, value in opened.loaded.model.state_dict().items():
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _curves(plain: Any) -> list[Curve] | None:
    try:
        if plain["format"] != FORMAT:
            return None
        return [_curve(values) for values in plain["curves"]]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def _curve(values: dict[str, Any]) -> Curve:
    curve = check_fields(Curve(**{**tuples(values), "block": block_of(values["block"])}))
    columns = (curve.divergence, curve.residual, curve.error_after, curve.agreement)
    if {len(column) for column in columns if column is not None} != {len(curve.kept)}:
        raise ValueError(f"the curve of {curve.block.name} is not whole")
    rising = list(curve.kept) == sorted(set(curve.kept)) and curve.kept[0] > 0
    if not rising or curve.kept[-1] != curve.block.groups:
        raise ValueError(f"the curve of {curve.block.name} is not whole")
    if min(value for column in columns if column is not None for value in column) < 0:
        raise ValueError(f"the curve of {curve.block.name} holds what is less than nothing")
    return curve

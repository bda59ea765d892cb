"""What a run leaves behind, in memory and on disk.

A saved run is a folder: ``run.json`` (settings, report, every iteration), ``trace.safetensors``
(the iterations' numbers) and ``model.safetensors`` (the sliced weights). Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ispasp import models, plain_files, reading, surgery
from ispasp.errors import ISpaSPError, RunError
from ispasp.evaluate import Predictions
from ispasp.models import LoadedModel
from ispasp.records import Block, BlockPruned, BlockStarted, Distilled, Iteration, Shown, Started

FORMAT = 3
"""The format that is written. Formats 1 and 2 name riders and consumers where format 3 has cuts."""


@dataclass(frozen=True)
class RunRecord(Shown):
    """How a run went, without its model.

    Attributes:
        settings: everything needed to repeat the run, as plain values.
        report: before and after: ``params_*``, ``macs_*`` (per example), ``accuracy_*`` (None
            without labels), ``agreement``, the number of ``examples`` both were measured on,
            ``seconds``, ``device``, ``finished_at``; ``distil`` (None where there was none): steps,
            objective_before, objective_after, seconds, and accuracy_before and agreement_before of the
            pruned model before it; and per block name, groups, kept, iterations, relative_residual,
            drift, selected, target, error_before, error_after, notes.
        trace: every iteration of every block.
        started, blocks_started, blocks_pruned: the other events of the run.
        distilled: how the distillation went; None where there was none.
        predictions: of dense and pruned model on the evaluation data; None where nothing was measured, and in
            runs saved before they were kept.
    """

    settings: dict[str, Any]
    report: dict[str, Any]
    trace: list[Iteration] = field(repr=False)
    started: Started = field(repr=False)
    blocks_started: list[BlockStarted] = field(repr=False)
    blocks_pruned: list[BlockPruned] = field(repr=False)
    distilled: Distilled | None = field(default=None, kw_only=True)
    predictions: Predictions | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class PruneResult(RunRecord):
    """A finished run: its record and the sliced ``model``, in eval mode."""

    model: nn.Module = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Write the run to the new folder ``path``; all of it or nothing.

        Raises:
            RunError: the folder exists and is not empty, or cannot be written.
        """
        path = Path(path)
        partial = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
        check_new_folder(path)
        try:
            write_record(self, partial)
            weights = {k: v.detach().cpu().clone().contiguous() for k, v in self.model.state_dict().items()}
            save_file(weights, partial / "model.safetensors")
            if path.is_dir():
                path.rmdir()
            partial.rename(path)
        except (OSError, SafetensorError, TypeError, ValueError) as error:
            raise RunError(
                f"The run cannot be saved to {path}: {error}. Choose a folder you can write to."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return path


def write_record(record: RunRecord, folder: Path) -> None:
    """Write a record without its model to the new folder ``folder``.

    Raises:
        OSError, SafetensorError, TypeError, ValueError: it cannot be written.
    """
    folder.mkdir(parents=True)
    save_file(_arrays(record), folder / "trace.safetensors")
    (folder / "run.json").write_text(json.dumps(_plain(record), indent=1) + "\n")


def check_new_folder(path: Path) -> None:
    """Make sure that a run can be saved to ``path``, so that nobody waits for a run that cannot be kept.

    Raises:
        RunError: something is there already, or the folder above it cannot be written.
    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(
                f"{path} exists and is not empty; give a new folder, saved runs are never overwritten."
            )
        # The nearest folder that is there; the ones below it are made when the run is saved.
        nearest = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except (OSError, ValueError) as error:
        raise RunError(
            f"The run cannot be saved to {path}: {error}. Choose a folder you can write to."
        ) from error


def load(path: str | Path, model: nn.Module | None = None, *, allow_code: bool = False) -> PruneResult:
    """Read a run saved by ``PruneResult.save``, with its pruned model.

    Args:
        path: the run's folder.
        model: the dense architecture, freshly built (its weights do not matter); needed unless the run
            says where its model comes from. It is resized in place and becomes the result's model.
        allow_code: whether the Python file that a ``python:`` source names may be run.

    Raises:
        RunError: the folder is missing, damaged, foreign, from a newer version, or belongs to
            another architecture.
    """
    record = load_record(path)
    if model is None:
        model = _architecture(record.settings, Path(path), allow_code)
    weights = _load_tensors(Path(path) / "model.safetensors")
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return PruneResult(**fields, model=surgery.rebuild(model, record.blocks_pruned, weights))


def untrained(source: str, *, allow_code: bool = False) -> LoadedModel:
    """The model of a source, see ``ispasp.models.parse``, without fetching weights: random ones, or those that
    a Python function gives its model itself.

    Raises:
        ModelError: it is unknown, or would run code that is not permitted.
    """
    parsed = models.parse(source)
    weights = "" if parsed.kind == "python" else models.RANDOM
    return models.load(dataclasses.replace(parsed, weights=weights), allow_code=allow_code)


def _architecture(settings: dict[str, Any], path: Path, allow_code: bool) -> nn.Module:
    """The dense architecture that a run's settings name."""
    described = settings.get("architecture")
    # ispasp 0.1 wrote "zoo:" before the name of a sample model.
    source = str(settings.get("source", "")).removeprefix("zoo:")
    if not described and not source:
        raise RunError(
            f"The run {path} does not say how to build its model; pass it: ispasp.load(path, model=YourModel())."
        )
    try:
        if isinstance(described, dict):
            return models.build(described, allow_code=allow_code)
        return untrained(source, allow_code=allow_code).model
    except ISpaSPError as error:
        raise RunError(
            f"The model of the run {path} cannot be built here: {error} Or pass it: "
            "ispasp.load(path, model=YourModel())."
        ) from error


def load_record(path: str | Path, *, finished: bool = True) -> RunRecord:
    """Read a saved run without its model.

    Args:
        path: the run's folder.
        finished: False for the record of one block of a run that was cut off, which has no report.

    Raises:
        RunError: as ``load`` does.
    """
    plain = read_json(Path(path))
    arrays = _load_tensors(Path(path) / "trace.safetensors")
    try:
        return RunRecord(**reading.fields_of(plain, arrays, finished))
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        said = error if type(error) is ValueError else repr(error)
        raise RunError(f"The saved run {path} is damaged: {said} (run.json). Run it again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """A saved run's ``run.json`` with its header checked. Raises RunError as ``load`` does."""
    try:
        plain = plain_files.parse((path / "run.json").read_text())
    except FileNotFoundError:
        raise RunError(
            f"{path} is not a saved run: it has no run.json. Give a folder that a run was saved to."
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(
            f"The saved run {path} is damaged: run.json cannot be read ({error}). Run it again."
        ) from error
    version = plain.get("format") if isinstance(plain, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise RunError(f"{path}/run.json was not written by ispasp. Give a folder that a run was saved to.")
    if version > FORMAT:
        raise RunError(
            f"The run {path} has format {version}, this ispasp reads up to {FORMAT}; install a newer ispasp."
        )
    settings, report = plain.get("settings"), plain.get("report")
    if (
        not isinstance(settings, dict)
        or not isinstance(report, dict)
        or not isinstance(report.get("finished_at"), str)
    ):
        raise RunError(
            f"The saved run {path} is damaged: run.json lacks its settings or report. Run it again."
        )
    return plain


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"The saved run is damaged: {path} cannot be read ({error}). Run it again.") from error


def _arrays(result: RunRecord) -> dict[str, Tensor]:
    """The tensors of the trace by name; a block's hidden sum is stored once, and a score equal to it not at all."""
    arrays = {f"importance.{i}": iteration.importance for i, iteration in enumerate(result.trace)}
    arrays |= {f"score.{i}": it.score for i, it in enumerate(result.trace) if _scored(it)}
    arrays |= {f"hidden_sum.{iteration.block}": iteration.hidden_sum for iteration in result.trace}
    arrays |= {f"sample.{event.block.name}": event.sample for event in result.blocks_started}
    if seen := result.predictions:
        arrays |= {"predicted.dense": seen.dense, "predicted.pruned": seen.pruned}
        arrays |= {} if seen.labels is None else {"predicted.labels": seen.labels}
    return {name: array.contiguous().clone() for name, array in arrays.items()}


def _scored(iteration: Iteration) -> bool:
    """Whether something else than the hidden sum decided."""
    return not torch.equal(iteration.score, iteration.hidden_sum)


def _plain(result: RunRecord) -> dict[str, Any]:
    """The record as JSON values, without its tensors."""

    def fields(event: Any) -> dict[str, Any]:
        # What has its default is left out, so that a version without that field reads the rest.
        values = {f.name: getattr(event, f.name) for f in dataclasses.fields(event)}
        usual = {f.name: f.default for f in dataclasses.fields(event)}
        values = {k: v for k, v in values.items() if not isinstance(v, Tensor) and v != usual[k]}
        return {k: v.name if isinstance(v, Block) else v for k, v in values.items()}

    plain = {
        "format": FORMAT,
        "settings": result.settings,
        "report": result.report,
        "blocks": [dataclasses.asdict(block) for block in result.started.blocks],
        "keep_groups": result.started.keep_groups,
        "trace": [fields(iteration) for iteration in result.trace],
        "blocks_started": [fields(event) for event in result.blocks_started],
        "blocks_pruned": [fields(event) for event in result.blocks_pruned],
    }
    return plain if result.distilled is None else plain | {"distilled": fields(result.distilled)}

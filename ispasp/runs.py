"""Runs from start to disk: what the command line and the app both do."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from ispasp import datasets, evaluate, models
from ispasp import device as devices
from ispasp.blocks import find_blocks
from ispasp.calibration import Batch, read
from ispasp.datasets import Data
from ispasp.errors import RunError, SettingError, listing
from ispasp.latency import LatencyReport, compare_latency
from ispasp.models import LoadedModel, build
from ispasp.onnx_export import export_onnx
from ispasp.pruner import iterate
from ispasp.records import Block, Event, Finished, Progress
from ispasp.result import RunRecord, check_new_folder, load, load_record, read_json
from ispasp.run_settings import KINDS, RunSettings

UNTRAINED = "The weights are random: sizes and speed are right, accuracy and agreement mean nothing."
EXPORT = "export"  # the folder in a run's folder that holds its ONNX files and their figures


@dataclass(frozen=True)
class RunSaved:
    """The run lies in the folder ``path``; ``run_id`` is that folder's name."""

    run_id: str
    path: Path


@dataclass(frozen=True)
class ExportDone:
    """Dense and pruned model were exported, compared with torch, and timed; see ``export_run``."""

    report: dict[str, Any]


@dataclass(frozen=True)
class RunSummary:
    """One line about a run on disk; ``problem`` says why it cannot be opened, if so."""

    run_id: str
    path: Path
    finished_at: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    exported: bool = False
    problem: str = ""


def default_folder() -> Path:
    """Where runs are kept: the environment variable ISPASP_RUNS, else ``runs`` in the current folder."""
    return Path(os.environ.get("ISPASP_RUNS", "runs"))


def new_run_id(settings: RunSettings) -> str:
    """A folder name that says what the run is and sorts by time."""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    model = re.sub(r"[^A-Za-z0-9_]+", "-", settings.model).strip("-")[-40:]
    return f"{now}-{model}-keep{settings.keep:g}-{secrets.token_hex(2)}"


def open_model(settings: RunSettings, *, allow_code: bool = False) -> LoadedModel:
    """The dense model of a run, with its weights.

    Raises:
        ModelError: it is not here, cannot be fetched, or would run code that is not permitted.
    """
    return models.load(settings.model_source(), allow_code=allow_code)


def open_data(settings: RunSettings, loaded: LoadedModel, *, allow_code: bool = False) -> Data:
    """Calibration and evaluation data of a run, prepared for its model.

    Raises:
        CalibrationError, SettingError: they cannot be had, or do not fit the model.
    """
    output = evaluate.first_tensor(evaluate.forward(loaded.model, loaded.example))
    classes = evaluate.class_dimension(output)
    return datasets.load(
        settings.data_source(),
        loaded.preparation,
        loaded.classes,
        outputs=None if classes is None else int(output.shape[classes]),
        samples=settings.samples,
        seed=settings.seed,
        evaluation=settings.evaluation,
        allow_code=allow_code,
    )


def prunable_blocks(loaded: LoadedModel, kinds: Collection[str] = KINDS) -> list[Block]:
    """The blocks of a model that can be pruned, in network order, of some kinds of groups."""
    found = find_blocks(loaded.model, loaded.example)
    return [block for block in found if block.prunable and block.kind in kinds]


def execute(
    settings: RunSettings, runs_folder: Path, path: Path | None = None, *, allow_code: bool = False
) -> Iterator[Event | RunSaved]:
    """Prune a model and save the run; the last event is ``RunSaved``.

    Nothing is written until the run is finished, and then all of it or nothing.

    Args:
        settings: what to do.
        runs_folder: where the run's new folder is made.
        path: the folder itself, where the caller wants to name it.
        allow_code: whether a Python file that the settings name may be run.

    Raises:
        ISpaSPError: what was given cannot be used, or the folder cannot be written.
    """
    devices.pick(settings.device)
    path = runs_folder / new_run_id(settings) if path is None else path
    check_new_folder(path)
    yield Progress(0.0, "reading the model")
    loaded = open_model(settings, allow_code=allow_code)
    yield Progress(0.0, "reading the data")
    data = open_data(settings, loaded, allow_code=allow_code)
    keep: float | dict[str, float] = settings.keep
    names = None
    if settings.keep_by_block or set(settings.kinds) != set(KINDS):
        names = [block.name for block in prunable_blocks(loaded, settings.kinds)]
        if not names:
            raise SettingError(
                f"The model {settings.model} has no prunable {listing(f'{kind}s' for kind in settings.kinds)}; "
                "choose other kinds."
            )
    if settings.keep_by_block:
        keep = dict.fromkeys(names or [], settings.keep) | settings.keep_by_block
        left_out = {b.name for b in prunable_blocks(loaded)} - set(names or [])
        if unwanted := sorted(left_out & set(settings.keep_by_block)):
            raise SettingError(
                f"{listing(unwanted)} has a keep ratio of its own and is none of the {listing(settings.kinds)} groups "
                "that are to be pruned; clear its ratio, or add its kind."
            )
        names = None
    events = iterate(
        loaded.model,
        data.calibration,
        keep,
        blocks=names,
        **dataclasses.asdict(settings.prune_settings()),
        device=settings.device,
        evaluation=data.evaluation,
        source=settings.model,
    )
    for event in events:
        if isinstance(event, Finished):
            described = {
                **event.result.settings,
                **settings.plain(),
                "architecture": loaded.record,
                "words": loaded.words,
                "notes": [*data.notes, *([UNTRAINED] if settings.weights == models.RANDOM else [])],
            }
            event = Finished(dataclasses.replace(event.result, settings=described))
            event.result.save(path)
        yield event
    yield RunSaved(path.name, path)


def list_runs(folder: Path) -> list[RunSummary]:
    """All runs in ``folder``, newest first; damaged ones are listed with their problem."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.is_dir() or path.name.startswith("."):
            continue
        try:
            plain = read_json(path)
        except RunError as error:
            found.append(RunSummary(path.name, path, problem=str(error)))
            continue
        report = plain["report"]
        exported = (path / EXPORT / "export.json").is_file()
        found.append(
            RunSummary(path.name, path, report["finished_at"], plain["settings"], report, exported=exported)
        )
    return sorted(found, key=lambda run: (run.finished_at, run.run_id), reverse=True)


def open_run(path: Path) -> RunRecord:
    """A saved run without its model. Raises RunError when it is missing, damaged or foreign."""
    return load_record(path)


def export_run(
    path: Path, threads: int = 1, seconds: float = 4.0, *, allow_code: bool = False
) -> Iterator[Progress | ExportDone]:
    """Export a saved run's dense and pruned model to ONNX, compare both with torch, and time them.

    The files and ``export.json`` land in the run's ``export`` folder, all of them or none.

    Args:
        path: the run's folder.
        threads: intra-operation threads of onnxruntime.
        seconds: how long to measure the latency.
        allow_code: whether a Python file that the run names may be run.

    Raises:
        RunError, ModelError, CalibrationError: the run, its dense model or its data cannot be opened.
        ExportError: an export failed or does not agree with torch.
    """
    yield Progress(0.0, "reading the run")
    settings = RunSettings.of(load_record(path))
    loaded = open_model(settings, allow_code=allow_code)
    data = open_data(settings, loaded, allow_code=allow_code)
    result = load(path, build(loaded.record, allow_code=allow_code))
    batches = read(data.evaluation, "evaluation")
    example = _inputs(batches[0].first(2))
    partial = path / f".{EXPORT}.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir()
        report: dict[str, Any] = {}
        for share, key, model in ((0.05, "dense_onnx", loaded.model), (0.35, "onnx", result.model)):
            name = "dense.onnx" if key == "dense_onnx" else "model.onnx"
            yield Progress(share, f"exporting {name} and comparing it with torch")
            exported = export_onnx(model, example, partial / name, batches=batches)
            report[key] = exported.as_dict() | {"path": f"{EXPORT}/{name}"}
        one = _inputs(batches[0].first(1))
        for step in compare_latency(
            partial / "dense.onnx", partial / "model.onnx", one, threads=threads, seconds=seconds
        ):
            if isinstance(step, LatencyReport):
                report["latency"] = step.as_dict()
            else:
                yield Progress(0.65 + 0.35 * step.done, step.doing)
        (partial / "export.json").write_text(json.dumps(report, indent=1) + "\n")
        _put_in_place(partial, path / EXPORT)
    except OSError as error:
        raise RunError(f"The export cannot be written to {path}: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    yield Progress(1.0, "finished")
    yield ExportDone(report)


def _inputs(batch: Batch) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """A batch's inputs as a forward call takes them."""
    return batch.keywords or batch.inputs


def _put_in_place(new: Path, place: Path) -> None:
    """Move the folder ``new`` to ``place``; what is there gives way only once the new one stands."""
    old = place.with_name(f".{place.name}.{secrets.token_hex(4)}.old")
    if place.exists():
        place.rename(old)
    try:
        new.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def export_report(path: Path) -> dict[str, Any] | None:
    """The report of ``export_run`` for a run that was exported; None for one that was not."""
    try:
        report = json.loads((path / EXPORT / "export.json").read_text())
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None


def archive(path: Path) -> bytes:
    """A run's folder as a zip file.

    Raises:
        RunError: there is no such run.
    """
    load_record(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for file in sorted(path.rglob("*")):
            relative = file.relative_to(path)
            # A link could bring any file of this machine along.
            if (
                file.is_file()
                and not file.is_symlink()
                and not any(part.startswith(".") for part in relative.parts)
            ):
                bundle.write(file, Path(path.name) / relative)
    return buffer.getvalue()

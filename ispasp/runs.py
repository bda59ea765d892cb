"""Runs from start to disk: what the command line and the app both do."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from ispasp import cores, unfinished
from ispasp import device as devices
from ispasp.calibration import Batch, read
from ispasp.errors import ISpaSPError, RunError
from ispasp.latency import LatencyReport, compare_latency
from ispasp.models import build
from ispasp.onnx_export import export_onnx
from ispasp.opened import Opened, open_all, open_data, open_model
from ispasp.paths import inside
from ispasp.records import BlockPruned, Event, Finished, Progress, Started
from ispasp.result import check_new_folder, load, load_record
from ispasp.run_settings import RunSettings
from ispasp.store import EXPORT
from ispasp.unfinished import Attempt
from ispasp.variant import Variant


@dataclass(frozen=True)
class RunSaved:
    """The run lies in the folder ``path``; ``run_id`` is that folder's name."""

    run_id: str
    path: Path


@dataclass(frozen=True)
class ExportDone:
    """Dense and pruned model were exported, compared with torch, and timed; see ``export_run``."""

    report: dict[str, Any]


def new_run_id(settings: RunSettings) -> str:
    """A folder name that says what the run is and sorts by time."""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    model = re.sub(r"[^A-Za-z0-9_]+", "-", settings.model).strip("-")[-40:]
    return f"{now}-{model}-keep{settings.keep:g}-{secrets.token_hex(4)}"


def execute(
    settings: RunSettings,
    runs_folder: Path,
    path: Path | None = None,
    *,
    allow_code: bool = False,
    lineage: Mapping[str, str] | None = None,
    opened: Opened | None = None,
) -> Iterator[Event | RunSaved]:
    """Prune a model and save the run; the last event is ``RunSaved``.

    The run's folder is written when the run is finished, and then all of it or nothing. Until then every
    finished block is kept (``ispasp.unfinished``), so that ``resume`` can go on where the process was killed.

    Args:
        settings: what to do.
        runs_folder: where the run's new folder is made.
        path: the folder itself, where the caller wants to name it.
        allow_code: whether a Python file that the settings name may be run.
        lineage: what the run belongs to, such as ``{"sweep": ID}``; kept in its settings.
        opened: the model and the data that the settings name, where they are open already.

    Raises:
        ISpaSPError: what was given cannot be used, or the folder cannot be written.
    """
    devices.pick(settings.device)
    path = runs_folder / new_run_id(settings) if path is None else path
    check_new_folder(path)
    if opened is None:
        opened = yield from open_all(settings, allow_code=allow_code)
    with unfinished.begin(path.parent, path.name, settings, lineage) as attempt:
        yield from _attempted(opened, attempt, path)
    yield RunSaved(path.name, path)


def resume(runs_folder: Path, run_id: str, *, allow_code: bool = False) -> Iterator[Event | RunSaved]:
    """Go on with a run that was cut off, from its last finished block; events as of ``execute``.

    Raises:
        RunError: somebody else works on it, or it cannot be taken up.
        ISpaSPError: as ``execute``.
    """
    path = inside(runs_folder, run_id)
    with Attempt(runs_folder, run_id) as attempt:
        opened = yield from open_all(attempt.settings, allow_code=allow_code)
        yield from _attempted(opened, attempt, path)
    yield RunSaved(path.name, path)


def _attempted(opened: Opened, attempt: Attempt, path: Path) -> Iterator[Event]:
    settings = attempt.settings
    try:
        with cores.threads(attempt.threads):
            variant = opened.variant(settings, attempt.counts)
            variant.known = attempt.known()
            for event in kept_on_disk(variant.events(), variant, attempt):
                if isinstance(event, Finished):
                    event = Finished(
                        opened.described(event.result, settings, attempt.lineage, attempt.threads)
                    )
                    event.result.save(path)
                    attempt.discard()
                yield event
    except RunError:  # the disk is full, say: there is something to go on with once there is room
        raise
    except (GeneratorExit, ISpaSPError):
        attempt.discard()
        raise


def kept_on_disk(events: Iterator[Event], variant: Variant, attempt: Attempt) -> Iterator[Event]:
    """Pass events on, writing down what they have settled for whoever must go on with the run."""
    for event in events:
        if isinstance(event, Started) and attempt.counts is None:
            attempt.settle(event.keep_groups)
        elif isinstance(event, BlockPruned):
            attempt.keep(event.index, variant.blocks_done[event.index])
            variant.written(event.index)
        yield event


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

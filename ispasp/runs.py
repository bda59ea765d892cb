"""Runs of sample models from start to disk: what the command line and the app both do."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ispasp import data, zoo
from ispasp import device as devices
from ispasp.blocks import find_blocks
from ispasp.errors import ISpaSPError, RunError, SettingError, listing
from ispasp.latency import LatencyReport, compare_latency
from ispasp.onnx_export import export_onnx
from ispasp.pruner import iterate
from ispasp.records import Block, Event, Finished, Progress
from ispasp.result import ZOO, RunRecord, check_new_folder, load, load_record, read_json
from ispasp.settings import PruneSettings, check_keep, check_whole_number

EXPORT = "export"  # the folder in a run's folder that holds its ONNX files and their figures


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides what a run of a sample model gives.

    Attributes:
        model: a sample model's name; see ``ispasp.zoo.names()``.
        keep: kept fraction in (0, 1].
        keep_by_block: other fractions for some blocks, by block name.
        samples: calibration images.
        seed: draws the calibration images, and whatever else is random.
        device: ``"auto"`` or a device's name.
        selector, reconstruct, multiple, candidate_factor, iterations, recalibrate, distil, allocation, hidden_sum: as
            in ``ispasp.iterate``. The re-fit is on unless told otherwise, because without one a sample model
            hardly works any more; ``"none"`` is the paper's pure selection, and the default of ``iterate``.

    Raises:
        SettingError, ModelError: a value is unknown or out of range. The device is looked for when the
            run starts, so that a run from another machine can still be read.
    """

    model: str
    keep: float = 0.5
    keep_by_block: dict[str, float] = field(default_factory=dict)
    selector: str = "ispasp"
    reconstruct: str = "asymmetric"
    multiple: int = 8
    candidate_factor: float = 2.0
    iterations: int = 20
    samples: int = 512
    seed: int = 0
    device: str = "auto"
    recalibrate: bool = False
    distil: int = 0
    allocation: str = "uniform"
    hidden_sum: str = "absolute"

    def __post_init__(self) -> None:
        zoo.card(self.model)
        check_keep(self.keep)
        for name, keep in self.keep_by_block.items():
            check_keep(keep, f"keep of block {name}")
        check_whole_number("samples", self.samples, at_least=1)
        self.prune_settings()
        if self.keep_by_block and self.allocation != "uniform":
            raise SettingError(
                f"Allocation {self.allocation} decides what every block keeps, and {listing(self.keep_by_block)} "
                "has a keep ratio of its own; clear that, or use allocation uniform."
            )

    def prune_settings(self) -> PruneSettings:
        names = [f.name for f in dataclasses.fields(PruneSettings)]
        return PruneSettings(**{name: getattr(self, name) for name in names})

    @classmethod
    def of(cls, record: RunRecord) -> RunSettings:
        """The settings that a saved run was made with.

        Raises:
            RunError: the run was not made from a sample model.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        if not {"model", "keep"} <= set(record.settings):
            raise RunError("This run was not made from a sample model; repeat it from Python.")
        # What a run of an earlier version does not say was not done.
        said = {"reconstruct": "none", **record.settings}
        try:
            return cls(**{name: value for name, value in said.items() if name in names})
        except (AttributeError, TypeError, ISpaSPError) as error:
            raise RunError(f"The settings of this run cannot be used here: {error}") from error


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
    return f"{now}-{settings.model}-keep{settings.keep:g}-{secrets.token_hex(2)}"


def sample_blocks(model: str) -> list[Block]:
    """The prunable blocks of a sample model, in network order."""
    example = torch.zeros(2, *zoo.card(model).input_shape)
    return [block for block in find_blocks(zoo.load(model), example) if block.prunable]


def execute(settings: RunSettings, runs_folder: Path, path: Path | None = None) -> Iterator[Event | RunSaved]:
    """Prune a sample model and save the run; the last event is ``RunSaved``.

    Nothing is written until the run is finished, and then all of it or nothing.

    Args:
        settings: what to do.
        runs_folder: where the run's new folder is made.
        path: the folder itself, where the caller wants to name it.

    Raises:
        ISpaSPError: what was given cannot be used, or the folder cannot be written.
    """
    devices.pick(settings.device)
    card = zoo.card(settings.model)
    shipped = data.sample_images(card.dataset, "calibration")
    images = data.choose(shipped, settings.samples, settings.seed)
    path = runs_folder / new_run_id(settings) if path is None else path
    check_new_folder(path)
    yield Progress(0.0, "reading model and images")
    model = zoo.load(settings.model)
    test = data.sample_images(card.dataset, "test")
    keep: float | dict[str, float] = settings.keep
    if settings.keep_by_block:
        names = [block.name for block in sample_blocks(settings.model)]
        keep = dict.fromkeys(names, settings.keep) | settings.keep_by_block
    events = iterate(
        model,
        data.batches(images, card.mean, card.std),
        keep,
        **dataclasses.asdict(settings.prune_settings()),
        device=settings.device,
        evaluation=data.batches(test, card.mean, card.std, batch_size=250),
        source=ZOO + settings.model,
    )
    for event in events:
        if isinstance(event, Finished):
            described = {**event.result.settings, **dataclasses.asdict(settings)}
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


def export_run(path: Path, threads: int = 1, seconds: float = 4.0) -> Iterator[Progress | ExportDone]:
    """Export a saved run's dense and pruned model to ONNX, compare both with torch, and time them.

    The files and ``export.json`` land in the run's ``export`` folder, all of them or none.

    Args:
        path: the run's folder.
        threads: intra-operation threads of onnxruntime.
        seconds: how long to measure the latency.

    Raises:
        RunError: the run cannot be opened.
        ExportError: an export failed or does not agree with torch.
    """
    yield Progress(0.0, "reading the run")
    result = load(path)
    settings = RunSettings.of(result)
    card = zoo.card(settings.model)
    test = data.batches(data.sample_images(card.dataset, "test"), card.mean, card.std, batch_size=250)
    example = test[0][0][:2]
    partial = path / f".{EXPORT}.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir()
        report: dict[str, Any] = {}
        dense = zoo.load(settings.model)
        for share, key, model in ((0.05, "dense_onnx", dense), (0.35, "onnx", result.model)):
            name = "dense.onnx" if key == "dense_onnx" else "model.onnx"
            yield Progress(share, f"exporting {name} and comparing it with torch")
            exported = export_onnx(model, example, partial / name, batches=test)
            report[key] = exported.as_dict() | {"path": f"{EXPORT}/{name}"}
        for step in compare_latency(
            partial / "dense.onnx", partial / "model.onnx", example[:1], threads=threads, seconds=seconds
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

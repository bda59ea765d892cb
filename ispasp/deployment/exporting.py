"""Export a saved run: its dense and its pruned model as files, in every precision asked for, compared with torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import shutil
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

import onnx
import torch

from ispasp import evaluate, plain_files
from ispasp.deployment import model_diff
from ispasp.deployment.agreement import ParityReport, measure
from ispasp.deployment.machine import machine
from ispasp.deployment.opened_run import OpenedRun, inputs, open_run
from ispasp.deployment.precisions import PRECISION_KEY, PRECISIONS, SIDES, Feed, Variant, convert, file_name
from ispasp.errors import ExportError, RunError, SettingError, listing
from ispasp.latency import LatencyReport, check_seconds, compare_latency
from ispasp.narrative import tuned_words
from ispasp.onnx_export import OPSETS, OnnxReport, check_opset, export_onnx, opset_of
from ispasp.parity import open_session, session_batch
from ispasp.progress import part
from ispasp.records import Progress
from ispasp.reports import versions
from ispasp.store import EXPORT

__all__ = ["OPSETS", "ExportDone", "Variant", "export_run"]

T = TypeVar("T")

_KEYS = {"dense": "dense_onnx", "pruned": "onnx"}  # of a side's FP32 file in the report
_EVERY = 0.25  # seconds between two Progress records of what does not tell its own
_OTHER_ANSWERS = 0.005  # share of the examples: other machines and thread counts change fewer than that
_SAME_SIZE = 0.9  # of the FP32 file: 8 bits in so few places are worth a remark


@dataclass(frozen=True)
class ExportDone:
    """Dense and pruned model were exported, compared with torch, and timed; see ``export_run``."""

    report: dict[str, Any]


def export_run(
    path: Path,
    *,
    precisions: Sequence[str] = ("fp32",),
    opset: int | None = None,
    threads: int = 1,
    seconds: float = 4.0,
    allow_code: bool = False,
) -> Iterator[Progress | ExportDone]:
    """Export a saved run's dense and pruned model to ONNX, compare each file with torch, and time those in FP32.

    The files, ``export.json`` and what became of every layer (``model_diff``) land in the run's ``export`` folder, all
    of them or none; an earlier export stays until then, also where this one fails or is stopped. The last event is
    ``ExportDone``. Its report holds ``dense_onnx`` and ``onnx``, the ``OnnxReport`` of either FP32 file; ``latency``,
    their ``LatencyReport``; ``variants``, a ``Variant`` for each precision and side; ``machine``; and ``notes``,
    sentences to be shown.

    A precision that cannot be had, or that does not agree with torch, is on record in its variant, and the others
    are made all the same.

    Args:
        path: the run's folder.
        precisions: some of ``PRECISIONS``; FP32 is written in any case.
        opset: of the files, as in ``export_onnx``.
        threads: intra-operation threads of onnxruntime.
        seconds: how long to measure the latency.
        allow_code: whether a Python file that the run names may be run.

    Raises:
        SettingError: a precision or the opset is unknown, or ``seconds`` is not a positive number.
        RunError, ModelError, CalibrationError: the run, its dense model or its data cannot be opened.
        ExportError: a model cannot be exported, or its FP32 file does not agree with torch.
    """
    if unknown := [one for one in precisions if one not in PRECISIONS]:
        raise SettingError(f"Unknown precision {unknown[0]!r}; choose some of {listing(PRECISIONS)}.")
    check_opset(opset)
    check_seconds(seconds)
    run = yield from part(open_run(path, allow_code=allow_code), 0.0, 0.05)
    changed = yield from part(_changed(run), 0.05, 0.1)
    partial = path / f".{EXPORT}.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir()
        wanted = [one for one in PRECISIONS if one == "fp32" or one in precisions]
        report = yield from part(_files(run, partial, wanted, opset), 0.1, 0.65)
        report["notes"] = [note for note in (changed, *report["notes"]) if note]
        one = inputs(run.evaluation[0].first(1))
        for step in compare_latency(
            partial / "dense.onnx", partial / "model.onnx", one, threads=threads, seconds=seconds
        ):
            if isinstance(step, LatencyReport):
                report["latency"] = step.as_dict()
            else:
                yield Progress(0.65 + 0.35 * step.done, step.doing)
        report["machine"] = machine()
        model_diff.write_diff(partial, model_diff.of_run(run))
        plain_files.write_json(partial / "export.json", report)
        _put_in_place(partial, path / EXPORT)
    except OSError as error:
        raise RunError(f"The export cannot be written to {path}: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    yield Progress(1.0, "finished")
    yield ExportDone(report)


def _changed(run: OpenedRun) -> Generator[Progress, None, str]:
    """A sentence where the dense model does not answer as it did when the run was made; else empty."""
    if (saved := run.result.predictions) is None:
        return ""
    found = []
    for number, answers in enumerate(evaluate.predictions(run.dense.model, run.evaluation), start=1):
        found.append(answers.flatten().int())
        yield Progress(number / len(run.evaluation), "looking at the dense model's answers")
    now = torch.cat(found)
    if len(now) != len(saved.dense):
        return (
            f"The evaluation data have {len(now):,} answers, and had {len(saved.dense):,} when the run was made: they "
            "were changed since, and accuracies differ from those of the run."
        )
    other = (now != saved.dense).double().mean().item()
    if other <= _OTHER_ANSWERS:
        return ""
    return (
        f"The dense model answers {100 * other:.1f} % of the evaluation examples otherwise than when the run was made: "
        "its weights or the data were replaced since. The dense files hold the weights that are there now."
    )


def _files(
    run: OpenedRun, folder: Path, wanted: Sequence[str], opset: int | None
) -> Generator[Progress, None, dict[str, Any]]:
    """Write all files into ``folder``; the report but for the latency and the machine."""
    report: dict[str, Any] = {"variants": [], "notes": []}
    exported: dict[str, OnnxReport] = {}
    steps = [(precision, side) for precision in wanted for side in SIDES]
    for number, (precision, side) in enumerate(steps):
        low, high = number / len(steps), (number + 1) / len(steps)
        if precision == "fp32":
            variant, exported[side] = yield from part(_full(run, folder, side, opset), low, high)
            report[_KEYS[side]] = exported[side].as_dict()
            report["notes"].append(exported[side].note)
        else:
            variant = yield from part(_converted(run, folder, side, precision), low, high)
            report["notes"].append(_barely_smaller(variant, exported[side]))
        report["variants"].append(variant.as_dict())
    report["notes"] = list(dict.fromkeys(report["notes"]))
    return report


def _full(
    run: OpenedRun, folder: Path, side: str, opset: int | None
) -> Generator[Progress, None, tuple[Variant, OnnxReport]]:
    """One model in FP32."""
    name = file_name(side, "fp32")
    model = run.dense.model if side == "dense" else run.result.model

    def export() -> OnnxReport:
        return export_onnx(
            model,
            inputs(run.evaluation[0].first(2)),
            folder / name,
            opset=opset,
            metadata=_metadata(run, side),
            dynamic_length=True,
        )

    exported = yield from part(_aside(export, f"exporting {name}"), 0.0, 0.5)
    parity = yield from part(measure(model, folder / name, run.evaluation, "fp32"), 0.5, 1.0)
    if not parity.passed or parity.max_abs_diff is None or parity.max_rel_diff is None:
        raise ExportError(f"{name} does not agree with torch, and nothing was kept. {parity.sentence}")
    exported = dataclasses.replace(
        exported,
        path=f"{EXPORT}/{name}",
        max_abs_diff=parity.max_abs_diff,
        max_rel_diff=parity.max_rel_diff,
        top1_agreement=parity.top1_agreement,
        examples=parity.examples,
    )
    return _variant(folder, side, "fp32", parity), exported


def _converted(run: OpenedRun, folder: Path, side: str, precision: str) -> Generator[Progress, None, Variant]:
    """One model in another precision, from its FP32 file; with the problem where it cannot be had."""
    model = run.dense.model if side == "dense" else run.result.model
    source, target = folder / file_name(side, "fp32"), folder / file_name(side, precision)
    stopped = threading.Event()

    def feeds() -> Iterator[Feed]:
        session = open_session(source)
        for batch in run.calibration:
            if stopped.is_set():
                raise CancelledError
            yield session_batch(session, batch)[1]

    working = _aside(
        lambda: convert(source, target, precision, feeds()), f"converting to {target.name}", stopped
    )
    try:
        yield from part(working, 0.0, 0.5)
        parity = yield from part(measure(model, target, run.evaluation, precision), 0.5, 1.0)
    except ExportError as error:
        target.unlink(missing_ok=True)
        return Variant(side, precision, problem=str(error))
    return _variant(folder, side, precision, parity)


def _variant(folder: Path, side: str, precision: str, parity: ParityReport) -> Variant:
    file = folder / file_name(side, precision)
    return Variant(
        side,
        precision,
        f"{EXPORT}/{file.name}",
        file.stat().st_size,
        opset_of(onnx.load(file)),
        parity=parity.as_dict(),
    )


def _aside(
    work: Callable[[], T], doing: str, stopped: threading.Event | None = None
) -> Generator[Progress, None, T]:
    """Let ``work`` run in a thread of its own and say that it does; ``stopped`` is set when nobody waits any more."""
    yield Progress(0.0, doing)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            while wait([working], timeout=_EVERY).not_done:
                yield Progress(0.0, doing)
        finally:
            if stopped is not None:
                stopped.set()
        return working.result()


def _barely_smaller(variant: Variant, full: OnnxReport) -> str:
    """A sentence about a file that has hardly anything in 8 bits; else empty."""
    if variant.precision != "int8-dynamic" or variant.bytes < _SAME_SIZE * full.bytes:
        return ""
    return (
        "int8-dynamic quantizes the weights of matrix products alone. These are a small part of the files, which are "
        "about as large as in FP32; int8-static quantizes convolutions as well."
    )


def _metadata(run: OpenedRun, side: str) -> dict[str, str]:
    """What a file says about itself."""
    said = {
        "ispasp.run": run.path.name,
        "ispasp.model": _without_folder(run.settings.model),
        "ispasp.side": side,
        "ispasp.seed": str(run.settings.seed),
        "ispasp.versions": json.dumps(versions() | {"onnx": onnx.__version__}),
        PRECISION_KEY: "fp32",
    }
    if side == "pruned":
        kept = {
            block["name"]: round(block["kept"] / block["groups"], 6) for block in run.result.report["blocks"]
        }
        said["ispasp.keep"] = json.dumps(kept)
        if words := tuned_words(run.result.settings):
            said["ispasp.tuned"] = words
    return said


def _without_folder(source: str) -> str:
    """A model's source without the folders of this machine, which are nobody else's business."""
    kind, colon, name = source.partition(":")
    local = kind == "python" or name.startswith(("/", "~", ".")) or "\\" in name
    return f"{kind}:{PureWindowsPath(name).name}" if colon and local else source


def _put_in_place(new: Path, place: Path) -> None:
    """Move the folder ``new`` to ``place``; what is there gives way only once the new one stands."""
    old = place.with_name(f".{place.name}.{secrets.token_hex(4)}.old")
    if place.exists():
        place.rename(old)
    try:
        new.rename(place)
    except OSError:
        if old.exists():
            with contextlib.suppress(OSError):
                old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)

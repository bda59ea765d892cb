"""Premises, hypotheses and labels from a TSV or JSONL file: XNLI, MultiNLI, SNLI, or one's own."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ispasp.datasets.drawing import NAMED, SKIPPED_SHARE, draw, planned
from ispasp.datasets.labels import by_name, position
from ispasp.datasets.request import Data, Request, batch_size, check_size, shown
from ispasp.errors import CalibrationError, listing
from ispasp.paths import expanded
from ispasp.preparation import TextPreparation

MAX_FILE_BYTES = 2**30
MAX_LINE_BYTES = 2**20
# Column names, the first that is there counts; XNLI's translated training files say "hypo".
PREMISE = ("premise", "sentence1")
HYPOTHESIS = ("hypothesis", "hypo", "sentence2")
LABEL = ("gold_label", "label")
LANGUAGE = ("language", "lang")
UNDECIDED = ("-", "", "-1")  # where SNLI's annotators disagreed, or a label was never given
_SAME_LABEL = {"contradictory": "contradiction"}  # XNLI's translated training files
_FILE_AND_LANGUAGE = re.compile(r"(?P<file>.+)@(?P<language>[a-z]{2,3})")


@dataclass(frozen=True)
class Pair:
    """One line of the file; ``label`` is None where the file has no column of them."""

    premise: str
    hypothesis: str
    label: str | None
    language: str
    line: int


@dataclass
class Reading:
    """What was read of a file: the pairs, and the lines that were left out."""

    pairs: list[Pair] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    undecided: int = 0
    lines: int = 0


def sentence_pairs(name: str, preparation: TextPreparation, request: Request) -> Data:
    """Data from a file of sentence pairs; both parts are drawn from it.

    Args:
        name: the file's path, with ``@en`` behind it for the rows of one language.
        preparation, request: as everywhere.

    Raises:
        CalibrationError: the file cannot be read, is too large or no UTF-8, has no such columns, or more
            than a tenth of its lines cannot be used.
    """
    path, language = _path_and_language(name)
    place = f"The file {path}"
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size > MAX_FILE_BYTES:
                raise CalibrationError(
                    f"{place} is {size / 2**30:.1f} GiB, and the limit is {MAX_FILE_BYTES // 2**30} GiB: "
                    "give a part of it."
                )
            file.seek(0)
            reading = _read(file, place)
    except OSError as error:
        raise CalibrationError(
            f"{place} cannot be read ({error.strerror or error}): check the path."
        ) from error
    notes = _only_language(reading, language, place)
    labels, label_notes = _labels(reading, request)
    notes += _checked(reading, place) + label_notes
    if not reading.pairs:
        raise CalibrationError(f"{place} holds no sentence pairs that can be used: give at least two.")
    check_size(preparation, sum(planned(len(reading.pairs), None, request)), request.purpose)
    calibration, evaluation, fewer = draw(
        reading.pairs,
        None,
        request,
        lambda pair: (pair, (pair.premise, pair.hypothesis)),
        "sentence pairs",
    )
    batches = _encode(calibration, labels, preparation)
    return Data(
        batches,
        _encode(evaluation, labels, preparation),
        classes=request.model_classes if labels else (),
        notes=tuple(notes + fewer),
        texts=shown((pair.premise, pair.hypothesis) for pair in calibration),
    )


def _path_and_language(name: str) -> tuple[Path, str]:
    path, match = expanded(name, CalibrationError), _FILE_AND_LANGUAGE.fullmatch(name)
    if match is None or path.exists():
        return path, ""
    return expanded(match["file"], CalibrationError), match["language"]


def _read(file: BinaryIO, place: str) -> Reading:
    reading = Reading()
    lines = _lines(file, place, reading)
    number, first = next(lines, (0, ""))
    if not number:
        raise CalibrationError(f"{place} is empty: give a header and one sentence pair per line.")
    rows: Iterator[tuple[int, dict[str, Any] | None]]
    if first.lstrip().startswith("{"):
        rows = ((at, _json_row(line)) for at, line in _chain((number, first), lines))
    else:
        header = [column.strip().lower() for column in first.split("\t")]
        _check_columns(header, place)
        rows = (
            (at, dict(zip(header, values, strict=True)) if len(values) == len(header) else None)
            for at, values in ((at, line.split("\t")) for at, line in lines)
        )
    for at, row in rows:
        reading.lines += 1
        pair = None if row is None else _pair(row, at)
        if pair is None:
            reading.bad.append(f"line {at}")
        elif pair.label is not None and pair.label.strip() in UNDECIDED:
            reading.undecided += 1
        else:
            reading.pairs.append(pair)
    return reading


def _chain(first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield first
    yield from rest


def _lines(file: BinaryIO, place: str, reading: Reading) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank. Lines end with a line feed and nothing else."""
    for number, raw in enumerate(file, start=1):
        if len(raw) > MAX_LINE_BYTES:
            reading.lines += 1
            reading.bad.append(f"line {number} (above {MAX_LINE_BYTES // 2**20} MiB)")
            continue
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise CalibrationError(
                f"{place} is not UTF-8 text (line {number}): save it as UTF-8, as TSV with a header or as JSONL."
            ) from None
        if text.strip():
            yield number, text


def _check_columns(header: Iterable[str], place: str) -> None:
    columns = set(header)
    if not columns & set(PREMISE) or not columns & set(HYPOTHESIS):
        listed = listing(repr(column[:40]) for column in list(header)[:6])
        raise CalibrationError(
            f"{place} begins with the columns {listed}: give a TSV file whose first line names premise and "
            "hypothesis (or sentence1 and sentence2) and, where known, label, or one JSON object "
            "per line with these keys."
        )


def _json_row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return {str(key).lower(): value for key, value in row.items()} if isinstance(row, dict) else None


def _pair(row: dict[str, Any], line: int) -> Pair | None:
    """The pair of a row; None where a sentence is missing or empty, or a value is of the wrong type."""
    premise, hypothesis = (_first(row, names) for names in (PREMISE, HYPOTHESIS))
    label = _first(row, LABEL)
    if not isinstance(premise, str) or not isinstance(hypothesis, str):
        return None
    if not premise.strip() or not hypothesis.strip():
        return None
    if isinstance(label, bool) or not isinstance(label, (str, int, type(None))):
        return None
    language = _first(row, LANGUAGE)
    return Pair(
        premise,
        hypothesis,
        None if label is None else str(label).strip(),
        language.strip().lower() if isinstance(language, str) else "",
        line,
    )


def _first(row: dict[str, Any], names: Iterable[str]) -> Any:
    return next((row[name] for name in names if name in row), None)


def _only_language(reading: Reading, language: str, place: str) -> list[str]:
    """Keep the rows of one language, if one was asked for; a note where there are several."""
    languages = Counter(pair.language for pair in reading.pairs if pair.language)
    if not language:
        if len(languages) > 1:
            return [f"The file holds {len(languages)} languages; write @en behind its name for one of them."]
        return []
    if language not in languages:
        raise CalibrationError(
            f"{place} holds no rows of the language {language!r}; it has {listing(sorted(languages))}: "
            "leave the language out, or choose one of these."
        )
    reading.pairs = [pair for pair in reading.pairs if pair.language == language]
    return []


def _labels(reading: Reading, request: Request) -> tuple[dict[str, int] | None, list[str]]:
    """The output of each label that occurs, or None with a note why labels are unknown.

    Where only few lines have a label that the model does not know, these become bad lines.
    """
    if any(pair.label is None for pair in reading.pairs):
        return None, ["Not every sentence pair has a label, so accuracy is unknown."]
    table = by_name(request.model_classes)
    found = Counter(pair.label for pair in reading.pairs if pair.label is not None)
    known = {label: at for label in found if (at := _output(label, table, request.classes)) is not None}
    foreign = {label: count for label, count in found.items() if label not in known}
    if sum(foreign.values()) > SKIPPED_SHARE * len(reading.pairs):
        listed = listing(repr(label[:40]) for label in list(foreign)[:NAMED])
        against = listing(request.model_classes[:5]) if request.model_classes else "without names"
        return None, [
            f"Labels are unknown (the model has no class {listed}; its classes are {against}), so accuracy "
            "is unknown too."
        ]
    reading.bad += [
        f"line {pair.line} (label {pair.label[:40]!r})" for pair in reading.pairs if pair.label in foreign
    ]
    reading.pairs = [pair for pair in reading.pairs if pair.label not in foreign]
    return known, []


def _output(label: str, table: dict[str, int], outputs: int | None) -> int | None:
    named = position(_SAME_LABEL.get(label.casefold(), label), table)
    if named is None and outputs and re.fullmatch(r"[0-9]{1,6}", label) and int(label) < outputs:
        return int(label)
    return named


def _checked(reading: Reading, place: str) -> list[str]:
    """Notes on the lines left out.

    Raises:
        CalibrationError: they are too many.
    """
    notes = []
    if reading.undecided:
        notes.append(f"{reading.undecided:,} sentence pairs have no decided label and were left out.")
    if reading.bad:
        named = [
            *reading.bad[:NAMED],
            *([f"{len(reading.bad) - NAMED:,} more"] if len(reading.bad) > NAMED else []),
        ]
        if len(reading.bad) > SKIPPED_SHARE * reading.lines:
            raise CalibrationError(
                f"{place} has {len(reading.bad):,} of {reading.lines:,} lines that cannot be used, more than "
                f"{SKIPPED_SHARE:.0%}: {listing(named)}; give two sentences and a known label on each."
            )
        notes.append(f"{len(reading.bad):,} lines could not be used and were skipped: {listing(named)}.")
    return notes


def _encode(pairs: list[Pair], labels: dict[str, int] | None, preparation: TextPreparation) -> list[Any]:
    size = batch_size(preparation)
    batches = []
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        try:
            batch = preparation.encode([p.premise for p in part], [p.hypothesis for p in part])
        except Exception as error:  # whatever a tokenizer raises means the same to a user
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise CalibrationError(
                f"The model's tokenizer cannot encode the sentence pairs ({cause}): choose a model whose "
                "tokenizer takes pairs and pads them."
            ) from error
        if labels is not None:
            batch["labels"] = torch.tensor([labels[p.label] for p in part if p.label is not None])
        batches.append(batch)
    return batches

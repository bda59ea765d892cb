"""The table of the Runs page: what a row says, and which rows are wanted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
import streamlit as st

from ispasp.narrative import tuned_words
from ispasp.plain_files import is_number
from ispasp.run_settings import RunSettings
from ispasp.store import RunSummary
from ispasp.vocabulary import refit_words, selector_words
from ui import library
from ui.words import HELP, SETTINGS, lineage_words, source_words, unusual_words

FROM_PYTHON = "from Python"
_USUAL = asdict(RunSettings(library.FIRST_MODEL))
_NO_COLUMNS = ("model", "keep", "device", "selector", "reconstruct", "samples", "seed")


def model_of(run: RunSummary) -> str:
    """The model's source, short: ``"torchvision:resnet18"``."""
    model = run.settings.get("model") or run.settings.get("source")
    return source_words(model) if isinstance(model, str) and model else FROM_PYTHON


def title_of(run: RunSummary) -> str:
    """What the run is called, with its model: ``"The small one (mnist_mlp)"``; the model where it has no name."""
    return f"{run.name} ({model_of(run)})" if run.name else model_of(run)


def selector_of(run: RunSummary) -> str:
    """The title of the way its groups were chosen."""
    selector = run.settings.get("selector")
    return selector_words(selector).title if isinstance(selector, str) else ""


def lineage_of(run: RunSummary) -> str:
    """``"sweep 3f2a, 23 Nov 14:05"``, ``"budget 11c0, 23 Nov 14:05, uniform"``; empty for a single run."""
    for kind in ("sweep", "budget"):
        if id := run.lineage.get(kind):
            role = run.lineage.get("role", kind)
            return lineage_words(kind, id) + (f", {role}" if role != kind else "")
    if id := run.lineage.get("tuned"):
        return f"fine-tuning of {id}"
    return ", ".join(f"{key} {value}" for key, value in run.lineage.items())


def wanted(
    runs: Sequence[RunSummary], text: str, models: Collection[str], selectors: Collection[str]
) -> list[RunSummary]:
    """The runs with all words of ``text`` in name, note, model, selector, lineage or id, of these models and
    selectors; an empty filter lets all through."""
    words = text.casefold().split()
    return [
        run
        for run in runs
        if (not models or model_of(run) in models)
        and (not selectors or selector_of(run) in selectors)
        and all(word in _searched(run) for word in words)
    ]


def _searched(run: RunSummary) -> str:
    said = (
        run.name, run.note, run.settings.get("model"), model_of(run), run.settings.get("selector"),
        selector_of(run), run.run_id, lineage_of(run), *run.lineage.values(),
    )  # fmt: skip
    return "\n".join(str(one) for one in said).casefold()


def keep_of(run: RunSummary) -> str:
    """The kept fraction; ``"per block"`` where blocks have their own."""
    # As text: "per block" stands among the numbers, which sort as they should up to 1.
    keep = run.settings.get("keep")
    if run.settings.get("keep_by_block") or run.lineage.get("role") == "budget" or not is_number(keep):
        return "per block"
    return f"{keep:g}"


def _number(key: str, scale: float = 1.0) -> Callable[[RunSummary], float | None]:
    def read(run: RunSummary) -> float | None:
        value = run.report.get(key)
        return scale * value if is_number(value) else None  # type: ignore[operator]

    return read


def _left(key: str) -> Callable[[RunSummary], float | None]:
    """In per cent of the dense model's."""

    def read(run: RunSummary) -> float | None:
        before, after = _number(f"{key}_before")(run), _number(f"{key}_after")(run)
        return None if not before or after is None else 100 * after / before

    return read


def _points(run: RunSummary) -> float | None:
    before, after = (_number(f"accuracy_{when}", 100)(run) for when in ("before", "after"))
    return None if before is None or after is None else after - before


def _setting(key: str) -> Callable[[RunSummary], float | None]:
    def read(run: RunSummary) -> float | None:
        value = run.settings.get(key)
        return value if is_number(value) else None

    return read


def _refit(run: RunSummary) -> str:
    name = run.settings.get("reconstruct", "none")
    return refit_words(name)[0].split(",")[0] if isinstance(name, str) else ""


def _others(run: RunSummary) -> str:
    """Whatever is not as usual and has no column of its own."""
    rest = {key: value for key, value in run.settings.items() if key in SETTINGS and key not in _NO_COLUMNS}
    try:
        return ", ".join(unusual_words(rest, _USUAL)).replace("\\", "")
    except (AttributeError, TypeError, ValueError):  # a run from elsewhere may hold anything
        return ""


Read = Callable[[RunSummary], Any]
_text, _figure = st.column_config.TextColumn, st.column_config.NumberColumn


def _columns() -> dict[str, tuple[Read, Any]]:
    """By title: what a cell says, and how it is shown."""
    zone = st.context.timezone
    moment = st.column_config.DatetimeColumn(
        "Finished", width=130, format="DD MMM YYYY, HH:mm", timezone=zone if isinstance(zone, str) else None
    )
    return {
        "Name": (title_of, _text("Name", width=120, help="What you call it, and its model.")),
        "Model": (model_of, _text("Model", width=150, help=HELP["model"])),
        "Keep": (keep_of, _text("Keep", width=70, help=HELP["keep"])),
        "Selector": (selector_of, _text("Selector", width=152, help=HELP["selector"])),
        "Re-fit": (_refit, _text("Re-fit", width=84, help=HELP["reconstruct"])),
        "Fine-tuned": (
            lambda run: tuned_words(run.settings).removeprefix("fine-tuned").lstrip(", "),
            _text("Fine-tuned", width=82, help="By which preset; empty for a run that was only pruned."),
        ),
        "MACs": (_number("macs_after"), _figure("MACs", width=64, format="compact", help=HELP["macs"])),
        "MACs left": (
            _left("macs"),
            _figure("MACs left", width=78, format="%.0f %%", help=f"Of the dense model's. {HELP['macs']}"),
        ),
        "Parameters": (
            _number("params_after"),
            _figure("Parameters", width=88, format="compact", help=f"{HELP['parameters']} After pruning."),
        ),
        "Parameters left": (
            _left("params"),
            _figure(
                "Parameters left",
                width=110,
                format="%.0f %%",
                help=f"Of the dense model's. {HELP['parameters']}",
            ),
        ),
        "Accuracy": (
            _number("accuracy_after", 100),
            _figure("Accuracy", width=76, format="%.1f %%", help=HELP["accuracy"]),
        ),
        "Accuracy, change": (
            _points,
            _figure(
                "Change, points", width=102, format="%+.1f", help="Accuracy minus that of the dense model."
            ),
        ),
        "Agreement": (
            _number("agreement", 100),
            _figure("Agreement", width=82, format="%.1f %%", help=HELP["agreement"]),
        ),
        "Finished": (lambda run: run.finished_at, moment),
        "Part of": (
            lineage_of,
            _text(
                "Part of",
                width=180,
                help="The sweep or the budget that the run was made for, or the run that was fine-tuned.",
            ),
        ),
        "ONNX": (
            lambda run: "yes" if run.exported else "",
            _text("ONNX", width=62, help="Whether it was exported; that is done in Explore."),
        ),
        "Size": (
            lambda run: run.size,
            _figure("Size", width=74, format="bytes", help="On disk, with exports."),
        ),
        "Note": (lambda run: run.note, _text("Note", width=260)),
        "Samples": (_setting("samples"), _figure("Samples", width=80, format="%d", help=HELP["samples"])),
        "Seed": (_setting("seed"), _figure("Seed", width=60, format="%d", help=HELP["seed"])),
        "Other settings": (
            _others,
            _text("Other settings", width=260, help="Whatever is not as usual and has no column of its own."),
        ),
        "Duration": (
            _number("seconds"),
            _figure("Duration", width=86, format="%.1f s", help="How long the run took."),
        ),
        "Run": (lambda run: run.run_id, _text("Run", width=260, help="The name of its folder.")),
    }


USUAL_COLUMNS = (
    "Keep", "Selector", "Re-fit", "Fine-tuned", "MACs left", "Parameters left", "Accuracy", "Accuracy, change",
    "Agreement", "Finished", "Part of", "ONNX", "Size",
)  # fmt: skip


def choices() -> list[str]:
    """The columns that can be shown or not; the name always is."""
    return list(_columns())[1:]


def frame(runs: Sequence[RunSummary]) -> pd.DataFrame:
    """One row per run and every column, numbers as numbers so that they sort."""
    table = pd.DataFrame({title: [read(run) for run in runs] for title, (read, _) in _columns().items()})
    table["Finished"] = pd.to_datetime(table["Finished"], utc=True, errors="coerce", format="ISO8601")
    return table


def configuration() -> dict[str, Any]:
    """How the columns of ``frame`` are shown."""
    return {title: shown for title, (_, shown) in _columns().items()}

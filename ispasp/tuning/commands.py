"""What the command ``finetune`` of ``ispasp.cli`` does with its options, and ``resume`` with a fine-tuning."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from ispasp import processes, store
from ispasp.deployment.commands import run_folder
from ispasp.narrative import percent, quantity, tuned_sentence
from ispasp.records import Finished
from ispasp.runs import RunSaved
from ispasp.terminal import table, value_of, watch
from ispasp.tuning import runs
from ispasp.tuning.memory import CheckpointMissed
from ispasp.tuning.records import EpochDone
from ispasp.tuning.request import STARTS, TuneRequest
from ispasp.tuning.settings import OPTIMISERS, PRECISIONS, PRESET_WORDS

NUMBERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "epochs": (int, "epochs at the end"),
    "after_block": (
        int,
        "epochs after each block that is pruned; above 0 the dense model is pruned anew, block after block",
    ),
    "learning_rate": (float, "the highest learning rate"),
    "batch_size": (int, "examples per step, of all processes together"),
    "momentum": (float, "of sgd"),
    "weight_decay": (float, "of matrices and kernels"),
    "label_smoothing": (float, "share of the target that all classes get alike"),
    "distil": (
        float,
        "share of the loss, from 0 to 1, that leads towards the dense model; 1 needs no labels",
    ),
    "warmup": (float, "share of the steps in which the learning rate climbs"),
    "patience": (int, "epochs without a lower held-out loss after which it ends; 0 for never"),
    "held_out": (float, "share of the training data that chooses the best epoch"),
    "seed": (int, "of everything random"),
}
"""The numbers among the settings of a fine-tuning: how they are read, and what they are."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``finetune`` but for the run."""
    words = {name: said.removeprefix("Quick: ") for name, said in PRESET_WORDS.items()}
    presets = "; ".join(f"{name}: {said[:1].lower()}{said[1:]}" for name, said in words.items())
    parser.add_argument("--preset", default="quick", help=f"{presets} (%(default)s)")
    parser.add_argument("--train", default="", metavar="SOURCE", help="training data (the run's own source)")
    parser.add_argument("--train-examples", metavar="N", help="of them at most (all there are)")
    parser.add_argument(
        "--from",
        dest="start",
        default="pruned",
        help=f"{', '.join(STARTS)} weights; random is the control (%(default)s)",
    )
    for name, (_, what) in NUMBERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N", help=f"{what} (as in the preset)")
    parser.add_argument("--optimiser", help=f"auto, {', '.join(OPTIMISERS)} (as in the preset)")
    parser.add_argument("--precision", help=f"{', '.join(PRECISIONS)} (as in the preset)")
    parser.add_argument("--plain", action="store_true", help="do not mirror and shift images")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (%(default)s)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the run (a new one in the runs folder)"
    )


def request_of(options: argparse.Namespace) -> TuneRequest:
    """What the options ask for. Raises SettingError."""
    given = {name: getattr(options, name) for name in NUMBERS}
    changes = {k: value_of(k, text, NUMBERS[k][0]) for k, text in given.items() if text is not None}
    changes |= {k: v for k in ("optimiser", "precision") if (v := getattr(options, k)) is not None}
    changes |= {"augment": False} if options.plain else {}
    many = options.train_examples
    return TuneRequest.of_preset(
        options.preset,
        changes,
        train=options.train,
        train_examples=None if many is None else value_of("train_examples", many, int),
        start=options.start,
        device=options.device,
    )


def finetune(options: argparse.Namespace) -> None:
    """Fine-tune a saved run into a new one."""
    request, parent = request_of(options), run_folder(options.run)
    with stopped_by_hand() as stop:
        _follow(
            runs.execute(
                parent, request, store.default_folder(), path=options.out, stop=stop, allow_code=True
            ),
            options.json,
        )


def resume(path: Path, as_json: bool) -> None:
    """Go on with the fine-tuning that was cut off and whose run is to lie in the folder ``path``."""
    with stopped_by_hand() as stop:
        _follow(runs.resume(path.parent, path.name, stop=stop, allow_code=True), as_json)


@contextlib.contextmanager
def stopped_by_hand() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed. The first time that is all it does here; the second time it interrupts as usual."""
    pressed = threading.Event()

    def once(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        print(
            "\nispasp: stopping; the best weights so far will be saved. Once more ends at once.",
            file=sys.stderr,
        )

    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, once)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(steps: Iterator[Any], as_json: bool) -> None:
    """Go through a fine-tuning and print what came of it."""
    seen = watch(_told(steps))
    if not processes.here().leads:
        return
    *_, finished, saved = seen
    assert isinstance(finished, Finished) and isinstance(saved, RunSaved)
    settings, report = finished.result.settings, finished.result.report
    for note in settings["notes"]:
        print(f"ispasp: {note}", file=sys.stderr)
    tuning = report["tuning"]
    if as_json:
        figures = ("params", "macs", "accuracy")
        print(
            json.dumps(
                {
                    "model": settings["model"],
                    "run": settings["lineage"]["tuned"],
                    "settings": settings["tuning"],
                    **{
                        f"{what}_{when}": report[f"{what}_{when}"]
                        for what in figures
                        for when in ("before", "after")
                    },
                    **{name: report[name] for name in ("agreement", "examples", "device", "seconds")},
                    "tuning": tuning,
                    "out": str(saved.path),
                }
            )
        )
        return
    head = ("after", "epoch", "learning rate", "loss", "held-out loss", "accuracy", "agreement", "best")
    lines = [
        (
            one["stage"] or "all blocks", f"{one['epoch']} of {one['epochs']}", f"{one['learning_rate']:.3g}",
            f"{one['loss']:.4g}", f"{one['held_out_loss']:.4g}", _share(one["accuracy"]), _share(one["agreement"]),
            "*" if one["best"] else "",
        )
        for one in tuning["curve"]
    ]  # fmt: skip
    print(table(head, lines))
    stages = (
        ("dense", report["params_before"], report["macs_before"], report["accuracy_before"], 1.0),
        ("before", report["params_after"], report["macs_after"], tuning["accuracy_before"], tuning["agreement_before"]),
        ("fine-tuned", report["params_after"], report["macs_after"], report["accuracy_after"], report["agreement"]),
    )  # fmt: skip
    rows = [
        (name, quantity(params), quantity(macs), _share(accuracy), _share(agreement))
        for name, params, macs, accuracy, agreement in (stages[::2] if tuning["after_block"] else stages)
    ]
    print("\n" + table(("model", "parameters", "MACs", "accuracy", "agreement"), rows))
    print(f"\n{tuned_sentence(report)}".replace("→", "->"))
    print(f"{report['seconds']:.1f} s on {report['device']}; saved to {saved.path}")


def _told(steps: Iterator[Any]) -> Iterator[Any]:
    """The events, but for those that only show progress; what went wrong on the way is said at once."""
    for event in steps:
        if isinstance(event, CheckpointMissed):
            print(f"\nispasp: {event.problem}", file=sys.stderr)
        if not isinstance(event, EpochDone):
            yield event


def _share(value: float | None) -> str:
    return "unknown" if value is None else percent(value)

"""What is asked of a fine-tuning of a saved run, as plain values that go to disk with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ispasp.errors import ISpaSPError, RunError, SettingError, listing
from ispasp.plain_files import check_fields, is_number
from ispasp.settings import check_whole_number
from ispasp.tuning.records import EpochDone
from ispasp.tuning.settings import PRESETS, TuneSettings

STARTS = {"pruned": "the weights of the run", "random": "random weights of the same shape"}
_SHARES = ("accuracy", "agreement")


@dataclass(frozen=True)
class TuneRequest:
    """Everything that decides what the fine-tuning of a saved run gives, beside that run.

    Attributes:
        settings: how to train.
        preset: which of ``PRESETS`` the settings were made from; what is not as there was changed.
        train: where the training data come from, see ``ispasp.datasets.parse``; empty for the run's own data.
        train_examples: how many of them at most; None for all there are.
        start: ``"pruned"`` for the weights of the run, or, with ``after_block``, for the dense model that is pruned
            again; ``"random"`` for random weights of the same shape, the control.
        device: ``"auto"`` or a device's name.

    Raises:
        SettingError: a value is unknown or out of range.
    """

    settings: TuneSettings = PRESETS["quick"]
    preset: str = "quick"
    train: str = ""
    train_examples: int | None = None
    start: str = "pruned"
    device: str = "auto"

    def __post_init__(self) -> None:
        _preset(self.preset)
        if self.train:
            from ispasp import datasets  # which takes a second that reading a run need not wait for

            datasets.parse(self.train)
        if self.train_examples is not None:
            check_whole_number("train_examples", self.train_examples, at_least=1)
        if self.start not in STARTS:
            raise SettingError(f"Unknown start {self.start!r}; choose one of {listing(STARTS)}.")
        if self.start == "random" and self.settings.after_block:
            raise SettingError(
                "Random weights cannot be pruned block after block, and after_block is "
                f"{self.settings.after_block}; set it to 0, or start from the pruned weights."
            )

    @classmethod
    def of_preset(cls, preset: str, changes: Mapping[str, Any] | None = None, **more: Any) -> TuneRequest:
        """The settings of a preset, with ``changes``; ``more`` as the attributes.

        Raises:
            SettingError: as the class does.
        """
        return cls(dataclasses.replace(_preset(preset), **(changes or {})), preset, **more)

    @property
    def by_block(self) -> bool:
        """Whether the dense model is pruned again, block after block, and trained after each."""
        return self.settings.after_block > 0

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that are not those of the preset."""
        usual = dataclasses.asdict(PRESETS[self.preset])
        return {
            name: value for name, value in dataclasses.asdict(self.settings).items() if value != usual[name]
        }

    def plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "settings"}
        return dataclasses.asdict(self.settings) | own

    @classmethod
    def of(cls, values: object) -> TuneRequest:
        """The request that ``plain`` gave; what else is in it does not count.

        Raises:
            RunError: it is none.
        """
        own = [f.name for f in dataclasses.fields(cls) if f.name != "settings"]
        inner = [f.name for f in dataclasses.fields(TuneSettings)]
        try:
            if not isinstance(values, Mapping):
                raise TypeError(f"{str(values)[:60]!r}")
            settings = TuneSettings(**{name: values[name] for name in inner if name in values})
            made = cls(settings, **{name: values[name] for name in own if name in values})
            if not isinstance(made.device, str):
                raise TypeError(f"device {made.device!r}")
            return made
        except (AttributeError, TypeError, ISpaSPError) as error:
            raise RunError(f"The settings of the fine-tuning cannot be used here: {error}") from error


def _preset(name: object) -> TuneSettings:
    if not isinstance(name, str) or name not in PRESETS:
        raise SettingError(f"Unknown preset {name!r}; choose one of {listing(PRESETS)}.")
    return PRESETS[name]


def history(settings: Mapping[str, Any]) -> list[TuneRequest]:
    """The fine-tunings that a run's settings tell of, in their order; none for a run that was only pruned.

    Raises:
        RunError: one cannot be used here.
    """
    last = settings.get("tuning")
    if last is None:
        return []
    earlier = last.get("earlier", []) if isinstance(last, Mapping) else []
    if not isinstance(earlier, list):
        raise RunError(f"The earlier fine-tunings of the run are {str(earlier)[:60]!r}; run it again.")
    return [TuneRequest.of(values) for values in (*earlier, last)]


def epochs_made(settings: Mapping[str, Any]) -> list[int | None]:
    """For each fine-tuning of ``history`` how many epochs it made where it ended early, else None.

    Raises:
        RunError: as ``history``, or one says something else.
    """
    history(settings)
    last = settings.get("tuning", {})
    found = [values.get("made") for values in (*last.get("earlier", ()), *([last] if last else ()))]
    if not all(made is None or (type(made) is int and made >= 0) for made in found):
        raise RunError("How many epochs the run's fine-tuning made cannot be read; run it again.")
    return found


def check_report(report: object) -> None:
    """Make sure that lists and pages can show what a run's report says of its fine-tuning.

    Raises:
        ValueError: it lacks something, or holds something else.
    """
    if not isinstance(report, Mapping):
        raise ValueError("its report has no figures of the fine-tuning")
    for key in (
        "after_block",
        "epochs_done",
        "best_epoch",
        "train_examples",
        "held_out_examples",
        "processes",
    ):
        value = report.get(key)
        if type(value) is not int or value < 0:
            raise ValueError(f"its fine-tuning has no whole number for {key}")
    for key in ("preset", "stopped", "precision", "start"):
        if not isinstance(report.get(key), str):
            raise ValueError(f"its fine-tuning has no text for {key}")
    if not is_number(report.get("seconds")) or report["seconds"] < 0:
        raise ValueError("its fine-tuning has no number for seconds")
    for key in ("accuracy_before", "agreement_before", "run_accuracy", "run_agreement"):
        _check_share(key, report.get(key))
    if not isinstance(report.get("curve"), list):
        raise ValueError("its fine-tuning has no curve")
    curve_of(report["curve"])


def curve_of(plain: list[Any]) -> tuple[EpochDone, ...]:
    """The epochs that a report holds as plain values.

    Raises:
        ValueError: one of them is none.
    """
    try:
        curve = tuple(check_fields(EpochDone(**values)) for values in plain)
    except TypeError as error:
        raise ValueError(f"its fine-tuning has a curve of something else ({error})") from error
    for one in curve:
        if not 1 <= one.epoch <= one.epochs or min(one.learning_rate, one.seconds) < 0:
            raise ValueError(f"its fine-tuning has the epoch {one.epoch} of {one.epochs}")
        for key in _SHARES:
            _check_share(key, getattr(one, key))
    return curve


def _check_share(key: str, value: object) -> None:
    if value is not None and not (is_number(value) and 0 <= value <= 1):  # type: ignore[operator]
        raise ValueError(f"its fine-tuning has {str(value)[:60]!r} for {key}")

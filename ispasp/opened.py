"""The model and the data that settings name, opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Generator, Mapping, Sequence

from ispasp import datasets, evaluate, models
from ispasp import device as devices
from ispasp.blocks import find_blocks
from ispasp.calibration import read
from ispasp.datasets import Data
from ispasp.errors import SettingError, listing
from ispasp.models import LoadedModel
from ispasp.records import Block, Progress
from ispasp.result import PruneResult
from ispasp.run_settings import KINDS, RunSettings
from ispasp.subject import Subject
from ispasp.variant import Variant

UNTRAINED = "The weights are random: sizes and speed are right, accuracy and agreement mean nothing."


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
    return datasets.load(
        settings.data_source(),
        loaded.preparation,
        loaded.classes,
        outputs=outputs_of(loaded),
        samples=settings.samples,
        seed=settings.seed,
        evaluation=settings.evaluation,
        allow_code=allow_code,
    )


def outputs_of(loaded: LoadedModel) -> int | None:
    """How many classes a model puts out; None where it puts out none."""
    output = evaluate.first_tensor(evaluate.forward(loaded.model, loaded.example))
    classes = evaluate.class_dimension(output)
    return None if classes is None else int(output.shape[classes])


def prunable_blocks(loaded: LoadedModel, kinds: Collection[str] = KINDS) -> list[Block]:
    """The blocks of a model that can be pruned, in network order, of some kinds of groups."""
    found = find_blocks(loaded.model, loaded.example)
    return [block for block in found if block.prunable and block.kind in kinds]


class Opened:
    """A model and its data, made ready for any number of runs that differ in how they prune."""

    def __init__(self, loaded: LoadedModel, data: Data, device: str) -> None:
        """
        Raises:
            ISpaSPError: the model cannot be traced, or does not run on the data.
        """
        self.loaded, self.data = loaded, data
        calibration, evaluation = read(data.calibration), read(data.evaluation, "evaluation")
        self.subject = Subject(loaded.model, calibration, evaluation, devices.pick(device))

    def variant(self, settings: RunSettings, counts: Sequence[int] | None = None) -> Variant:
        """A run with these settings; ``counts`` as in ``Variant``.

        Raises:
            SettingError, ModelError: there are no such blocks.
        """
        keep, names = self._targets(settings)
        return Variant(self.subject, keep, settings.prune_settings(), names, settings.model, counts)

    def _targets(self, settings: RunSettings) -> tuple[float | dict[str, float], list[str] | None]:
        """The keep ratio, or one for each block; and which blocks to prune, None for all."""
        kinds, own = settings.kinds, settings.keep_by_block
        if not own and set(kinds) == set(KINDS):
            return settings.keep, None
        prunable = self.subject.chosen(None)
        names = [block.name for block in prunable if block.kind in kinds]
        if not names:
            raise SettingError(
                f"The model {settings.model} has no prunable {listing(f'{kind}s' for kind in kinds)}; choose other "
                "kinds."
            )
        if not own:
            return settings.keep, names
        if unwanted := sorted({block.name for block in prunable if block.name not in names} & set(own)):
            raise SettingError(
                f"{listing(unwanted)} has a keep ratio of its own and is none of the {listing(kinds)} groups "
                "that are to be pruned; clear its ratio, or add its kind."
            )
        return dict.fromkeys(names, settings.keep) | own, None

    def described(
        self, result: PruneResult, settings: RunSettings, lineage: Mapping[str, str], threads: int
    ) -> PruneResult:
        """``result`` with all on record that a saved run of these settings, made with so many threads, has."""
        untrained = [UNTRAINED] if settings.weights == models.RANDOM else []
        described = {
            **result.settings,
            **settings.plain(),
            "architecture": self.loaded.record,
            "words": self.loaded.words,
            "notes": [*self.data.notes, *untrained],
            **({"threads": threads} if self.subject.device.type == "cpu" else {}),
            **({"lineage": dict(lineage)} if lineage else {}),
        }
        return dataclasses.replace(result, settings=described)


def open_all(settings: RunSettings, *, allow_code: bool = False) -> Generator[Progress, None, Opened]:
    """Open what the settings name, saying what is being done; to be used with ``yield from``.

    Raises:
        ISpaSPError: it cannot be had, or does not fit together.
    """
    yield Progress(0.0, "reading the model")
    loaded = open_model(settings, allow_code=allow_code)
    yield Progress(0.0, "reading the data")
    data = open_data(settings, loaded, allow_code=allow_code)
    yield Progress(0.0, "tracing the model")
    return Opened(loaded, data, settings.device)

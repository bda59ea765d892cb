"""Everything that decides what a run gives, as plain values that go to disk with it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ispasp import datasets, models, zoo
from ispasp.datasets import DataSource
from ispasp.errors import ISpaSPError, RunError, SettingError, listing
from ispasp.models import ModelSource
from ispasp.result import RunRecord
from ispasp.settings import PruneSettings, check_keep, check_whole_number

KINDS = ("channel", "neuron", "head")


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides what a run gives.

    Attributes:
        model: where the model comes from, see ``ispasp.models.parse``: a sample model's name, or such as
            ``"torchvision:resnet34"`` or ``"huggingface:FOLDER"``.
        weights: empty for the trained or published ones, ``"random"``, or a checkpoint file.
        data: where calibration and evaluation data come from, see ``ispasp.datasets.parse``; empty for a
            sample model's own.
        keep: kept fraction in (0, 1].
        keep_by_block: other fractions for some blocks, by block name.
        kinds: which kinds of groups are pruned: ``"channel"``, ``"neuron"``, ``"head"``.
        samples: calibration examples.
        evaluation: examples on which accuracy and agreement are measured, at most; never calibration ones.
        seed: draws the calibration examples, and whatever else is random.
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
    weights: str = ""
    data: str = ""
    kinds: tuple[str, ...] = KINDS
    evaluation: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        self.model_source()
        self.data_source()
        check_keep(self.keep)
        for name, keep in self.keep_by_block.items():
            check_keep(keep, f"keep of block {name}")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise SettingError(f"kinds is {listing(self.kinds)}; give one or more of {listing(KINDS)}.")
        check_whole_number("samples", self.samples, at_least=1)
        check_whole_number("evaluation", self.evaluation, at_least=1)
        self.prune_settings()
        if self.keep_by_block and self.allocation != "uniform":
            raise SettingError(
                f"Allocation {self.allocation} decides what every block keeps, and {listing(self.keep_by_block)} "
                "has a keep ratio of its own; clear that, or use allocation uniform."
            )

    def model_source(self) -> ModelSource:
        """Where the model comes from."""
        return models.parse(self.model, self.weights)

    def data_source(self) -> DataSource:
        """Where the data come from.

        Raises:
            SettingError: none is given and the model has none of its own.
        """
        if self.data:
            return datasets.parse(self.data)
        model = self.model_source()
        if model.kind == "sample":
            return DataSource("sample", zoo.card(model.name).dataset)
        raise SettingError(
            f"The model {self.model} brings no data: give some to calibrate with, such as folder:PATH with images in "
            "class folders, or noise to look at sizes and speed alone."
        )

    def prune_settings(self) -> PruneSettings:
        """The part that the pruner reads."""
        names = [f.name for f in dataclasses.fields(PruneSettings)]
        return PruneSettings(**{name: getattr(self, name) for name in names})

    def plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        return dataclasses.asdict(self) | {"kinds": list(self.kinds)}

    @classmethod
    def of(cls, record: RunRecord) -> RunSettings:
        """The settings that a saved run was made with.

        Raises:
            RunError: the run was made from Python, or its model or data are unknown here.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        if not {"model", "keep"} <= set(record.settings):
            raise RunError("This run was made from Python, from a model of its own; repeat it from there.")
        # What a run of an earlier version does not say was not done.
        said = {"reconstruct": "none", "hidden_sum": "signed", **record.settings}
        try:
            return cls(**{name: value for name, value in said.items() if name in names})
        except (AttributeError, TypeError, ISpaSPError) as error:
            raise RunError(f"The settings of this run cannot be used here: {error}") from error

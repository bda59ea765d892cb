"""A dense model with its data, made ready once for any number of runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from ispasp import blocks as block_finding
from ispasp import evaluate, processes
from ispasp.calibration import Batch, digest
from ispasp.graph import trace
from ispasp.records import Block

PROBE_SHARE = 32  # the dense stream runs over one in so many calibration examples,
PROBE_LEAST = 2  # but over no fewer than this


class Subject:
    """What runs on one model have in common, and none of them changes.

    Attributes:
        dense: a copy of the model on the device, in eval mode.
        home: the device of the model that was given.
        calibration: the calibration data as given.
        batches: the same on the device, the probe's examples as the first batch; this process's share where
            several share them (``ispasp.processes``).
        probe: the few first examples.
        evaluation: the evaluation data; none where accuracy is not measured.
        traced: the dense model as a graph.
        blocks: every candidate, in network order.
        work: rough multiply-adds of one example, for progress.
        examples: number of calibration examples.
        streamed: how many of them are in ``batches``.
    """

    def __init__(
        self,
        given: nn.Module,
        calibration: Sequence[Batch],
        evaluation: Sequence[Batch],
        device: torch.device,
    ) -> None:
        """
        Raises:
            ModelError: the model cannot be copied or traced.
            CalibrationError: it does not run on the data, or there are fewer examples than processes.
        """
        self.device, self.home = device, evaluate.device_of(given)
        self.dense = evaluate.copy_to(given, device)
        self.calibration, self.evaluation = list(calibration), list(evaluation)
        whole = [batch.to(device) for batch in processes.share(calibration)]
        self.traced = trace(self.dense, whole[0])
        evaluate.try_forward(self.dense, whole[0], "calibration")
        if self.evaluation:
            evaluate.try_forward(self.dense, self.evaluation[0], "evaluation")
        self.blocks = block_finding.find(self.traced)
        self.work = sum(self.traced.cost(node) for node in self.traced.nodes)
        self.examples = sum(len(batch) for batch in calibration)
        self.streamed = sum(len(batch) for batch in whole)
        few = max(PROBE_LEAST, self.examples // PROBE_SHARE)
        self.probe = whole[0].first(few)
        rest = [whole[0].after(few)] if len(whole[0]) > few else []
        self.batches = [self.probe, *rest, *whole[1:]]
        self.params = evaluate.count_parameters(self.dense)
        self.macs = evaluate.count_macs(self.dense, self.probe)
        self._predicted: list[Tensor] = []

    @cached_property
    def digest(self) -> str:
        """Of the calibration data, see ``ispasp.calibration.digest``."""
        return digest(self.calibration)

    def predict(self) -> Iterator[int]:
        """Measure the dense model on the evaluation data, once; yields the examples of each batch done."""
        if not self._predicted:
            found = []
            for batch, classes in zip(
                self.evaluation, evaluate.predictions(self.dense, self.evaluation), strict=True
            ):
                found.append(classes)
                yield len(batch)
            self._predicted = found

    @property
    def predicted(self) -> list[Tensor]:
        """What ``predict`` found, one tensor per evaluation batch."""
        return self._predicted

    def chosen(self, names: Sequence[str] | None) -> list[Block]:
        """The prunable blocks with these names, or all of them.

        Raises:
            SettingError: a name is unknown, or its block cannot be pruned.
        """
        return block_finding.chosen(self.blocks, names)

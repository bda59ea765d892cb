"""The loss that a fine-tuning makes small: a share of it leads towards the dense model, the rest towards the labels."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable

import torch
from torch import Tensor, nn

from ispasp import evaluate, processes
from ispasp.calibration import Batch
from ispasp.tuning.objective import OUTPUT, Distance, Sums, check_labels, label_loss

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_on(device: torch.device, precision: str) -> str:
    """``TuneSettings.precision`` with ``"auto"`` settled: bf16 on CUDA devices that compute in it, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "fp32"


class Loss:
    """The loss of one model on batches that lie on its device.

    Attributes:
        guessing: the loss of a model that has learned nothing: as likely every class, and giving zeros where the dense
            model gives something. ``measured`` settles it.
    """

    def __init__(
        self, model: nn.Module, dense: nn.Module | None, share: float, smoothing: float, precision: str
    ) -> None:
        """
        Args:
            dense: in eval mode; looked at where ``share`` is above 0.
            share: as ``TuneSettings.distil``.
            smoothing: as ``TuneSettings.label_smoothing``.
            precision: a key of ``TYPES``.
        """
        self.model, self.share, self.smoothing, self.type = model, share, smoothing, TYPES[precision]
        self.distance = Distance(model, dense) if dense is not None and share > 0 else None
        self.device = evaluate.device_of(model)
        self.guessing = share

    def close(self) -> None:
        """Take all hooks off the models."""
        if self.distance:
            self.distance.close()

    def of(self, batch: Batch, check: bool) -> Tensor:
        """The loss, summed over the examples of the batch, with gradients.

        Args:
            check: whether to look for wrong labels, for which a GPU has to wait.

        Raises:
            CalibrationError, ModelError: as ``label_loss``, ``check_labels`` and ``Distance.compare``.
        """
        with self._cast():
            got = self._points(batch)
            loss = got[OUTPUT].new_zeros((), dtype=torch.float32)
            if self.distance:
                loss = loss + self.share * self.distance.loss(batch, got)
            if self.share < 1:
                loss = loss + (1 - self.share) * self._label_loss(batch, got[OUTPUT], check)
        return loss

    def measured(self, batches: Iterable[Batch]) -> Generator[None, None, float]:
        """The mean loss over all examples of all processes, step by step; the model should be in eval mode.

        What the dense model gives on them is what errors are relative to from then on.

        Args:
            batches: this process's share; at least one.
        """
        sums, of_labels = Sums(), 0.0
        for batch in batches:
            with torch.no_grad(), self._cast():
                got = self._points(batch)
                if self.distance:
                    self.distance.measure(batch, got, sums)
                else:
                    sums.examples += len(batch)
                if self.share < 1:
                    of_labels += self._label_loss(batch, got[OUTPUT], check=True).item()
                    self.guessing = self.share + (1 - self.share) * math.log(_classes(got[OUTPUT]))
            yield
        of_labels, sums = _over_processes(of_labels, sums)
        towards_dense = self.distance.settle(sums) if self.distance else 0.0
        return self.share * towards_dense + (1 - self.share) * of_labels / sums.examples

    def _points(self, batch: Batch) -> dict[str, Tensor]:
        if self.distance:
            return self.distance.pruned(batch)
        return {OUTPUT: evaluate.first_tensor(self.model(*batch.inputs, **batch.keywords))}

    def _label_loss(self, batch: Batch, output: Tensor, check: bool) -> Tensor:
        if check and batch.labels is not None and evaluate.class_dimension(output) is not None:
            check_labels(batch.labels, _classes(output))
        return label_loss(output, batch, self.smoothing)

    def _cast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.type, enabled=self.type != torch.float32)


def _classes(output: Tensor) -> int:
    dimension = evaluate.class_dimension(output)
    return 1 if dimension is None else output.shape[dimension]


def _over_processes(of_labels: float, sums: Sums) -> tuple[float, Sums]:
    """Both, summed over all processes, which have the same points."""
    names, energies = list(sums.errors), list(sums.energies)
    numbers = [of_labels, sums.divergence, sums.examples, *sums.errors.values(), *sums.energies.values()]
    of_labels, divergence, examples, *rest = processes.summed(
        torch.tensor(numbers, dtype=torch.float64)
    ).tolist()
    errors = dict(zip(names, rest, strict=False))
    return of_labels, Sums(
        errors, dict(zip(energies, rest[len(names) :], strict=True)), divergence, int(examples)
    )

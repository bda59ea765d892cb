"""The evaluation examples of a run as a person can look at them: pictures, or sentence pairs as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ispasp import opened
from ispasp.calibration import Batch, digest, read
from ispasp.errors import RunError
from ispasp.models import LoadedModel
from ispasp.preparation import ImagePreparation, TextPreparation
from ispasp.result import RunRecord
from ispasp.run_settings import RunSettings

LARGEST = 128  # pixels; longer sides are thinned out, as hundreds of pictures are kept


@dataclass(frozen=True, eq=False)
class EvaluationExamples:
    """All evaluation examples of a run, in its order.

    Attributes:
        pictures: (n, C, height, width) uint8; None where they are no images.
        texts: n sentence pairs; empty where they are none.
        classes: names of the labels in their order; empty where they are unknown.
    """

    pictures: np.ndarray | None = field(repr=False, default=None)
    texts: tuple[str, ...] = field(repr=False, default=())
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts) if self.pictures is None else len(self.pictures)


def evaluation_examples(
    record: RunRecord, loaded: LoadedModel, *, allow_code: bool = False
) -> EvaluationExamples:
    """Read the data of a run again.

    Args:
        record: the run.
        loaded: its dense model, which says how the data are prepared.
        allow_code: whether a Python file that the run names may be run.

    Raises:
        ISpaSPError: the data cannot be read, are others by now, or cannot be shown.
    """
    settings = RunSettings.of(record)
    data = opened.open_data(settings, loaded, allow_code=allow_code)
    batches = read(data.evaluation, "evaluation")
    if not _same(record, batches, data.calibration):
        raise RunError(
            "The data of this run are not what they were when it was made, so its examples cannot be shown: "
            "bring the old data back, or run it again."
        )
    classes = data.classes or loaded.classes
    if isinstance(loaded.preparation, ImagePreparation):
        return EvaluationExamples(pictures(batches, loaded.preparation), classes=classes)
    if isinstance(loaded.preparation, TextPreparation):
        return EvaluationExamples(texts=texts(batches, loaded.preparation), classes=classes)
    raise RunError("The examples of this run come ready-made from a Python function, and cannot be shown.")


def _same(record: RunRecord, batches: Sequence[Batch], calibration: list[Any]) -> bool:
    """Whether the data are still those of the run, as far as the run has it on record."""
    seen = record.predictions
    if seen is None or seen.labels is None:
        known = record.settings.get("calibration_digest")
        return known in (None, digest(read(calibration)))
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return len(labels) == len(batches) and torch.equal(torch.cat(labels).int(), seen.labels)


def pictures(batches: Sequence[Batch], preparation: ImagePreparation) -> np.ndarray:
    """(n, C, height, width) uint8 from batches as the model reads them: the way back of ``preparation``."""
    shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (preparation.mean, preparation.std))
    thin = -(-max(preparation.size) // LARGEST)

    def shown(images: Tensor) -> np.ndarray:
        pixels = (images[..., ::thin, ::thin] * scale + shift).mul(255).round().clamp(0, 255)
        return pixels.byte().numpy()

    return np.concatenate([shown(batch.tensors[0]) for batch in batches])


def texts(batches: Sequence[Batch], preparation: TextPreparation) -> tuple[str, ...]:
    """``"premise → hypothesis"`` of every example, as the tokenizer writes its tokens."""
    tokenizer = preparation.tokenizer
    between = getattr(tokenizer, "sep_token_id", None)

    def shown(ids: list[int]) -> str:
        parts: list[list[int]] = [[]]
        for token in ids:
            if token == between:
                parts.append([])
            else:
                parts[-1].append(token)
        words = [tokenizer.decode(part, skip_special_tokens=True).strip() for part in parts]
        return " → ".join(word for word in words if word)

    return tuple(shown(ids) for batch in batches for ids in batch.keywords["input_ids"].tolist())

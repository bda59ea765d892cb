"""Normally distributed inputs: to try a model out where there are no data at all."""

from __future__ import annotations

from typing import Any

import torch

from ispasp.datasets.request import EVERYTHING, SHOWN, Data, Request, batch_size, check_size, image_batch
from ispasp.preparation import ImagePreparation

NOTE = (
    "The inputs are noise: calibration on noise says nothing about accuracy, and agreement with the dense "
    "model is that on noise."
)

TRAINING_NOTE = (
    "The inputs are noise: they have no labels, and training towards the dense model on noise says nothing about "
    "accuracy."
)
NOISE_EXAMPLES = 2000  # to train on, where no number is given


def noise(preparation: ImagePreparation, request: Request) -> Data:
    """Seeded standard normal inputs of the model's size, without labels.

    No more to evaluate on than to calibrate with: agreement on noise is not worth more time.

    Raises:
        CalibrationError: too many for memory.
    """
    samples = NOISE_EXAMPLES if request.samples == EVERYTHING else request.samples
    evaluated = min(request.evaluation, request.calibration or samples)
    check_size(preparation, samples + evaluated, request.purpose)
    calibration = _batches(preparation, samples, request.seed)
    # Other low bits: the generator looks at no more than those.
    evaluation = _batches(preparation, evaluated, request.seed ^ 0xFFFFFFFF)
    first = calibration[0][preparation.keyword] if preparation.keyword else calibration[0]
    pixels = first[:SHOWN] * torch.tensor(preparation.std).view(-1, 1, 1)
    pixels = pixels + torch.tensor(preparation.mean).view(-1, 1, 1)
    return Data(
        calibration,
        evaluation,
        classes=(),
        notes=(NOTE if request.purpose == "calibration" else TRAINING_NOTE,),
        pictures=(pixels.clamp(0, 1) * 255).round().to(torch.uint8),
    )


def _batches(preparation: ImagePreparation, count: int, seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    shape = (preparation.channels, *preparation.size)
    size = batch_size(preparation)
    # One by one, so that fewer samples are the first of more.
    return [
        image_batch(
            preparation,
            torch.stack([torch.randn(shape, generator=generator) for _ in range(min(size, count - start))]),
            None,
        )
        for start in range(0, count, size)
    ]

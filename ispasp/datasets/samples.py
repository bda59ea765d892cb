"""The data that ship with the sample models."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from ispasp import data
from ispasp.datasets.labels import by_name, match_classes, position
from ispasp.datasets.request import EVERYTHING, Data, Request, batch_size, check_size, image_data, shown
from ispasp.errors import SettingError, listing
from ispasp.preparation import ImagePreparation, TextPreparation


def sample_data(name: str, request: Request) -> Data:
    """Shipped data by name.

    Raises:
        SettingError: there are none of that name, or fewer than asked for.
        CalibrationError: the model reads data of another kind.
    """
    if name in data.DATASETS:
        return _sample_images(name, request.reading(ImagePreparation, f"sample:{name}"), request)
    if name in data.PAIR_DATASETS:
        return _sample_pairs(name, request.reading(TextPreparation, f"sample:{name}"), request)
    raise SettingError(
        f"There are no sample data {name!r}: choose one of {listing(data.DATASETS + data.PAIR_DATASETS)}."
    )


def _sample_images(name: str, preparation: ImagePreparation, request: Request) -> Data:
    training = request.purpose == "training"
    shipped = data.sample_images(name, "train" if training else "calibration")
    samples = min(request.samples, len(shipped)) if training else request.samples
    calibration = data.choose(shipped, samples, request.seed)
    test = data.sample_images(name, "test")
    count = min(request.evaluation, len(test))
    check_size(preparation, samples + count, request.purpose)
    match = match_classes(calibration.classes, request)
    labels = None
    if (outputs := match.labels) is not None:
        labels = (
            [outputs[label] for label in calibration.labels.tolist()],
            [outputs[label] for label in test.labels[:count].tolist()],
        )
    return image_data(
        preparation,
        _prepared(calibration.images, preparation),
        _prepared(test.images[:count], preparation),
        labels,
        match.classes,
        [*match.notes, *(request.fewer(samples, "images") if training else ())],
    )


def _sample_pairs(name: str, preparation: TextPreparation, request: Request) -> Data:
    notes: list[str] = []
    if request.purpose == "training":
        everything = request.samples == EVERYTHING
        calibration = data.sample_pairs(name, "train", data.TRAINING_PAIRS if everything else request.samples)
        if everything:
            notes.append(
                f"{len(calibration):,} sentence pairs to train on were written; ask for more if need be."
            )
    else:
        calibration = data.choose(data.sample_pairs(name, "calibration"), request.samples, request.seed)
    test = data.sample_pairs(name, "test")
    test = test.part(torch.arange(min(request.evaluation, len(test))))
    check_size(preparation, len(calibration) + len(test), request.purpose)
    table = by_name(request.model_classes)
    outputs = [position(label, table) for label in calibration.classes]
    if None in outputs:
        notes.append(f"The model's classes are not {listing(calibration.classes)}, so accuracy is unknown.")
    batches, evaluation = (
        [
            _labelled(batch, outputs)
            for batch in data.pair_batches(pairs, preparation, batch_size(preparation))
        ]
        for pairs in (calibration, test)
    )
    return Data(
        batches,
        evaluation,
        classes=() if None in outputs else request.model_classes,
        notes=tuple(notes),
        texts=shown(zip(calibration.premises, calibration.hypotheses, strict=True)),
    )


def _labelled(batch: dict[str, Tensor], outputs: list[int | None]) -> dict[str, Tensor]:
    """A batch whose labels are the model's outputs; without labels where one has no output."""
    labels = batch.pop("labels")
    known = [output for output in outputs if output is not None]
    return batch if len(known) < len(outputs) else {**batch, "labels": torch.tensor(known)[labels]}


def _prepared(images: Tensor, preparation: ImagePreparation) -> list[Tensor]:
    return [
        preparation.pixels(
            Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())
        )
        for image in images
    ]

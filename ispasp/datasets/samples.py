"""The data that ship with the sample models."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from ispasp import data
from ispasp.datasets.labels import by_name, match_classes, position
from ispasp.datasets.request import Data, Request, batch_size, check_size, image_data, shown
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
    shipped = data.sample_images(name, "calibration")
    calibration = data.choose(shipped, request.samples, request.seed)
    test = data.sample_images(name, "test")
    count = min(request.evaluation, len(test))
    check_size(preparation, request.samples + count)
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
        match.notes,
    )


def _sample_pairs(name: str, preparation: TextPreparation, request: Request) -> Data:
    calibration = data.choose(data.sample_pairs(name, "calibration"), request.samples, request.seed)
    test = data.sample_pairs(name, "test")
    test = test.part(torch.arange(min(request.evaluation, len(test))))
    check_size(preparation, len(calibration) + len(test))
    table = by_name(request.model_classes)
    outputs = [position(label, table) for label in calibration.classes]
    notes: tuple[str, ...] = ()
    if None in outputs:
        notes = (f"The model's classes are not {listing(calibration.classes)}, so accuracy is unknown.",)
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
        notes=notes,
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

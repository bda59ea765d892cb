"""Class folders of small images that can be told by their pixels, and data sets loaded and read back."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from ispasp import datasets
from ispasp.calibration import as_batch, digest, read
from ispasp.preparation import ImagePreparation

RGB = ImagePreparation((8, 8), None, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


GREY = ImagePreparation((8, 8), None, (0.5,), (0.25,))


CLASSES = ("cat", "dog")


def picture(path: Path, value: int, size: tuple[int, int] = (8, 8)) -> None:
    """A PNG of one colour, so that an image can be told by any of its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value % 256, value // 256, 7)).save(path)


def folder(root: Path, per_class: int = 10, classes: tuple[str, ...] = CLASSES, start: int = 0) -> Path:
    for position, name in enumerate(classes):
        for number in range(per_class):
            picture(root / name / f"{number:03}.png", start + position * per_class + number)
    return root


def load(where: str, preparation=RGB, classes=CLASSES, outputs: int | None = 2, **changes):
    settings = {"samples": 8, "seed": 0, "evaluation": 4} | changes
    return datasets.load(datasets.parse(where), preparation, classes, outputs=outputs, **settings)


def values(batches) -> list[int]:
    """Which picture each example is, in the order of the batches."""
    inputs = torch.cat([as_batch(batch).tensors[0] for batch in batches])
    pixels = inputs[:, :2, 0, 0] * torch.tensor(RGB.std[:2]) + torch.tensor(RGB.mean[:2])
    red_green = (pixels * 255).round().long()
    return (red_green[:, 0] + 256 * red_green[:, 1]).tolist()


def labels(batches) -> list[int]:
    return torch.cat([as_batch(batch).labels for batch in batches]).tolist()


def digest_of(found: datasets.Data) -> str:
    return digest(read(found.calibration))

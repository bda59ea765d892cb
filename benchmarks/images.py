"""Calibration images for benchmarks: synthetic ones with some structure, or pictures from a folder or zip."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def synthetic_images(count: int, size: int, seed: int) -> Tensor:
    """Smoothed noise (count, 3, size, size), mean 0 and deviation 1 per channel.

    Octaves of bilinearly enlarged Gaussian noise, each finer one with half the amplitude, roughly the
    spectrum of photographs: neighbouring pixels agree, and no two images are alike.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, size, size)
    side, amplitude = 2, 1.0
    while side <= size:
        noise = torch.randn(count, 3, side, side, generator=generator)
        images += amplitude * nn.functional.interpolate(noise, size=size, mode="bilinear")
        side, amplitude = side * 2, amplitude / 2
    return (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)


def picture_images(source: Path, count: int, size: int, seed: int) -> Tensor:
    """A seeded choice of the JPEG and PNG files in a folder or zip, resized, normalised as for ImageNet."""
    endings = (".jpg", ".jpeg", ".png")
    read: Callable[[str], bytes]
    if source.is_dir():
        names = sorted(str(path) for path in source.rglob("*") if path.name.lower().endswith(endings))
        read = _read_file
    else:
        archive = zipfile.ZipFile(source)
        names = sorted(name for name in archive.namelist() if name.lower().endswith(endings))
        read = archive.read
    if len(names) < count:
        raise SystemExit(f"{source} holds {len(names)} JPEG or PNG files; --images-count asks for {count}.")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))[:count]
    pictures = []
    for index in order.tolist():
        with Image.open(io.BytesIO(read(names[index]))) as picture:
            pictures.append(
                np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
            )
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels - mean) / std).contiguous()


def _read_file(path: str) -> bytes:
    return Path(path).read_bytes()

"""How raw data becomes what a model reads: the evaluation transform of its weights, never an augmented one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode  # type: ignore[import-untyped]
from torchvision.transforms import functional as transform


@dataclass(frozen=True)
class ImagePreparation:
    """From a picture to (C, height, width) float32.

    Attributes:
        size: (height, width) that the model reads, cut from the middle.
        resize: length of the shorter side before the cut; None squeezes the picture to ``size``.
        mean: per channel (one for grey, three for RGB), of pixels in [0, 1]; subtracted.
        std: per channel; divided by.
        interpolation: of the resizing, as torchvision calls it: ``"bilinear"``, ``"bicubic"``, ...
        keyword: the forward's argument; empty for the first positional one.
    """

    size: tuple[int, int]
    resize: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    keyword: str = ""

    @property
    def channels(self) -> int:
        return len(self.mean)

    def pixels(self, picture: Image.Image) -> Tensor:
        """(C, height, width) uint8: resized and cut, not yet normalised."""
        picture = picture.convert("L" if self.channels == 1 else "RGB")
        mode = InterpolationMode(self.interpolation)
        if picture.size != self.size[::-1]:
            if self.resize is None:
                picture = transform.resize(picture, list(self.size), mode)
            else:
                picture = transform.resize(picture, [self.resize], mode)
                picture = transform.center_crop(picture, list(self.size))
        pixels: Tensor = transform.pil_to_tensor(picture)
        return pixels

    def normalised(self, pixels: Tensor) -> Tensor:
        """(N, C, height, width) float32 from uint8 pixels of that shape, on their device."""
        shift, scale = (torch.tensor(v, device=pixels.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (pixels.float() / 255).sub_(shift).div_(scale)


@dataclass(frozen=True)
class TextPreparation:
    """From sentence pairs to token ids, padded to one length.

    Attributes:
        tokenizer: callable as those of transformers are.
        max_length: tokens per pair; longer ones are cut.
    """

    tokenizer: Any
    max_length: int

    def encode(self, premises: Sequence[str], hypotheses: Sequence[str]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` and what else the tokenizer gives, (N, max_length) int64 each."""
        encoded = self.tokenizer(
            list(premises),
            list(hypotheses),
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return {name: value for name, value in encoded.items() if isinstance(value, Tensor)}

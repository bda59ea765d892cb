"""Images varied for distillation: whole, blended, and only in ways the dense model is used to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ispasp.augmentation import Variation, familiar, mirrored, mixed, shifted
from ispasp.calibration import Batch
from ispasp.records import Progress


def test_augmentation_moves_whole_images() -> None:
    """Every augmented image is one of the 2 x 5 x 5 mirrored and shifted versions of its original."""
    images, generator = torch.randn(30, 2, 16, 16), torch.Generator().manual_seed(0)
    moved = shifted(mirrored(images, generator), generator)
    padded = nn.functional.pad(torch.stack([images, images.flip(-1)]), (2,) * 4)
    versions = torch.stack(
        [padded[m, :, :, y : y + 16, x : x + 16] for m in (0, 1) for y in range(5) for x in range(5)]
    )
    matches = (versions == moved).flatten(2).all(2)
    assert (matches.sum(0) == 1).all()
    assert matches.any(1).sum() > 15  # and they differ from image to image


def test_mixing_blends_two_images_in_one_proportion() -> None:
    """Image i is one in channel i and zero elsewhere, so that a blend tells who took part and how much."""
    images = torch.eye(12).view(12, 12, 1, 1).expand(12, 12, 4, 4)
    blends = mixed(images, torch.Generator().manual_seed(0))
    assert torch.equal(blends, blends[:, :, :1, :1].expand_as(blends))
    shares = blends[:, :, 0, 0]
    assert torch.allclose(shares.sum(1), torch.ones(12)) and (shares >= 0).all()
    assert ((shares > 0).sum(1) <= 2).all() and ((shares > 0).sum(1) == 2).sum() > 6


class Pixels(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: Tensor) -> Tensor:
        return self.inner(pixels)


class Side(nn.Module):
    """Two classes: whether the left or the right half of the image is lighter."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2)).unflatten(1, (2, -1)).mean(2)


def test_images_are_varied_only_as_the_dense_model_is_used_to() -> None:
    images = torch.zeros(20, 1, 16, 16)
    images[::2, :, 4:12, 2:5] = images[1::2, :, 4:12, 11:14] = 1
    batches = [Batch((images[:6],), {}), Batch((), {"pixels": images[6:]})]

    def known(dense: nn.Module, batches: list[Batch]) -> list[Variation]:
        work = familiar(dense, batches)
        while True:
            try:
                assert next(work) == Progress(0.0, "asking which augmentation the dense model knows")
            except StopIteration as end:
                return list(end.value)

    assert known(Side(), batches[:1]) == [shifted]
    assert known(Pixels(Side()), batches[1:]) == [shifted]
    assert known(nn.Flatten(0), batches[:1]) == [mirrored, shifted]  # not one class per image

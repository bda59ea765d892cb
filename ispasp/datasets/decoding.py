"""From the bytes of an image file to what a model reads, with limits on what is decoded."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image
from torch import Tensor

from ispasp.preparation import ImagePreparation

MAX_IMAGE_BYTES = 64 * 2**20
MAX_PIXELS = 89_478_485  # from where PIL warns of a decompression bomb
MAX_ASPECT = 100  # a longer strip grows out of bounds when its short side is resized
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class Undecodable(Exception):  # noqa: N818 - skipped and counted, not an error for the user
    """The file is no image that can be used; the message is a reason of few words."""


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return name.lower().endswith(SUFFIXES)


def decode(content: bytes, preparation: ImagePreparation) -> Tensor:
    """(C, height, width) uint8 as the model sees the image, not yet normalised.

    Raises:
        Undecodable: it is damaged, of another format, or too large.
    """
    if len(content) > MAX_IMAGE_BYTES:
        raise Undecodable(f"above {MAX_IMAGE_BYTES // 2**20} MiB")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Undecodable(f"{width} x {height} pixels")
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise Undecodable(f"a strip of {width} x {height} pixels")
            picture = _eight_bits(image).convert("L" if preparation.channels == 1 else "RGB")
    except Image.DecompressionBombError:
        raise Undecodable(f"above {MAX_PIXELS:,} pixels") from None
    # What PIL's readers raise on damaged input; UnidentifiedImageError is an OSError.
    except (
        OSError,
        EOFError,
        SyntaxError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        MemoryError,
        NotImplementedError,
        RuntimeError,
        struct.error,
        zlib.error,
    ) as error:
        reason = "no image" if isinstance(error, Image.UnidentifiedImageError) else "damaged"
        raise Undecodable(reason) from error
    # Outside: what fails here is no fault of the image.
    return preparation.pixels(picture)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits by its upper eight, where PIL would cut off all that is above 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Undecodable("32 bits per pixel")
    return image

"""Filters and feature maps as small RGB pictures (uint8 arrays), ready for a page or a notebook."""

from __future__ import annotations

import numpy as np

# Blue through white to orange: zero is white, and the two ends differ for every kind of colour vision.
_NEGATIVE, _POSITIVE = np.array([0, 90, 160]), np.array([200, 90, 0])


def _enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """Repeat pixels by a whole number so that the longer edge comes near ``side``; nothing is smoothed."""
    times = max(1, round(side / max(image.shape[:2])))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def signed_picture(values: np.ndarray, limit: float | None = None, side: int = 48) -> np.ndarray:
    """Weights (h, w) as uint8 (H, W, 3): negative blue, zero white, positive orange.

    Args:
        limit: the absolute value with the full colour; the largest of ``values`` by default.
        side: wanted length of the longer edge in pixels.
    """
    values = np.nan_to_num(np.asarray(values, dtype=np.float32))
    limit = limit or float(np.abs(values).max(initial=0)) or 1.0
    share = np.clip(np.abs(values) / limit, 0, 1)[..., None]
    ends = np.where(values[..., None] < 0, _NEGATIVE, _POSITIVE)
    return _enlarge((255 * (1 - share) + ends * share).astype(np.uint8), side)


def map_picture(values: np.ndarray, limit: float | None = None, side: int = 96) -> np.ndarray:
    """A feature map (h, w) as uint8 (H, W, 3): 0 and below black, ``limit`` (or its largest value) white."""
    values = np.nan_to_num(np.asarray(values, dtype=np.float32))
    limit = limit or float(values.max(initial=0)) or 1.0
    grey = (255 * np.clip(values / limit, 0, 1)).astype(np.uint8)
    return _enlarge(np.stack([grey] * 3, axis=-1), side)


def token_strip(values: np.ndarray, limit: float, side: int = 12) -> np.ndarray:
    """Answers to the tokens of one text (tokens,) as one row of cells, uint8 (side, W, 3), coloured as weights are."""
    return signed_picture(np.asarray(values)[None, :], limit, 1).repeat(side, axis=0).repeat(side, axis=1)


def photo(image: np.ndarray, side: int = 96) -> np.ndarray:
    """An input image uint8 (C, H, W) with C = 1 or 3 as uint8 (H, W, 3)."""
    image = np.asarray(image)
    return _enlarge(np.moveaxis(image if image.shape[0] == 3 else image.repeat(3, axis=0), 0, -1), side)


def sheet(tiles: list[np.ndarray], columns: int, gap: int = 4) -> np.ndarray:
    """Equal tiles (H, W, 3) side by side in rows of ``columns``, RGBA with a clear gap, uint8."""
    height, width = tiles[0].shape[:2]
    columns = max(1, min(columns, len(tiles)))
    rows = -(-len(tiles) // columns)
    whole = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        whole[top : top + height, left : left + width, :3] = tile
        whole[top : top + height, left : left + width, 3] = 255
    return whole


def filter_sheet(filters: np.ndarray, side: int = 36, columns: int = 8, most: int = 64) -> np.ndarray:
    """The filters of one group as one picture, all on the same scale.

    Args:
        filters: (in_channels, kh, kw) of a convolution, (features,) of a linear layer, or (rows, features) of an
            attention head. Square features (such as 784 = 28 x 28) are drawn as a square, others as one row.
        most: draw at most so many input channels.
    """
    filters = np.asarray(filters, dtype=np.float32)
    limit = float(np.abs(filters).max(initial=0)) or 1.0
    if filters.ndim == 2:
        return signed_picture(filters, limit, 8 * side)
    if filters.ndim == 1:
        edge = round(len(filters) ** 0.5)
        square = edge * edge == len(filters)
        return signed_picture(filters.reshape(edge, edge) if square else filters[None, :], limit, 4 * side)
    return sheet([signed_picture(one, limit, side) for one in filters[:most]], columns)

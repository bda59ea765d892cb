"""Pictures of images, filters and feature maps: shapes, and the colours of what must show."""

from __future__ import annotations

import numpy as np

from ispasp import pictures


def test_signed_picture_has_white_for_zero_and_two_ends() -> None:
    image = pictures.signed_picture(np.array([[-2.0, 0.0, 2.0]]), side=3)
    assert image.shape == (1, 3, 3) and image.dtype == np.uint8
    assert tuple(image[0, 1]) == (255, 255, 255)
    blue, orange = image[0, 0], image[0, 2]
    assert blue[2] > blue[0] and orange[0] > orange[2]


def test_map_picture_is_black_at_zero_and_white_at_the_limit() -> None:
    image = pictures.map_picture(np.array([[0.0, 1.0], [2.0, -1.0]]), limit=2.0, side=2)
    assert [int(v) for v in image[..., 0].ravel()] == [0, 127, 255, 0]


def test_pictures_of_nothing_do_not_divide_by_zero() -> None:
    assert pictures.map_picture(np.zeros((2, 2)), side=2).max() == 0
    assert pictures.signed_picture(np.full((1, 1), np.nan), side=1).min() == 255


def test_filter_sheets() -> None:
    assert pictures.filter_sheet(np.ones((16, 3, 3)), side=36, columns=8).shape == (
        2 * 36 + 4,
        8 * 36 + 7 * 4,
        4,
    )
    assert pictures.filter_sheet(np.arange(784.0), side=28).shape == (112, 112, 3)
    assert pictures.filter_sheet(np.arange(6.0), side=6).shape == (4, 24, 3)
    assert pictures.filter_sheet(np.ones((200, 1, 1)), side=4, columns=8, most=64).shape[0] == 8 * 4 + 7 * 4


def test_photo_takes_grey_and_colour() -> None:
    assert pictures.photo(np.zeros((1, 28, 28), dtype=np.uint8), side=56).shape == (56, 56, 3)
    assert pictures.photo(np.zeros((3, 32, 32), dtype=np.uint8), side=32).shape == (32, 32, 3)

"""Padding tokens: which positions of a value they are, so that no statistic counts them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# Names of a forward's argument of shape (N, T), and what marks a token that counts.
_MASKS = {"attention_mask": True, "key_padding_mask": False, "src_key_padding_mask": False}


def mask_of(keywords: Mapping[str, Tensor]) -> Tensor | None:
    """(N, T) bool, true at tokens that count; None where all do, or nothing is said about it.

    Read from ``attention_mask`` (1: counts, 0: padding), or from ``key_padding_mask`` and
    ``src_key_padding_mask`` (true: padding), as transformers and torch call them. Masks of other numbers, such
    as those that are added to attention's scores, say nothing about tokens.
    """
    for name, counts in _MASKS.items():
        given = keywords.get(name)
        if given is not None and given.ndim == 2 and bool(((given == 0) | (given == 1)).all()):
            mask = given.bool() if counts else ~given.bool()
            return None if bool(mask.all()) else mask
    return None


def rows(mask: Tensor | None, value: Tensor, tokens_first: bool = False) -> Tensor | None:
    """Which rows of ``value`` count: a bool index for its leading dimensions; None where all do.

    Args:
        mask: (N, T) bool, as ``mask_of`` gives it.
        value: (N, T, features) or, flattened, (N * T, features); (T, N, features) or (T * N, features) where
            ``tokens_first``. Of anything else, such as images or what has been pooled over the tokens, every
            row counts.
        tokens_first: as ``Block.tokens_first``.
    """
    if mask is None:
        return None
    index = mask.T if tokens_first else mask
    if value.ndim == 3 and value.shape[:2] == index.shape:
        return index
    if value.ndim == 2 and len(value) == index.numel() > len(mask):
        return index.flatten()
    return None


def counted(mask: Tensor | None, value: Tensor) -> Tensor:
    """``value`` without its padding positions: (P, ...) of (N, T, ...); other values as they are."""
    index = rows(mask, value)
    return value if index is None else value[index]

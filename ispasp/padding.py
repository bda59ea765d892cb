"""Padding tokens: which positions of a value they are, so that no statistic counts them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Names of a forward's argument of shape (N, T), and what marks a token that counts.
_MASKS = {"attention_mask": True, "key_padding_mask": False, "src_key_padding_mask": False}


def mask_of(keywords: Mapping[str, Tensor]) -> Tensor | None:
    """(N, T) bool, true at tokens that count; None where all do, or nothing is said about it.

    Read from ``attention_mask`` (other than 0: counts), or from ``key_padding_mask`` and
    ``src_key_padding_mask`` (true: padding), as transformers and torch call them.
    """
    for name, counts in _MASKS.items():
        given = keywords.get(name)
        if (
            given is not None
            and given.ndim == 2
            and (given.dtype == torch.bool or not given.is_floating_point())
        ):
            mask = given.bool() if counts else ~given.bool()
            return None if bool(mask.all()) else mask
    return None


def rows(mask: Tensor | None, value: Tensor, tokens_first: bool = False) -> Tensor | None:
    """Which rows of ``value`` count: a bool index for its leading dimensions; None where all do.

    Args:
        mask: (N, T) bool, as ``mask_of`` gives it.
        value: (N, T, features), or (T * N, features) where ``tokens_first``. Of anything else, such as what
            has been pooled over the tokens, every row counts.
        tokens_first: whether a flattened value holds all examples of the first token first.
    """
    if mask is None:
        return None
    if value.ndim > 2 and value.shape[:2] == mask.shape:
        return mask
    if tokens_first and value.ndim == 2 and len(value) == mask.numel():
        return mask.T.flatten()
    return None

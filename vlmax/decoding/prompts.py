"""Prompts of unequal length as one array, padded at the left, in one of few lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from vlmax.errors import InputError

SMALLEST = 16


class Prompt(NamedTuple):
    """The prompts of a batch, on the host or on devices.

    Attributes:
      inputs: tokens or embeddings, each row ending at the same place.
      valid: 1 for what belongs to the prompt, 0 for the padding before it.
      context: what a decoder with cross-attention attends to, such as an image's tokens; None for the others.
      context_valid: 1 for what of the context is seen, 0 for padding; None: all of it is.
    """

    inputs: Int[Array, "B P"] | Float[Array, "B P D"]
    valid: Int[Array, "B P"]
    context: Float[Array, "B N C"] | None = None
    context_valid: Int[Array, "B N"] | None = None


def bucket(length: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: few lengths to compile for, at most half of one too much."""
    size = SMALLEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def padded(prompts: Sequence[Sequence[int]] | Sequence[ArrayLike], vocab: int, longest: int, at_most: int) -> Prompt:
    """The prompts, padded at the left to the bucket of the longest.

    Args:
      prompts: each a list of tokens, or each an array `[T, D]` of embeddings.
      vocab: V.
      longest: no prompt may be longer.
      at_most: nor any bucket, padding included.

    Raises:
      InputError: no prompt, one without tokens, one that is too long, or tokens outside the vocabulary.
    """
    rows = [np.asarray(prompt) for prompt in prompts]
    if not rows:
        raise InputError("generation: there is no prompt; give at least one")
    for i, row in enumerate(rows):
        _check(i, row, vocab, longest)
    if len({row.shape[1:] for row in rows}) > 1:
        raise InputError("generation: some prompts are tokens and some embeddings, or embeddings of different widths")
    length = min(bucket(max(map(len, rows))), at_most)
    first = rows[0]
    inputs = np.zeros((len(rows), length, *first.shape[1:]), np.int32 if first.ndim == 1 else first.dtype)
    valid = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        inputs[i, length - len(row) :] = row
        valid[i, length - len(row) :] = 1
    return Prompt(inputs, valid)


def _check(i: int, row: np.ndarray, vocab: int, longest: int) -> None:
    if row.size == 0:
        raise InputError(f"generation: prompt {i} has no tokens; a text can only be continued from one token on")
    tokens = row.ndim == 1 and np.issubdtype(row.dtype, np.integer)
    if not tokens and not (row.ndim == 2 and not np.issubdtype(row.dtype, np.integer)):
        raise InputError(
            f"generation: prompt {i} has shape {list(row.shape)} and dtype {row.dtype}; give a list of tokens, or "
            "embeddings [T, D]"
        )
    if len(row) > longest:
        raise InputError(
            f"generation: prompt {i} has {len(row)} tokens, and the model has room for {longest} beside the new ones; "
            "shorten the prompt or lower max_new_tokens"
        )
    if tokens and (row.min() < 0 or row.max() >= vocab):
        wrong = int(row.min() if row.min() < 0 else row.max())
        raise InputError(
            f"generation: prompt {i} has the token {wrong}, but the vocabulary's are 0 to {vocab - 1}; give the "
            "tokenizer that belongs to the model"
        )

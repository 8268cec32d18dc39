"""Chooses among given answers the one that a model finds likeliest: question answering by ranking.

As in BLIP (Li et al. 2022, section 5.3; before it ALBEF): the answers whose first token is likeliest are read to their
ends, and the one whose tokens, the mark of the end included, are together the likeliest is chosen.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from vlmax.decoding.beam_search import repeated
from vlmax.decoding.prompts import Prompt
from vlmax.decoding.readers import Reader
from vlmax.errors import InputError
from vlmax.models.layers.axes import constrain


class Answers(NamedTuple):
    """Answers as rows of tokens.

    Attributes:
      tokens: each with its mark of the end, and padding after it.
      lengths: without the padding.
    """

    tokens: Int32[np.ndarray, "A L"]
    lengths: Int32[np.ndarray, " A"]


def answer_rows(answers: Sequence[Sequence[int]], vocab: int) -> Answers:
    """Rows of answers.

    Args:
      answers: the tokens of each, with its mark of the end.
      vocab: V, the model's.

    Raises:
      InputError: there are none, one is empty, or has a token outside the vocabulary.
    """
    if not answers:
        raise InputError("ranking answers: there are no candidates; name at least one answer")
    lengths = np.array([len(answer) for answer in answers], np.int32)
    if not lengths.all():
        raise InputError(f"ranking answers: candidate {int(np.argmin(lengths))} has no tokens; take it out")
    tokens = np.zeros((len(answers), lengths.max()), np.int32)
    for row, answer in zip(tokens, answers, strict=True):
        row[: len(answer)] = answer
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise InputError(
            f"ranking answers: a candidate has the token {int(max(tokens.max(), -tokens.min()))}, and the vocabulary's "
            f"are 0 to {vocab - 1}; give the tokenizer that belongs to the model"
        )
    return Answers(tokens, lengths)


class Ranked(NamedTuple):
    """What was chosen.

    Attributes:
      answer: its row among the answers.
      score: the log-probability of its tokens.
      sound: no logit of the row was NaN.
    """

    answer: Int[Array, " B"]
    score: Float[Array, " B"]
    sound: Bool[Array, " B"]


@functools.partial(jax.jit, static_argnames=("reader", "first", "at_once"))
def likeliest(reader: Reader, params: Any, prompt: Prompt, answers: Answers, first: int, at_once: int) -> Ranked:
    """The likeliest answer to every prompt.

    Args:
      reader: of the model.
      params: as its `apply` takes them.
      prompt: what the answers follow.
      answers: the candidates.
      first: so many, whose first token is likeliest, are read to their ends; at most all of them.
      at_once: so many of them side by side.
    """
    count, length = answers.tokens.shape
    logits, cache = reader.start(params, prompt, reader.slots(prompt.valid.shape[1], length))
    sound = ~jnp.isnan(jnp.max(logits, axis=-1))
    begun = jax.nn.log_softmax(logits)[:, answers.tokens[:, 0]]
    begun, chosen = jax.lax.top_k(begun, min(first, count))
    beyond = -chosen.shape[1] % at_once
    begun = jnp.pad(begun, ((0, 0), (0, beyond)), constant_values=-jnp.inf)
    chosen = jnp.pad(chosen, ((0, 0), (0, beyond)))

    def read(chosen: Int[Array, "B at_once"]) -> Float[Array, "B at_once"]:
        """The log-probability of all tokens but the first."""
        tokens, lengths = answers.tokens[chosen], answers.lengths[chosen]
        rows = constrain(tokens.reshape(-1, length), "batch", None)
        after = jax.nn.log_softmax(reader.follow(params, rows[:, :-1], repeated(cache, at_once)))
        found = jnp.take_along_axis(after, rows[:, 1:, None], axis=-1)[..., 0].reshape(*chosen.shape, length - 1)
        return jnp.sum(jnp.where(jnp.arange(1, length) < lengths[..., None], found, 0.0), axis=-1)

    scores = begun
    if length > 1:
        parts = chosen.reshape(len(chosen), -1, at_once).swapaxes(0, 1)
        scores += jax.lax.map(read, parts).swapaxes(0, 1).reshape(begun.shape)
    best = jnp.argmax(scores, axis=1)[:, None]
    answer, score = (jnp.take_along_axis(x, best, axis=1)[:, 0] for x in (chosen, scores))
    return Ranked(answer.astype(jnp.int32), score, sound & ~jnp.any(jnp.isnan(scores), axis=1))

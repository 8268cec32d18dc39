"""Continues prompts: from lists of tokens, or embeddings, to lists of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from jax.typing import ArrayLike

from vlmax.decoding.beam_search import Settled, beam_plan, begin_search, finish_search, limits
from vlmax.decoding.loop import Texts, begin, go_on
from vlmax.decoding.prompts import Prompt, bucket, padded
from vlmax.decoding.readers import Reader, reader_of
from vlmax.decoding.sampling import plan_and_knobs
from vlmax.decoding.settings import GREEDY, NO_MARKS, Generation, Marks
from vlmax.decoding.stopping import StopStrings, stop_strings
from vlmax.errors import InputError, RunFailed

OnTokens = Callable[[list[int | None]], None]
"""Is given the new token of every prompt as soon as it is there; None where the text has ended."""


class Generated(NamedTuple):
    """What was generated.

    Attributes:
      tokens: the new tokens of every prompt, the mark of the end included where there was one.
      scores: in beam search, the score of every text: its log-probability over its length to the power of the length
        penalty.
    """

    tokens: list[list[int]]
    scores: list[float] | None = None


def generate(
    model: nn.Module,
    params: Any,
    prompts: Sequence[Sequence[int]] | Sequence[ArrayLike] | Prompt,
    settings: Generation = GREEDY,
    marks: Marks = NO_MARKS,
    *,
    token_bytes: Sequence[bytes] | None = None,
    on_tokens: OnTokens | None = None,
) -> Generated:
    """Continues every prompt; what a prompt gives does not depend on the others, unless tokens are drawn.

    A cache of few sizes and lengths of prompts are compiled for, whatever is asked (`bucket`). With a mesh and axis
    rules in context the work is spread over devices; every process must then call this alike, and gets all texts.
    On a CPU, parameters in the form of `layer_by_layer` are a good deal faster.

    Args:
      model: one of vlmax/models/decoders, built; tokens are chosen in float32 whatever it computes in.
      params: as `model.apply` takes them.
      prompts: lists of tokens, marks included, or arrays `[T, D]` of embeddings; or all in one array already, with
        the context of a decoder that attends to one.
      settings: how they are continued.
      marks: which tokens have a meaning.
      token_bytes: what every token adds to a text; stop strings need it.
      on_tokens: is called after every token. It costs some speed, and beam search, which changes its mind, has none.

    Raises:
      InputError: prompts that the model has no room for, or settings that need what is not given.
      RunFailed: logits that are no number.
    """
    reader = reader_of(model, marks.start)
    _check(reader, settings, marks, token_bytes, on_tokens)
    new = settings.max_new_tokens
    if not isinstance(prompts, Prompt):
        prompts = padded(prompts, reader.vocab, reader.room(new), reader.context)
    elif prompts.valid.shape[1] > reader.room(new):
        raise InputError(
            f"generation: the prompts are {prompts.valid.shape[1]} tokens long with their padding, and the model has "
            f"room for {reader.room(new)} beside {new} new ones; shorten them or lower max_new_tokens"
        )
    _check_context(reader, prompts)
    slots = bucket(reader.slots(prompts.valid.shape[1], new))
    stops = None if token_bytes is None or not settings.stop else stop_strings(settings.stop, token_bytes)
    plan, knobs = plan_and_knobs(settings, marks.eos)
    if settings.beams == 1:
        texts = begin(reader, plan, slots, params, prompts, knobs, stops)
        texts = _gone_on(reader, plan, params, texts, new, knobs, stops, on_tokens)
        return Generated(_cut(texts.tokens, texts.lengths, texts.sound))
    settled = Settled(knobs, limits(settings, slots), stops)
    beams = beam_plan(settings, plan)
    search = begin_search(reader, beams, slots, params, prompts, settled)
    best = finish_search(reader, beams, params, search, settled)
    # `taken` may lie in pieces over the processes; the others are whole on each.
    tokens, scores, lengths = (np.asarray(x)[:, 0] for x in best.finished[:3])
    return Generated(_cut(tokens, lengths, best.sound), scores.tolist())


def _gone_on(reader, plan, params, texts: Texts, new: int, knobs, stops: StopStrings | None, on_tokens) -> Texts:
    """The texts at their ends, at once or with a call after every token."""
    if on_tokens is None:
        return go_on(reader, plan, params, texts, np.int32(new), knobs, stops)
    ended = np.zeros(len(texts.ended), bool)
    for count in range(1, new + 1):
        if count > 1:
            texts = go_on(reader, plan, params, texts, np.int32(count), knobs, stops)
        newest = np.asarray(texts.tokens)[:, count - 1].tolist()
        on_tokens([None if over else token for token, over in zip(newest, ended, strict=True)])
        ended = np.asarray(texts.ended)
        if ended.all():
            break
    return texts


def _cut(tokens, lengths, sound) -> list[list[int]]:
    if not sound:
        raise RunFailed(
            "generation: the model gave logits that are no number (NaN): its parameters or the prompt's embeddings "
            "hold some, or a product overflowed; look at the parameters, or compute in float32"
        )
    return [row[:length].tolist() for row, length in zip(np.asarray(tokens), np.asarray(lengths), strict=True)]


def _check_context(reader: Reader, prompts: Prompt) -> None:
    if reader.attends and prompts.context is None:
        raise InputError(
            "generation: this decoder attends to a context, such as an image's tokens, and the prompts bring none; "
            "give a Prompt with its field `context`"
        )
    if not reader.attends and (prompts.context is not None or prompts.context_valid is not None):
        raise InputError(
            "generation: the prompts bring a context, and this decoder has no cross-attention that reads it; give the "
            "image's tokens as embeddings within the prompt, or a decoder with cross_width"
        )


def _check(reader: Reader, settings: Generation, marks: Marks, token_bytes, on_tokens) -> None:
    wrong = [token for token in (*marks.eos, marks.start) if not 0 <= token < reader.vocab]
    if wrong:
        raise InputError(
            f"generation: the mark {wrong[0]} is outside the vocabulary, 0 to {reader.vocab - 1}; give the tokenizer "
            "that belongs to the model"
        )
    if settings.stop and token_bytes is None:
        raise InputError(
            f"generation: to stop at {settings.stop[0]!r} the text of every token must be known; give `token_bytes`, "
            "which vlmax.decoding.token_bytes makes of a tokenizer"
        )
    if token_bytes is not None and len(token_bytes) != reader.vocab:
        raise InputError(
            f"generation: token_bytes has {len(token_bytes)} tokens, and the model's vocabulary {reader.vocab}; give "
            "one entry for each token of the model, b'' for those that no text has"
        )
    if on_tokens is not None and settings.beams > 1:
        raise InputError("generation: beam search has no text until its end that could be streamed; set beams to 1")
    candidates = settings.beams * max(2, 1 + len(marks.eos))
    if settings.beams > 1 and candidates > reader.vocab:
        raise InputError(
            f"generation: {settings.beams} beams need {candidates} candidates and the vocabulary has {reader.vocab} "
            "tokens; use fewer beams"
        )

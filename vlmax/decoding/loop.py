"""The compiled loop: the prompts are read at once, then a token at a time until every text has ended."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlmax.decoding.compiled import TokenLoop
from vlmax.decoding.prompts import Prompt
from vlmax.decoding.readers import Reader
from vlmax.decoding.sampling import Knobs, Plan, Seen, allowed, choose, seen_in, with_token
from vlmax.decoding.stopping import StopStrings, ends
from vlmax.models.layers.axes import constrain
from vlmax.models.layers.cache import Cache


class Texts(NamedTuple):
    """The texts so far. The newest token of each is chosen, but not read yet.

    Attributes:
      cache: what the model has read.
      tokens: the new ones; what follows the end of a text means nothing.
      count: how many new tokens there are, those after the ends included.
      lengths: how many of each text, its end included.
      ended: whether a text has ended.
      sound: no logit was NaN so far.
      seen: the tokens of prompt and text.
      states: how far the stop strings are matched.
    """

    cache: Cache
    tokens: Int[Array, "B slots"]
    count: Int[Array, ""]
    lengths: Int[Array, " B"]
    ended: Bool[Array, " B"]
    sound: Bool[Array, ""]
    seen: Seen
    states: Int[Array, "B strings"] | None


@functools.partial(jax.jit, static_argnames=("reader", "plan", "slots"))
def begin(
    reader: Reader, plan: Plan, slots: int, params: Any, prompt: Prompt, knobs: Knobs, stops: StopStrings | None
) -> Texts:
    """Reads the prompts into a cache of as many slots, and chooses the first token of every text."""
    logits, cache = reader.start(params, prompt, slots)
    batch = len(logits)
    texts = Texts(
        cache,
        tokens=jnp.zeros((batch, slots), jnp.int32),
        count=jnp.zeros((), jnp.int32),
        lengths=jnp.zeros(batch, jnp.int32),
        ended=jnp.zeros(batch, bool),
        sound=jnp.ones((), bool),
        seen=seen_in(prompt, reader, plan),
        states=None if stops is None else stops.start(batch),
    )
    return with_next(texts, logits, plan, knobs, stops)


@functools.partial(TokenLoop, static=("reader", "plan"), used_up="texts")
def go_on(
    reader: Reader,
    plan: Plan,
    params: Any,
    texts: Texts,
    until: Int[Array, ""],
    knobs: Knobs,
    stops: StopStrings | None,
) -> Texts:
    """Goes on until there are so many new tokens, or every text has ended; `texts` is used up."""

    def step(texts: Texts) -> Texts:
        newest = jax.lax.dynamic_index_in_dim(texts.tokens, texts.count - 1, axis=1, keepdims=False)
        logits, cache = reader.step(params, newest, texts.cache)
        return with_next(texts._replace(cache=cache), logits, plan, knobs, stops)

    texts = jax.lax.while_loop(lambda texts: (texts.count < until) & ~jnp.all(texts.ended), step, texts)
    # Said of the results themselves, too: what is said within a loop need not hold after it.
    lengths, ended = constrain(texts.lengths, None), constrain(texts.ended, None)
    return texts._replace(tokens=constrain(texts.tokens, None, None), lengths=lengths, ended=ended)


def with_next(texts: Texts, logits: Float[Array, "B V"], plan: Plan, knobs: Knobs, stops: StopStrings | None) -> Texts:
    """The texts with one more token each."""
    sound = texts.sound & ~jnp.isnan(jnp.max(logits))
    tokens = choose(allowed(logits, texts.seen, texts.count, plan, knobs), texts.count, plan, knobs)
    tokens = constrain(tokens, None)  # whole on every device, for the hosts to read
    done, states = ends(tokens, texts.states, plan, stops)
    return texts._replace(
        tokens=constrain(jax.lax.dynamic_update_slice(texts.tokens, tokens[:, None], (0, texts.count)), None, None),
        count=texts.count + 1,
        lengths=constrain(texts.lengths + ~texts.ended, None),
        ended=constrain(texts.ended | done, None),
        sound=sound,
        seen=with_token(texts.seen, tokens),
        states=states,
    )

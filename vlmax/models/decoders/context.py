"""How a decoder with cross-attention reads its context: at once, or into a cache for the tokens to come."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlmax.models.layers.attention import Mask
from vlmax.models.layers.cache import Cache


def reading_context(
    x: Float[Array, "B T D"],
    segments: Int[Array, "B T"] | None,
    context: Float[Array, "B N C"] | None,
    context_segments: Int[Array, "B N"] | None,
    cache: Cache | None,
) -> tuple[Mask, Cache | None]:
    """Who sees what of the context, and the cache that remembers it.

    Args:
      x: the decoder's tokens.
      segments: theirs; all 1 unless given.
      context: what they attend to; None: what the cache has read.
      context_segments: a token sees the context of its own segment; None: all of it.
      cache: of the decoder, if there is one.

    Raises:
      ValueError: no context, neither here nor in the cache, or segments of a context that is not here.
    """
    if context is None:
        if context_segments is not None:
            raise ValueError("decoder: context_segments come with the context, which is not given")
        if cache is None or cache.cross is None:
            raise ValueError("decoder: no context is given, and no cache has read one")
        context_segments = cache.context_segments
    elif cache is not None:
        cache = dataclasses.replace(cache, context_segments=context_segments)
    if context_segments is None:
        return Mask(), cache
    queries = jnp.ones(x.shape[:2], jnp.int32) if segments is None else segments
    return Mask(query_segments=queries, key_segments=context_segments), cache

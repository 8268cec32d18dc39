"""What the decoders share: their output, how a text is read with or without a cache, and how they are counted."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vlmax.errors import InputError
from vlmax.models.decoders.vocabulary import Vocabulary
from vlmax.models.layers.attention import Mask
from vlmax.models.layers.cache import Cache
from vlmax.models.layers.transformer import Transformer, TransformerModule


class DecoderOutput(NamedTuple):
    """What a decoder makes of a text.

    Attributes:
      tokens: after the final norm, as `logits` takes them.
      hidden: the residual stream after every layer, before the final norm, where the call asked for it.
      cache: with the new tokens in it, where the call brought one.
    """

    tokens: Float[Array, "B T D"]
    hidden: Float[Array, "layers B T D"] | None = None
    cache: Cache | None = None


class Decoder(Protocol):
    """The configuration of a decoder that reads nothing but its own text.

    Its module is called with `inputs`, tokens or embeddings, and returns a `DecoderOutput`:

        module(inputs, *, positions, segments, prefix_length, cache, deterministic, hidden)

    See `read` for what the arguments mean. `module.embed(tokens)` gives embeddings without positions,
    `module.logits(output.tokens)` logits `[B, T, V]`, `module.head()` their matrix.
    """

    @property
    def vocab(self) -> int:
        """V; token ids are 0 .. V - 1."""

    @property
    def context(self) -> int:
        """The longest text in tokens."""

    @property
    def embed_width(self) -> int:
        """The width of embeddings as inputs, and of the tokens that come out."""

    def build(self, dtype: DTypeLike = jnp.float32) -> nn.Module:
        """The module, computing in `dtype`."""

    def empty_cache(self, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """A cache for `slots` tokens per row, padding included."""

    def flops(self, tokens: int, context: int = 0) -> float:
        """Forward FLOPs of one row with the logits of every token, after `context` tokens in the cache."""


class Reading(NamedTuple):
    """How the tokens of a call are read: who sees whom, where they stand, and the cache that knows them."""

    mask: Mask
    positions: Int[Array, "#B T"]
    cache: Cache | None


def read(
    inputs: Int[Array, "B T"] | Float[Array, "B T D"],
    context: int,
    positions: Int[Array, "#B T"] | None = None,
    segments: Int[Array, "B T"] | None = None,
    prefix_length: Int[Array, " B"] | None = None,
    cache: Cache | None = None,
    window: int | None = None,
) -> Reading:
    """Says how a text is read.

    Args:
      inputs: tokens or embeddings; with a cache those after the ones in it.
      context: the longest text.
      positions: unless given, a token's is the number of tokens before it that have its segment id.
      segments: ids of packed documents: a token sees its own document, and 0 is padding, which no document sees. All 1
        unless given. The prompts of a batch with a cache are padded at the left.
      prefix_length: the first places of a row, padding at the left included, that all its tokens see. With a cache all
        of them must come with the first call.
      cache: what was read before; the new tokens are admitted to it.
      window: how many tokens a token sees, itself included; None: all before it.

    Raises:
      InputError: without positions, more tokens than the context; more tokens than the cache has slots.
    """
    batch, length = inputs.shape[:2]
    if positions is None and length > context:
        raise InputError(f"decoder: a text has {length} tokens, but `context` is {context}; shorten the text")
    keys, offset = segments, None
    if cache is not None:
        known = jnp.ones((batch, length), jnp.int32) if segments is None else segments
        cache = cache.admit(known)
        if not cache.fresh:  # the first tokens see each other alone, and not all the empty slots
            segments, keys, offset = known, cache.valid, cache.index
    mask = Mask(True, window, prefix_length, segments, keys, offset)
    if positions is None:
        positions = jnp.arange(length)[None]
        if segments is not None and keys is not None:
            seen = Mask(True, query_segments=segments, key_segments=keys, offset=offset).dense(length, keys.shape[1])
            positions = jnp.sum(seen, axis=(1, 3)) - 1
    return Reading(mask, positions, cache)


def embedded(vocabulary: Vocabulary, inputs: Int[Array, "B T"] | Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The embeddings of tokens; embeddings stay as they are.

    Raises:
      ValueError: embeddings of another width.
    """
    if vocabulary.is_initializing():
        vocabulary.head()  # so that its parameters are made, whatever comes in
    if jnp.issubdtype(inputs.dtype, jnp.integer):
        return vocabulary.embed(inputs)
    if inputs.shape[-1] != vocabulary.width:
        raise ValueError(f"decoder: embeddings are {inputs.shape[-1]} wide, not {vocabulary.width}")
    return inputs.astype(vocabulary.dtype)


def decode(
    stack: TransformerModule, x: Float[Array, "B T D"], reading: Reading, *, deterministic: bool, hidden: bool
) -> DecoderOutput:
    """Through the stack; `tokens` are the residual stream after it."""
    positions = None if stack.config.rotary is None else reading.positions
    if reading.cache is None:
        x, states = stack(x, reading.mask, positions=positions, deterministic=deterministic, hidden=hidden)
        return DecoderOutput(x, states)
    x, states, cache = stack(
        x, reading.mask, positions=positions, deterministic=deterministic, hidden=hidden, cache=reading.cache
    )
    return DecoderOutput(x, states, cache)


def empty_cache(stack: Transformer, batch: int, slots: int, dtype: DTypeLike) -> Cache:
    """A cache for the stack."""
    return Cache.empty(stack.depth, batch, slots, stack.kv_heads or stack.heads, stack.head_width, dtype)


def flops(stack: Transformer, embed_width: int, vocab: int, tokens: int, context: int) -> float:
    """See `Decoder.flops`."""
    earlier = 4 * tokens * context * stack.heads * stack.head_width
    return stack.flops(tokens) + stack.depth * earlier + 2 * tokens * embed_width * vocab


def check_vocabulary(name: str, vocab: int, multiple: int, context: int) -> None:
    """Raises InputError: a size below 1."""
    if min(vocab, multiple, context) < 1:
        raise InputError(f"{name}: vocab {vocab}, vocab_multiple {multiple} and context {context} must be 1 or more")

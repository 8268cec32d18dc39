"""What the loop asks of a model: to read the prompts, and then one token at a time."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlmax.decoding.prompts import Prompt
from vlmax.errors import InputError
from vlmax.models.decoders.bert import BERT
from vlmax.models.decoders.decoder import DecoderOutput
from vlmax.models.decoders.t5 import T5
from vlmax.models.layers.axes import constrain
from vlmax.models.layers.cache import Cache

Read = tuple[Float[Array, "B V"], Cache]
"""The logits of the next token, and the cache that knows all before it."""


class Reader(Protocol):
    """A model as the loop sees it; hashable, so that compiled loops are found again."""

    @property
    def vocab(self) -> int:
        """V."""

    @property
    def context(self) -> int:
        """The longest prompt that can be read at all."""

    @property
    def attends(self) -> bool:
        """Whether a prompt needs a context beside its inputs, such as an image's tokens."""

    def room(self, new: int) -> int:
        """The longest prompt that `new` tokens can follow."""

    def slots(self, prompt: int, new: int) -> int:
        """How many tokens a row's cache must hold, for a prompt of so many with its padding."""

    def before(self, prompt: Prompt) -> Prompt:
        """The tokens that the text goes on from, with 1 for those that are no padding."""

    def start(self, params: Any, prompt: Prompt, slots: int) -> Read:
        """Reads the prompts into a new cache of as many slots."""

    def step(self, params: Any, tokens: Int[Array, " B"], cache: Cache) -> Read:
        """Reads one more token of every row."""

    def follow(self, params: Any, tokens: Int[Array, "B T"], cache: Cache) -> Float[Array, "B T V"]:
        """The logits after each of some more tokens of every row."""


def reader_of(model: nn.Module, start: int) -> Reader:
    """How a model is read.

    Args:
      model: one of vlmax/models/decoders.
      start: what the output of an encoder-decoder begins with.

    Raises:
      InputError: the model sees what comes after a token, or needs more than a text, so that it continues nothing.
    """
    config: Any = getattr(model, "config", None)
    if isinstance(config, T5):
        return EncoderDecoder(model, start)
    if isinstance(config, BERT) and not (config.causal and config.predicts):
        raise InputError(
            "generation: this BERT cannot continue a text; it needs causal=True and predicts=True in its configuration"
        )
    if not hasattr(config, "empty_cache"):
        raise InputError(f"generation: {type(model).__name__} is no language model; give one of vlmax/models/decoders")
    return TextDecoder(model)


@dataclasses.dataclass(frozen=True)
class TextDecoder:
    """A decoder that goes on with its own input, and may attend to a context, such as an image's tokens."""

    model: Any

    @property
    def vocab(self) -> int:
        """See `Reader`."""
        return self.model.config.vocab

    @property
    def attends(self) -> bool:
        """See `Reader`."""
        return getattr(self.model.config, "cross_width", None) is not None

    @property
    def context(self) -> int:
        """See `Reader`."""
        return self.model.config.context

    def room(self, new: int) -> int:
        """See `Reader`."""
        return self.context - new + 1  # the last token is not read

    def slots(self, prompt: int, new: int) -> int:
        """See `Reader`."""
        return prompt + new - 1

    def before(self, prompt: Prompt) -> Prompt:
        """See `Reader`; embeddings are no tokens."""
        if jnp.issubdtype(prompt.inputs.dtype, jnp.integer):
            return prompt
        return Prompt(jnp.zeros_like(prompt.valid), jnp.zeros_like(prompt.valid))

    def start(self, params: Any, prompt: Prompt, slots: int) -> Read:
        """See `Reader`."""
        cache = self.model.config.empty_cache(len(prompt.valid), slots, self.model.dtype)
        options = {"context": prompt.context, "context_segments": prompt.context_valid} if self.attends else {}
        out = self.model.apply(params, prompt.inputs, segments=prompt.valid, cache=cache, **options)
        return next_logits(self.model, params, out)

    def step(self, params: Any, tokens: Int[Array, " B"], cache: Cache) -> Read:
        """See `Reader`."""
        return next_logits(self.model, params, self.model.apply(params, tokens[:, None], cache=cache))

    def follow(self, params: Any, tokens: Int[Array, "B T"], cache: Cache) -> Float[Array, "B T V"]:
        """See `Reader`."""
        return all_logits(self.model, params, self.model.apply(params, tokens, cache=cache))


@dataclasses.dataclass(frozen=True)
class EncoderDecoder:
    """T5: the encoder reads the prompt, and the decoder begins with a token of its own."""

    model: Any
    start_token: int

    @property
    def vocab(self) -> int:
        """See `Reader`."""
        return self.model.config.vocab

    @property
    def attends(self) -> bool:
        """See `Reader`; what its decoder attends to is the prompt."""
        return False

    @property
    def context(self) -> int:
        """See `Reader`."""
        return self.model.config.context

    def room(self, new: int) -> int:
        """See `Reader`; the output takes no room from the input, and has no limit of its own."""
        return self.context

    def slots(self, prompt: int, new: int) -> int:
        """See `Reader`."""
        return new  # the first is `start_token`, and the last is not read

    def before(self, prompt: Prompt) -> Prompt:
        """See `Reader`; the prompt is the encoder's, not the beginning of the text."""
        shape = len(prompt.valid), 1
        return Prompt(jnp.full(shape, self.start_token, jnp.int32), jnp.ones(shape, jnp.int32))

    def start(self, params: Any, prompt: Prompt, slots: int) -> Read:
        """See `Reader`."""
        model, tokens = self.model, self.before(prompt).inputs
        cache = model.config.empty_cache(len(tokens), slots, model.dtype)
        context = model.apply(params, prompt.inputs, segments=prompt.valid, method="encode").tokens
        options = {"context_segments": prompt.valid, "cache": cache, "method": "decode"}
        return next_logits(model, params, model.apply(params, tokens, context, **options))

    def step(self, params: Any, tokens: Int[Array, " B"], cache: Cache) -> Read:
        """See `Reader`."""
        return next_logits(self.model, params, self.model.apply(params, tokens[:, None], cache=cache, method="decode"))

    def follow(self, params: Any, tokens: Int[Array, "B T"], cache: Cache) -> Float[Array, "B T V"]:
        """See `Reader`."""
        return all_logits(self.model, params, self.model.apply(params, tokens, cache=cache, method="decode"))


def all_logits(model: Any, params: Any, out: DecoderOutput) -> Float[Array, "B T V"]:
    """The logits after every token."""
    return constrain(model.apply(params, out.tokens, method="logits"), "batch", None, "act_vocab")


def next_logits(model: Any, params: Any, out: DecoderOutput) -> Read:
    """The logits after the last token."""
    logits = model.apply(params, out.tokens[:, -1:], method="logits")[:, 0]
    assert out.cache is not None
    return constrain(logits, "batch", "act_vocab"), out.cache

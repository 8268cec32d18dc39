"""T5 (Raffel et al. 2020): T5 v1.1 and Flan-T5, and the first version with its tied head.

Both stacks know positions only as a bias on the attention scores, by the distance from query to key, which the first
layer holds for all. Distances are those of places in a row: documents that are packed into it, or padding at its
left, change none within a document, so that one bias serves all rows.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vlmax.errors import InputError
from vlmax.models.decoders import decoder
from vlmax.models.decoders.context import reading_context
from vlmax.models.decoders.decoder import DecoderOutput
from vlmax.models.decoders.t5_stack import T5Stack
from vlmax.models.decoders.vocabulary import Vocabulary
from vlmax.models.layers.attention import Mask
from vlmax.models.layers.cache import Cache
from vlmax.models.layers.mlp import Activation
from vlmax.models.layers.transformer import Remat

normal = nn.initializers.normal


@dataclasses.dataclass(frozen=True)
class T5:
    """Configuration of encoder and decoder; the defaults are those of T5 v1.1 small and Flan-T5 small.

    Raises:
      InputError: sizes below 1, a rate outside [0, 1), buckets that do not divide.
    """

    width: int = 512
    """D, of the residual streams."""
    depth: int = 8
    """Layers of the encoder."""
    decoder_depth: int | None = None
    """Layers of the decoder; None: as many as the encoder's."""
    heads: int = 6
    """H, the number of heads."""
    head_dim: int = 64
    """K, the width of a head, whatever the width of the stream."""
    mlp: int = 1024
    """Width of the feed-forward part."""
    vocab: int = 32_128
    """V; token ids are 0 .. V - 1."""
    vocab_multiple: int = 1
    """The tables of the vocabulary have rows up to a multiple of this, so that they divide over devices."""
    context: int = 512
    """The longest input and the longest output in tokens. The weights set no limit; T5 was trained with this one."""
    buckets: int = 32
    """Distances that the bias tells apart, half of them one by one and half ever coarser."""
    max_distance: int = 128
    """Distances from this one on are alike."""
    tied: bool = False
    """The matrix of the logits is that of the embeddings times width^-0.5 (T5 v1.0)."""
    gated: bool = True
    """See `Transformer`; not in T5 v1.0."""
    activation: Activation = "gelu_tanh"
    """relu in T5 v1.0."""
    norm_epsilon: float = 1e-6
    dropout: float = 0.0
    """Rate on the embeddings, on the output of every part and after the final norm; T5 v1.0 was trained with 0.1."""
    remat: Remat = "none"
    """See `Transformer`."""
    unroll: int = 1
    """See `Transformer`; of either stack."""

    def __post_init__(self):
        decoder.check_vocabulary("t5", self.vocab, self.vocab_multiple, self.context)
        for name in ("width", "depth", "decoder_depth", "heads", "head_dim", "mlp"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise InputError(f"t5: {name} is {size}; it must be 1 or more")
        if self.buckets < 4 or self.buckets % 4 or self.max_distance <= self.buckets // 2:
            raise InputError(
                f"t5: buckets {self.buckets} must be a multiple of 4, and max_distance {self.max_distance} larger than "
                "half of it"
            )
        if not 1 <= self.unroll <= min(self.depth, self.decoder_layers):
            raise InputError(f"t5: unroll is {self.unroll}; it must be between 1 and the depth of either stack")
        if not 0 <= self.dropout < 1:
            raise InputError(f"t5: dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder."""
        return self.depth if self.decoder_depth is None else self.decoder_depth

    @property
    def embed_width(self) -> int:
        """Width of embeddings as inputs."""
        return self.width

    def build(self, dtype: DTypeLike = jnp.float32) -> T5Module:
        """The module, computing in `dtype`."""
        return T5Module(self, dtype)

    def empty_cache(self, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """A cache for `slots` tokens of output per row."""
        return Cache.empty(self.decoder_layers, batch, slots, self.heads, self.head_dim, dtype)

    def flops(self, tokens: int, context: int = 0) -> float:
        """Forward FLOPs of one example of `context` tokens of input and `tokens` of output, logits included.

        Matrix products, a multiply-add as 2, attention over the full square.
        """
        inner = self.heads * self.head_dim
        mlp = 2 * (3 if self.gated else 2) * self.width * self.mlp
        encoder = context * (8 * self.width * inner + mlp + 4 * context * inner)
        decoder = tokens * (12 * self.width * inner + mlp + 4 * (tokens + context) * inner)
        decoder += 4 * context * self.width * inner
        return float(self.depth * encoder + self.decoder_layers * decoder + 2 * tokens * self.width * self.vocab)


class T5Module(nn.Module):
    """Encoder and decoder. `encode` and `decode` are its halves; calling it runs one after the other."""

    config: T5
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the parts."""
        config = self.config
        self.vocabulary = Vocabulary(
            config.vocab,
            config.vocab_multiple,
            config.width,
            config.tied,
            normal(1.0),
            self.dtype,
            head_init=normal(config.width**-0.5),
        )
        self.encoder = T5Stack(config, config.depth, False, self.dtype)
        self.decoder = T5Stack(config, config.decoder_layers, True, self.dtype)

    def __call__(
        self,
        inputs: Int[Array, "B N"] | Float[Array, "B N D"],
        targets: Int[Array, "B T"] | Float[Array, "B T D"],
        *,
        segments: Int[Array, "B N"] | None = None,
        target_segments: Int[Array, "B T"] | None = None,
        deterministic: bool = True,
        hidden: bool = False,
    ) -> DecoderOutput:
        """The decoder's output on `targets`, which are shifted: each is read before the token that it predicts.

        See `encode` and `decode` for the arguments.
        """
        encoded = self.encode(inputs, segments=segments, deterministic=deterministic)
        return self.decode(
            targets,
            encoded.tokens,
            segments=target_segments,
            context_segments=segments,
            deterministic=deterministic,
            hidden=hidden,
        )

    def encode(
        self,
        inputs: Int[Array, "B N"] | Float[Array, "B N D"],
        *,
        segments: Int[Array, "B N"] | None = None,
        deterministic: bool = True,
        hidden: bool = False,
    ) -> DecoderOutput:
        """Reads tokens or embeddings, each with all of its own segment; 0 is padding, all 1 unless given.

        Raises:
          InputError: more tokens than the context.
        """
        if inputs.shape[1] > self.config.context:
            raise InputError(
                f"t5: an input has {inputs.shape[1]} tokens, but `context` is {self.config.context}; shorten the input "
                "or raise `context`"
            )
        x = decoder.embedded(self.vocabulary, inputs)
        mask = Mask(query_segments=segments, key_segments=segments)
        x, states, _ = self.encoder(x, mask, None, Mask(), None, deterministic, hidden)
        return DecoderOutput(x, states)

    def decode(
        self,
        inputs: Int[Array, "B T"] | Float[Array, "B T D"],
        context: Float[Array, "B N D"] | None = None,
        *,
        segments: Int[Array, "B T"] | None = None,
        context_segments: Int[Array, "B N"] | None = None,
        cache: Cache | None = None,
        deterministic: bool = True,
        hidden: bool = False,
    ) -> DecoderOutput:
        """Reads tokens or embeddings, each with those before it and with what the encoder gave.

        Args:
          inputs: tokens or embeddings; with a cache those after the ones in it.
          context: the encoder's tokens. The first call with a cache reads them into it; later ones go without.
          segments: see `decoder.read`. A token also sees the context of its own segment alone.
          context_segments: the segments that the encoder was given.
          cache: what was read before.
          deterministic: without it an rng `dropout` is needed where the configuration drops anything.
          hidden: the output has the residual stream after every layer, too.

        Raises:
          InputError: more tokens than the context or the cache have room for.
          ValueError: no context, neither here nor in the cache.
        """
        reading = decoder.read(inputs, self.config.context, segments=segments, cache=cache)
        x = decoder.embedded(self.vocabulary, inputs)
        context_mask, cache = reading_context(x, segments, context, context_segments, reading.cache)
        x, states, cache = self.decoder(x, reading.mask, context, context_mask, cache, deterministic, hidden)
        return DecoderOutput(x, states, cache)

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The embeddings of tokens, for encoder and decoder alike."""
        return self.vocabulary.embed(tokens)

    def logits(self, tokens: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The logits of the next token, in float32."""
        return self.vocabulary.logits(tokens * self.config.width**-0.5 if self.config.tied else tokens)

    def head(self) -> Float[Array, "D rows"]:
        """The matrix of the logits, columns past V included."""
        return self.vocabulary.head() * (self.config.width**-0.5 if self.config.tied else 1)


def flan_t5_small(**changes) -> T5:
    """Flan-T5 small, of the sizes of T5 v1.1 (Chung et al. 2022)."""
    return dataclasses.replace(T5(), **changes)


def flan_t5_base(**changes) -> T5:
    """Flan-T5 base."""
    return flan_t5_small(**{"width": 768, "depth": 12, "heads": 12, "mlp": 2048, **changes})


def flan_t5_large(**changes) -> T5:
    """Flan-T5 large."""
    return flan_t5_small(**{"width": 1024, "depth": 24, "heads": 16, "mlp": 2816, **changes})


def flan_t5_xl(**changes) -> T5:
    """Flan-T5 XL."""
    return flan_t5_small(**{"width": 2048, "depth": 24, "heads": 32, "mlp": 5120, **changes})


def flan_t5_xxl(**changes) -> T5:
    """Flan-T5 XXL."""
    return flan_t5_small(**{"width": 4096, "depth": 24, "heads": 64, "mlp": 10240, **changes})


def t5_base(**changes) -> T5:
    """T5 v1.0 base (Raffel et al. 2020, section 3.1.1)."""
    first = T5(width=768, depth=12, heads=12, mlp=3072, tied=True, gated=False, activation="relu")
    return dataclasses.replace(first, **changes)

"""BERT (Devlin et al. 2019): an encoder of texts, and, causal or attending to images, the text side of BLIP.

The same parameters serve every use: `causal` adds none, and with `cross_width` each layer has `attention`,
`cross_attention` and `mlp`, with their norms, under their own names. So uses share what names say.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vlmax.errors import InputError
from vlmax.models.decoders import decoder
from vlmax.models.decoders.context import reading_context
from vlmax.models.decoders.decoder import DecoderOutput
from vlmax.models.decoders.vocabulary import Vocabulary, rows
from vlmax.models.layers.attention import Mask
from vlmax.models.layers.axes import constrain, parameter
from vlmax.models.layers.cache import Cache
from vlmax.models.layers.dense import Dense
from vlmax.models.layers.embeddings import Positions
from vlmax.models.layers.mlp import ACTIVATIONS, Activation
from vlmax.models.layers.norms import LayerNorm
from vlmax.models.layers.transformer import Remat, Transformer, TransformerModule


@dataclasses.dataclass(frozen=True)
class BERT:
    """Configuration of the model; the defaults are those of BERT-base, uncased.

    Raises:
      InputError: sizes that do not divide or are below 1.
    """

    width: int = 768
    """D, of the residual stream."""
    depth: int = 12
    """Number of layers."""
    heads: int = 12
    """H, the number of heads."""
    mlp: int = 3072
    """Width of the feed-forward part."""
    vocab: int = 30_522
    """V; token ids are 0 .. V - 1."""
    vocab_multiple: int = 1
    """The table of the vocabulary has rows up to a multiple of this, so that they divide over devices."""
    context: int = 512
    """The longest text in tokens."""
    token_types: int = 2
    """Kinds of tokens that have a vector each, such as first and second sentence; 0: there are none (BLIP)."""
    causal: bool = False
    """A token sees those before it alone; else all of its text."""
    cross_width: int | None = None
    """Width of the context that every layer attends to, such as image tokens; None: there is none."""
    predicts: bool = True
    """There is a head that predicts tokens: a dense layer, a norm, the table of the embeddings and a bias."""
    pooler: bool = False
    """There is a dense layer with tanh on a text's first token."""
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-12
    dropout: float = 0.0
    """Rate on the embeddings and on the output of every part; BERT was trained with 0.1."""
    remat: Remat = "none"
    """See `Transformer`."""
    unroll: int = 1
    """See `Transformer`."""

    def __post_init__(self):
        decoder.check_vocabulary("bert", self.vocab, self.vocab_multiple, self.context)
        if self.token_types < 0:
            raise InputError(f"bert: token_types is {self.token_types}; it must be 0 or more")
        if self.cross_width is not None and self.cross_width < 1:
            raise InputError(f"bert: cross_width is {self.cross_width}; it must be 1 or more, or None")
        self.stack()

    @property
    def embed_width(self) -> int:
        """Width of embeddings as inputs."""
        return self.width

    def stack(self) -> Transformer:
        """The transformer stack inside."""
        return Transformer(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            norm_epsilon=self.norm_epsilon,
            norm_position="post",
            activation=self.activation,
            cross_width=self.cross_width,
            dropout=self.dropout,
            remat=self.remat,
            unroll=self.unroll,
        )

    def build(self, dtype: DTypeLike = jnp.float32) -> BERTModule:
        """The module, computing in `dtype`."""
        return BERTModule(self, dtype)

    def empty_cache(self, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """A cache for `slots` tokens per row."""
        return decoder.empty_cache(self.stack(), batch, slots, dtype)

    def flops(self, tokens: int, context: int = 0) -> float:
        """Forward FLOPs of one text that attends to `context` tokens, with the logits of every token if it predicts."""
        head = 2 * tokens * self.width * (self.width + self.vocab) if self.predicts else 0
        return self.stack().flops(tokens, context) + head


class BERTModule(nn.Module):
    """The model."""

    config: BERT
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the parts."""
        config, init = self.config, nn.initializers.normal(0.02)

        def dense(features):
            return Dense((features,), ("embed",), ("projection",), init, dtype=self.dtype)

        self.vocabulary = Vocabulary(config.vocab, config.vocab_multiple, config.width, True, init, self.dtype)
        self.positions = Positions(config.context, config.width, init, self.dtype)
        if config.token_types:
            self.token_types = Positions(config.token_types, config.width, init, self.dtype)
        self.embedding_norm = LayerNorm(config.norm_epsilon, self.dtype)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.transformer = TransformerModule(config.stack(), self.dtype)
        if config.predicts:
            self.head_dense = dense(config.width)
            self.head_norm = LayerNorm(config.norm_epsilon, self.dtype)
            size = rows(config.vocab, config.vocab_multiple)
            self.output_bias = parameter(self, "output_bias", nn.initializers.zeros, (size,), ("vocab",))
        if config.pooler:
            self.pooler = dense(config.width)

    def __call__(
        self,
        inputs: Int[Array, "B T"] | Float[Array, "B T D"],
        *,
        context: Float[Array, "B N C"] | None = None,
        token_types: Int[Array, "#B T"] | None = None,
        positions: Int[Array, "#B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        prefix_length: Int[Array, " B"] | None = None,
        context_segments: Int[Array, "B N"] | None = None,
        cache: Cache | None = None,
        deterministic: bool = True,
        hidden: bool = False,
    ) -> DecoderOutput:
        """Reads a text. Positions past the context and token types that are not there give NaN.

        Args:
          inputs: tokens or embeddings without positions; with a cache those after the ones in it.
          context: what every layer attends to, with `cross_width`. With a cache the first call reads it.
          token_types: of every token; 0 unless given.
          positions: see `decoder.read`.
          segments: see `decoder.read`; without `causal` a token sees all of its own segment.
          prefix_length: see `decoder.read`; with `causal`.
          context_segments: a token sees the context of its own segment; all of it unless given.
          cache: what was read before; with `causal`.
          deterministic: without it an rng `dropout` is needed where the configuration drops anything.
          hidden: the output has the residual stream after every layer, too.

        Raises:
          InputError: more tokens than the context or the cache have room for.
          ValueError: an argument that this configuration has no use for, or a context that is missing.
        """
        config = self.config
        if not config.causal and (prefix_length is not None or cache is not None):
            raise ValueError("bert: prefix_length and cache go with causal=True")
        if config.cross_width is None and (context is not None or context_segments is not None):
            raise ValueError("bert: a context is given, but cross_width is None, so that no layer reads it")
        if token_types is not None and not config.token_types:
            raise ValueError("bert: token types are given, but the model has none")
        reading = decoder.read(inputs, config.context, positions, segments, prefix_length, cache)
        mask = reading.mask if config.causal else Mask(query_segments=segments, key_segments=segments)
        x = decoder.embedded(self.vocabulary, inputs)
        context_mask, cache = None, reading.cache
        if config.cross_width is not None:
            context_mask, cache = reading_context(x, segments, context, context_segments, cache)

        x = x + self.positions.at(reading.positions)
        if config.token_types:
            x = x + self.token_types.at(jnp.zeros((1, 1), jnp.int32) if token_types is None else token_types)
        x = self.embedding_dropout(self.embedding_norm(x), deterministic=deterministic)
        x = constrain(x, "batch", "tokens", "act_embed")
        if self.is_initializing():
            self.make_heads(x)
        options: dict[str, Any] = {"context": context, "context_mask": context_mask, "cache": cache}
        return DecoderOutput(*self.transformer(x, mask, **options, deterministic=deterministic, hidden=hidden))

    def make_heads(self, x: Float[Array, "B T D"]) -> None:
        """Makes the parameters of the heads, which reading does not use."""
        if self.config.predicts:
            self.head_inputs(x)
        if self.config.pooler:
            self.pool(x)

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The embeddings of tokens, without positions, token types and norm."""
        return self.vocabulary.embed(tokens)

    def pool(self, tokens: Float[Array, "B T D"]) -> Float[Array, "B D"]:
        """One vector of a text, with `pooler`, from its first token."""
        return jnp.tanh(self.pooler(tokens[:, 0]))

    def head_inputs(self, tokens: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """What is multiplied with `head()` and added to `head_bias()` to give the logits."""
        return self.head_norm(ACTIVATIONS[self.config.activation](self.head_dense(tokens)))

    def logits(self, tokens: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The logits of the predicted tokens, in float32."""
        return self.vocabulary.logits(self.head_inputs(tokens)) + self.output_bias[: self.config.vocab]

    def head(self) -> Float[Array, "D rows"]:
        """The matrix of the logits, which is that of the embeddings; columns past V included."""
        return self.vocabulary.head()

    def head_bias(self) -> Float[Array, " rows"]:
        """The bias of the logits, entries past V included."""
        return self.output_bias


def bert_base(**changes) -> BERT:
    """BERT-base, uncased (Devlin et al. 2019, section 3)."""
    return dataclasses.replace(BERT(), **changes)


def bert_large(**changes) -> BERT:
    """BERT-large, uncased."""
    return bert_base(**{"width": 1024, "depth": 24, "heads": 16, "mlp": 4096, **changes})


def blip_text(**changes) -> BERT:
    """BLIP's text model, BERT-base with two more tokens and without token types (Li et al. 2022).

    `causal` is its decoder; `cross_width`, the width of the images' tokens, its image-grounded encoder and decoder.
    """
    return bert_base(**{"vocab": 30_524, "token_types": 0, **changes})

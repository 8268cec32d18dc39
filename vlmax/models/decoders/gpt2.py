"""GPT-2 (Radford et al. 2019): learned positions, norms before each part, tied embeddings."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vlmax.models.decoders import decoder
from vlmax.models.decoders.decoder import DecoderOutput
from vlmax.models.decoders.vocabulary import Vocabulary
from vlmax.models.layers.axes import constrain
from vlmax.models.layers.cache import Cache
from vlmax.models.layers.embeddings import Positions
from vlmax.models.layers.norms import LayerNorm
from vlmax.models.layers.transformer import Remat, Transformer, TransformerModule


@dataclasses.dataclass(frozen=True)
class GPT2:
    """Configuration of the decoder; the defaults are those of the smallest published model.

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
    vocab: int = 50_257
    """V; token ids are 0 .. V - 1."""
    vocab_multiple: int = 1
    """The table of the vocabulary has rows up to a multiple of this, so that they divide over devices."""
    context: int = 1024
    """The longest text in tokens."""
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    """See `Transformer`."""
    remat: Remat = "none"
    """See `Transformer`."""
    unroll: int = 1
    """See `Transformer`."""

    def __post_init__(self):
        decoder.check_vocabulary("gpt2", self.vocab, self.vocab_multiple, self.context)
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
            activation="gelu_tanh",
            dropout=self.dropout,
            init="gpt2",
            remat=self.remat,
            unroll=self.unroll,
        )

    def build(self, dtype: DTypeLike = jnp.float32) -> GPT2Module:
        """The module, computing in `dtype`."""
        return GPT2Module(self, dtype)

    def empty_cache(self, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """A cache for `slots` tokens per row."""
        return decoder.empty_cache(self.stack(), batch, slots, dtype)

    def flops(self, tokens: int, context: int = 0) -> float:
        """See `Decoder.flops`."""
        return decoder.flops(self.stack(), self.width, self.vocab, tokens, context)


class GPT2Module(nn.Module):
    """The decoder; see `Decoder`."""

    config: GPT2
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the parts."""
        config, init = self.config, nn.initializers.normal(0.02)
        self.vocabulary = Vocabulary(config.vocab, config.vocab_multiple, config.width, True, init, self.dtype)
        self.positions = Positions(config.context, config.width, init, self.dtype)
        self.transformer = TransformerModule(config.stack(), self.dtype)
        self.final_norm = LayerNorm(config.norm_epsilon, self.dtype)

    def __call__(
        self,
        inputs: Int[Array, "B T"] | Float[Array, "B T D"],
        *,
        positions: Int[Array, "#B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        prefix_length: Int[Array, " B"] | None = None,
        cache: Cache | None = None,
        deterministic: bool = True,
        hidden: bool = False,
    ) -> DecoderOutput:
        """Reads a text; see `decoder.read` for the arguments. A position past the context gives NaN."""
        config = self.config
        reading = decoder.read(inputs, config.context, positions, segments, prefix_length, cache)
        x = decoder.embedded(self.vocabulary, inputs) + self.positions.at(reading.positions)
        x = constrain(x, "batch", "tokens", "act_embed")
        out = decoder.decode(self.transformer, x, reading, deterministic=deterministic, hidden=hidden)
        return out._replace(tokens=self.final_norm(out.tokens))

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The embeddings of tokens, without positions."""
        return self.vocabulary.embed(tokens)

    def logits(self, tokens: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The logits of the next token, in float32."""
        return self.vocabulary.logits(tokens)

    def head(self) -> Float[Array, "D rows"]:
        """The matrix of the logits, which is that of the embeddings; columns past V included."""
        return self.vocabulary.head()


def gpt2(**changes) -> GPT2:
    """GPT-2 with 124 million parameters (Radford et al. 2019, table 2)."""
    return dataclasses.replace(GPT2(), **changes)


def gpt2_medium(**changes) -> GPT2:
    """GPT-2 with 355 million parameters."""
    return gpt2(**{"width": 1024, "depth": 24, "heads": 16, "mlp": 4096, **changes})


def gpt2_large(**changes) -> GPT2:
    """GPT-2 with 774 million parameters."""
    return gpt2(**{"width": 1280, "depth": 36, "heads": 20, "mlp": 5120, **changes})


def gpt2_xl(**changes) -> GPT2:
    """GPT-2 with 1.6 billion parameters."""
    return gpt2(**{"width": 1600, "depth": 48, "heads": 25, "mlp": 6400, **changes})

"""OPT (Zhang et al. 2022): GPT-3's shape with ReLU and tied embeddings.

The 350m alone has its norms after each part, none at the end, and token vectors narrower than the residual stream, with
a projection into it and out of it again.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vlmax.errors import InputError
from vlmax.models.decoders import decoder
from vlmax.models.decoders.decoder import DecoderOutput
from vlmax.models.decoders.vocabulary import Vocabulary
from vlmax.models.layers.axes import constrain
from vlmax.models.layers.cache import Cache
from vlmax.models.layers.dense import Dense
from vlmax.models.layers.embeddings import Positions
from vlmax.models.layers.norms import LayerNorm
from vlmax.models.layers.transformer import Remat, Transformer, TransformerModule

OFFSET = 2
"""The published tables of positions begin with two rows that no token has: position p is row p + 2."""


@dataclasses.dataclass(frozen=True)
class OPT:
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
    vocab: int = 50_272
    """V; token ids are 0 .. V - 1."""
    vocab_multiple: int = 1
    """The table of the vocabulary has rows up to a multiple of this, so that they divide over devices."""
    context: int = 2048
    """The longest text in tokens."""
    norm_epsilon: float = 1e-5
    token_width: int | None = None
    """Width of the tokens' vectors, projected to D and back (350m); None: D, without projections."""
    post_norm: bool = False
    """Norms after each part and none after the stack (350m)."""
    dropout: float = 0.0
    """See `Transformer`."""
    remat: Remat = "none"
    """See `Transformer`."""
    unroll: int = 1
    """See `Transformer`."""

    def __post_init__(self):
        decoder.check_vocabulary("opt", self.vocab, self.vocab_multiple, self.context)
        if self.embed_width < 1:
            raise InputError(f"opt: token_width is {self.token_width}; it must be 1 or more")
        self.stack()

    @property
    def embed_width(self) -> int:
        """Width of embeddings as inputs, and of the tokens that come out."""
        return self.width if self.token_width is None else self.token_width

    def stack(self) -> Transformer:
        """The transformer stack inside."""
        return Transformer(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            norm_epsilon=self.norm_epsilon,
            norm_position="post" if self.post_norm else "pre",
            activation="relu",
            dropout=self.dropout,
            remat=self.remat,
            unroll=self.unroll,
        )

    def build(self, dtype: DTypeLike = jnp.float32) -> OPTModule:
        """The module, computing in `dtype`."""
        return OPTModule(self, dtype)

    def empty_cache(self, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """A cache for `slots` tokens per row."""
        return decoder.empty_cache(self.stack(), batch, slots, dtype)

    def flops(self, tokens: int, context: int = 0) -> float:
        """See `Decoder.flops`."""
        projections = 0 if self.token_width is None else 4 * tokens * self.token_width * self.width
        return projections + decoder.flops(self.stack(), self.embed_width, self.vocab, tokens, context)


class OPTModule(nn.Module):
    """The decoder; see `Decoder`."""

    config: OPT
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the parts."""
        config, init = self.config, nn.initializers.normal(0.02)
        self.vocabulary = Vocabulary(config.vocab, config.vocab_multiple, config.embed_width, True, init, self.dtype)
        self.positions = Positions(config.context + OFFSET, config.width, init, self.dtype)
        self.transformer = TransformerModule(config.stack(), self.dtype)
        if not config.post_norm:
            self.final_norm = LayerNorm(config.norm_epsilon, self.dtype)
        if config.token_width is not None:

            def project(width, in_axis, out_axis):
                return Dense((width,), (in_axis,), (out_axis,), init, use_bias=False, dtype=self.dtype)

            self.project_in = project(config.width, "projection", "embed")
            self.project_out = project(config.token_width, "embed", "projection")

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
        x = decoder.embedded(self.vocabulary, inputs)
        if config.token_width is not None:
            x = self.project_in(x)
        x = constrain(x + self.positions.at(reading.positions + OFFSET), "batch", "tokens", "act_embed")
        out = decoder.decode(self.transformer, x, reading, deterministic=deterministic, hidden=hidden)
        x = out.tokens if config.post_norm else self.final_norm(out.tokens)
        if config.token_width is not None:
            x = self.project_out(x)
        return out._replace(tokens=x)

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The embeddings of tokens, without positions."""
        return self.vocabulary.embed(tokens)

    def logits(self, tokens: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The logits of the next token, in float32."""
        return self.vocabulary.logits(tokens)

    def head(self) -> Float[Array, "D rows"]:
        """The matrix of the logits, which is that of the embeddings; columns past V included."""
        return self.vocabulary.head()


def opt_125m(**changes) -> OPT:
    """OPT-125M (Zhang et al. 2022, table 1)."""
    return dataclasses.replace(OPT(), **changes)


def opt_350m(**changes) -> OPT:
    """OPT-350M."""
    sizes = {"width": 1024, "depth": 24, "heads": 16, "mlp": 4096}
    return opt_125m(**{**sizes, "token_width": 512, "post_norm": True, **changes})


def opt_1_3b(**changes) -> OPT:
    """OPT-1.3B."""
    return opt_125m(**{"width": 2048, "depth": 24, "heads": 32, "mlp": 8192, **changes})


def opt_2_7b(**changes) -> OPT:
    """OPT-2.7B, one of BLIP-2's."""
    return opt_125m(**{"width": 2560, "depth": 32, "heads": 32, "mlp": 10_240, **changes})


def opt_6_7b(**changes) -> OPT:
    """OPT-6.7B, one of BLIP-2's."""
    return opt_125m(**{"width": 4096, "depth": 32, "heads": 32, "mlp": 16_384, **changes})


def opt_13b(**changes) -> OPT:
    """OPT-13B."""
    return opt_125m(**{"width": 5120, "depth": 40, "heads": 40, "mlp": 20_480, **changes})

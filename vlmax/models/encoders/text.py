"""Text encoders of contrastive models: CLIP's causal one and SigLIP's bidirectional one."""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vlmax.errors import InputError
from vlmax.models.encoders.output import EncoderOutput
from vlmax.models.layers.attention import Mask
from vlmax.models.layers.axes import constrain
from vlmax.models.layers.dense import Dense
from vlmax.models.layers.embeddings import Positions, TokenEmbedding
from vlmax.models.layers.mlp import Activation
from vlmax.models.layers.norms import LayerNorm
from vlmax.models.layers.transformer import Init, Remat, Transformer, TransformerModule

Pool = Literal["highest", "last", "mean"]


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """Configuration of the encoder; the defaults are CLIP's for ViT-B with plain GELU.

    Raises:
      InputError: sizes that do not divide or are below 1.
    """

    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp: int = 2048
    vocab: int = 49408
    """V; token ids are 0 .. V - 1."""
    context: int = 77
    """T, the longest text in tokens."""
    causal: bool = True
    """CLIP's mask; SigLIP sees the whole text, padding included."""
    pool: Pool = "highest"
    """What stands for the text: the token of the highest id (CLIP's end of text), the last one (SigLIP), or the mean of
    all, padding included, through which every word reaches the loss from the first step on."""
    head_width: int | None = None
    """Width of a dense layer with bias after pooling (SigLIP); None: there is none."""
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    """See `Transformer`."""
    init: Init = "clip"
    """See `Transformer`; clip also means OpenCLIP's 0.02 for tokens and 0.01 for positions, else width^-0.5."""
    remat: Remat = "none"
    """See `Transformer`."""
    unroll: int = 1
    """See `Transformer`."""

    def __post_init__(self):
        if min(self.vocab, self.context) < 1 or (self.head_width is not None and self.head_width < 1):
            raise InputError(
                f"text encoder: vocab {self.vocab}, context {self.context} and head_width {self.head_width} must be 1 "
                "or more"
            )
        self.stack()

    @property
    def output_width(self) -> int:
        """Width of the pooled vector."""
        return self.head_width or self.width

    def stack(self) -> Transformer:
        """The transformer stack inside."""
        return Transformer(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            norm_epsilon=self.norm_epsilon,
            activation=self.activation,
            dropout=self.dropout,
            init=self.init,
            remat=self.remat,
            unroll=self.unroll,
        )

    def build(self, dtype: DTypeLike = jnp.float32) -> TextEncoderModule:
        """The module, computing in `dtype`."""
        return TextEncoderModule(self, dtype)

    def flops(self) -> float:
        """Forward FLOPs of one text of full length; see `Transformer.flops`."""
        head = 2 * self.width * self.head_width if self.head_width else 0
        return self.stack().flops(self.context) + head


class TextEncoderModule(nn.Module):
    """The encoder."""

    config: TextEncoder
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"], deterministic: bool = True, hidden: bool = False) -> EncoderOutput:
        """Encodes texts of at most `context` tokens; with `hidden` the residual stream after every layer too.

        Raises:
          InputError: texts longer than the context.
        """
        config, length = self.config, tokens.shape[1]
        if length > config.context:
            raise InputError(f"text encoder: texts have {length} tokens, but `context` is {config.context}")
        normal = nn.initializers.normal
        clip, scaled = config.init == "clip", config.width**-0.5
        embedding = TokenEmbedding(
            config.vocab, config.width, normal(0.02 if clip else scaled), self.dtype, name="token_embedding"
        )
        positions = Positions(
            config.context, config.width, normal(0.01 if clip else scaled), self.dtype, name="positions"
        )
        x = constrain(embedding(tokens) + positions()[:length], "batch", "tokens", "act_embed")
        stack = TransformerModule(config.stack(), self.dtype, name="transformer")
        x, states = stack(x, Mask(causal=config.causal), deterministic=deterministic, hidden=hidden)
        final_norm = LayerNorm(config.norm_epsilon, self.dtype, name="final_norm")
        # The pooled token is normalised by itself, so that nothing else is where only `pooled` is read.
        pooled = final_norm(pooled_tokens(config.pool, x, tokens))
        if config.head_width is not None:
            init = nn.initializers.lecun_normal()
            pooled = Dense((config.head_width,), ("embed",), ("projection",), init, dtype=self.dtype, name="head")(
                pooled
            )
        return EncoderOutput(final_norm(x), constrain(pooled, "batch", "act_embed"), states)


def pooled_tokens(pool: Pool, x: Float[Array, "B T D"], tokens: Int[Array, "B T"]) -> Float[Array, "B D"]:
    """One vector of each text; see `TextEncoder.pool`."""
    if pool == "mean":
        return jnp.mean(x, axis=1)
    return at(x, jnp.argmax(tokens, axis=1)) if pool == "highest" else x[:, -1]


def at(x: Float[Array, "B T D"], index: Int[Array, " B"]) -> Float[Array, "B D"]:
    """Row `index[b]` of every example b."""
    return jax.vmap(lambda rows, i: rows[i])(x, index)


def clip_text_b(**changes) -> TextEncoder:
    """The text encoder of CLIP ViT-B (Radford et al. 2021, table 20)."""
    return dataclasses.replace(TextEncoder(), **changes)


def clip_text_l(**changes) -> TextEncoder:
    """The text encoder of CLIP ViT-L (Radford et al. 2021, table 20)."""
    return dataclasses.replace(TextEncoder(width=768, heads=12, mlp=3072), **changes)


def clip_text_h(**changes) -> TextEncoder:
    """The text encoder of OpenCLIP's ViT-H/14 and ViT-g/14 (Cherti et al. 2023, table 24)."""
    return dataclasses.replace(TextEncoder(width=1024, depth=24, heads=16, mlp=4096), **changes)


def siglip_text_b(**changes) -> TextEncoder:
    """The text encoder of SigLIP ViT-B/16 (Zhai et al. 2023)."""
    siglip = TextEncoder(
        width=768,
        heads=12,
        mlp=3072,
        vocab=32_000,
        context=64,
        causal=False,
        pool="last",
        head_width=768,
        activation="gelu_tanh",
        norm_epsilon=1e-6,
        init="xavier",
    )
    return dataclasses.replace(siglip, **changes)

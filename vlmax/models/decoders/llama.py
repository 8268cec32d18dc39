"""LLaMA (Touvron et al. 2023) and what was made after it: Vicuna, LLaMA 2 and 3, Mistral and Qwen2.

They differ in sizes, in how many key heads there are, in the biases of queries, keys and values (Qwen2), in how rotary
positions turn (LLaMA 3.1, long Vicuna) and in a sliding window (Mistral).
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
from vlmax.models.layers.cache import Cache
from vlmax.models.layers.embeddings import LinearScaling, LLaMA3Scaling, Rotary
from vlmax.models.layers.norms import RMSNorm
from vlmax.models.layers.transformer import Remat, Transformer, TransformerModule


@dataclasses.dataclass(frozen=True)
class LLaMA:
    """Configuration of the decoder; the defaults are LLaMA 2's with 7 billion parameters.

    Raises:
      InputError: sizes that do not divide or are below 1.
    """

    width: int = 4096
    """D, of the residual stream."""
    depth: int = 32
    """Number of layers."""
    heads: int = 32
    """H, of the queries."""
    kv_heads: int | None = None
    """Heads of keys and values, each for heads / kv_heads of the queries'; None: as many as heads."""
    head_dim: int | None = None
    """K, the width of a head; None: width / heads."""
    mlp: int = 11008
    """Width of the feed-forward part."""
    vocab: int = 32_000
    """V; token ids are 0 .. V - 1."""
    vocab_multiple: int = 1
    """The tables of the vocabulary have rows up to a multiple of this, so that they divide over devices."""
    context: int = 4096
    """The longest text in tokens."""
    tied: bool = False
    """The matrix of the logits is that of the embeddings."""
    qkv_bias: bool = False
    """Biases of queries, keys and values (Qwen2)."""
    norm_epsilon: float = 1e-5
    rotary: Rotary = Rotary()
    window: int | None = None
    """How many tokens a token sees, itself included (Mistral); None: all before it."""
    dropout: float = 0.0
    """See `Transformer`."""
    remat: Remat = "none"
    """See `Transformer`."""
    unroll: int = 1
    """See `Transformer`."""

    def __post_init__(self):
        decoder.check_vocabulary("llama", self.vocab, self.vocab_multiple, self.context)
        if self.window is not None and self.window < 1:
            raise InputError(f"llama: window is {self.window}; a token sees at least itself, so 1 or more")
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
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            mlp=self.mlp,
            norm="rms",
            norm_epsilon=self.norm_epsilon,
            activation="silu",
            gated=True,
            qkv_bias=self.qkv_bias,
            out_bias=False,
            mlp_bias=False,
            rotary=self.rotary,
            dropout=self.dropout,
            remat=self.remat,
            unroll=self.unroll,
        )

    def build(self, dtype: DTypeLike = jnp.float32) -> LLaMAModule:
        """The module, computing in `dtype`."""
        return LLaMAModule(self, dtype)

    def empty_cache(self, batch: int, slots: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """A cache for `slots` tokens per row."""
        return decoder.empty_cache(self.stack(), batch, slots, dtype)

    def flops(self, tokens: int, context: int = 0) -> float:
        """See `Decoder.flops`."""
        return decoder.flops(self.stack(), self.width, self.vocab, tokens, context)


class LLaMAModule(nn.Module):
    """The decoder; see `Decoder`."""

    config: LLaMA
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the parts."""
        config, init = self.config, nn.initializers.normal(0.02)
        self.vocabulary = Vocabulary(config.vocab, config.vocab_multiple, config.width, config.tied, init, self.dtype)
        self.transformer = TransformerModule(config.stack(), self.dtype)
        self.final_norm = RMSNorm(config.norm_epsilon, self.dtype)

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
        """Reads a text; see `decoder.read` for the arguments."""
        config = self.config
        reading = decoder.read(inputs, config.context, positions, segments, prefix_length, cache, config.window)
        x = decoder.embedded(self.vocabulary, inputs)
        out = decoder.decode(self.transformer, x, reading, deterministic=deterministic, hidden=hidden)
        return out._replace(tokens=self.final_norm(out.tokens))

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The embeddings of tokens."""
        return self.vocabulary.embed(tokens)

    def logits(self, tokens: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The logits of the next token, in float32."""
        return self.vocabulary.logits(tokens)

    def head(self) -> Float[Array, "D rows"]:
        """The matrix of the logits, columns past V included."""
        return self.vocabulary.head()


def llama_160m(**changes) -> LLaMA:
    """The LLaMA of 160 million parameters that drafts for larger ones (Miao et al. 2023)."""
    return llama_7b(**{"width": 768, "depth": 12, "heads": 12, "mlp": 3072, **changes})


def llama_7b(**changes) -> LLaMA:
    """LLaMA 7B (Touvron et al. 2023a, table 2)."""
    return dataclasses.replace(LLaMA(context=2048, norm_epsilon=1e-6), **changes)


def llama_13b(**changes) -> LLaMA:
    """LLaMA 13B (Touvron et al. 2023a, table 2)."""
    return llama_7b(**{"width": 5120, "depth": 40, "heads": 40, "mlp": 13824, **changes})


def llama2_7b(**changes) -> LLaMA:
    """LLaMA 2 7B (Touvron et al. 2023b)."""
    return dataclasses.replace(LLaMA(), **changes)


def llama2_13b(**changes) -> LLaMA:
    """LLaMA 2 13B (Touvron et al. 2023b)."""
    return llama2_7b(**{"width": 5120, "depth": 40, "heads": 40, "mlp": 13824, **changes})


def vicuna_7b(**changes) -> LLaMA:
    """Vicuna 7B v1.5, which is LLaMA 2 trained further (Chiang et al. 2023)."""
    return llama2_7b(**changes)


def vicuna_13b(**changes) -> LLaMA:
    """Vicuna 13B v1.5."""
    return llama2_13b(**changes)


def vicuna_7b_16k(**changes) -> LLaMA:
    """Vicuna 7B v1.5 with a context of 16,384 tokens."""
    return vicuna_7b(**{"context": 16_384, "rotary": Rotary(scaling=LinearScaling(4.0)), **changes})


def llama3_8b(**changes) -> LLaMA:
    """LLaMA 3 8B (Grattafiori et al. 2024, table 3)."""
    llama3 = LLaMA(kv_heads=8, mlp=14_336, vocab=128_256, context=8192, rotary=Rotary(500_000.0))
    return dataclasses.replace(llama3, **changes)


def llama31_8b(**changes) -> LLaMA:
    """LLaMA 3.1 8B (Grattafiori et al. 2024, section 3.4.2)."""
    return llama3_8b(**{"context": 131_072, "rotary": Rotary(500_000.0, LLaMA3Scaling(factor=8.0)), **changes})


def llama32_1b(**changes) -> LLaMA:
    """LLaMA 3.2 1B, with tied embeddings."""
    small = {"width": 2048, "depth": 16, "mlp": 8192, "tied": True}
    return llama31_8b(**{**small, "rotary": Rotary(500_000.0, LLaMA3Scaling(factor=32.0)), **changes})


def llama32_3b(**changes) -> LLaMA:
    """LLaMA 3.2 3B, with tied embeddings."""
    return llama32_1b(**{"width": 3072, "depth": 28, "heads": 24, **changes})


def mistral_7b(**changes) -> LLaMA:
    """Mistral 7B v0.1, with a window of 4096 tokens (Jiang et al. 2023, table 1)."""
    return dataclasses.replace(LLaMA(kv_heads=8, mlp=14_336, context=32_768, window=4096), **changes)


def mistral_7b_v2(**changes) -> LLaMA:
    """Mistral 7B v0.2, without a window; LLaVA-NeXT stands on it."""
    return mistral_7b(**{"window": None, "rotary": Rotary(1_000_000.0), **changes})


def qwen2_7b(**changes) -> LLaMA:
    """Qwen2 7B (Yang et al. 2024, table 1)."""
    qwen2 = LLaMA(
        width=3584,
        depth=28,
        heads=28,
        kv_heads=4,
        mlp=18_944,
        vocab=152_064,
        context=131_072,
        qkv_bias=True,
        norm_epsilon=1e-6,
        rotary=Rotary(1_000_000.0),
    )
    return dataclasses.replace(qwen2, **changes)


def qwen2_0_5b(**changes) -> LLaMA:
    """Qwen2 0.5B, with tied embeddings (Yang et al. 2024, table 1)."""
    small = {"width": 896, "depth": 24, "heads": 14, "kv_heads": 2, "mlp": 4864, "vocab": 151_936, "tied": True}
    return qwen2_7b(**{**small, **changes})


def qwen2_1_5b(**changes) -> LLaMA:
    """Qwen2 1.5B, with tied embeddings (Yang et al. 2024, table 1)."""
    return qwen2_0_5b(**{"width": 1536, "depth": 28, "heads": 12, "mlp": 8960, **changes})

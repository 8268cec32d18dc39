"""The Q-Former (Li et al. 2023, BLIP-2, section 3.1): learned queries that read an image's tokens through a BERT.

    queries [Q, D] -> self-attention -> attention to the image (every second layer) -> feed-forward of the queries
    text           -> self-attention ->                                             feed-forward of the text

Queries and text share self-attention, and who sees whom there makes three models of the same parameters:

    apart      queries see queries; a text sees itself          the contrastive loss, and all later stages
    together   everything sees everything                       matching, and InstructBLIP's instruction
    writing    a token sees the queries and what precedes it    captions; the queries do not see the text

`apart` and `writing` need no pass of their own for the queries: a text that is written reads the keys and values which
they left when they read the image. Parameters of BERT have BERT's paths and shapes (vlmax/models/decoders/bert.py).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vlmax.errors import InputError
from vlmax.models.connectors.qformer_stack import QFormerStack
from vlmax.models.decoders.decoder import check_vocabulary
from vlmax.models.decoders.vocabulary import Vocabulary, rows
from vlmax.models.layers.attention import Mask
from vlmax.models.layers.axes import constrain, parameter
from vlmax.models.layers.cache import KeysValues
from vlmax.models.layers.dense import Dense
from vlmax.models.layers.embeddings import Positions
from vlmax.models.layers.mlp import ACTIVATIONS, Activation
from vlmax.models.layers.norms import LayerNorm
from vlmax.models.layers.transformer import Remat, Transformer


@dataclasses.dataclass(frozen=True)
class QFormer:
    """Configuration; the defaults are BLIP-2's, on EVA ViT-g.

    Raises:
      InputError: sizes that do not divide or are below 1, or a head that predicts tokens without a text branch.
    """

    width: int = 768
    """D, of queries and text."""
    depth: int = 12
    """Number of layers."""
    heads: int = 12
    """H, the number of heads."""
    mlp: int = 3072
    """Width of each of the two feed-forward parts."""
    queries: int = 32
    """Q, how many tokens come out."""
    cross_width: int = 1408
    """C, of the image's tokens."""
    cross_every: int = 2
    """Of so many layers the first attends to the image."""
    cross_norm: float | None = 1e-5
    """Epsilon of a norm on the image's tokens, which frozen encoders leave without (`ln_vision`); None: no norm."""
    text: bool = True
    """There is a text branch: embeddings, and a feed-forward part of its own. BLIP-2's second stage has none."""
    predicts: bool = True
    """The text branch has BERT's head, which predicts tokens. InstructBLIP's has none."""
    vocab: int = 30_523
    """V; token ids are 0 .. V - 1. BERT's and one more, the mark that begins a text that is written."""
    vocab_multiple: int = 1
    """The table of the vocabulary has rows up to a multiple of this, so that they divide over devices."""
    context: int = 512
    """The longest text in tokens."""
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-12
    dropout: float = 0.0
    """Rate on the embeddings and on the output of every part; BLIP-2 trains with 0.1."""
    remat: Remat = "none"
    """What the backward pass recomputes, of `cross_every` layers at a time; see `Transformer`."""
    unroll: int = 1
    """See `Transformer`."""

    def __post_init__(self):
        check_vocabulary("qformer", self.vocab, self.vocab_multiple, self.context)
        if min(self.queries, self.cross_width, self.cross_every) < 1 or self.depth % self.cross_every:
            raise InputError(
                f"qformer: queries {self.queries}, cross_width {self.cross_width} and cross_every {self.cross_every} "
                f"must be 1 or more, and cross_every divide the {self.depth} layers"
            )
        if self.predicts and not self.text:
            raise InputError("qformer: predicts is True and text False; tokens are predicted by the text branch")
        self.stack()

    @property
    def output_width(self) -> int:
        """Width of the tokens that come out."""
        return self.width

    def tokens(self, image_tokens: int) -> int:
        """How many come out, of however many image tokens."""
        return self.queries

    def stack(self) -> Transformer:
        """The numbers of a layer, as those of a BERT."""
        return Transformer(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            norm_epsilon=self.norm_epsilon,
            norm_position="post",
            activation=self.activation,
            dropout=self.dropout,
            remat=self.remat,
            unroll=self.unroll,
        )

    def build(self, dtype: DTypeLike = jnp.float32) -> QFormerModule:
        """The module, computing in `dtype`."""
        return QFormerModule(self, dtype)

    def flops(self, context: int, text: int = 0) -> float:
        """Forward FLOPs of the queries that read `context` image tokens, together with a text of so many tokens."""
        cross = 4 * self.queries * self.width**2 + 4 * context * self.width * (self.cross_width + self.queries)
        return self.stack().flops(self.queries + text) + float(self.depth // self.cross_every * cross)

    def text_flops(self, text: int, seen: int = 0) -> float:
        """Forward FLOPs of a text alone, or of one that also sees so many tokens that were read before."""
        return self.stack().flops(text) + float(self.depth * 4 * text * seen * self.width)

    def head_flops(self, text: int) -> float:
        """Forward FLOPs of the logits of a text."""
        return 2.0 * text * self.width * (self.width + self.vocab)


class QFormerOutput(NamedTuple):
    """What the queries found, and the text that was read with them.

    Attributes:
      queries: one vector a query.
      text: one vector a token, where there was a text.
      kept: keys and values of the queries in every layer, where the call asked for them.
    """

    queries: Float[Array, "B Q D"]
    text: Float[Array, "B T D"] | None = None
    kept: KeysValues | None = None


def together(segments: Int[Array, "B T"], queries: int) -> Mask:
    """Queries and text see all of both, and no padding (segment 0)."""
    joint = jnp.pad(segments, ((0, 0), (queries, 0)), constant_values=1)
    return Mask(query_segments=joint, key_segments=joint)


def apart(segments: Int[Array, "B T"]) -> Mask:
    """A text without its queries: it sees all of itself, and no padding."""
    return Mask(query_segments=segments, key_segments=segments)


def writing(segments: Int[Array, "B T"], queries: int) -> Mask:
    """A token sees the queries, whose keys stand before those of the text, and the tokens before it."""
    keys = jnp.pad(segments, ((0, 0), (queries, 0)), constant_values=1)
    return Mask(causal=True, offset=jnp.int32(queries), query_segments=segments, key_segments=keys)


class QFormerModule(nn.Module):
    """The model. Texts are tokens with `segments` 1, or 0 for padding; their positions begin at 0."""

    config: QFormer
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the parts."""
        config, init = self.config, nn.initializers.normal(0.02)
        self.query_tokens = parameter(self, "query_tokens", init, (config.queries, config.width), (None, "embed"))
        if config.cross_norm is not None:
            self.context_norm = LayerNorm(config.cross_norm, self.dtype)
        self.embedding_norm = LayerNorm(config.norm_epsilon, self.dtype)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.transformer = QFormerStack(config, self.dtype)
        if config.text:
            self.vocabulary = Vocabulary(config.vocab, config.vocab_multiple, config.width, True, init, self.dtype)
            self.positions = Positions(config.context, config.width, init, self.dtype)
        if config.predicts:
            self.head_dense = Dense((config.width,), ("embed",), ("projection",), init, dtype=self.dtype)
            self.head_norm = LayerNorm(config.norm_epsilon, self.dtype)
            size = rows(config.vocab, config.vocab_multiple)
            self.output_bias = parameter(self, "output_bias", nn.initializers.zeros, (size,), ("vocab",))

    def __call__(
        self,
        context: Float[Array, "B N C"],
        text: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        *,
        keep: bool = False,
        deterministic: bool = True,
    ) -> QFormerOutput:
        """The queries read the tokens of an image: alone (`apart`), or each together with a text (`together`).

        Args:
          context: the image's tokens.
          text: tokens, which the queries see.
          segments: all 1 unless given.
          keep: the keys and values of the queries come out too, for `write`; without a text.
          deterministic: without it an rng `dropout` is needed where the configuration drops anything.

        Raises:
          InputError: a text longer than the context, or a Q-Former without a text branch.
          ValueError: `keep` with a text, which the queries would have seen.
        """
        if keep and text is not None:
            raise ValueError("qformer: queries that have seen a text must not be kept for writing it")
        queries, mask = self.query_tokens.astype(self.dtype), None
        x = jnp.broadcast_to(queries, (len(context), *queries.shape))
        if text is not None:
            segments = jnp.ones_like(text) if segments is None else segments
            x, mask = jnp.concatenate([x, self.embed(text)], axis=1), together(segments, len(queries))
        if self.config.cross_norm is not None:
            context = self.context_norm(context)
        if self.is_initializing():
            self.make_heads(x[:, : len(queries)])
        x, kept = self.transformer(
            self.start(x, deterministic), len(queries), mask, context=context, keep=keep, deterministic=deterministic
        )
        return QFormerOutput(x[:, : len(queries)], None if text is None else x[:, len(queries) :], kept)

    def read(
        self, text: Int[Array, "B T"], segments: Int[Array, "B T"] | None = None, *, deterministic: bool = True
    ) -> Float[Array, "B T D"]:
        """A text alone (`apart`); raises as the call does."""
        segments = jnp.ones_like(text) if segments is None else segments
        x = self.start(self.embed(text), deterministic)
        return self.transformer(x, 0, apart(segments), deterministic=deterministic)[0]

    def write(
        self,
        text: Int[Array, "B T"],
        seen: KeysValues,
        segments: Int[Array, "B T"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B T D"]:
        """A text, each token read with those before it and with what the queries found (`writing`).

        Args:
          text: tokens, each of which predicts the next.
          seen: what the call left of the queries.
          segments: all 1 unless given.
          deterministic: see the call.

        Raises:
          InputError: see the call.
        """
        segments = jnp.ones_like(text) if segments is None else segments
        x, mask = self.start(self.embed(text), deterministic), writing(segments, self.config.queries)
        return self.transformer(x, 0, mask, seen=seen, deterministic=deterministic)[0]

    def start(self, x: Float[Array, "B T D"], deterministic: bool) -> Float[Array, "B T D"]:
        """What the first layer reads."""
        x = self.embedding_dropout(self.embedding_norm(x), deterministic=deterministic)
        return constrain(x, "batch", "tokens", "act_embed")

    def embed(self, text: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The embeddings of tokens at their positions, before the norm."""
        if not self.config.text:
            raise InputError("qformer: it is given a text and has no text branch; set its field `text` to True")
        if text.shape[1] > self.config.context:
            raise InputError(f"qformer: a text has {text.shape[1]} tokens, but `context` is {self.config.context}")
        return self.vocabulary.embed(text) + self.positions()[: text.shape[1]]

    def make_heads(self, x: Float[Array, "B T D"]) -> None:
        """Makes the parameters that the queries do not use."""
        if self.config.text:
            self.embed(jnp.zeros((1, 1), jnp.int32))
        if self.config.predicts:
            self.head_inputs(x)

    def head_inputs(self, text: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """What is multiplied with `head()` and added to `head_bias()` to give the logits."""
        return self.head_norm(ACTIVATIONS[self.config.activation](self.head_dense(text)))

    def logits(self, text: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The logits of the predicted tokens, in float32."""
        return self.vocabulary.logits(self.head_inputs(text)) + self.output_bias[: self.config.vocab]

    def head(self) -> Float[Array, "D rows"]:
        """The matrix of the logits, which is that of the embeddings; columns past V included."""
        return self.vocabulary.head()

    def head_bias(self) -> Float[Array, " rows"]:
        """The bias of the logits, entries past V included."""
        return self.output_bias


TEXT_READING = ("(vocabulary|positions)/embedding", "transformer/layers/(mlp|mlp_norm)/.*")
TEXT_WRITING = ("(head_dense|head_norm)/.*", "output_bias")
TEXT_BRANCH = (*TEXT_READING, *TEXT_WRITING)
"""Patterns of the parameters that a Q-Former without `text` and `predicts` lacks."""
ALL_BUT_TEXT = f"(?!(?:{'|'.join(TEXT_BRANCH)})$).*"
"""Pattern of all others."""

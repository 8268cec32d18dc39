"""The two matrices of a language model that have a row for every token."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vlmax.models.layers.axes import constrain, parameter


class Vocabulary(nn.Module):
    """Vectors of the tokens, and the matrix that gives every token a logit: its own, or the vectors' ("tied").

    The tables have `rows(vocab, multiple)` rows, so that they divide over devices; what is beyond `vocab` is never
    read as a token and gets no logit.
    """

    vocab: int
    multiple: int
    width: int
    tied: bool
    init: Initializer
    dtype: DTypeLike = jnp.float32
    head_init: Initializer | None = None
    """Of the logits' own matrix; None: as the vectors."""

    def setup(self):
        """Makes the tables."""
        shape = rows(self.vocab, self.multiple), self.width
        self.table = parameter(self, "embedding", self.init, shape, ("vocab", "embed"))
        if not self.tied:
            self.output = parameter(self, "output", self.head_init or self.init, shape[::-1], ("embed", "vocab"))

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The vectors of tokens, each of which must lie in 0 .. V - 1."""
        # Whole rows on every device: with rows in pieces the partitioner lets every device look up the whole batch.
        table = constrain(self.table.astype(self.dtype), "act_vocab", None)
        return constrain(jnp.take(table, tokens, axis=0), "batch", "tokens", "act_embed")

    def head(self) -> Float[Array, "D rows"]:
        """The matrix of the logits as it is stored, columns past V included."""
        return self.table.T if self.tied else self.output

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The logits of every token of the vocabulary, in float32."""
        head = self.head().astype(self.dtype)
        logits = jnp.matmul(x.astype(self.dtype), head, preferred_element_type=jnp.float32)
        return constrain(logits, "batch", "tokens", "act_vocab")[..., : self.vocab]


def rows(vocab: int, multiple: int) -> int:
    """The vocabulary's size, rounded up to a multiple."""
    return -(-vocab // multiple) * multiple

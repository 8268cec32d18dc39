"""What every encoder returns."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float


class EncoderOutput(NamedTuple):
    """The tokens of an image or a text, and one vector for the whole of it.

    Attributes:
      tokens: every token after the final norm.
      pooled: what a contrastive head projects.
      hidden: the residual stream after every layer, before the final norm, where the call asked for it.
    """

    tokens: Float[Array, "B N D"]
    pooled: Float[Array, "B D"]
    hidden: Float[Array, "layers B N D"] | None = None

"""Image tokens into the space of a language model's embeddings, one by one: linear, or a small MLP."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vlmax.errors import InputError
from vlmax.models.layers.axes import constrain
from vlmax.models.layers.dense import Dense
from vlmax.models.layers.mlp import ACTIVATIONS, Activation


@dataclasses.dataclass(frozen=True)
class Projection:
    """Configuration; the default is the linear map of BLIP-2, MiniGPT-4 and LLaVA v1.

    Raises:
      InputError: no layer.
    """

    layers: int = 1
    """1: a linear map; 2: LLaVA-1.5's MLP, which is as wide inside as the language model."""
    activation: Activation = "gelu"
    """Between the layers."""

    def __post_init__(self):
        if self.layers < 1:
            raise InputError(f"projection: layers is {self.layers}; it must be 1 or more")

    def build(self, width: int, dtype: DTypeLike = jnp.float32) -> ProjectionModule:
        """The module whose tokens are as wide as the language model's, computing in `dtype`."""
        return ProjectionModule(self, width, dtype)

    def flops(self, tokens: int, context_width: int, width: int) -> float:
        """Forward FLOPs of so many tokens."""
        return 2.0 * tokens * width * (context_width + (self.layers - 1) * width)


class ProjectionModule(nn.Module):
    """The layers, `layer_0` first."""

    config: Projection
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N C"]) -> Float[Array, "B N D"]:
        """Every token by itself."""
        x = tokens
        for i in range(self.config.layers):
            x = ACTIVATIONS[self.config.activation](x) if i else x
            # The first axis is that of what comes in: the middle of an MLP is as wide as what goes out.
            axes = ("projection", "embed") if i else ("embed", "projection")
            init = nn.initializers.lecun_normal()
            x = Dense((self.width,), axes[:1], axes[1:], init, dtype=self.dtype, name=f"layer_{i}")(x)
        return constrain(x, "batch", "tokens", "act_embed")

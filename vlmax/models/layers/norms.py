"""Layer normalisation and root-mean-square normalisation, computed in float32."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vlmax.models.layers.axes import parameter

NormKind = Literal["layer", "rms"]


class LayerNorm(nn.Module):
    """Ba et al. 2016: zero mean and unit variance over the last dimension, then scale and bias."""

    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises in float32 and returns `dtype`."""
        scale = parameter(self, "scale", nn.initializers.ones, x.shape[-1:], ("norm",))
        bias = parameter(self, "bias", nn.initializers.zeros, x.shape[-1:], ("norm",))
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * inverse * scale + bias).astype(self.dtype)


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019: unit mean square over the last dimension, then scale."""

    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises in float32 and returns `dtype`."""
        scale = parameter(self, "scale", nn.initializers.ones, x.shape[-1:], ("norm",))
        x = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * inverse * scale).astype(self.dtype)


def norm(kind: NormKind, epsilon: float, dtype: DTypeLike, name: str | None = None) -> LayerNorm | RMSNorm:
    """The normalisation of that kind."""
    return (LayerNorm if kind == "layer" else RMSNorm)(epsilon, dtype, name=name)

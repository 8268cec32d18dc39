"""Layer normalisation and root-mean-square normalisation, computed in float32."""

from __future__ import annotations

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vlmax.models.layers.axes import parameter

NormKind = Literal["layer", "rms"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float
) -> Float[Array, "... D"]:
    """Layer normalisation whose backward pass keeps nothing but its input (no forward-mode derivative)."""
    normal, _ = _normalise(x, epsilon)
    return normal * scale + bias


def _normalise(x, epsilon):
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)
    return x * inverse, inverse


def _layer_norm_forward(x, scale, bias, epsilon):
    return layer_norm(x, scale, bias, epsilon), (x, scale)


def _layer_norm_backward(epsilon, saved, g):
    # By hand, because what autodiff keeps and computes takes a tenth of a small CLIP's step on a CPU.
    x, scale = saved
    normal, inverse = _normalise(x, epsilon)
    scaled = g * scale
    along = jnp.mean(scaled * normal, axis=-1, keepdims=True)
    dx = inverse * (scaled - jnp.mean(scaled, axis=-1, keepdims=True) - normal * along)
    rows = tuple(range(x.ndim - 1))
    return dx, jnp.sum(g * normal, axis=rows), jnp.sum(g, axis=rows)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nn.Module):
    """Ba et al. 2016: zero mean and unit variance over the last dimension, then scale and bias."""

    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises in float32 and returns `dtype`."""
        scale = parameter(self, "scale", nn.initializers.ones, x.shape[-1:], ("norm",))
        bias = parameter(self, "bias", nn.initializers.zeros, x.shape[-1:], ("norm",))
        return layer_norm(x.astype(jnp.float32), scale, bias, self.epsilon).astype(self.dtype)


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


def unit(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """Rows of length 1, in float32; a row of zeros stays zero and has a gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))

"""A dense layer over any number of input and output dimensions, with logical axes."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vlmax.models.layers.axes import parameter


def flat(init: Initializer, inputs: int) -> Initializer:
    """`init` of the `[inputs, outputs]` matrix that a kernel of more dimensions is; the first `inputs` are inputs."""

    def reshaped(rng, shape, dtype):
        matrix = (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
        return init(rng, matrix, dtype).reshape(shape)

    return reshaped


class Dense(nn.Module):
    """Contracts the last `len(in_axes)` dimensions of its input with a kernel `[*inputs, *features]`."""

    features: tuple[int, ...]
    in_axes: tuple[str, ...]
    out_axes: tuple[str, ...]
    kernel_init: Initializer
    bias_init: Initializer = nn.initializers.zeros
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the leading dimensions of `x`, then `features`, in `dtype`."""
        count = len(self.in_axes)
        inputs = x.shape[-count:]
        shape, axes = (*inputs, *self.features), (*self.in_axes, *self.out_axes)
        kernel = parameter(self, "kernel", flat(self.kernel_init, count), shape, axes)
        y = jnp.tensordot(x.astype(self.dtype), kernel.astype(self.dtype), axes=count)
        if self.use_bias:
            y = y + parameter(self, "bias", self.bias_init, self.features, self.out_axes).astype(self.dtype)
        return y

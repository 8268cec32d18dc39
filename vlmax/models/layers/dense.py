"""A dense layer over any number of input and output dimensions, with logical axes."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vlmax.models.layers.axes import mesh_axes, parameter


def flat(init: Initializer, inputs: int) -> Initializer:
    """`init` of the `[inputs, outputs]` matrix that a kernel of more dimensions is; the first `inputs` are inputs."""

    def reshaped(rng, shape, dtype):
        matrix = (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
        return init(rng, matrix, dtype).reshape(shape)

    return reshaped


@jax.custom_vjp
def product(x: Float[Array, "... D"], kernel: Float[Array, "D F"]) -> Float[Array, "... F"]:
    """`x @ kernel`, with a weight gradient that is fast on a CPU too (no forward-mode derivative)."""
    return jnp.matmul(x, kernel)


def _product_forward(x, kernel):
    return jnp.matmul(x, kernel), (x, kernel)  # not `product`, whose inside remat policies do not see


def _product_backward(saved, g):
    x, kernel = saved

    def over_all(x, g):
        rows = tuple(range(x.ndim - 1))
        return jnp.tensordot(x, g, axes=(rows, rows))

    def over_rows(x, g):
        return over_all(x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]))

    # XLA:CPU transposes a product over two dimensions (B, T) by hand and then runs it at half speed: 46 and 27 CPU ms
    # for [128, 65, 192] and [128, 65, 768]. Elsewhere, and with tokens over devices, joining the two would move data.
    cpu = over_all if mesh_axes("tokens") else over_rows
    return jnp.matmul(g, kernel.T), jax.lax.platform_dependent(x, g, cpu=cpu, default=over_all)


product.defvjp(_product_forward, _product_backward)


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
        leading, inputs = x.shape[:-count], x.shape[-count:]
        shape, axes = (*inputs, *self.features), (*self.in_axes, *self.out_axes)
        kernel = parameter(self, "kernel", flat(self.kernel_init, count), shape, axes)
        matrix = kernel.astype(self.dtype).reshape(math.prod(inputs), math.prod(self.features))
        y = product(x.astype(self.dtype).reshape(*leading, math.prod(inputs)), matrix)
        if self.use_bias:
            bias = parameter(self, "bias", self.bias_init, self.features, self.out_axes)
            y = y + bias.astype(self.dtype).reshape(-1)
        return y.reshape(*leading, *self.features)

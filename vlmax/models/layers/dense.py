"""A dense layer over any number of input and output dimensions, with logical axes and, where it has one, an adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping

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


def dequantized(stored: Mapping[str, Array], dtype: DTypeLike) -> Array:
    """A kernel from its `values` in few bits and their `scale` (vlmax/models/quantized.py)."""
    import qwix  # an optional dependency

    return qwix.dequantize(qwix.QArray(stored["values"], stored["scale"].astype(dtype)))


class Dense(nn.Module):
    """Contracts the last `len(in_axes)` dimensions of its input with a kernel `[*inputs, *features]`.

    An adapter `lora` beside its kernel (vlmax/models/lora.py) acts wherever the parameters hold one, and so does a
    kernel in few bits (vlmax/models/quantized.py).
    """

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
        stored = self.get_variable("params", "kernel")
        if isinstance(stored, Mapping):
            kernel = dequantized(stored, self.dtype)
        else:
            kernel = parameter(self, "kernel", flat(self.kernel_init, count), shape, axes)
        matrix = kernel.astype(self.dtype).reshape(math.prod(inputs), math.prod(self.features))
        x = x.astype(self.dtype).reshape(*leading, math.prod(inputs))
        y = product(x, matrix)
        if self.use_bias:
            bias = parameter(self, "bias", self.bias_init, self.features, self.out_axes)
            y = y + bias.astype(self.dtype).reshape(-1)
        adapter: Mapping[str, Array] | None = self.get_variable("params", "lora")
        if adapter is not None:
            y = y + self.low_rank(x, adapter)
        return y.reshape(*leading, *self.features)

    def low_rank(self, x: Float[Array, "... D"], adapter: Mapping[str, Array]) -> Float[Array, "... F"]:
        """What the adapter adds: `alpha / rank x a b`, `x` with dropout where the call has an rng for it."""
        rank = adapter["a"].shape[-1]
        a = adapter["a"].reshape(-1, rank).astype(self.dtype)
        scale = jax.lax.stop_gradient(adapter["alpha"].astype(jnp.float32)) / rank
        b = (scale * adapter["b"]).reshape(rank, -1).astype(self.dtype)
        if "dropout" in adapter and self.has_rng("dropout"):
            keep = 1 - jax.lax.stop_gradient(adapter["dropout"].astype(jnp.float32))
            kept = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
            x = jnp.where(kept, x / keep.astype(x.dtype), 0)
        return product(product(x, a), b)

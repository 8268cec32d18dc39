"""The feed-forward part of a transformer layer, plain or gated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vlmax.models.layers.axes import constrain
from vlmax.models.layers.dense import Dense

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]


@jax.custom_vjp
def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x sigmoid(1.702 x)`, the approximation of OpenAI's CLIP weights (no forward-mode derivative)."""
    return x * jax.nn.sigmoid(1.702 * x)


def _quick_gelu_forward(x):
    return x * jax.nn.sigmoid(1.702 * x), x


def _quick_gelu_backward(x, g):
    # The sigmoid as a tanh: under remat XLA:CPU would share it with the forward pass through memory, which is slower.
    sigmoid = 0.5 + 0.5 * jnp.tanh(0.851 * x)
    return (g * (sigmoid + 1.702 * x * sigmoid * (1 - sigmoid)),)


quick_gelu.defvjp(_quick_gelu_forward, _quick_gelu_backward)


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class MLP(nn.Module):
    """down(activation(up(x))), or down(activation(gate(x)) * up(x)) when gated (Shazeer 2020; SwiGLU with silu)."""

    width: int
    activation: Activation
    up_init: Initializer
    down_init: Initializer
    bias_init: Initializer = nn.initializers.zeros
    gated: bool = False
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Returns the shape of `x`."""

        def dense(name, features, in_axis, out_axis, init):
            return Dense(
                (features,), (in_axis,), (out_axis,), init, self.bias_init, self.use_bias, self.dtype, name=name
            )

        activation = ACTIVATIONS[self.activation]
        hidden = dense("up", self.width, "embed", "mlp", self.up_init)(x)
        hidden = constrain(hidden, "batch", "tokens", "act_mlp")
        if self.gated:
            gate = dense("gate", self.width, "embed", "mlp", self.up_init)(x)
            hidden = activation(constrain(gate, "batch", "tokens", "act_mlp")) * hidden
        else:
            hidden = activation(hidden)
        return dense("down", x.shape[-1], "mlp", "embed", self.down_init)(hidden)

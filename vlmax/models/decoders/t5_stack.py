"""The layers of T5, of its encoder and of its decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vlmax.models.layers.attention import Mask, attention
from vlmax.models.layers.axes import constrain, parameter
from vlmax.models.layers.cache import Cache, CacheInLoop, KeysValues, context_by_layer, of_all_layers, turned
from vlmax.models.layers.dense import Dense
from vlmax.models.layers.distances import distance_bias
from vlmax.models.layers.mlp import MLP
from vlmax.models.layers.norms import RMSNorm
from vlmax.models.layers.transformer import REMAT_POLICIES

if TYPE_CHECKING:
    from vlmax.models.decoders.t5 import T5

normal = nn.initializers.normal


class LayerInputs(NamedTuple):
    """What every layer gets alike."""

    mask: Mask
    bias: Float[Array, "1 H Tq Tk"]
    context: Float[Array, "B N D"] | None
    context_mask: Mask


class T5Stack(nn.Module):
    """The encoder or the decoder: the bias of distances, the layers, stacked under `layers`, and the final norm."""

    config: T5
    depth: int
    reads_context: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Mask,
        context: Float[Array, "B N D"] | None,
        context_mask: Mask,
        cache: Cache | None,
        deterministic: bool,
        hidden: bool,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "layers B T D"] | None, Cache | None]:
        """The tokens after the final norm, the residual stream after every layer with `hidden`, and the cache."""
        config, length = self.config, x.shape[1]
        init = normal(config.width**-0.5)
        table = parameter(self, "relative_bias", init, (config.buckets, config.heads), ("positions", "heads"))
        first, keys = (0, length) if cache is None or mask.offset is None else (cache.index, cache.slots)
        bias = distance_bias(table, first, length, keys, config.max_distance, self.reads_context)
        inputs = LayerInputs(mask, bias, context, context_mask)
        drop = nn.Dropout(config.dropout, deterministic=deterministic)
        x = constrain(drop(x), "batch", "tokens", "act_embed")

        make = in_turn if self.has_variable("params", "layers_0") else scanned
        run = make(config, self.depth, self.reads_context, self.dtype, deterministic, hidden)
        final_norm = RMSNorm(config.norm_epsilon, self.dtype, name="final_norm")
        if cache is None:
            (x, _), (states, _) = run((x, None), None, inputs)
            return drop(final_norm(x)), states, None
        known = cache.cross if context is None else None
        loop = CacheInLoop(cache.keys, cache.values, cache.index, jnp.zeros((), jnp.int32))
        (x, loop), (states, read) = run((x, loop), known, inputs)
        x = jnp.where(cache.index + length <= cache.slots, x, jnp.nan)  # else the newest slots would be overwritten
        return drop(final_norm(x)), states, cache.after(loop, length, read if known is None else known)


def scanned(config: T5, depth: int, *options: Any) -> Callable[..., Any]:
    """All layers as a loop over one; their own inputs and outputs are stacked."""
    layer = T5Layer
    if config.remat != "none":
        layer = nn.remat(T5Layer, policy=REMAT_POLICIES[config.remat], prevent_cse=config.unroll > 1)
    in_axes: Any = (0, nn.broadcast)
    stack = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=depth,
        unroll=config.unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return stack(config, *options, name="layers")


def in_turn(config: T5, depth: int, *options: Any) -> Callable[..., Any]:
    """One layer after the other, with parameters of `layer_by_layer`; nothing is recomputed."""

    def run(carry, known, inputs):
        x, cache = carry
        caches: list[Any] = [None] * depth if cache is None else cache.by_layer()
        contexts, outputs = context_by_layer(known, depth), []
        for i in range(depth):
            layer = T5Layer(config, *options, name=f"layers_{i}")
            (x, caches[i]), output = layer((x, caches[i]), contexts[i], inputs)
            outputs.append(output)
        hidden, read = zip(*outputs, strict=True)
        out = (None if hidden[0] is None else jnp.stack(hidden), None if read[0] is None else read)
        return (x, None if cache is None else of_all_layers(caches)), out

    return run


class T5Layer(nn.Module):
    """Self-attention, attention to the context in the decoder, MLP; each on the norm of the stream, and added to it."""

    config: T5
    reads_context: bool
    dtype: DTypeLike
    deterministic: bool
    keep_hidden: bool

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B T D"], CacheInLoop | None],
        known: KeysValues | None,
        inputs: LayerInputs,
    ) -> tuple[tuple[Float[Array, "B T D"], CacheInLoop | None], tuple[Any, KeysValues | None]]:
        """From stream and cache before the layer to those after it.

        `known` is a context read before, as the cache keeps it; one that is read now comes out where there is a cache.
        """
        config, (x, cache) = self.config, carry

        def normed(name):
            return RMSNorm(config.norm_epsilon, self.dtype, name=f"{name}_norm")(x)

        def added(y):
            y = nn.Dropout(config.dropout, deterministic=self.deterministic)(y)
            return constrain(x + constrain(y, "batch", "tokens", "act_embed"), "batch", "tokens", "act_embed")

        attend, y = T5Attention(config, self.dtype, name="attention"), normed("attention")
        seen = attend.keys_values(y)
        if cache is not None:
            cache, slots = cache.put(seen)
            seen = seen if inputs.mask.offset is None else slots
        x, read = added(attend(y, seen, inputs.mask, inputs.bias)), None
        if self.reads_context:
            attend, y = T5Attention(config, self.dtype, name="cross_attention"), normed("cross_attention")
            context = attend.keys_values(inputs.context) if known is None else turned(known)
            x = added(attend(y, context, inputs.context_mask, None))
            read = turned(context) if known is None and cache is not None else None
        up, down = normal(config.width**-0.5), normal(config.mlp**-0.5)
        mlp = MLP(
            config.mlp, config.activation, up, down, gated=config.gated, use_bias=False, dtype=self.dtype, name="mlp"
        )
        x = added(mlp(normed("mlp")))
        return (x, cache), (x if self.keep_hidden else None, read)


class T5Attention(nn.Module):
    """Attention without biases in its projections and without a scale, which the initial queries make up for."""

    config: T5
    dtype: DTypeLike

    def setup(self):
        """Makes the projections."""
        config = self.config

        def dense(deviation, axis="heads"):
            features, axes = (config.heads, config.head_dim), (axis, "head_dim")
            return Dense(features, ("embed",), axes, normal(deviation), use_bias=False, dtype=self.dtype)

        self.query = dense((config.width * config.head_dim) ** -0.5)
        self.key = dense(config.width**-0.5, "kv_heads")
        self.value = dense(config.width**-0.5, "kv_heads")
        init = normal((config.heads * config.head_dim) ** -0.5)
        axes = ("heads", "head_dim")
        self.out = Dense((config.width,), axes, ("embed",), init, use_bias=False, dtype=self.dtype)

    def __call__(
        self, x: Float[Array, "B Tq D"], seen: KeysValues, mask: Mask, bias: Float[Array, "1 H Tq Tk"] | None
    ) -> Float[Array, "B Tq D"]:
        """Attends from `x` to keys and values."""
        return self.out(attention(self.query(x), *seen, mask, bias=bias, scale=1.0))

    def keys_values(self, context: Float[Array, "B Tk D"]) -> KeysValues:
        """The keys and values of the context."""
        return KeysValues(self.key(context), self.value(context))

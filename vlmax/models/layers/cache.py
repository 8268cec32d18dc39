"""Keys and values of the tokens read so far, kept so that the next token costs one token's work.

All layers lie in one array, which the loop over layers hands on as its carry and updates in place; as outputs of the
loop they would be copied whole at every token. Layers that run without a loop (`layer_by_layer`) have an array each: a
CPU would else copy them out of the one, which costs more than all attention. Slots lie within heads, as products read
them. The rows of a batch share their slots: prompts of unequal length are padded at the left, and the padding's slots
count for nobody.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vlmax.errors import InputError
from vlmax.models.layers.axes import constrain


class KeysValues(NamedTuple):
    """Keys and values that queries attend to, of one layer or, with a leading dimension, of all.

    Attributes:
      keys, values: `[B, S, Hkv, K]`, or `[layers, B, S, Hkv, K]`.
    """

    keys: Float[Array, "*layers B S Hkv K"]
    values: Float[Array, "*layers B S Hkv K"]


Kept = Float[Array, "layers B Hkv S K"] | tuple[Float[Array, "1 B Hkv S K"], ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["keys", "values", "valid", "index", "cross", "context_segments"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """What a decoder has read. A pytree; all its shapes stay as they are from token to token after the first call.

    Attributes:
      keys, values: of every layer and slot; zeros where nothing was written yet. `[layers, B, Hkv, S, K]`, or once
        layers without a loop have written, `[1, B, Hkv, S, K]` of each.
      valid: the segment id of each slot's token, as `Mask` has it: 0 for padding and what is not filled yet, else 1
        unless documents are packed.
      index: how many slots are filled.
      cross: keys and values of the context in every layer, where there is cross-attention: None until the first call.
      context_segments: the context's segment ids, where the first call gave some.
    """

    keys: Kept
    values: Kept
    valid: Int[Array, "B S"]
    index: Int[Array, ""]
    cross: KeysValues | None = None
    context_segments: Int[Array, "B N"] | None = None

    @classmethod
    def empty(cls, layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: DTypeLike) -> Cache:
        """A cache of `slots` tokens per row with nothing in it."""
        # Two arrays, not one twice, so that a step may be given the cache to overwrite ("donated").
        keys, values = (laid_out(jnp.zeros((layers, batch, kv_heads, slots, head_dim), dtype)) for _ in range(2))
        valid = constrain(jnp.zeros((batch, slots), jnp.int32), "batch", None)
        return cls(keys, values, valid, jnp.zeros((), jnp.int32))

    @property
    def slots(self) -> int:
        """S, the tokens that a row has room for."""
        return self.valid.shape[1]

    def admit(self, segments: Int[Array, "B T"]) -> Cache:
        """The cache that knows the next T tokens' segments; their keys and values come with the layers.

        Raises:
          InputError: T tokens are more than all slots. (How many are free is known only when the program runs:
            a stack whose cache overflows gives NaN.)
        """
        if segments.shape[1] > self.slots:
            raise InputError(
                f"decoding: {segments.shape[1]} tokens do not fit into a cache of {self.slots} slots; make the cache "
                "with as many slots as prompt and new tokens together"
            )
        valid = jax.lax.dynamic_update_slice(self.valid, segments.astype(jnp.int32), (0, self.index))
        return dataclasses.replace(self, valid=valid)


class CacheInLoop(NamedTuple):
    """The cache on its way through the layers: what one hands to the next.

    Attributes:
      keys, values, index: as in `Cache`.
      layer: whose turn it is.
    """

    keys: Kept
    values: Kept
    index: Int[Array, ""]
    layer: Int[Array, ""]

    def put(self, new: KeysValues) -> tuple[CacheInLoop, KeysValues]:
        """Writes the layer's new tokens; returns the cache for the next layer, and all slots of this one."""

        def written(kept, added):
            added = added.swapaxes(1, 2)[None].astype(kept.dtype)
            return laid_out(jax.lax.dynamic_update_slice(kept, added, (self.layer, 0, 0, self.index, 0)))

        def own(kept):
            return jax.lax.dynamic_index_in_dim(kept, self.layer, keepdims=False).swapaxes(1, 2).astype(new.keys.dtype)

        keys, values = written(self.keys, new.keys), written(self.values, new.values)
        return CacheInLoop(keys, values, self.index, self.layer + 1), KeysValues(own(keys), own(values))

    def by_layer(self) -> list[CacheInLoop]:
        """A cache for each layer, where they do not hand on one."""

        def apart(kept):
            return kept if isinstance(kept, tuple) else [kept[i : i + 1] for i in range(len(kept))]

        layers = zip(apart(self.keys), apart(self.values), strict=True)
        return [CacheInLoop(keys, values, self.index, jnp.zeros((), jnp.int32)) for keys, values in layers]


def of_all_layers(caches: Sequence[CacheInLoop]) -> CacheInLoop:
    """What `by_layer` took apart, as a cache has it whose layers run without a loop."""
    keys, values = (tuple(getattr(cache, name) for cache in caches) for name in ("keys", "values"))
    return CacheInLoop(keys, values, caches[0].index, jnp.int32(len(caches)))


def laid_out(kept: Float[Array, "layers B Hkv S K"]) -> Float[Array, "layers B Hkv S K"]:
    """Rows over the devices of the batch, heads over those of the heads, slots whole."""
    return constrain(kept, None, "batch", "act_kv_heads", None, "act_head_dim")

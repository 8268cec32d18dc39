"""Keys and values of the tokens read so far, kept so that the next token costs one token's work.

All layers lie in one array, which the loop over layers hands on as its carry and updates in place; as outputs of the
loop they would be copied whole at every token. Layers that run without a loop (`layer_by_layer`) have an array each: a
CPU would else copy them out of the one, which costs more than all attention. The context's keys and values are kept in
the same way. Slots lie within heads, as products read them. The rows of a batch share their slots: prompts of unequal
length are padded at the left, and the padding's slots count for nobody.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

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


Kept = Float[Array, "layers B Hkv S K"] | tuple[Float[Array, "B Hkv S K"], ...]
KeptContext = KeysValues | tuple[KeysValues, ...]
"""Of all layers `[layers, B, Hkv, N, K]`, or of each by itself `[B, Hkv, N, K]`; see `turned`."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["keys", "values", "valid", "index", "cross", "context_segments"],
    meta_fields=["fresh"],
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """What a decoder has read. A pytree; after the first call its structure and shapes stay as they are.

    Attributes:
      keys, values: of every layer and slot; zeros where nothing was written yet. `[layers, B, Hkv, S, K]`, or once
        layers without a loop have written, `[B, Hkv, S, K]` of each.
      valid: the segment id of each slot's token, as `Mask` has it: 0 for padding and what is not filled yet, else 1
        unless documents are packed.
      index: how many slots are filled.
      cross: keys and values of the context in every layer, where there is cross-attention: None until the first call.
      context_segments: the context's segment ids, where the first call gave some.
      fresh: nothing was read yet, which the compiled program then knows: the first tokens need not look at the slots.
    """

    keys: Kept
    values: Kept
    valid: Int[Array, "B S"]
    index: Int[Array, ""]
    cross: KeptContext | None = None
    context_segments: Int[Array, "B N"] | None = None
    fresh: bool = False

    @classmethod
    def empty(cls, layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: DTypeLike) -> Cache:
        """A cache of `slots` tokens per row with nothing in it."""
        # Two arrays, not one twice, so that a step may be given the cache to overwrite ("donated").
        keys, values = (laid_out(jnp.zeros((layers, batch, kv_heads, slots, head_dim), dtype)) for _ in range(2))
        valid = constrain(jnp.zeros((batch, slots), jnp.int32), "batch", None)
        return cls(keys, values, valid, jnp.zeros((), jnp.int32), fresh=True)

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

    def after(self, loop: CacheInLoop, length: int, cross: KeptContext | None) -> Cache:
        """The cache once all layers have read `length` tokens, and the context."""
        return dataclasses.replace(
            self, keys=loop.keys, values=loop.values, index=self.index + length, cross=cross, fresh=False
        )


class CacheInLoop(NamedTuple):
    """The cache on its way through the layers: what one hands to the next.

    Attributes:
      keys, values, index: as in `Cache`; of one layer, where each has its own.
      layer: whose turn it is; None: it is the one that the cache is of.
    """

    keys: Any
    values: Any
    index: Int[Array, ""]
    layer: Int[Array, ""] | None

    def put(self, new: KeysValues) -> tuple[CacheInLoop, KeysValues]:
        """Writes the layer's new tokens; returns the cache for the next layer, and all slots of this one."""
        layer = self.layer

        def written(kept, added):
            added = added.swapaxes(1, 2).astype(kept.dtype)
            if layer is None:  # without a dimension for it: the compiler would else make the update twice, in copies
                return laid_out(jax.lax.dynamic_update_slice(kept, added, (0, 0, self.index, 0)))
            return laid_out(jax.lax.dynamic_update_slice(kept, added[None], (layer, 0, 0, self.index, 0)))

        def own(kept):
            kept = kept if layer is None else jax.lax.dynamic_index_in_dim(kept, layer, keepdims=False)
            return kept.swapaxes(1, 2).astype(new.keys.dtype)

        keys, values = written(self.keys, new.keys), written(self.values, new.values)
        after = CacheInLoop(keys, values, self.index, None if layer is None else layer + 1)
        return after, KeysValues(own(keys), own(values))

    def by_layer(self) -> list[CacheInLoop]:
        """A cache for each layer, where they do not hand on one."""
        return [CacheInLoop(*layer, self.index, None) for layer in zip(self.keys, self.values, strict=True)]


def of_all_layers(caches: Sequence[CacheInLoop]) -> CacheInLoop:
    """What `by_layer` took apart, as a cache has it whose layers run without a loop."""
    keys, values = (tuple(getattr(cache, name) for cache in caches) for name in ("keys", "values"))
    return CacheInLoop(keys, values, caches[0].index, None)


def turned(context: KeysValues) -> KeysValues:
    """A context's keys and values as a cache keeps them, slots within heads; and back again."""
    return KeysValues(*(x.swapaxes(-3, -2) for x in context))


def context_by_layer(cross: KeptContext | None, depth: int) -> Sequence[KeysValues | None]:
    """The context's keys and values for each layer, where layers run without a loop."""
    if cross is None:
        return [None] * depth
    return [KeysValues(*(x[i] for x in cross)) for i in range(depth)] if isinstance(cross, KeysValues) else cross


def laid_out(kept: Float[Array, "*layers B Hkv S K"]) -> Float[Array, "*layers B Hkv S K"]:
    """Rows over the devices of the batch, heads over those of the heads, slots whole."""
    return constrain(kept, *(None,) * (kept.ndim - 4), "batch", "act_kv_heads", None, "act_head_dim")

"""Our arrays as foreign tensors, one at a time, from wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from vlmax.interop import safetensors
from vlmax.interop.safetensors import Source
from vlmax.interop.table import Place

SHARD_BYTES = 5_000_000_000
"""The largest file of weights, as transformers had it for long."""


def sources(places: Sequence[Place], arrays: Mapping[str, Array]) -> dict[str, Source]:
    """Every foreign tensor: its shape, its dtype and what makes it."""
    by_tensor: dict[str, list[Place]] = {}
    for place in places:
        by_tensor.setdefault(place.foreign, []).append(place)
    return {name: _source(name, parts, arrays) for name, parts in by_tensor.items()}


def _source(name: str, parts: Sequence[Place], arrays: Mapping[str, Array]) -> Source:
    shape = parts[0].fitted.foreign_shape
    dtype = np.result_type(*(arrays[part.own].dtype for part in parts))
    if {part.fitted.part for part in parts} != set(range(parts[0].fitted.parts)):
        raise ValueError(f"writing {name}: the table has {len(parts)} of its {parts[0].fitted.parts} parts")

    def values() -> np.ndarray:
        tensor = np.empty(shape, dtype)
        for part in parts:
            own = on_host(arrays[part.own], part.layer)
            part.fitted.put(own[tuple(slice(size) for size in part.fitted.own_shape)], tensor)
        return tensor

    return shape, dtype, values


def write(folder: Path, tensors: Mapping[str, Source], shard_bytes: int = SHARD_BYTES, stem: str = "model") -> None:
    """Writes the tensors; the other processes only send what they hold, in the order in which they are written."""
    tensors = safetensors.widest_first(tensors)
    if jax.process_index() == 0:
        safetensors.write_sharded(folder, tensors, shard_bytes, stem)
    else:
        for _, _, values in tensors.values():
            values()


def on_host(array: Array, layer: int | None) -> np.ndarray:
    """The array, or one of its layers, whole."""
    if isinstance(array, np.ndarray):
        return array if layer is None else array[layer]
    whole = array.sharding
    if isinstance(whole, NamedSharding):
        whole = NamedSharding(whole.mesh, PartitionSpec())
    pick = jax.jit(_all if layer is None else _layer, out_shardings=whole if isinstance(whole, NamedSharding) else None)
    return np.asarray(pick(array, layer or 0))


def _layer(array: Array, layer: int) -> Array:
    return jax.lax.dynamic_index_in_dim(array, layer, 0, keepdims=False)


def _all(array: Array, _: int) -> Array:
    return array

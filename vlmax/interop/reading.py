"""Foreign tensors straight into sharded arrays: each host reads what its own devices hold, a piece at a time."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vlmax.interop.layout import Fitted
from vlmax.interop.table import Place, Shapes
from vlmax.interop.tensors import DTYPES, Stored

PIECE_BYTES = 1 << 25
"""What is mapped from a file at a time."""
ROWS = 64
"""Rows that are turned into columns at a time: their cache lines stay in a core's cache meanwhile."""

Index = tuple[slice, ...]


def arrays(
    places: Sequence[Place],
    stored: Mapping[str, Stored],
    shapes: Shapes,
    shardings: Mapping[str, jax.sharding.Sharding],
    dtypes: Mapping[str, np.dtype] | None = None,
) -> dict[str, jax.Array]:
    """Our arrays, by path, filled from the tensors.

    Args:
      places: where each array, or each layer of it, lies.
      stored: the tensors, by the names that the places have.
      shapes: of our arrays.
      shardings: of our arrays.
      dtypes: of our arrays; None: those of the file, the widest where tensors of one array differ.
    """
    by_array: dict[str, list[Place]] = {}
    for place in places:
        by_array.setdefault(place.own, []).append(place)
    found = {}
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, own in by_array.items():
            kinds = {DTYPES[stored[place.foreign].dtype] for place in own}
            kind = dtypes[path] if dtypes is not None else np.dtype(jax.numpy.result_type(*kinds))
            found[path] = _array(own, stored, shapes[path], shardings[path], kind, pool)
    return found


def _array(
    own: Sequence[Place],
    stored: Mapping[str, Stored],
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    dtype: np.dtype,
    pool: concurrent.futures.Executor,
) -> jax.Array:
    """One array: a shard is filled, put on the devices that hold it, and let go of, before the next."""
    on: dict[Any, tuple[Index, list[jax.Device]]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        whole = tuple(slice(*part.indices(size)) for part, size in zip(index or (), shape, strict=True))
        key = tuple((part.start, part.stop) for part in whole)
        on.setdefault(key, (whole, []))[1].append(device)
    shards = []
    for index, devices in on.values():
        values = _shard(own, stored, index, dtype, pool)
        for i, device in enumerate(devices):
            # Each device its own memory: a step that donates it would else write into that of the others.
            shards.append(jax.block_until_ready(jax.device_put(values if i == 0 else values.copy(), device)))
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _shard(
    own: Sequence[Place], stored: Mapping[str, Stored], index: Index, dtype: np.dtype, pool: concurrent.futures.Executor
) -> np.ndarray:
    """The values of one shard; what is padding is zero."""
    values = aligned_zeros(tuple(part.stop - part.start for part in index), dtype)
    jobs = []
    for place in own:
        if place.layer is None:
            jobs.append(pool.submit(fill, values, stored[place.foreign], place.fitted, index))
        elif index[0].start <= place.layer < index[0].stop:
            target = values[place.layer - index[0].start, ...]
            jobs.append(pool.submit(fill, target, stored[place.foreign], place.fitted, index[1:]))
    for job in jobs:
        job.result()
    return values


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros at an address that JAX on a CPU takes over without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def fill(target: np.ndarray, tensor: Stored, fitted: Fitted, index: Index) -> None:
    """Writes the part `index` of our array, for one layer, into `target`; beyond the tensor it stays as it is."""
    stored = DTYPES[tensor.dtype]
    # As bare bits where nothing is converted: NumPy copies dtypes that are not its own slowly, and in one thread.
    bits = np.dtype(f"u{stored.itemsize}") if target.dtype == stored else None
    target = target if bits is None else target.view(bits)
    rows = fitted.rows() if fitted.simple else None
    if rows is None:
        found = fitted.own(tensor.values())[tuple(index)]
        target[tuple(slice(size) for size in found.shape)] = found if bits is None else found.view(bits)
        return
    letter, begin, step = rows
    axis = [group[0] for group in fitted.left].index(letter)
    end = min(index[axis].stop, fitted.sizes[letter])
    alone = _alone(fitted)
    row_bytes = max(1, tensor.size // max(1, tensor.shape[0])) * stored.itemsize * step
    for start, stop in _pieces(index[axis].start, end, max(1, PIECE_BYTES // row_bytes)):
        piece = dataclasses.replace(alone, sizes={**fitted.sizes, letter: stop - start})
        found = piece.own(tensor.rows(begin + start * step, begin + stop * step))
        found = found[tuple(slice(None) if i == axis else part for i, part in enumerate(index))]
        where = [slice(size) for size in found.shape]
        where[axis] = slice(start - index[axis].start, stop - index[axis].start)
        _copy(target[tuple(where)], found if bits is None else found.view(bits), axis)


def _alone(fitted: Fitted) -> Fitted:
    """The layout of some rows, where those of several arrays in one follow each other."""
    first, *others = fitted.right
    return dataclasses.replace(fitted, right=(first[1:], *others), part=0) if first[0].isdigit() else fitted


def _pieces(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def _copy(target: np.ndarray, source: np.ndarray, axis: int) -> None:
    """Copies and converts; where `axis` is outermost in the source but not in the target, a few rows at a time."""
    if axis == 0:
        target[...] = source
        return
    before = (slice(None),) * axis
    for start, stop in _pieces(0, source.shape[axis], ROWS):
        target[(*before, slice(start, stop))] = source[(*before, slice(start, stop))]

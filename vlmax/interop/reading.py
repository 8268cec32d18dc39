"""Foreign tensors straight into sharded arrays: each host reads what its own devices hold, a piece at a time."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vlmax.interop.layout import Fitted
from vlmax.interop.table import Place, Shapes
from vlmax.interop.tensors import DTYPES, Stored

PIECE_BYTES = 1 << 23
"""What is mapped from a file at a time; it stays in the processor's cache until every shard has its part."""
GROUP_BYTES = 1 << 29
"""Shards of one array that are filled together take so much, or there is one alone."""
ROWS, COLUMNS = 256, 512
"""A block that is turned at a time; it stays in a core's cache meanwhile."""

Index = tuple[slice, ...]
Part = tuple[np.ndarray, Index]
"""Memory, and which part of our array belongs there."""


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
    """One array: a few shards are filled, put on the devices that hold them, and let go of, before the next."""
    on: dict[Any, tuple[Index, list[jax.Device]]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        whole = tuple(slice(*part.indices(size)) for part, size in zip(index or (), shape, strict=True))
        key = tuple((part.start, part.stop) for part in whole)
        on.setdefault(key, (whole, []))[1].append(device)
    shards = []
    size = math.prod(sharding.shard_shape(shape)) * dtype.itemsize
    for first, last in _pieces(0, len(on), max(1, GROUP_BYTES // max(1, size))):
        group = list(on.values())[first:last]
        filled = _shards(own, stored, [index for index, _ in group], dtype, pool)
        for (_, devices), values in zip(group, filled, strict=True):
            for i, device in enumerate(devices):
                # Each CPU device its own memory: a step that donates it would else write into that of the others.
                own_values = values.copy() if i and device.platform == "cpu" else values
                shards.append(jax.block_until_ready(jax.device_put(own_values, device)))
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _shards(
    own: Sequence[Place],
    stored: Mapping[str, Stored],
    indices: Sequence[Index],
    dtype: np.dtype,
    pool: concurrent.futures.Executor,
) -> list[np.ndarray]:
    """The values of some shards; what is padding is zero."""
    shards = [zeros(tuple(part.stop - part.start for part in index), dtype) for index in indices]
    jobs = []
    for place in own:
        parts: list[Part] = []
        for index, values in zip(indices, shards, strict=True):
            if place.layer is None:
                parts.append((values, index))
            elif index[0].start <= place.layer < index[0].stop:
                parts.append((values[place.layer - index[0].start, ...], index[1:]))
        if parts:
            jobs.append(pool.submit(fill, parts, stored[place.foreign], place.fitted))
    for job in jobs:
        job.result()
    return shards


def zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros at an address that JAX on a CPU takes over without a copy, in large pages where the kernel has such."""
    count = math.prod(shape)
    if not count:
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, count * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them refuses the advice
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, count).reshape(shape)


def fill(parts: Sequence[Part], tensor: Stored, fitted: Fitted) -> None:
    """Writes parts of our array, for one layer, into their memory; beyond the tensor it stays as it is."""
    rows = fitted.rows() if fitted.simple else None
    if rows is None:
        whole = fitted.own(tensor.values())
        for target, index in parts:
            found = whole[(*index, ...)]
            _copy(target[(*(slice(size) for size in found.shape), ...)], found, (0,), 0)
        return
    letter, begin, step = rows
    letters = [group[0] for group in fitted.left]
    axis = letters.index(letter)
    alone = _alone(fitted)
    order = [letters.index(other) for group in alone.right for other in group if not other.isdigit()]
    low = min(index[axis].start for _, index in parts)
    high = min(max(index[axis].stop for _, index in parts), fitted.sizes[letter])
    row_bytes = max(1, tensor.size // max(1, tensor.shape[0])) * DTYPES[tensor.dtype].itemsize * step
    for start, stop in _pieces(low, high, max(1, PIECE_BYTES // row_bytes)):
        piece = dataclasses.replace(alone, sizes={**fitted.sizes, letter: stop - start})
        whole = piece.own(tensor.rows(begin + start * step, begin + stop * step))
        for target, index in parts:
            first, last = max(start, index[axis].start), min(stop, index[axis].stop)
            if first < last:
                found = whole[(*index[:axis], slice(first - start, last - start), *index[axis + 1 :])]
                where = [slice(size) for size in found.shape]
                where[axis] = slice(first - index[axis].start, last - index[axis].start)
                _copy(target[tuple(where)], found, order, len(alone.right[0]))


def _alone(fitted: Fitted) -> Fitted:
    """The layout of some rows, where those of several arrays in one follow each other."""
    first, *others = fitted.right
    return dataclasses.replace(fitted, right=(first[1:], *others), part=0) if first[0].isdigit() else fitted


def _pieces(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def _copy(target: np.ndarray, source: np.ndarray, order: Sequence[int], outer: int) -> None:
    """Copies and converts, block by block where the two do not lie alike.

    Args:
      target: ours.
      source: the same dimensions.
      order: of them in the source's memory.
      outer: how many of those make rows there.
    """
    if target.dtype == source.dtype:
        # As bare bits: NumPy copies dtypes that are not its own slowly, and in one thread.
        bits = np.dtype(f"u{source.itemsize}")
        target, source = target.view(bits), source.view(bits)
    if order[0] == 0:
        target[...] = source
        return
    sizes = [source.shape[axis] for axis in order]
    rows, columns = max(1, ROWS // math.prod(sizes[1:outer])), max(1, COLUMNS // math.prod(sizes[outer + 1 :]))
    for row in _pieces(0, sizes[0], rows):
        for column in _pieces(0, sizes[outer], columns):
            block = [slice(None)] * source.ndim
            block[order[0]], block[order[outer]] = slice(*row), slice(*column)
            target[tuple(block)] = _gathered(source[tuple(block)], order)


def _gathered(block: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """The same values close together, in the same order in memory."""
    *outer, inner = (block.shape[i] for i in order)
    bits = np.dtype(f"u{block.itemsize}")
    # Rows that begin a power of two apart would drive each other out of the cache.
    memory = np.empty((*outer, inner + 64 // block.itemsize), bits)[..., :inner]
    memory[...] = block.view(bits).transpose(order)
    return memory.view(block.dtype).transpose(np.argsort(order))

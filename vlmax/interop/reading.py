"""Foreign tensors straight into sharded arrays: each host reads what its own devices hold, a piece at a time."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
KEEPING = ("cpu",)
"""Platforms whose devices take the memory that was filled as their own: there all shards are filled together."""
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
    """One array: some shards are filled, put on the devices that hold them, and let go of, before the next.

    As many as memory allows, for the file's rows are gone through anew for those that follow.
    """
    on: dict[Any, tuple[Index, list[jax.Device]]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        whole = tuple(slice(*part.indices(size)) for part, size in zip(index or (), shape, strict=True))
        key = tuple((part.start, part.stop) for part in whole)
        on.setdefault(key, (whole, []))[1].append(device)
    shards: list[jax.Array] = []
    size = max(1, math.prod(sharding.shard_shape(shape)) * dtype.itemsize)
    keeping = all(device.platform in KEEPING for device in sharding.addressable_devices)
    together = len(on) if keeping else max(1, GROUP_BYTES // size)
    for first, last in _pieces(0, len(on), together):
        shards += _put(list(on.values())[first:last], own, stored, dtype, pool)
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _put(
    group: Sequence[tuple[Index, Sequence[jax.Device]]],
    own: Sequence[Place],
    stored: Mapping[str, Stored],
    dtype: np.dtype,
    pool: concurrent.futures.Executor,
) -> list[jax.Array]:
    """Some shards on their devices; what was filled for them is let go of at the end."""
    found = []
    filled = _shards(own, stored, [index for index, _ in group], dtype, pool)
    for (_, devices), values in zip(group, filled, strict=True):
        for i, device in enumerate(devices):
            # Each CPU device its own memory: a step that donates it would else write into that of the others.
            own_values = _copied(values) if i and device.platform == "cpu" else values
            found.append(jax.block_until_ready(jax.device_put(own_values, device)))
    return found


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
            jobs += [pool.submit(job) for job in fillings(parts, stored[place.foreign], place.fitted)]
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


def _copied(values: np.ndarray) -> np.ndarray:
    """The same in memory of its own."""
    memory = zeros(values.shape, values.dtype)
    _copy(memory, values, (0,), 0)
    return memory


def fillings(parts: Sequence[Part], tensor: Stored, fitted: Fitted) -> Iterator[Callable[[], None]]:
    """What together writes parts of our array, for one layer, into their memory, each a piece of the tensor.

    Beyond the tensor the memory stays as it is.
    """
    rows = fitted.rows() if fitted.simple else None
    if rows is None:
        yield functools.partial(_fill_whole, parts, tensor, fitted)
        return
    letter, _, step = rows
    axis = fitted.axis(letter)
    low = min(index[axis].start for _, index in parts)
    high = min(max(index[axis].stop for _, index in parts), fitted.sizes[letter])
    row_bytes = max(1, tensor.size // max(1, tensor.shape[0])) * DTYPES[tensor.dtype].itemsize * step
    for start, stop in _pieces(low, high, max(1, PIECE_BYTES // row_bytes)):
        yield functools.partial(_fill_rows, parts, tensor, fitted, rows, start, stop)


def _fill_whole(parts: Sequence[Part], tensor: Stored, fitted: Fitted) -> None:
    """The parts from the whole tensor."""
    whole = fitted.own(tensor.values())
    for target, index in parts:
        key: tuple[Any, ...] = (*index, ...)  # of a scalar an array, too
        found = whole[key]
        where: tuple[Any, ...] = (*(slice(size) for size in found.shape), ...)
        _copy(target[where], found, (0,), 0)


def _fill_rows(
    parts: Sequence[Part], tensor: Stored, fitted: Fitted, rows: tuple[str, int, int], start: int, stop: int
) -> None:
    """What the parts have of the rows `start` to `stop`, counted in steps of `Fitted.rows`."""
    letter, begin, step = rows
    axis, alone = fitted.axis(letter), _alone(fitted)
    order = [fitted.axis(other) for group in alone.right for other in group if not other.isdigit()]
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

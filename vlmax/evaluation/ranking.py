"""Where the right answer stands among all answers, without ever holding all scores at once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int32

from vlmax.evaluation.features import from_host

_Part = tuple[Float[Array, "chunk D"], Int32[Array, " chunk"]]
_NOBODY = -1  # the identity of rows that fill up a chunk


def ranks(
    queries: Float[np.ndarray, "Q D"],
    query_ids: Int[np.ndarray, " Q"],
    gallery: Float[np.ndarray, "G D"],
    gallery_ids: Int[np.ndarray, " G"],
    mesh: Mesh,
    chunk: int = 1024,
    rows_per_device: int = 1024,
) -> tuple[Int[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
    """How many wrong entries of the gallery score above, and how many exactly as, the query's best right one.

    An entry is right where its id is the query's; a query may have several, and only the best of them counts. A score
    is the inner product in float32. A score that is not a number counts as above: a broken feature never helps.
    Queries are sharded over all devices of the mesh and the gallery is read `chunk` entries at a time, so a device
    holds at most `rows_per_device x chunk` scores. Every process gives the same arrays and gets the same answer.

    Args:
      queries: features, the same on every process.
      query_ids: at least 0.
      gallery: features, the same on every process.
      gallery_ids: at least 0.
      mesh: the device mesh.
      chunk: entries of the gallery scored at once.
      rows_per_device: queries that one device scores at once.

    Returns:
      (above, tied), one number a query: the rank of its answer lies between `above` and `above + tied`, counted from 0.

    Raises:
      ValueError: a query has no right entry in the gallery.
    """
    orphans = np.flatnonzero(~np.isin(query_ids, gallery_ids))
    if orphans.size:
        raise ValueError(f"{orphans.size} queries have no right answer in the gallery, e.g. id {query_ids[orphans[0]]}")
    chunk = min(chunk, len(gallery))
    chunks = -(-len(gallery) // chunk)
    gallery = _padded(gallery.astype(np.float32), chunks * chunk, 0).reshape(chunks, chunk, -1)
    gallery_ids = _padded(gallery_ids.astype(np.int32), chunks * chunk, _NOBODY).reshape(chunks, chunk)
    whole = PartitionSpec()
    placed = from_host(mesh, gallery, whole), from_host(mesh, gallery_ids, whole)

    devices = mesh.size
    block = min(rows_per_device, -(-len(queries) // devices)) * devices
    count, by_row = _counter(mesh), PartitionSpec(mesh.axis_names)
    answers = []
    for start in range(0, len(queries), block):
        rows = _padded(queries[start : start + block].astype(np.float32), block, 0)
        ids = _padded(query_ids[start : start + block].astype(np.int32), block, _NOBODY)
        answers.append(count(from_host(mesh, rows, by_row), from_host(mesh, ids, by_row), *placed))
    above, tied = (np.concatenate(part)[: len(queries)] for part in zip(*jax.device_get(answers), strict=True))
    return above, tied


def recall(above: Int[np.ndarray, " Q"], tied: Int[np.ndarray, " Q"], k: int) -> float:
    """The share of queries whose answer is among the first k.

    Equal scores stand in an order drawn at random, and this is the expected share: with t rivals tied with the answer
    and a above it, min(1, max(0, k - a) / (t + 1)). Without ties it is the usual recall; a model that gives every input
    the same features scores chance, k / (wrong answers + 1).
    """
    return float(np.clip((k - above) / (tied + 1), 0.0, 1.0).mean())


def _padded(rows: np.ndarray, count: int, value: int) -> np.ndarray:
    missing = [(0, count - len(rows))] + [(0, 0)] * (rows.ndim - 1)
    return np.pad(rows, missing, constant_values=value)


@functools.lru_cache(maxsize=8)
def _counter(mesh: Mesh) -> Callable[..., tuple[Array, Array]]:
    whole, by_row = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.jit(_count, in_shardings=(by_row, by_row, whole, whole), out_shardings=(whole, whole))


def _count(
    queries: Float[Array, "Q D"],
    query_ids: Int32[Array, " Q"],
    gallery: Float[Array, "chunks chunk D"],
    gallery_ids: Int32[Array, "chunks chunk"],
) -> tuple[Int32[Array, " Q"], Int32[Array, " Q"]]:
    def scored(part: _Part) -> tuple[Float[Array, "Q chunk"], Bool[Array, "Q chunk"]]:
        scores = jnp.einsum("qd,gd->qg", queries, part[0], precision=jax.lax.Precision.HIGHEST)
        return scores, part[1][None, :] == query_ids[:, None]

    def best(own: Float[Array, " Q"], part: _Part) -> tuple[Float[Array, " Q"], None]:
        scores, right = scored(part)
        return jnp.maximum(own, jnp.where(right, scores, -jnp.inf).max(axis=1)), None

    own, _ = jax.lax.scan(best, jnp.full(queries.shape[0], -jnp.inf), (gallery, gallery_ids))

    def compare(counts: tuple[Array, Array], part: _Part) -> tuple[tuple[Array, Array], None]:
        scores, right = scored(part)
        rival = ~right & (part[1] != _NOBODY)[None, :]
        # Not "scores > own": that is False where either is not a number.
        above = (rival & ~(scores <= own[:, None])).sum(axis=1, dtype=jnp.int32)
        tied = (rival & (scores == own[:, None])).sum(axis=1, dtype=jnp.int32)
        return (counts[0] + above, counts[1] + tied), None

    none = jnp.zeros(queries.shape[0], jnp.int32)
    counts, _ = jax.lax.scan(compare, (none, none), (gallery, gallery_ids))
    return counts

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

Features = Float[np.ndarray, "n *several D"]
"""Of n images or texts; where there are several of each, the best of their scores counts (BLIP-2, section 3.1)."""
_Part = tuple[Float[Array, "chunk *several D"], Int32[Array, " chunk"]]
_NOBODY = -1  # the identity of rows that fill up a chunk


def ranks(
    queries: Features,
    query_ids: Int[np.ndarray, " Q"],
    gallery: Features,
    gallery_ids: Int[np.ndarray, " G"],
    mesh: Mesh,
    chunk: int = 1024,
    rows_per_device: int = 1024,
) -> tuple[Int[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
    """How many wrong entries of the gallery score above, and how many exactly as, the query's best right one.

    An entry is right where its id is the query's; a query may have several, and only the best of them counts. A score
    is that of `scores_of`. One that is not a number counts as above: a broken feature never helps. Queries are sharded
    over all devices of the mesh and the gallery is read `chunk` entries at a time, so a device holds at most
    `rows_per_device x chunk` scores. Every process gives the same arrays and gets the same answer.

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
    gallery = _padded(gallery.astype(np.float32), chunks * chunk, 0).reshape(chunks, chunk, *gallery.shape[1:])
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
    queries: Float[Array, "Q *several D"],
    query_ids: Int32[Array, " Q"],
    gallery: Float[Array, "chunks chunk *several D"],
    gallery_ids: Int32[Array, "chunks chunk"],
) -> tuple[Int32[Array, " Q"], Int32[Array, " Q"]]:
    def scored(part: _Part) -> tuple[Float[Array, "Q chunk"], Bool[Array, "Q chunk"]]:
        scores = scores_of(queries, part[0])
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


def scores_of(queries: Float[Array, "Q *several D"], gallery: Float[Array, "G *several D"]) -> Float[Array, "Q G"]:
    """Inner products in float32; of several features of one entry the largest."""
    first, second = "m" * (queries.ndim - 2), "n" * (gallery.ndim - 2)
    products = f"q{first}d,g{second}d->qg{first}{second}"
    scores = jnp.einsum(products, queries, gallery, precision=jax.lax.Precision.HIGHEST)
    return jnp.max(scores, axis=tuple(range(2, scores.ndim))) if scores.ndim > 2 else scores


def nearest(
    queries: Features, gallery: Features, count: int, mesh: Mesh, chunk: int = 1024, rows_per_device: int = 1024
) -> tuple[Int32[np.ndarray, "Q count"], Float[np.ndarray, "Q count"]]:
    """The entries of the gallery that score highest for every query, the best first, and their scores.

    Sharded and chunked as `ranks` is. A score that is not a number is none: where there are too few others, the last
    entries are -1 with the score -inf.

    Args:
      queries: features, the same on every process.
      gallery: features, the same on every process.
      count: at most all of the gallery.
      mesh: the device mesh.
      chunk: entries of the gallery scored at once.
      rows_per_device: queries that one device scores at once.
    """
    count = min(count, len(gallery))
    chunks = -(-len(gallery) // chunk)
    ids = _padded(np.arange(len(gallery), dtype=np.int32), chunks * chunk, _NOBODY).reshape(chunks, chunk)
    rows = _padded(gallery.astype(np.float32), chunks * chunk, 0).reshape(chunks, chunk, *gallery.shape[1:])
    placed = from_host(mesh, rows, PartitionSpec()), from_host(mesh, ids, PartitionSpec())
    block = min(rows_per_device, -(-len(queries) // mesh.size)) * mesh.size
    seek, by_row = _seeker(mesh, count), PartitionSpec(mesh.axis_names)
    found = []
    for start in range(0, len(queries), block):
        part = _padded(queries[start : start + block].astype(np.float32), block, 0)
        found.append(seek(from_host(mesh, part, by_row), *placed))
    ids, scores = (np.concatenate(part)[: len(queries)] for part in zip(*jax.device_get(found), strict=True))
    return ids, scores


@functools.lru_cache(maxsize=8)
def _seeker(mesh: Mesh, count: int) -> Callable[..., tuple[Array, Array]]:
    whole, by_row = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def seek(queries: Array, gallery: Array, ids: Array) -> tuple[Array, Array]:
        def merge(best: tuple[Array, Array], part: _Part) -> tuple[tuple[Array, Array], None]:
            scores = scores_of(queries, part[0])
            scores = jnp.where(jnp.isnan(scores) | (part[1] == _NOBODY), -jnp.inf, scores)
            all_scores = jnp.concatenate([best[1], scores], axis=1)
            all_ids = jnp.concatenate([best[0], jnp.broadcast_to(part[1], scores.shape)], axis=1)
            kept, places = jax.lax.top_k(all_scores, count)
            return (jnp.take_along_axis(all_ids, places, axis=1), kept), None

        # Before anything was read the best are entries that come after all others.
        none = jnp.full((queries.shape[0], count), _NOBODY), jnp.full((queries.shape[0], count), -jnp.inf)
        return jax.lax.scan(merge, none, (gallery, ids))[0]

    return jax.jit(seek, in_shardings=(by_row, whole, whole), out_shardings=(whole, whole))

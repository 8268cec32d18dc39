"""Positions as a bias on attention scores by the distance from query to key (Raffel et al. 2020, section 2.1)."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vlmax.models.layers.axes import constrain


def distance_bias(
    table: Float[Array, "buckets H"],
    first: int | Int[Array, ""],
    queries: int,
    keys: int,
    max_distance: int,
    causal: bool,
) -> Float[Array, "1 H Tq Tk"]:
    """The bias of query i, which counts as `first + i`, on key j, by the distance of the key, counted forwards.

    With `causal` keys ahead count as near. The bias of every distance is looked up once and laid along its diagonal;
    the backward pass sums up along diagonals.
    """
    count = table.shape[0]
    side = count if causal else count // 2
    period = queries + keys
    steps = jnp.arange(period)  # from query to key, were both counted from 0; those back follow those ahead
    distance = jnp.where(steps < keys, steps, steps - period) - first
    known = jnp.asarray(distance_buckets(side, max_distance))
    bucket = known[jnp.clip(-distance if causal else jnp.abs(distance), 0, max_distance)]
    if not causal:
        bucket += jnp.where(distance > 0, side, 0)
    # A product, because the gradient of a look-up adds up one by one.
    values = jnp.einsum("dn,nh->hd", jax.nn.one_hot(bucket, count), table, precision="highest")
    return constrain(along_diagonals(values, queries, keys)[None], None, "act_heads", "tokens", None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def along_diagonals(values: Float[Array, "H Tq+Tk"], queries: int, keys: int) -> Float[Array, "H Tq Tk"]:
    """At [:, i, j] the value at place j - i; places below 0 are counted from the end."""
    # Repeated with its period and cut into rows that are shorter by one, it moves on by one from row to row.
    heads, period = values.shape
    rows = jnp.broadcast_to(values[:, None], (heads, queries, period)).reshape(heads, -1)
    return rows[:, : queries * (period - 1)].reshape(heads, queries, period - 1)[..., :keys]


def _along_diagonals_forward(values, queries, keys):
    return along_diagonals(values, queries, keys), None


def _along_diagonals_backward(queries, keys, _, g):
    # Rows are added up in pairs, the second moved on against the first, until one is left: autodiff's sum over all rows
    # takes many times as long on a CPU.
    moved = 1
    while g.shape[1] > 1:
        g = jnp.pad(g, ((0, 0), (0, g.shape[1] % 2), (0, 0)))
        first, second = (jnp.pad(g[:, i::2], ((0, 0), (0, 0), side)) for i, side in enumerate([(moved, 0), (0, moved)]))
        g, moved = first + second, 2 * moved
    sums = g[:, 0, moved - queries :]  # from place 1 - queries on
    return (jnp.concatenate([sums[:, queries - 1 :], jnp.zeros_like(sums[:, :1]), sums[:, : queries - 1]], axis=1),)


along_diagonals.defvjp(_along_diagonals_forward, _along_diagonals_backward)


def distance_buckets(count: int, max_distance: int) -> Int[np.ndarray, " distances"]:
    """The bucket of every distance 0 .. max_distance: near ones by themselves, far ones by their logarithm."""
    near = count // 2
    distance = np.arange(max_distance + 1)
    # In float32 as the reference, whose rounding decides at the edges.
    ratio = np.log(np.maximum(distance, near).astype(np.float32) / np.float32(near))
    far = near + (ratio / np.float32(math.log(max_distance / near)) * np.float32(count - near)).astype(np.int32)
    return np.where(distance < near, distance, np.minimum(far, count - 1)).astype(np.int32)

"""Positions as a bias on attention scores by the distance from query to key (Raffel et al. 2020, section 2.1)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vlmax.models.layers.axes import constrain


def distance_bias(
    table: Float[Array, "buckets H"], distance: Int[Array, "Tq Tk"], max_distance: int, causal: bool
) -> Float[Array, "1 H Tq Tk"]:
    """The bias of every pair, by the distance of its key, counted forwards; with `causal` keys ahead count as near."""
    count = table.shape[0]
    side = count if causal else count // 2
    known = jnp.asarray(distance_buckets(side, max_distance))
    bucket = known[jnp.clip(-distance if causal else jnp.abs(distance), 0, max_distance)]
    if not causal:
        bucket += jnp.where(distance > 0, side, 0)
    # A product, because the gradient of a look-up adds up one by one.
    bias = jnp.einsum("qkn,nh->hqk", jax.nn.one_hot(bucket, count), table, precision="highest")
    return constrain(bias[None], None, "act_heads", "tokens", None)


def distance_buckets(count: int, max_distance: int) -> Int[np.ndarray, " distances"]:
    """The bucket of every distance 0 .. max_distance: near ones by themselves, far ones by their logarithm."""
    near = count // 2
    distance = np.arange(max_distance + 1)
    # In float32 as the reference, whose rounding decides at the edges.
    ratio = np.log(np.maximum(distance, near).astype(np.float32) / np.float32(near))
    far = near + (ratio / np.float32(math.log(max_distance / near)) * np.float32(count - near)).astype(np.int32)
    return np.where(distance < near, distance, np.minimum(far, count - 1)).astype(np.int32)

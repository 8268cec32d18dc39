"""Logical axis names: what every dimension of a parameter or activation is called, and where the rules put it.

Parameters: `embed`, `mlp`, `heads`, `kv_heads`, `head_dim`, `vocab`, `patch`, `positions`, `layers`, `projection`,
`norm`.
Activations: `batch`, `tokens`, `act_embed`, `act_mlp`, `act_heads`, `act_kv_heads`, `act_head_dim`, `act_vocab`,
`height`, `width`, `channels`.
Carried state: `queue`, the places of a queue of earlier features.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import logical_to_mesh_axes
from flax.typing import Initializer
from jax.sharding import PartitionSpec
from jaxtyping import Array


def parameter(
    module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> Array:
    """A float32 parameter of the module whose dimensions carry logical axis names."""
    value: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    return value


def mesh_axes(name: str) -> tuple[str, ...]:
    """The mesh axes larger than 1 that the rules in context give to a logical axis; () without a mesh or rule."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    spec = logical_to_mesh_axes((name,))
    entry = spec[0] if spec else None
    axes = () if not isinstance(entry, str | tuple) else (entry,) if isinstance(entry, str) else entry
    return tuple(axis for axis in axes if mesh.shape[axis] > 1)


def constrain(x: Array, *names: str | None) -> Array:
    """`x`, laid out over the mesh in context as the rules say for its logical axes; the values never change.

    None leaves a dimension whole on every device, and so does a dimension that its mesh axes do not divide (197 tokens
    over 2 devices). A no-op without a mesh.

    Raises:
      ValueError: not one name per dimension.
    """
    if x.ndim != len(names):
        raise ValueError(f"constrain: {len(names)} axis names {names} for an array of shape {x.shape}")
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    entries: list[tuple[str, ...] | None] = []
    used: set[str] = set()
    for size, name in zip(x.shape, names, strict=True):
        axes = tuple(axis for axis in mesh_axes(name) if axis not in used) if name else ()
        if size % math.prod(mesh.shape[axis] for axis in axes):
            axes = ()
        used.update(axes)
        entries.append(axes or None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))

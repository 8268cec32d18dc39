"""Puts the parameters of checkpoints into a fresh state."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from vlmax.interop.fitting import Fitting
from vlmax.interop.model import STATISTICS
from vlmax.interop.pretrained import Plan, Pretrained, plan
from vlmax.training import patterns
from vlmax.training.state import TrainState


class Held(NamedTuple):
    """Where in a state an array lies: in which field, under which path there."""

    field: str
    path: str
    array: Any


def held(state: TrainState) -> dict[str, Held]:
    """All arrays of the model, parameters and statistics, by their paths in the system."""
    found: dict[str, Held] = {}
    for field in ("trainable", "frozen", "carried"):
        for path, array in patterns.flatten(getattr(state, field)).items():
            collection, _, rest = path.partition("/")  # of a carried array, before its path
            if field != "carried":
                found[path] = Held(field, path, array)
            elif collection in STATISTICS:
                found[rest] = Held(field, path, array)
    return found


def plans(init: Sequence[Pretrained], system: Any, abstract: TrainState) -> list[Plan]:
    """Opens the checkpoints and checks them; raises `InputError` where one does not fit."""
    shapes = {path: place.array.shape for path, place in held(abstract).items()}
    return [plan(one, f"init[{i}]", system, shapes) for i, one in enumerate(init)]


def start(state: TrainState, found: Sequence[Plan]) -> TrainState:
    """The state with the checkpoints' values, laid out and stored as before; the moving average begins there.

    The fresh values give way before the others are read, so that a large model lies on the devices once.
    """
    if not found:
        return state
    places = held(state)
    fields = {place.field: patterns.flatten(getattr(state, place.field)) for place in places.values()}
    for one in found:
        into = {ours: places[ours] for ours in one.paths}
        fresh = {ours: into[ours].array[how.stored :] for ours, how in one.fitted.items() if how.grows}
        shardings: dict[str, Any] = {}
        dtypes: dict[str, Any] = {}
        for ours, place in into.items():
            theirs, array = one.paths[ours], place.array
            # With another number of rows it may not divide over the devices; it is laid out when it has been fitted.
            shardings[theirs] = whole(array.sharding) if ours in one.fitted else array.sharding
            dtypes[theirs] = jnp.promote_types(array.dtype, dtypes.get(theirs, array.dtype))
            array.delete()
        arrays, takers = one.opened.read(shardings, dtypes), collections.Counter(one.paths.values())
        for ours, place in into.items():
            array = arrays[one.paths[ours]]
            if ours in one.fitted or takers[one.paths[ours]] > 1:
                array = placed(array, place.array, one.fitted.get(ours), fresh.get(ours))
            fields[place.field][place.path] = array
    state = dataclasses.replace(state, **{field: patterns.unflatten(arrays) for field, arrays in fields.items()})
    return dataclasses.replace(state, ema=jax.tree.map(jnp.copy, state.trainable)) if state.ema else state


def placed(
    array: jax.Array, like: jax.Array, fitted: Fitting | None = None, fresh: jax.Array | None = None
) -> jax.Array:
    """An array of the checkpoint, fitted, then stored and laid out as `like` is.

    In memory of its own: one source may go to two places, and a step is given both to overwrite.
    """

    def make(array: jax.Array, fresh: jax.Array | None) -> jax.Array:
        return (jnp.copy(array) if fitted is None else fitted(array, fresh)).astype(like.dtype)

    return jax.jit(make, out_shardings=like.sharding)(array, fresh)


def whole(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """On the same devices, not split."""
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding

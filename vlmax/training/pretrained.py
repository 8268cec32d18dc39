"""Puts the parameters of checkpoints into a fresh state."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vlmax.interop.pretrained import Plan, Pretrained, plan
from vlmax.training import patterns
from vlmax.training.state import TrainState


class Held(NamedTuple):
    """Where in a state an array lies: in which field, under which path there."""

    field: str
    path: str
    array: Any


def held(state: TrainState) -> dict[str, Held]:
    """All parameters and carried arrays, by their paths in the system."""
    found: dict[str, Held] = {}
    for field in ("trainable", "frozen", "carried"):
        for path, array in patterns.flatten(getattr(state, field)).items():
            # Carried arrays have the name of their collection, such as batch_stats, before them.
            found[path.partition("/")[2] if field == "carried" else path] = Held(field, path, array)
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
        into = {theirs: places[ours] for ours, theirs in one.paths.items()}
        shardings = {path: place.array.sharding for path, place in into.items()}
        dtypes = {path: place.array.dtype for path, place in into.items()}
        for place in into.values():
            place.array.delete()
        arrays = one.opened.read(shardings, dtypes)
        for theirs, place in into.items():
            fields[place.field][place.path] = arrays[theirs]
    state = dataclasses.replace(state, **{field: patterns.unflatten(arrays) for field, arrays in fields.items()})
    return dataclasses.replace(state, ema=jax.tree.map(jnp.copy, state.trainable)) if state.ema else state

"""The system of a run with its newest weights, without its optimizer: what is asked to write or to judge.

Only what a run's experiment.json says of system, preprocess and prompts is rebuilt, so that sources and evaluations of
an experiment's own file do not matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from vlmax.data.cleaning import Cleaned, Cleaning
from vlmax.data.example import Preprocess
from vlmax.data.images import ImageTransform
from vlmax.described import known, rebuilt, refreshed
from vlmax.errors import InputError
from vlmax.evaluation.captioning import Captioning
from vlmax.interop.families import read_json
from vlmax.interop.trained import EXPERIMENT, PLACES, is_run, newest_state, read_arrays, stored_leaves
from vlmax.sharding.rules import Rules, rule_table, shardings, unboxed
from vlmax.systems.system import Carried, Params, System
from vlmax.training.setup import CARRIED, with_axes


@dataclasses.dataclass(frozen=True)
class Restored:
    """A system as its run left it.

    Attributes:
      path: the run's directory.
      step: of its newest checkpoint.
      system: what was trained.
      preprocess: how its examples became features.
      image: what its evaluations do to a picture.
      prompts: how its first evaluation of captions asks for them, as fields of `Captioning`; None where it has none.
      clean: what happened to the texts of its sources, where they were `Cleaned`; None: nothing.
      params: all parameters, the moving average where the run has one.
      carried: what the system keeps beside them.
    """

    path: Path
    step: int
    system: System
    preprocess: Preprocess
    image: ImageTransform
    prompts: Mapping[str, Any] | None
    clean: Cleaning | None
    params: Params
    carried: Carried


def restore(path: Path, mesh: jax.sharding.Mesh, rules: Rules = ()) -> Restored:
    """Reads the newest checkpoint of a run, sharded over the mesh. Call it inside mesh and rules, on every process.

    Raises:
      InputError: the folder is no run's, it has no checkpoint, or this vlmax does not know its system.
    """
    if not is_run(path):
        told = f"it has no {EXPERIMENT}, so it is no run's directory; name one, as --workdir is"
        raise InputError(f"reading {path}: {told}")
    told = refreshed(read_json(path / EXPERIMENT).get("experiment", {}))
    system, preprocess = rebuilt(told.get("system")), rebuilt(told.get("data", {}).get("preprocess"))
    image = rebuilt(told.get("evaluation_image"))
    state = newest_state(path)
    params, carried = _weights(system, state, mesh, rules)
    return Restored(
        path, int(state.parent.name), system, preprocess, image, _prompts(told), _clean(told), params, carried
    )


def _prompts(told: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for evaluation in told.get("evaluations", ()):
        if known(evaluation.get("type")) is Captioning:
            return {name: rebuilt(evaluation[name]) for name in ("prompting", "prompt", "instruction")}
    return None


def _clean(told: Mapping[str, Any]) -> Cleaning | None:
    for weighted in told.get("data", {}).get("sources", ()):
        if known(weighted["source"].get("type")) is Cleaned:
            return rebuilt(weighted["source"]["clean"])
    return None


def _weights(system: System, state: Path, mesh: jax.sharding.Mesh, rules: Rules) -> tuple[Params, Carried]:
    """Parameters and what is carried, each array from the place in the state that has it."""
    batch = {name: jnp.zeros((mesh.size, *x.shape), x.dtype) for name, x in system.inputs().items()}
    boxed, boxed_carried = jax.eval_shape(system.init, jax.random.key(0), batch)
    whole = {**boxed, CARRIED: with_axes(boxed_carried)}
    placed = flatten_dict(shardings(whole, mesh, rule_table(rules, mesh)), sep="/")
    leaves, wanted, found_at = stored_leaves(state), {}, {}
    for name, leaf in flatten_dict(unboxed(whole), sep="/").items():
        places = [name] if name.startswith(f"{CARRIED}/") else [f"{place}/{name}" for place in PLACES]
        place = next((place for place in places if place in leaves), None)
        if place is None or tuple(leaves[place].shape) != leaf.shape:
            stored = "is not there" if place is None else f"is {list(leaves[place].shape)}, not {list(leaf.shape)}"
            told = f"{name} {stored}; restore the experiment.json that the run was started with"
            raise InputError(f"reading {state}: {told}")
        found_at[name] = place
        wanted[place] = jax.ShapeDtypeStruct(leaf.shape, leaves[place].dtype, sharding=placed[name])
    arrays = read_arrays(state, wanted)
    tree = unflatten_dict({name: arrays[place] for name, place in found_at.items()}, sep="/")
    return tree, tree.pop(CARRIED, {})

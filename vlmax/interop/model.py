"""Our models as trees of arrays by path, with how they lie on a mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax.core.meta import is_axis_metadata
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, PyTree

from vlmax.interop.family import Family
from vlmax.sharding.rules import Rules, names_and_shape, rule_table, shardings
from vlmax.systems.system import System

STATISTICS = ("batch_stats",)
"""The collections of a system's carried state that belong to its model; others, as queues, belong to its training."""


@dataclasses.dataclass(frozen=True)
class Outline:
    """All arrays of a model, without their values.

    Attributes:
      collections: path -> the collection of variables it is in, `params` or `batch_stats`.
      boxed: path -> abstract array, in the box with its logical axes.
    """

    collections: dict[str, str]
    boxed: dict[str, Any]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path -> shape."""
        return {path: names_and_shape(leaf)[1] for path, leaf in self.boxed.items()}

    def axes(self, path: str) -> tuple[str | None, ...]:
        """The logical axes of an array; None for each where it has none."""
        names, shape = names_and_shape(self.boxed[path])
        return names if names is not None else (None,) * len(shape)

    def shardings(self, mesh: jax.sharding.Mesh | None, rules: Rules = ()) -> dict[str, jax.sharding.Sharding]:
        """Path -> how it lies on the mesh; without one all is on the first device.

        Raises:
          InputError: an array does not divide over the mesh.
        """
        if mesh is None:
            return dict.fromkeys(self.boxed, SingleDeviceSharding(jax.local_devices()[0]))
        whole: dict[str, jax.sharding.Sharding] = dict.fromkeys(self.boxed, NamedSharding(mesh, PartitionSpec()))
        params = {path: leaf for path, leaf in self.boxed.items() if self.collections[path] == "params"}
        tree = shardings(unflatten_dict(params, sep="/"), mesh, rule_table(rules, mesh))
        return whole | flatten_dict(tree, sep="/")

    def variables(self, arrays: dict[str, Array]) -> dict[str, PyTree]:
        """The arrays as a module takes them: `{"params": ..., "batch_stats": ...}`."""
        paths = {(self.collections[path], *path.split("/")): array for path, array in arrays.items()}
        return unflatten_dict(paths)


def fresh(config: Any, family: Family, key: Array) -> dict[str, PyTree]:
    """The boxed variables of the model that a configuration describes, as `Outline.variables` has them."""
    if not isinstance(config, System):
        return config.build().init(key, **family.arguments(config))
    batch = {name: jnp.zeros((1, *x.shape), x.dtype) for name, x in config.inputs().items()}
    found: tuple[Any, Any] = config.init(key, batch)
    params, carried = found
    return {"params": params, **{name: carried[name] for name in STATISTICS if name in carried}}


def outline(config: Any, family: Family) -> Outline:
    """The arrays of the model that a configuration describes; nothing is computed."""
    variables = jax.eval_shape(lambda key: fresh(config, family, key), jax.random.key(0))
    collections: dict[str, str] = {}
    boxed: dict[str, Any] = {}
    for collection, tree in variables.items():
        for path, leaf in flatten_dict(tree, sep="/", is_leaf=lambda _, x: is_axis_metadata(x)).items():
            assert path not in boxed, path
            collections[path], boxed[path] = collection, leaf
    return Outline(collections, boxed)


def by_path(variables: PyTree) -> dict[str, Array]:
    """The inverse of `Outline.variables`."""
    return {path: leaf for tree in variables.values() for path, leaf in flatten_dict(tree, sep="/").items()}

"""From an experiment to a run that is ready: mesh, shardings, state, step; checked before anything is compiled."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core.meta import is_axis_metadata
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from vlmax.data.pipeline import check_divides
from vlmax.errors import InputError
from vlmax.experiment import Experiment, nearest_multiple
from vlmax.models.lora import of_adapter
from vlmax.reporting.flops import forward_passes
from vlmax.sharding.rules import names_and_shape, rule_table, shardings, state_shardings, unboxed
from vlmax.sharding.tables import Table, sharding_table, trainable_table
from vlmax.systems.system import Chained, ChecksBatchSize, Instructed, Params
from vlmax.training import patterns
from vlmax.training.groups import split
from vlmax.training.optimizers import Built
from vlmax.training.pretrained import plans, start
from vlmax.training.state import TrainState, zero
from vlmax.training.step import train_step

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
CARRIED = "carried"  # its paths begin so in messages


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment on its mesh, checked and ready to start."""

    experiment: Experiment
    mesh: jax.sharding.Mesh
    boxed: Params
    """All parameters, abstract, in the boxes that carry their logical axes."""
    param_shardings: PyTree[NamedSharding]
    optimizer: Built
    abstract_state: TrainState
    """Shapes, dtypes and shardings of the state."""
    init: Callable[[], TrainState]
    """Makes a fresh state, already sharded; no host ever holds the whole of it."""
    step: Any
    """The jitted, donated train step `(state, batch) -> (state', metrics)`."""

    @property
    def batch_sharding(self) -> NamedSharding:
        """How dimension 0 of every batch array lies on the mesh."""
        return NamedSharding(self.mesh, PartitionSpec(("data", "fsdp")))

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """The system's parts none of whose parameters train."""
        parts = self._parts()
        flops = self.experiment.system.flops_per_example()
        return tuple(p for p in flops if parts.get(p) and all(self.optimizer.frozen[path] for path in parts[p]))

    def passes(self) -> dict[str, float]:
        """What a step costs each of the system's parts, in forward passes; see `reporting.flops`."""
        frozen, parts = self.optimizer.frozen, self._parts()
        shapes = {path: names_and_shape(leaf)[1] for path, leaf in patterns.flatten(self.boxed).items()}
        # Of tables rows are looked up, which is no product.
        sizes = {path: math.prod(shape) for path, shape in shapes.items() if not path.endswith("embedding")}
        system = self.experiment.system
        reads = system.reads() if isinstance(system, Chained) else {}
        still = set(self.frozen_parts)
        found = {part: 2.0 if set(reads.get(part, ())) - still else 1.0 for part in still}
        for part in set(system.flops_per_example()) & set(parts) - still:
            paths = [path for path in parts[part] if path in sizes]
            trained = sum(sizes[path] for path in paths if not frozen[path])
            adapters = sum(sizes[path] for path in paths if of_adapter(path))
            found[part] = forward_passes(trained, sum(sizes[path] for path in paths) - trained, adapters)
        return found

    def tables(self) -> Sequence[Table]:
        """What trains, and at what rate and decay; printed before step 1."""
        trains = trainable_table(self.boxed, self.optimizer.frozen, self._parts(), self.experiment.frozen_dtype)
        return trains, self.optimizer.table

    def tables_text(self) -> str:
        """All tables, that of the shardings too, for parameters.txt."""
        tables = (*self.tables(), sharding_table(self.boxed, self.param_shardings))
        return "\n".join(table.text() for table in tables)

    def _parts(self) -> dict[str, list[str]]:
        paths = list(patterns.flatten(self.boxed))
        found = self.experiment.system.parts().items()
        return {part: patterns.hits(pattern, paths, f"system.parts[{part}]") for part, pattern in found}


@contextlib.contextmanager
def device_context(experiment: Experiment) -> Iterator[jax.sharding.Mesh]:
    """Inside, the experiment's mesh and rules are in force, and compiled programs are kept on disk."""
    if jax.config.jax_compilation_cache_dir is None and CACHE_VARIABLE not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "vlmax" / "compiled"))
    mesh = experiment.mesh.build()
    with jax.set_mesh(mesh), nn.logical_axis_rules(rule_table(experiment.rules, mesh)):
        yield mesh


def prepare(experiment: Experiment, mesh: jax.sharding.Mesh) -> Run:
    """Builds everything that a run needs, inside `device_context`.

    Raises:
      InputError: data and system do not fit each other, the batch or a parameter does not divide over the mesh, a
        pattern hits nothing, or another field makes no sense.
    """
    check_batch(experiment, mesh)
    check_features(experiment)
    system, key = experiment.system, jax.random.key(experiment.seed)
    # Parameters do not depend on how many examples there are: one a device lets every layer shard.
    example = {name: jnp.zeros((mesh.size, *x.shape), x.dtype) for name, x in system.inputs().items()}
    boxed, boxed_carried = jax.eval_shape(system.init, key, example)
    rules = rule_table(experiment.rules, mesh)
    placed_all = shardings({**boxed, CARRIED: with_axes(boxed_carried)}, mesh, rules)
    carried_shardings = placed_all.pop(CARRIED)
    param_shardings = placed_all
    optimizer = experiment.optimizer.build(boxed, experiment.steps, locked=system.locked())

    def fresh() -> TrainState:
        params, carried = system.init(key, example)
        trainable, frozen = split(unboxed(params), optimizer.frozen, experiment.frozen_dtype)
        return TrainState(
            step=zero(),
            trainable=trainable,
            frozen=frozen,
            optimizer=optimizer.transformation.init(trainable),
            carried=unboxed(carried),
            ema={} if experiment.ema_decay is None else jax.tree.map(jnp.copy, trainable),
            nonfinite_in_row=zero(),
            nonfinite_total=zero(),
        )

    abstract = jax.eval_shape(fresh)
    placed = state_shardings(dataclasses.replace(abstract, carried={}), boxed, param_shardings, mesh)
    placed = dataclasses.replace(placed, carried=carried_shardings)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed)
    step = train_step(
        system,
        optimizer.transformation,
        optimizer.schedule,
        seed=experiment.seed,
        microbatches=experiment.microbatches,
        ema_decay=experiment.ema_decay,
    )
    make = jax.jit(fresh, out_shardings=placed)

    def init() -> TrainState:
        pretrained = plans(experiment.init, system, abstract)  # before anything is compiled
        return start(make(), pretrained)

    return Run(
        experiment=experiment,
        mesh=mesh,
        boxed=boxed,
        param_shardings=param_shardings,
        optimizer=optimizer,
        abstract_state=abstract,
        init=init,
        step=jax.jit(step, donate_argnums=0, out_shardings=(placed, NamedSharding(mesh, PartitionSpec()))),
    )


def with_axes(tree: PyTree) -> PyTree:
    """The carried state with every leaf in a box: one that has none, as batch statistics, is whole on every device."""

    def box(leaf: Any) -> Any:
        return leaf if is_axis_metadata(leaf) else nn.LogicallyPartitioned(leaf, (None,) * leaf.ndim)

    return jax.tree.map(box, tree, is_leaf=is_axis_metadata)


def check_batch(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
    """Raises InputError where the mesh does not divide a microbatch, or the system has no use for such a batch."""
    size, parts = experiment.data.batch_size, experiment.microbatches
    if isinstance(experiment.system, ChecksBatchSize):
        experiment.system.check_batch_size(size)
    check_divides(NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), size)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % (parts * devices):
        raise InputError(
            f"data.batch_size {size} in {parts} microbatches over {devices} devices (mesh.data x mesh.fsdp) does not "
            f"divide; the nearest batch size that does is {nearest_multiple(size, parts * devices)}"
        )


def check_features(experiment: Experiment) -> None:
    """Raises InputError where the data does not give what the system reads, or its ids pass the embedding's rows."""
    given: Mapping[str, Any] = experiment.data.preprocess.features()
    for name, wanted in experiment.system.inputs().items():
        found = given.get(name)
        if found is None:
            raise InputError(
                f"the system reads a feature {name!r} that data.preprocess does not give; it gives {', '.join(given)}"
            )
        if tuple(found.shape) != tuple(wanted.shape) or np.dtype(found.dtype) != wanted.dtype:
            raise InputError(
                f"feature {name!r}: the system reads {wanted.dtype} {list(wanted.shape)} and data.preprocess gives "
                f"{found.dtype} {list(found.shape)}; make the system's sizes and those of data.preprocess agree"
            )
    tokenizer = getattr(experiment.data.preprocess, "opened", None)
    if tokenizer is not None:
        experiment.system.check_tokenizer(tokenizer)
    instruction = getattr(experiment.data.preprocess, "instruction", None)
    if instruction is not None and isinstance(experiment.system, Instructed):
        experiment.system.check_instruction(instruction.opened)

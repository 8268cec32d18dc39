"""A model out of a run's directory: the newest checkpoint's parameters, its moving average where the run has one.

Of a language model that learned through adapters it is the plain model, the adapters merged into their kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from vlmax.described import known, rebuilt
from vlmax.errors import InputError
from vlmax.interop.families import of_config, read_json
from vlmax.interop.family import Family
from vlmax.interop.model import Outline, outline
from vlmax.interop.table import Absent
from vlmax.models import lora
from vlmax.sharding.rules import Rules
from vlmax.systems.language_model import LanguageModel

EXPERIMENT, CHECKPOINTS, STATE = "experiment.json", "checkpoints", "state"
PLACES = ("ema", "trainable", "frozen", "carried")
"""Where in a run's state an array may lie; the first that has it is taken."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """The model of a run; it has what `loading.Opened` has.

    Attributes:
      state: the folder of the state.
      stored: path of an array -> path in the state, and its dtype.
      tokenizer: the run's, where it is one of vlmax's own.
      instruction: that of a Q-Former that reads instructions, likewise.
      end: the text that ends what the model writes, where it is not the tokenizer's mark.
      adapters: path of a kernel -> its adapter's arrays in the state, by name: path and shape.
      run: what the run is called, and the step of its checkpoint.
      system: the run's; its model is `config`.
      absent: see `loading.Opened`; nothing is.
    """

    config: Any
    family: Family
    outline: Outline
    state: Path
    stored: Mapping[str, tuple[str, np.dtype]]
    files: Path
    tokenizer: Any = None
    notes: tuple[str, ...] = ()
    adapters: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]] = dataclasses.field(default_factory=dict)
    run: tuple[str, int] = ("", 0)
    system: Any = None
    instruction: Any = None
    end: str | None = None
    absent: Mapping[str, Absent] = dataclasses.field(default_factory=dict)

    def arrays(
        self, mesh: jax.sharding.Mesh | None = None, dtype: DTypeLike | None = None, rules: Rules = ()
    ) -> dict[str, jax.Array]:
        """See `loading.Opened.arrays`."""
        dtypes = {path: np.dtype(kind if dtype is None else dtype) for path, (_, kind) in self.stored.items()}
        return self.read(self.outline.shardings(mesh, rules), dtypes)

    def read(
        self, shardings: Mapping[str, jax.sharding.Sharding], dtypes: Mapping[str, np.dtype] | None = None
    ) -> dict[str, jax.Array]:
        """See `loading.Opened.read`."""
        shapes = self.outline.shapes()
        kinds = {path: self.stored[path][1] if dtypes is None else np.dtype(dtypes[path]) for path in shardings}
        wanted: dict[str, jax.ShapeDtypeStruct] = {}
        for path, sharding in shardings.items():
            kind = np.dtype(np.float32) if path in self.adapters else kinds[path]
            wanted[self.stored[path][0]] = jax.ShapeDtypeStruct(shapes[path], kind, sharding=sharding)
            for place, shape in self.adapters.get(path, {}).values():
                wanted[place] = jax.ShapeDtypeStruct(shape, np.float32, sharding=_whole(sharding))
        found = read_arrays(self.state, wanted)
        arrays = {path: found.pop(self.stored[path][0]) for path in shardings}  # so that none outlives its merging
        for path in (path for path in shardings if path in self.adapters):  # in one order on all hosts
            adapter = {name: found[place] for name, (place, _) in self.adapters[path].items()}
            merged = jax.jit(lora.merge, out_shardings={"kernel": shardings[path]})
            arrays[path] = merged({"kernel": arrays[path], lora.NAME: adapter})["kernel"].astype(kinds[path])
        return arrays

    def dtype(self) -> np.dtype:
        """What most arrays are stored as."""
        kinds = [kind for _, kind in self.stored.values()]
        return max(kinds, key=kinds.count)


def is_run(path: Path) -> bool:
    """Whether the folder is a run's."""
    return (path / EXPERIMENT).is_file()


def open_run(path: Path) -> Trained:
    """The newest checkpoint of a run.

    Raises:
      InputError: there is none, or this vlmax does not know its system.
    """
    experiment = read_json(path / EXPERIMENT).get("experiment", {})
    system = rebuilt(experiment.get("system"))
    config = system.text.decoder if isinstance(system, LanguageModel) else system
    family = of_config(config)
    state = newest_state(path)
    leaves = stored_leaves(state)
    shape = outline(config, family)
    stored = {name: _place(name, shape, leaves, state) for name in shape.boxed}
    told = experiment.get("data", {}).get("preprocess", {})
    adapters = {name: adapter for name in stored if (adapter := _adapter(name, shape, leaves))}
    run = str(experiment.get("name")), int(state.parent.name)
    return Trained(
        config,
        family,
        shape,
        state,
        stored,
        path,
        _tokenizer(told) or _tokenizer(told.get("pairs")),
        adapters=adapters,
        run=run,
        system=system,
        instruction=_tokenizer(told.get("instruction")),
        end=told.get("end"),
    )


def _tokenizer(told: Any) -> Any:
    """That of a part of an experiment's data; None where it has none, or one that is not vlmax's."""
    found = (told.get("tokenizer") if isinstance(told, Mapping) else None) or {}
    return None if known(found.get("type")) is None else rebuilt(found)


def newest_state(path: Path) -> Path:
    """The folder of the newest checkpoint's state; raises `InputError` where the run has none."""
    steps = [int(entry.name) for entry in (path / CHECKPOINTS).glob("*") if entry.name.isdigit()]
    if not steps:
        raise InputError(f"reading {path}: the run has no checkpoint yet; train first")
    return (path / CHECKPOINTS / str(max(steps)) / STATE).resolve()


def stored_leaves(state: Path) -> dict[str, Any]:
    """What a state holds: path -> shape and dtype."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return flatten_dict(reader.metadata(state).item_metadata.tree, sep="/")


def read_arrays(state: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The arrays of a state at these paths, in these dtypes and shardings; no other is read."""
    item = unflatten_dict(dict(wanted), sep="/")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restore_args = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
        return flatten_dict(reader.restore(state, args=args), sep="/")


def _place(name: str, shape: Outline, leaves: Mapping[str, Any], state: Path) -> tuple[str, np.dtype]:
    """Where in the state an array lies."""
    wanted = shape.shapes()[name]
    for place in PLACES:
        path = f"{place}/{shape.collections[name]}/{name}" if place == "carried" else f"{place}/{name}"
        if path in leaves:
            if tuple(leaves[path].shape) != wanted:
                raise InputError(
                    f"reading {state}: {name} is {list(leaves[path].shape)}, and the run's experiment.json makes it "
                    f"{list(wanted)}; restore the experiment.json that the run was started with"
                )
            return path, np.dtype(leaves[path].dtype)
    raise InputError(f"reading {state}: it has no {name}; restore the experiment.json that the run was started with")


def _adapter(kernel: str, shape: Outline, leaves: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The arrays in the state of the adapter beside a kernel; {} where there is none, or the model knows of it."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in ("a", "b", "alpha"):
        path = f"{kernel.removesuffix('kernel')}{lora.NAME}/{name}"
        places = [f"{place}/{path}" for place in PLACES if f"{place}/{path}" in leaves and path not in shape.boxed]
        if places:
            found[name] = (places[0], tuple(leaves[places[0]].shape))
    return found


def _whole(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """On the same devices, not split."""
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding

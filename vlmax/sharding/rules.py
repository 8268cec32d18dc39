"""Rules from logical axes to mesh axes, the check before compiling, and the shardings of parameters and their state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax.core.meta import Partitioned, is_axis_metadata
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from vlmax.errors import InputError, nearest

Rules = tuple[tuple[str, tuple[str, ...]], ...]

DEFAULT_RULES: Rules = (
    # parameters
    ("embed", ("fsdp",)),
    ("mlp", ("tensor",)),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("head_dim", ()),
    ("vocab", ("tensor",)),
    ("patch", ()),
    ("positions", ()),
    ("layers", ()),
    ("projection", ()),
    ("norm", ()),
    ("conv_in", ()),
    ("conv_out", ("fsdp",)),
    ("kernel_height", ()),
    ("kernel_width", ()),
    ("classes", ()),
    # activations
    ("batch", ("data", "fsdp")),
    ("tokens", ("sequence",)),
    ("act_embed", ()),
    ("act_mlp", ("tensor",)),
    ("act_heads", ("tensor",)),
    ("act_kv_heads", ("tensor",)),
    ("act_head_dim", ()),
    ("act_vocab", ("tensor",)),
    ("height", ()),
    ("width", ()),
    ("channels", ()),
    # carried state
    ("queue", ("data", "fsdp")),
)


def rule_table(overrides: Rules, mesh: jax.sharding.Mesh) -> tuple[tuple[str, tuple[str, ...] | None], ...]:
    """The experiment's rules before the default ones, as `nn.logical_axis_rules` takes them.

    Raises:
      InputError: a rule names an axis that the mesh does not have, or two rules name the same logical axis.
    """
    table: dict[str, tuple[str, ...]] = {}
    for i, (name, axes) in enumerate(overrides):
        if name in table:
            raise InputError(f"rules[{i}]: the logical axis {name!r} has a rule already; keep one of the two")
        for axis in axes:
            if axis not in mesh.axis_names:
                raise InputError(
                    f"rules[{i}]: the rule for {name!r} names the mesh axis {axis!r}; {nearest(axis, mesh.axis_names)}"
                )
        table[name] = tuple(axes)
    table |= {name: axes for name, axes in DEFAULT_RULES if name not in table}
    return tuple((name, axes or None) for name, axes in table.items())


def shardings(boxed: PyTree, mesh: jax.sharding.Mesh, rules: Sequence[tuple[str, Any]]) -> PyTree[NamedSharding]:
    """The sharding of every parameter, after checking them all.

    Args:
      boxed: nested dict of abstract or real arrays, each in the box with its logical axes; scalars need none.
      mesh: the device mesh.
      rules: as `rule_table` gives them.

    Returns:
      The nested dict without boxes, with shardings for leaves.

    Raises:
      InputError: names every parameter that no rule covers, whose dimension does not divide by its mesh axes
        (and the nearest size that does), or that uses a mesh axis twice.
    """
    table = dict(rules)
    leaves, structure = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=is_axis_metadata)
    named = [(path_string(path), *names_and_shape(leaf)) for path, leaf in leaves]
    problems = [problem for leaf in named for problem in _problems(*leaf, mesh, table)]
    known = {name for name, _ in DEFAULT_RULES} | {name for _, names, _ in named for name in names or ()}
    for name in table:
        if name not in known:
            problems.append(f"the rule for {name!r} hits no parameter; {nearest(name, sorted(filter(None, known)))}")
    if problems:
        listed = "\n  ".join(problems)
        raise InputError(f"sharding the parameters over the mesh {dict(mesh.shape)}:\n  {listed}")
    return jax.tree.unflatten(structure, [NamedSharding(mesh, _spec(names or (), table)) for _, names, _ in named])


def names_and_shape(leaf: Any) -> tuple[tuple[str | None, ...] | None, tuple[int, ...]]:
    """Logical axes (None without a box) and shape of a leaf."""
    if isinstance(leaf, Partitioned):
        return tuple(leaf.names), tuple(leaf.value.shape)
    return (() if leaf.shape == () else None), tuple(leaf.shape)


def unboxed(tree: PyTree) -> PyTree:
    """The tree without boxes; unlike `nn.unbox` it also takes abstract arrays where a mesh is set."""
    return jax.tree.map(lambda leaf: leaf.value if is_axis_metadata(leaf) else leaf, tree, is_leaf=is_axis_metadata)


def path_string(path: Sequence[Any]) -> str:
    """A leaf's path as it is written in patterns and messages: `image/blocks/mlp/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _spec(names: Sequence[str | None], table: dict[str, Any]) -> PartitionSpec:
    axes = [_axes(table[name]) if name is not None else () for name in names]
    return PartitionSpec(*(a[0] if len(a) == 1 else a or None for a in axes))


def _axes(rule: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (rule,) if isinstance(rule, str) else tuple(rule or ())


def _problems(
    path: str, names: tuple[str | None, ...] | None, shape: tuple[int, ...], mesh: jax.sharding.Mesh, table: dict
) -> Iterator[str]:
    """What is wrong with one parameter, a sentence each."""
    if names is None:
        yield f"{path} {list(shape)} carries no logical axes; give it some with nn.with_logical_partitioning"
        return
    if len(names) != len(shape):
        yield f"{path} {list(shape)} has {len(shape)} dimensions and {len(names)} logical axes {names}"
        return
    taken: dict[str, str] = {}
    for i, (name, size) in enumerate(zip(names, shape, strict=True)):
        if name is None:
            continue
        if name not in table:
            yield (
                f"{path} {list(shape)}: no rule covers its logical axis {name!r}; {nearest(name, table)} "
                f"Or add a rule for it to the experiment's field `rules`"
            )
            continue
        axes = _axes(table[name])
        for axis in axes:
            if axis in taken:
                yield (
                    f"{path} {list(shape)}: {taken[axis]!r} and {name!r} both go to the mesh axis {axis!r}; "
                    "give one of them another rule in the experiment's field `rules`"
                )
            taken[axis] = name
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            fits = max(parts, round(size / parts) * parts)
            fields = " x ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in axes)
            yield (
                f"{path} {list(shape)}: dimension {i} ({name!r}) is {size} and does not divide by {fields}; "
                f"the nearest size that does is {fits}"
            )


def state_shardings(
    state: PyTree, params: PyTree, param_shardings: PyTree[NamedSharding], mesh: jax.sharding.Mesh
) -> PyTree[NamedSharding]:
    """The sharding of every array of an optimizer's state (or of a whole TrainState), found from its parameter's.

    A leaf belongs to the parameter whose path stands in its own. It is sharded as the parameter where it has its
    shape, and where it is Adafactor's mean over one dimension, as what is left of it; scalars and
    placeholders are replicated.

    Args:
      state: abstract state, e.g. `jax.eval_shape(tx.init, params)`.
      params: abstract parameters, boxed or not, nested dict.
      param_shardings: their shardings, as `shardings` gives them.
      mesh: the device mesh.

    Raises:
      ValueError: a leaf is larger than a placeholder and its sharding cannot be told; never replicated in silence.
    """
    boxed = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_axis_metadata)
    specs = jax.tree.leaves(param_shardings)
    known = {
        tuple(key.key for key in path): (names_and_shape(leaf), sharding.spec)
        for (path, leaf), sharding in zip(boxed, specs, strict=True)
    }

    def of(path, leaf) -> NamedSharding:
        owner = _owner(path, known)
        spec = _state_spec(path, leaf, *known[owner]) if owner else None
        if spec is None and leaf.size > 256:
            raise ValueError(f"no sharding can be told for {path_string(path)} {list(leaf.shape)} of the state")
        return NamedSharding(mesh, spec or PartitionSpec())

    return jax.tree_util.tree_map_with_path(of, unboxed(state))


def _owner(path: Sequence[Any], known: dict[tuple, Any]) -> tuple | None:
    """The longest parameter path that ends a run of dict keys in this path."""
    run: list[str] = []
    best = None
    for key in [*path, None]:
        if isinstance(key, jax.tree_util.DictKey):
            run.append(key.key)
            continue
        for start in range(len(run)):
            if tuple(run[start:]) in known and len(run) - start > len(best or ()):
                best = tuple(run[start:])
        run = []
    return best


def _state_spec(path, leaf, param: tuple[Any, tuple[int, ...]], spec: PartitionSpec) -> PartitionSpec | None:
    """The spec of a leaf that belongs to a parameter; None where it is a placeholder or a counter."""
    names, shape = param
    if leaf.shape == shape:
        return spec
    axes = [*spec, *[None] * (len(shape) - len(spec))]
    field = next((key.name for key in path if getattr(key, "name", None) in ("v_row", "v_col")), None)
    if field is None or leaf.ndim != len(shape) - 1:
        return None
    # optax: rows are means over the largest dimension of a layer, columns over the second largest.
    stacked = sum(name == "layers" for name in names or ())
    order = np.argsort(shape[stacked:])
    gone = stacked + int(order[-1] if field == "v_row" else order[-2])
    if leaf.shape != shape[:gone] + shape[gone + 1 :]:
        return None
    return PartitionSpec(*axes[:gone], *axes[gone + 1 :])

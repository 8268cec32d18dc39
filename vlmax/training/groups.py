"""What the optimizer does with every single parameter: does it train, how fast, does it decay, is it a matrix.

Layers are stacked, so the shape of an array does not tell: biases `[layers, D]` and `[layers, H, K]` are vectors of
each layer and must not decay, and a kernel `[layers, D, H, K]` is a `D x (H K)` matrix of each layer. The logical axes
tell.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vlmax.errors import InputError
from vlmax.sharding.rules import names_and_shape
from vlmax.sharding.tables import Table
from vlmax.systems.system import Params
from vlmax.training import patterns

_HIDDEN = {"embed", "mlp", "heads", "kv_heads", "head_dim", "conv_in", "conv_out", "kernel_height", "kernel_width"}
_JOINED = {
    ("heads", "head_dim"),
    ("kv_heads", "head_dim"),
    ("kernel_height", "kernel_width"),
    ("kernel_width", "conv_in"),
}


@dataclasses.dataclass(frozen=True)
class LayerDecay:
    """Layer-wise decay of the learning rate in one stack (BEiT, Bao et al. 2022, appendix).

    Of L layers, layer k (from 0) learns with rate^(L - k), the stem before them with rate^(L + 1), and what comes after
    them (final norm, head) at the full rate.
    """

    blocks: str
    """Pattern of the stacked parameters; they must all have the same number of layers."""
    stem: str
    """Pattern of what lies before the layers: patch or token embedding, positions, class token, first norm."""
    rate: float
    """Factor from a layer to the one before it, e.g. 0.75."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one parameter looks within a single layer.

    Attributes:
      stacked: how many leading dimensions are layers.
      vector: it has one dimension at most, heads and their width counting as one, and dimensions of size 1 as none.
      matrix: its input and its output dimensions where it is a hidden matrix; None for vectors, embeddings,
        position tables, patch stems and projections out of the model.
    """

    stacked: int
    vector: bool
    matrix: tuple[tuple[int, ...], tuple[int, ...]] | None


@dataclasses.dataclass(frozen=True)
class Group:
    """What the optimizer does with one parameter.

    Attributes:
      kind: its form within a layer.
      count: its number of values.
      frozen: it does not train.
      multiplier: of the learning rate; with layer-wise decay an array `[layers, 1, ...]`.
      decay: of the experiment's weight decay.
    """

    kind: Kind
    count: int
    frozen: bool
    multiplier: float | np.ndarray
    decay: float


def kind(names: Sequence[str | None] | None, shape: Sequence[int], path: str = "") -> Kind:
    """The form of a parameter from its logical axes.

    Raises:
      ValueError: `layers` is not the leading axis.
    """
    names = names if names is not None else (None,) * len(shape)
    stacked = sum(name == "layers" for name in names)
    if any(name != "layers" for name in names[:stacked]):
        raise ValueError(f"{path} {list(shape)}: the logical axis 'layers' must lead, not {tuple(names)}")
    parts: list[list[int]] = []
    for i in range(stacked, len(shape)):
        if parts and (names[i - 1], names[i]) in _JOINED:
            parts[-1].append(i)
        else:
            parts.append([i])
    wide = [part for part in parts if math.prod(shape[i] for i in part) > 1]
    hidden = len(parts) == len(wide) == 2 and all(name in _HIDDEN for name in names[stacked:])
    return Kind(stacked, len(wide) <= 1, (tuple(parts[0]), tuple(parts[1])) if hidden else None)


def groups(
    boxed: PyTree,
    *,
    frozen: Sequence[str] = (),
    locked: Sequence[str] = (),
    lr_multipliers: Sequence[tuple[str, float]] = (),
    decay_multipliers: Sequence[tuple[str, float]] = (),
    layer_decay: Sequence[LayerDecay] = (),
) -> dict[str, Group]:
    """Path -> what the optimizer does with that parameter; see `Optimizer` for the fields.

    Raises:
      InputError: a pattern hits nothing or nothing that trains, a number makes no sense, nothing is left to train.
    """
    leaves = patterns.flatten(boxed)
    fixed = patterns.union(frozen, leaves, "optimizer.frozen") | patterns.union(locked, leaves, "system.locked")
    trains = [path for path in leaves if path not in fixed]
    if not trains:
        raise InputError("optimizer.frozen: every parameter is frozen, so nothing would train; remove a pattern")
    for field, pairs in (("lr_multipliers", lr_multipliers), ("decay_multipliers", decay_multipliers)):
        for i, (pattern, value) in enumerate(pairs):
            _must_train(pattern, leaves, fixed, f"optimizer.{field}[{i}]")
            if not (value >= 0 and math.isfinite(value)) or (field == "lr_multipliers" and value == 0):
                advice = "; to keep it fixed put it into optimizer.frozen" if value == 0 else ""
                raise InputError(f"optimizer.{field}[{i}]: {value} for {pattern!r} must be above 0{advice}")
    rates = patterns.first_match(lr_multipliers, leaves, "optimizer.lr_multipliers")
    decays = patterns.first_match(decay_multipliers, leaves, "optimizer.decay_multipliers")
    by_layer = _layer_multipliers(layer_decay, leaves, fixed)
    result = {}
    for path, leaf in leaves.items():
        names, shape = names_and_shape(leaf)
        form = kind(names, shape, path)
        result[path] = Group(
            kind=form,
            count=math.prod(shape),
            frozen=path in fixed,
            multiplier=rates.get(path, 1.0) * by_layer.get(path, 1.0),
            decay=decays.get(path, 0.0 if form.vector else 1.0),
        )
    return result


def _must_train(pattern: str, leaves: dict[str, Any], fixed: set[str], field: str) -> list[str]:
    """The paths that the pattern hits; at least one must train."""
    found = patterns.hits(pattern, leaves, field)
    if fixed.issuperset(found):
        raise InputError(f"{field}: the pattern {pattern!r} hits only frozen parameters ({found[0]!r}, ...); remove it")
    return found


def _layer_multipliers(
    layer_decay: Sequence[LayerDecay], leaves: dict[str, Any], fixed: set[str]
) -> dict[str, float | np.ndarray]:
    """Path -> factor of the learning rate from layer-wise decay, where there is any."""
    multipliers: dict[str, float | np.ndarray] = {}
    for i, decay in enumerate(layer_decay):
        field = f"optimizer.layer_decay[{i}]"
        if not 0 < decay.rate <= 1:
            raise InputError(f"{field}.rate is {decay.rate}; it must be above 0 and at most 1")
        blocks = _must_train(decay.blocks, leaves, fixed, f"{field}.blocks")
        stem = _must_train(decay.stem, leaves, fixed, f"{field}.stem")
        depths = {path: _depth(leaves[path]) for path in blocks}
        plain = [path for path, depth in depths.items() if depth is None]
        if plain:
            raise InputError(f"{field}.blocks: {decay.blocks!r} hits {plain[0]!r}, which is not stacked over layers")
        if len(set(depths.values())) > 1:
            raise InputError(f"{field}.blocks: {decay.blocks!r} hits stacks of different depth: {set(depths.values())}")
        twice = sorted((set(blocks) & set(stem)) | (multipliers.keys() & {*blocks, *stem}))
        if twice:
            raise InputError(f"{field}: {twice[0]!r} is hit twice; each parameter belongs to one stack or one stem")
        depth = depths[blocks[0]]
        assert depth is not None
        factors = np.asarray([decay.rate ** (depth - k) for k in range(depth)], np.float32)
        for path in blocks:
            multipliers[path] = factors.reshape(-1, *[1] * (len(names_and_shape(leaves[path])[1]) - 1))
        multipliers |= dict.fromkeys(stem, decay.rate ** (depth + 1))
    return multipliers


def _depth(leaf: Any) -> int | None:
    names, shape = names_and_shape(leaf)
    return shape[0] if names and names[0] == "layers" else None


def split(params: Params, frozen: dict[str, bool], frozen_dtype: str = "float32") -> tuple[Params, Params]:
    """Trainable and frozen parameters as two nested dicts without a common leaf; `state.merge` joins them.

    Args:
      params: arrays, abstract arrays or any other leaves (then `frozen_dtype` must be left alone).
      frozen: path -> whether it is frozen.
      frozen_dtype: floating-point arrays of the frozen part are stored in it.
    """
    leaves = patterns.flatten(params)
    trainable = {path: leaf for path, leaf in leaves.items() if not frozen[path]}
    fixed = {path: _stored(leaf, frozen_dtype) for path, leaf in leaves.items() if frozen[path]}
    return patterns.unflatten(trainable), patterns.unflatten(fixed)


def _stored(leaf: Any, dtype: str) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jnp.floating):
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=leaf.sharding)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf.astype(dtype)
    return leaf


def group_table(found: dict[str, Group], algorithms: dict[str, str], peak: float, weight_decay: float) -> Table:
    """Learning rate and decay of every group of parameters that are treated alike.

    Args:
      found: path -> group.
      algorithms: path -> name of the rule that updates it.
      peak: the schedule's highest learning rate.
      weight_decay: as the algorithm has it, before multipliers.
    """
    counts: dict[tuple[str | float, ...], list[int]] = {}
    for path, group in found.items():
        where = "/".join(path.split("/")[:-1][:2]) or path
        if group.frozen:
            key = (where, "frozen", "-", "-", "-")
        else:
            low, high = float(np.min(group.multiplier)), float(np.max(group.multiplier))
            spread = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
            rate = f"{peak * low:.4g}" if low == high else f"{peak * low:.4g} to {peak * high:.4g}"
            key = (where, algorithms[path], spread, rate, f"{weight_decay * group.decay:.4g}")
        total = counts.setdefault(key, [0, 0])
        total[0] += 1
        total[1] += group.count
    columns = ("group", "arrays", "values", "algorithm", "rate multiplier", "peak learning rate", "weight decay")
    rows = [(key[0], *total, *key[1:]) for key, total in counts.items()]
    return Table("learning rate and decay", columns, rows)

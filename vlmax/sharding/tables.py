"""Tables about parameters: what is sharded how, and what trains."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.core.meta import is_axis_metadata
from jax.sharding import NamedSharding
from jaxtyping import PyTree
from rich import box, console
from rich.table import Table as RichTable

from vlmax.sharding.rules import names_and_shape, path_string


class Table(NamedTuple):
    """A title, the names of the columns, and rows of as many entries."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str | int | float, ...]]

    def text(self) -> str:
        """The table as plain lines, for a file."""
        drawn = RichTable(title=self.title, title_justify="left", box=box.ASCII2)
        for i, column in enumerate(self.columns):
            numbers = bool(self.rows) and all(isinstance(row[i], int | float) for row in self.rows)
            drawn.add_column(column, justify="right" if numbers else "left", no_wrap=True)
        for row in self.rows:
            drawn.add_row(*(f"{entry:,}" if isinstance(entry, int) else str(entry) for entry in row))
        out = io.StringIO()
        console.Console(file=out, width=500, markup=False, highlight=False).print(drawn)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def sharding_table(boxed: PyTree, shardings: PyTree[NamedSharding]) -> Table:
    """How every parameter lies on the mesh: shape, dtype, logical axes, mesh axes, bytes per device.

    Args:
      boxed: abstract parameters in their boxes.
      shardings: as `rules.shardings` gives them.
    """
    rows: list[tuple[str | int | float, ...]] = []
    total = 0
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_axis_metadata)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        names, shape = names_and_shape(leaf)
        dtype = _dtype(leaf)
        size = math.prod(sharding.shard_shape(shape)) * dtype.itemsize
        total += size
        axes = " ".join(name or "-" for name in names or ())
        rows.append((path_string(path), str(list(shape)), dtype.name, axes, _spec_text(sharding), size))
    rows.append(("all parameters", "", "", "", "", total))
    return Table("sharding", ("parameter", "shape", "dtype", "logical axes", "mesh axes", "bytes per device"), rows)


def trainable_table(
    params: PyTree, frozen: Mapping[str, bool], parts: Mapping[str, Sequence[str]], frozen_dtype: str = "float32"
) -> Table:
    """Trainable and frozen parameters of every part, with counts and bytes over all devices, each array once.

    Args:
      params: all abstract parameters, boxed or not, in the dtype that they train in.
      frozen: path -> whether the parameter is frozen.
      parts: part -> the paths of its parameters; what no part names stands in the row `(no part)`.
      frozen_dtype: how frozen parameters are stored.
    """
    counts, sizes = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_axis_metadata):
        name = path_string(path)
        counts[name] = math.prod(names_and_shape(leaf)[1])
        sizes[name] = counts[name] * (jnp.dtype(frozen_dtype) if frozen[name] else _dtype(leaf)).itemsize
    taken = {path for paths in parts.values() for path in paths}
    groups = {**parts, "(no part)": [path for path in counts if path not in taken], "all": list(counts)}
    rows: list[tuple[str | int | float, ...]] = []
    for part, paths in groups.items():
        trains, fixed = [p for p in paths if not frozen[p]], [p for p in paths if frozen[p]]
        if paths:
            numbers = [sum(of[p] for p in which) for which in (trains, fixed) for of in (counts, sizes)]
            rows.append((part, *numbers))
    columns = ("part", "trainable", "trainable bytes", "frozen", "frozen bytes")
    return Table("trainable and frozen parameters", columns, rows)


def _dtype(leaf: Any) -> jnp.dtype:
    return jnp.dtype(leaf.value.dtype if is_axis_metadata(leaf) else leaf.dtype)


def _spec_text(sharding: NamedSharding) -> str:
    """`fsdp - data+tensor`, or `replicated`."""
    axes = ["+".join((a,) if isinstance(a, str) else a) if a else "-" for a in sharding.spec]
    return " ".join(axes) if any(a != "-" for a in axes) else "replicated"

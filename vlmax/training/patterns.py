"""Regular expressions over parameter paths: they choose what is frozen, how fast it learns and what decays.

A path is the names joined by `/`, e.g. `image/blocks/attention/query/kernel`. A pattern must match the whole path, so
that `image/.*` means the image encoder and never `text/image_projection`. Each pattern must hit something: one that
hits nothing is a mistake that would otherwise train the wrong thing in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from flax.core.meta import is_axis_metadata

from vlmax.errors import InputError, nearest


def flatten(tree: Any) -> dict[str, Any]:
    """Path -> leaf of a nested dict, in the order of its leaves; a boxed leaf stays in its box."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_axis_metadata)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict whose leaves lie at these paths."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def hits(pattern: str, paths: Iterable[str], field: str) -> list[str]:
    """The paths that the pattern matches, at least one.

    Args:
      pattern: a regular expression for whole paths.
      paths: all parameter paths.
      field: where the pattern stands in the experiment, for the error.

    Raises:
      InputError: it is no regular expression, or it matches no path.
    """
    paths = list(paths)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{field}: {pattern!r} is not a regular expression: {error}") from error
    found = [path for path in paths if compiled.fullmatch(path)]
    if found:
        return found
    partial = [path for path in paths if compiled.search(path)]
    if partial:
        advice = f"a pattern must match the whole path, as '.*{pattern}.*' matches {partial[0]!r}"
    else:
        advice = nearest(pattern, paths)
    raise InputError(f"{field}: the pattern {pattern!r} hits no parameter; {advice}")


def union(patterns: Sequence[str], paths: Iterable[str], field: str) -> set[str]:
    """The paths that any of the patterns matches; every pattern must match one.

    Raises:
      InputError: a pattern hits nothing.
    """
    paths = list(paths)
    return {path for i, pattern in enumerate(patterns) for path in hits(pattern, paths, f"{field}[{i}]")}


def first_match(pairs: Sequence[tuple[str, float]], paths: Iterable[str], field: str) -> dict[str, float]:
    """Path -> value of the first pair whose pattern matches it; paths that none matches are left out.

    Raises:
      InputError: a pattern hits nothing, or only what the patterns before it have taken.
    """
    paths = list(paths)
    values: dict[str, float] = {}
    for i, (pattern, value) in enumerate(pairs):
        found = hits(pattern, paths, f"{field}[{i}]")
        fresh = [path for path in found if path not in values]
        if not fresh:
            raise InputError(
                f"{field}[{i}]: the pattern {pattern!r} comes too late: every parameter that it matches "
                f"({found[0]!r}, ...) is taken by a pattern before it; put it first or remove it"
            )
        values.update(dict.fromkeys(fresh, value))
    return values

"""Another layout of the parameters, for a machine on which a loop over layers is slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax


def layer_by_layer(params: Any, free: bool = False) -> Any:
    """The parameters of a model, those of each layer of its stacks for themselves (`layers_0`, `layers_1`, ...).

    To decode on a CPU: there a loop copies the parameters of a layer before it multiplies with them, and for a token or
    two the copy takes four times as long as all else.

    Args:
      params: nested dict of arrays, without boxes.
      free: each stacked array is deleted as soon as it is taken apart: `params` is used up, and no more than the
        largest of its arrays is in memory twice.
    """
    if not isinstance(params, Mapping):
        return params
    out: dict[str, Any] = {}
    for name, value in params.items():
        if name == "layers":
            leaves, structure = jax.tree.flatten(value)
            apart = [_apart(x, free) for x in leaves]
            layers = (jax.tree.unflatten(structure, layer) for layer in zip(*apart, strict=True))
            out |= {f"layers_{i}": layer for i, layer in enumerate(layers)}
        else:
            out[name] = layer_by_layer(value, free)
    return out


def _apart(stacked: Any, free: bool) -> list[Any]:
    """The entries of the first dimension."""
    parts = [stacked[i] for i in range(len(stacked))]
    if free and isinstance(stacked, jax.Array):
        jax.block_until_ready(parts)  # deleting waits for nobody
        stacked.delete()
    return parts

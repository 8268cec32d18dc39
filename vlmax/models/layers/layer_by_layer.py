"""Another layout of the parameters, for a machine on which a loop over layers is slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax


def layer_by_layer(params: Any) -> Any:
    """The parameters of a model, those of each layer of its stacks for themselves (`layers_0`, `layers_1`, ...).

    To decode on a CPU: there a loop copies the parameters of a layer before it multiplies with them, and for a token or
    two the copy takes four times as long as all else.

    Args:
      params: nested dict of arrays, without boxes.
    """
    if not isinstance(params, Mapping):
        return params
    out: dict[str, Any] = {}
    for name, value in params.items():
        if name == "layers":
            depth = jax.tree.leaves(value)[0].shape[0]
            out |= {f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], value) for i in range(depth)}
        else:
            out[name] = layer_by_layer(value)
    return out

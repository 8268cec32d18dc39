"""What a checkpoint has no tensors for: begun anew, or missed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.linen import unbox

from vlmax.errors import InputError
from vlmax.interop.family import Family
from vlmax.interop.model import by_path, fresh
from vlmax.interop.table import Absent


def notes(absent: Mapping[str, Absent]) -> list[str]:
    """What of a model has no tensors but can begin anew, for whoever converts."""
    found: dict[str, int] = {}
    for rule in absent.values():
        if rule.what and rule.begins:
            found[rule.what] = found.get(rule.what, 0) + 1
    return [f"{what} ({count} array{'s' * (count > 1)})" for what, count in found.items()]


def check_whole(absent: Mapping[str, Absent], paths: Mapping[str, Any], what: str) -> None:
    """Raises InputError where some of these arrays are of a part that the checkpoint does not hold."""
    missing = sorted({rule.what or path for path, rule in absent.items() if path in paths and not rule.begins})
    if missing:
        raise InputError(
            f"reading {what}: it lacks {' and '.join(missing)}, so that it is no whole model; start the parts of a "
            "system from it, and those that it lacks from where they are, in an experiment's init: Pretrained(path, "
            "part, take=...)"
        )


def begun(
    config: Any,
    family: Family,
    shardings: Mapping[str, jax.sharding.Sharding],
    dtypes: Mapping[str, np.dtype] | None = None,
) -> dict[str, jax.Array]:
    """Fresh values of the arrays that have a sharding, of the model that a configuration describes; of no other."""
    if not shardings:
        return {}

    def make(key: jax.Array) -> dict[str, jax.Array]:
        arrays = by_path(unbox(fresh(config, family, key)))
        kinds = {} if dtypes is None else dtypes
        return {path: arrays[path].astype(kinds.get(path, arrays[path].dtype)) for path in shardings}

    return jax.jit(make, out_shardings=dict(shardings))(jax.random.key(0))

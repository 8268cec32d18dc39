"""Trees of frozen dataclasses as JSON, and back."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from vlmax.errors import InputError, nearest

PACKAGE = "vlmax"


def resolved(value: Any) -> Any:
    """The tree as JSON types; every dataclass names its type under `type`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: resolved(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, tuple | list):
        return [resolved(v) for v in value]
    if isinstance(value, dict):
        return {str(k): resolved(v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"an experiment holds only dataclasses, tuples, numbers and strings, not {type(value).__name__}")


def rebuilt(tree: Any) -> Any:
    """The inverse of `resolved`, for dataclasses of this package; lists become tuples.

    Raises:
      InputError: a type or a field that this vlmax does not have.
    """
    if isinstance(tree, list):
        return tuple(rebuilt(value) for value in tree)
    if not isinstance(tree, dict):
        return tree
    values = {name: rebuilt(value) for name, value in tree.items() if name != "type"}
    if "type" not in tree:
        return values
    module, _, name = str(tree["type"]).rpartition(".")
    known = None
    if module.split(".")[0] == PACKAGE:
        try:
            known = getattr(importlib.import_module(module), name, None)
        except ImportError:
            known = None
    if not (isinstance(known, type) and dataclasses.is_dataclass(known)):
        raise InputError(f"reading a configuration: this vlmax has no {tree['type']}; take the version that wrote it")
    fields = [field.name for field in dataclasses.fields(known)]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(
            f"reading a configuration: this vlmax's {name} has no field {unknown[0]!r}; {nearest(unknown[0], fields)}"
        )
    return known(**values)

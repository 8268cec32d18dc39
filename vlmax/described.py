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
        return {"type": name_of(type(value)), **fields}
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
    kind = known(tree["type"])
    if kind is None:
        raise InputError(f"reading a configuration: this vlmax has no {tree['type']}; take the version that wrote it")
    fields = [field.name for field in dataclasses.fields(kind)]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(
            f"reading a configuration: this vlmax's {kind.__name__} has no field {unknown[0]!r}; "
            f"{nearest(unknown[0], fields)}"
        )
    return kind(**values)


def refreshed(tree: Any) -> Any:
    """A tree that an older vlmax wrote as this one would write it.

    Types have the names they have now, and fields that have come since their defaults, which is what the older one did.
    What is not of this package stays as it is.
    """
    if isinstance(tree, list):
        return [refreshed(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    values = {name: refreshed(value) for name, value in tree.items()}
    kind = known(tree.get("type"))
    if kind is None:
        return values
    new = [field for field in dataclasses.fields(kind) if field.name not in values]
    defaults = {field.name: resolved(field.default) for field in new if field.default is not dataclasses.MISSING}
    return {**values, "type": name_of(kind), **defaults}


def name_of(kind: type) -> str:
    """How a tree names a type."""
    return f"{kind.__module__}.{kind.__qualname__}"


def known(name: Any) -> Any:
    """The dataclass of this package that a tree names; None where there is no such."""
    module, _, name = str(name).rpartition(".")
    if module.split(".")[0] != PACKAGE:
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None

"""Which parts of a system start from a checkpoint, in an experiment's field `init`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from vlmax.errors import InputError, nearest
from vlmax.interop.loading import Opened, open_model
from vlmax.interop.trained import Trained

NO_MATTER = ("remat", "unroll", "dropout", "drop_path", "patch_keep", "init", "dtype", "vocab_multiple", "lock_image")
"""Fields that change neither what parameters there are nor what they compute in evaluation."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """The parameters of a part of the system come from a checkpoint.

    Every parameter of the part must be in the checkpoint, every one of the checkpoint in the part, and both must compute
    the same, so that no weight runs under another activation or with other heads in silence.
    """

    path: str
    """What `vlmax.load` takes: a folder of Hugging Face or OpenCLIP, of `vlmax.convert`, or of a run."""
    part: str = ""
    """The part that is filled, as its parameters' paths begin: `image` is all of `image/...`; empty: the whole system."""
    take: str = ""
    """The part of the checkpoint that goes there, named likewise; empty: the whole of it."""
    family: str | None = None
    """See `vlmax.load`."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checkpoint, opened and held against the system.

    Attributes:
      opened: its model.
      paths: path in the system -> path in the checkpoint.
    """

    opened: Opened | Trained
    paths: Mapping[str, str]


def plan(init: Pretrained, field: str, system: Any, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    """Opens a checkpoint and holds it against the part that it shall fill.

    Args:
      init: of the experiment.
      field: where it stands there.
      system: the experiment's.
      shapes: of everything in the system, parameters and carried state, by path.

    Raises:
      InputError: the checkpoint cannot be read, or is not of the part's model.
    """
    opened = open_model(init.path, init.family)
    config = opened.config
    for name in filter(None, init.take.split("/")):
        config = getattr(config, name, None)
    wanted = _inside(init.part, shapes, f"{field}.part")
    given = _inside(init.take, opened.outline.shapes(), f"{field}.take")
    problems = [f"  {path} {list(shape)} is not in the checkpoint" for path, shape in wanted.items() if path not in given]
    problems += [f"  {path} {list(shape)} is not in the system" for path, shape in given.items() if path not in wanted]
    problems += [
        f"  {path} is {list(shape)} in the system and {list(given[path])} in the checkpoint"
        for path, shape in wanted.items()
        if path in given and given[path] != shape
    ]
    problems = [*_differences(system, config), *problems]
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(
            f"{field}: the part {init.part or 'that is the whole system'!r} cannot start from {init.path}:\n"
            + "\n".join(problems[:20])
            + more
            + f"\nmake the system's fields those of the checkpoint, or change {field}.part or {field}.take"
        )
    return Plan(opened, {_join(init.part, path): _join(init.take, path) for path in wanted})


def _join(prefix: str, path: str) -> str:
    return f"{prefix}/{path}" if prefix else path


def _inside(prefix: str, shapes: Mapping[str, tuple[int, ...]], field: str) -> dict[str, tuple[int, ...]]:
    """What lies under a part, with paths inside it."""
    start = f"{prefix}/" if prefix else ""
    found = {path.removeprefix(start): shape for path, shape in shapes.items() if path.startswith(start)}
    if not found:
        parts = {path.rsplit("/", n)[0] for path in shapes for n in range(1, path.count("/") + 1)}
        raise InputError(f"{field}: nothing lies under {prefix!r}; {nearest(prefix, parts)}")
    return found


def _differences(system: Any, config: Any) -> list[str]:
    """How the system's configuration of that kind of model differs from the checkpoint's; [] where one does not."""
    if config is None:
        return []
    candidates = [_changed(mine, config) for mine in _of_type(system, type(config))]
    if not candidates:
        return [f"  the checkpoint holds a {type(config).__name__}, and the system has none"]
    return min(candidates, key=len)


def _changed(mine: Any, config: Any) -> list[str]:
    names = [field.name for field in dataclasses.fields(config) if field.name not in NO_MATTER]
    return [
        f"  {type(config).__name__}.{name} is {getattr(mine, name)!r} in the system and {getattr(config, name)!r} in the "
        "checkpoint"
        for name in names
        if not _same(getattr(mine, name), getattr(config, name))
    ]


def _same(a: Any, b: Any) -> bool:
    """Equal but for what does not matter, all the way down."""
    if not dataclasses.is_dataclass(a) or type(a) is not type(b):
        return a == b
    names = [field.name for field in dataclasses.fields(a) if field.name not in NO_MATTER]
    return all(_same(getattr(a, name), getattr(b, name)) for name in names)


def _of_type(value: Any, kind: type) -> Iterator[Any]:
    """Every configuration of that kind in a tree."""
    if type(value) is kind:
        yield value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _of_type(getattr(value, field.name), kind)

"""Which parts of a system start from a checkpoint, in an experiment's field `init`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from vlmax.errors import InputError, nearest
from vlmax.interop.loading import Opened, open_model
from vlmax.interop.trained import Trained
from vlmax.models.lora import of_adapter

NO_MATTER = (
    *("remat", "unroll", "dropout", "drop_path", "patch_keep", "init", "layer_scale", "dtype", "vocab_multiple"),
    *("lock_image", "objective", "kv_heads", "head_dim", "decoder_depth", "token_width"),
)
"""Fields that do not change what parameters compute in evaluation, or whose None is a number that shapes tell."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """The parameters of a part of the system come from a checkpoint.

    Every parameter of the part must be in the checkpoint, every one of the checkpoint in the part, and both must
    compute the same, so that no weight runs under another activation or with other heads in silence. Adapters (LoRA)
    that the checkpoint does not have begin anew.
    """

    path: str
    """What `vlmax.load` takes: a folder of Hugging Face or OpenCLIP, of `vlmax.convert`, or of a run."""
    part: str = ""
    """The part that is filled, as its parameters' paths begin: `image` is `image/...`; empty: the whole system."""
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
    try:
        opened = _open(init, system)
    except InputError as error:
        raise InputError(f"{field}: {error}") from None
    wanted = _inside(init.part, shapes, f"{field}.part")
    given = _inside(init.take, opened.outline.shapes(), f"{field}.take")
    wanted = {path: shape for path, shape in wanted.items() if path in given or not of_adapter(path)}
    problems = [f"  {path} {list(wanted[path])} is not in the checkpoint" for path in wanted if path not in given]
    problems += [f"  {path} {list(given[path])} is not in the system" for path in given if path not in wanted]
    problems += [
        f"  {path} is {list(shape)} in the system and {list(given[path])} in the checkpoint"
        for path, shape in wanted.items()
        if path in given and given[path] != shape
    ]
    problems = [*_differences(_inner(system, init.part), _inner(opened.config, init.take)), *problems]
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(
            f"{field}: the part {init.part or 'that is the whole system'!r} cannot start from {init.path}:\n"
            + "\n".join(problems[:20])
            + more
            + f"\nmake the system's fields those of the checkpoint, or change {field}.part or {field}.take"
        )
    return Plan(opened, {_join(init.part, path): _join(init.take, path) for path in wanted})


def _open(init: Pretrained, system: Any) -> Opened | Trained:
    """The checkpoint, its vocabulary padded as the system's is; that of a run is as it was trained."""
    opened = open_model(init.path, init.family)
    mine = _nearest(_inner(system, init.part), opened.config)
    multiple = getattr(mine, "vocab_multiple", None)
    if isinstance(opened, Opened) and multiple is not None and multiple != opened.config.vocab_multiple:
        return open_model(init.path, init.family, {"vocab_multiple": multiple})
    return opened


def _inner(config: Any, part: str) -> Any:
    """The configuration of a part; one that has none of its own goes by that of what it lies in."""
    for name in part.split("/"):
        inner = getattr(config, name, None)
        config = inner if dataclasses.is_dataclass(inner) else config
    return config


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


def _differences(part: Any, config: Any) -> list[str]:
    """How the part's configuration of that kind of model differs from the checkpoint's; [] where one does not."""
    mine = _nearest(part, config)
    if mine is None:
        return [f"  the checkpoint holds a {type(config).__name__}, and that part of the system has none"]
    return _changed(mine, config, type(config).__name__)


def _nearest(part: Any, config: Any) -> Any:
    """The part's configuration of that kind of model that differs least; None where there is none."""
    candidates = list(_of_type(part, type(config)))
    return min(candidates, key=lambda mine: len(_changed(mine, config, "")), default=None)


def _changed(mine: Any, theirs: Any, where: str) -> list[str]:
    """The fields that differ and matter, all the way down."""
    if not dataclasses.is_dataclass(mine) or type(mine) is not type(theirs):
        return [] if mine == theirs else [f"  {where} is {mine!r} in the system and {theirs!r} in the checkpoint"]
    return [
        line
        for name in (field.name for field in dataclasses.fields(mine))
        if not _harmless(name, getattr(mine, name), getattr(theirs, name))
        for line in _changed(getattr(mine, name), getattr(theirs, name), f"{where}.{name}")
    ]


def _harmless(name: str, mine: Any, theirs: Any) -> bool:
    """Whether a field may differ; where the shapes of parameters depend on it, those tell."""
    if name == "context":
        return mine <= theirs  # within the positions that were trained
    size_of_images = name == "image" and not dataclasses.is_dataclass(mine)
    return name in NO_MATTER or size_of_images


def _of_type(value: Any, kind: type) -> Iterator[Any]:
    """Every configuration of that kind in a tree."""
    if type(value) is kind:
        yield value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _of_type(getattr(value, field.name), kind)

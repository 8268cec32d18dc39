"""Which parts of a system start from a checkpoint, in an experiment's field `init`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmax.errors import InputError, nearest
from vlmax.interop.fitting import Fitting, fitting
from vlmax.interop.loading import Opened, open_model
from vlmax.interop.trained import Trained
from vlmax.models.lora import of_adapter
from vlmax.systems.system import System

NO_MATTER = (
    *("remat", "unroll", "dropout", "drop_path", "patch_keep", "init", "layer_scale", "dtype", "vocab_multiple"),
    *("lock_image", "objective", "kv_heads", "head_dim", "decoder_depth", "token_width"),
    *("length", "read", "chunk", "label_smoothing", "lock"),
    *("momentum", "queue", "alpha", "ramp_steps", "floor", "temperature"),
)
"""Fields that do not change what parameters compute in evaluation, or whose None is a number that shapes tell."""

PRESENT = ("text", "predicts", "pooler", "final_norm")
"""Fields that, where they are True or False, say which parameters there are, and the paths of these tell."""

OF_TEXT = ("vocab", "context")
"""Fields that mean nothing where `text` is False on either side, as in the Q-Former of BLIP-2's second stage."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    r"""The parameters of a part of the system come from a checkpoint.

    Every parameter of the part must be in the checkpoint, every one of the checkpoint in the part, and both must
    compute the same, so that no weight runs under another activation or with other heads in silence; exceptions are
    named by patterns, each of which must hit. Adapters (LoRA) that the checkpoint does not have begin anew.

    A Q-Former begins as BERT, its queries with copies of the feed-forward parts; the second stage has no text branch:

        Pretrained(
            "data/bert-base-uncased",
            "qformer",
            fresh=("query_tokens", "context_norm/.*", ".*/cross_layers/.*"),
            copies=((r"(.*)/query_(mlp.*)", r"\1/\2"),),
            leave=("token_types/.*",),
            grow=("vocabulary/embedding", "output_bias"),
        )
        Pretrained("runs/blip2_stage1_vitg", "connector", take="qformer", leave=TEXT_BRANCH)
    """

    path: str
    """What `vlmax.load` takes: a folder of Hugging Face or OpenCLIP, of `vlmax.convert`, or of a run."""
    part: str = ""
    """The part that is filled, as its parameters' paths begin: `image` is `image/...`; empty: the whole system."""
    take: str = ""
    """The part of the checkpoint that goes there, named likewise; empty: the whole of it."""
    family: str | None = None
    """See `vlmax.load`."""
    leave: tuple[str, ...] = ()
    """Patterns of what the checkpoint has and the part has no use for. All patterns are for whole paths inside `part`
    and `take`."""
    fresh: tuple[str, ...] = ()
    """Patterns of what the part has and begins anew, as the checkpoint does not have it."""
    copies: tuple[tuple[str, str], ...] = ()
    """(pattern, replacement): such parameters of the part come from another path of the checkpoint."""
    grow: tuple[str, ...] = ()
    """Patterns of tables that may have more rows than the checkpoint's, for added tokens; those begin anew."""
    shorten: tuple[str, ...] = ()
    """Patterns of stacks of which only the first layers are taken: the frozen encoders of BLIP-2 and LLaVA."""
    resize: tuple[str, ...] = ()
    """Patterns of tables of positions that are interpolated for another size of images."""
    differs: tuple[str, ...] = ()
    """Fields of the configuration that may be others than the checkpoint's, such as `norm_epsilon` of BLIP's ViT beside
    that of the DeiT from which it starts."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checkpoint, opened and held against the system.

    Attributes:
      opened: its model.
      paths: path in the system -> path in the checkpoint.
      fitted: path in the system -> how the checkpoint's array is made to fit, where it has more rows or fewer.
    """

    opened: Opened | Trained
    paths: Mapping[str, str]
    fitted: Mapping[str, Fitting]


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
    what = f"{init.path} is {described(opened)}"
    wanted = _inside(init.part, shapes, f"{field}.part", "the system")
    stored = {path: size for path, size in opened.outline.shapes().items() if path not in opened.absent}
    given = _inside(init.take, stored, f"{field}.take", what)
    sources, problems = _sources(init, field, wanted, given)
    fitted = {}
    for path, theirs in sources.items():
        mine, found = wanted[path], given.get(theirs)
        if found is None:
            problems.append(f"  {path} {list(mine)} is not in the checkpoint")
        elif mine != found:
            grid = getattr(_of_part(_join(init.part, path).partition("/")[0], system), "grid", None)
            how = fitting(path, mine, found, lambda name, path: _any(getattr(init, name), path), grid)
            if how is None:
                problems.append(f"  {path} is {list(mine)} in the system and {list(found)} in the checkpoint")
            else:
                fitted[_join(init.part, path)] = how
    used = set(sources.values())
    problems += [f"  {path} {list(given[path])} is not in the system" for path in given if path not in used]
    problems = [*_differences(init, system, opened.config), *problems]
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(
            f"{field}: the part {init.part or 'that is the whole system'!r} cannot start from {what}:\n"
            + "\n".join(problems[:20])
            + more
            + f"\nmake the system's fields those of the checkpoint, or change {field}.part or {field}.take, or name "
            f"what has no counterpart in {field}.leave or {field}.fresh"
        )
    paths = {_join(init.part, path): _join(init.take, theirs) for path, theirs in sources.items()}
    return Plan(opened, paths, fitted)


def described(opened: Opened | Trained) -> str:
    """What a checkpoint is, for people: of which stage, and with which parts."""
    if isinstance(opened, Trained):
        name, step = opened.run
        return f"the run {name!r} at step {step}, whose system is {_of_system(opened.system)}"
    if not isinstance(opened.config, System):
        return f"a {type(opened.config).__name__}"
    missing = sorted({rule.what for rule in opened.absent.values() if rule.what})
    lacks = f"; it lacks {', '.join(missing)}" if missing else ""
    return f"of the format {opened.family.name}, a system {_of_system(opened.config)}{lacks}"


def _of_system(system: System) -> str:
    first = (type(system).__doc__ or "").partition("\n")[0]
    parts = ", ".join(f"{part} ({pattern.partition('/')[0]})" for part, pattern in system.parts().items())
    return f"{type(system).__name__} ({first}) with the parts {parts}"


def _sources(
    init: Pretrained, field: str, wanted: Mapping[str, Any], given: dict[str, Any]
) -> tuple[dict[str, str], list[str]]:
    """Path in the part -> path in the checkpoint, and what is wrong; what is left behind is taken out of `given`."""
    problems = [
        f"  {name}[{i}]: the pattern {pattern!r} matches the whole of no path there"
        for name, patterns, paths in (
            (f"{field}.leave", init.leave, given),
            (f"{field}.fresh", init.fresh, wanted),
            (f"{field}.copies", [pattern for pattern, _ in init.copies], wanted),
            (f"{field}.grow", init.grow, wanted),
            (f"{field}.shorten", init.shorten, wanted),
            (f"{field}.resize", init.resize, wanted),
        )
        for i, pattern in enumerate(patterns)
        if not any(_any((pattern,), path) for path in paths)
    ]
    for path in [path for path in given if _any(init.leave, path)]:
        del given[path]
    sources = {}
    for path in wanted:
        if _any(init.fresh, path):
            continue
        rule = next((rule for rule in init.copies if _any(rule[:1], path)), None)
        match = None if rule is None else re.fullmatch(rule[0], path)
        source = path if rule is None or match is None else match.expand(rule[1])
        if source in given or not of_adapter(path):
            sources[path] = source
    return sources, problems


def _any(patterns: Sequence[str], path: str) -> bool:
    """Whether one of the patterns matches the whole path; raises `InputError` where one is no regular expression."""
    try:
        return any(re.fullmatch(pattern, path) for pattern in patterns)
    except re.error as error:
        raise InputError(f"init: {patterns} is not a regular expression: {error}") from None


def _open(init: Pretrained, system: Any) -> Opened | Trained:
    """The checkpoint, its vocabulary padded as the system's is; that of a run is as it was trained."""
    opened = open_model(init.path, init.family)
    mine = _nearest(_of_part(init.part, system), opened.config)
    multiple = getattr(mine, "vocab_multiple", None)
    if isinstance(opened, Opened) and multiple is not None and multiple != opened.config.vocab_multiple:
        return open_model(init.path, init.family, {"vocab_multiple": multiple})
    return opened


def _join(prefix: str, path: str) -> str:
    return f"{prefix}/{path}" if prefix else path


def _inside(prefix: str, shapes: Mapping[str, tuple[int, ...]], field: str, what: str) -> dict[str, tuple[int, ...]]:
    """What lies under a part, with paths inside it."""
    start = f"{prefix}/" if prefix else ""
    found = {path.removeprefix(start): shape for path, shape in shapes.items() if path.startswith(start)}
    if not found:
        parts = {path.rsplit("/", n)[0] for path in shapes for n in range(1, path.count("/") + 1)}
        raise InputError(f"{field}: nothing lies under {prefix!r}; {nearest(prefix, parts)} ({what})")
    return found


def _differences(init: Pretrained, system: Any, config: Any) -> list[str]:
    """How the system's configuration of that kind of model differs from the checkpoint's; [] where one does not."""
    config = _of_part(init.take, config)
    mine = _nearest(_of_part(init.part, system), config)
    if mine is not None:
        return _changed(mine, config, type(config).__name__, init)
    # Another system of the same parts, such as another stage of one paper's.
    same = [(own, part) for part in _fields(config) if (own := _nearest(system, part)) is not None]
    if same:
        return [line for own, part in same for line in _changed(own, part, type(part).__name__, init)]
    part = _of_part(init.part, system)
    if not (init.copies or init.fresh) or part is system:
        return [f"  the checkpoint holds a {type(config).__name__}, and that part of the system has none"]
    # Another kind of model, of which it is said what comes from where: what both have must agree.
    both = {f.name for f in dataclasses.fields(config)} & {f.name for f in dataclasses.fields(part)}
    return [
        f"  {name} is {getattr(part, name)!r} in the system's {type(part).__name__} and {getattr(config, name)!r} in "
        f"the checkpoint's {type(config).__name__}"
        for name in sorted(both)
        if getattr(config, name) not in (None, getattr(part, name))
        and not _harmless(name, getattr(part, name), getattr(config, name), init)
    ]


def _of_part(part: str, config: Any) -> Any:
    """The configuration of a part; what has none of its own goes by the whole's."""
    for name in part.split("/"):
        inner = (getattr(place, name, None) for place in (config, *_fields(config)))
        config = next(filter(dataclasses.is_dataclass, inner), config)
    return config


def _fields(config: Any) -> list[Any]:
    """The configurations among the fields of one."""
    return [value for f in dataclasses.fields(config) if dataclasses.is_dataclass(value := getattr(config, f.name))]


def _nearest(system: Any, config: Any) -> Any:
    """The system's configuration of that kind of model that differs least; None where there is none."""
    candidates = list(_of_type(system, type(config)))
    return min(candidates, key=lambda mine: len(_changed(mine, config, "", Pretrained(""))), default=None)


def _changed(mine: Any, theirs: Any, where: str, init: Pretrained) -> list[str]:
    """The fields that differ and matter, all the way down."""
    if not dataclasses.is_dataclass(mine) or type(mine) is not type(theirs):
        return [] if mine == theirs else [f"  {where} is {mine!r} in the system and {theirs!r} in the checkpoint"]
    left_out = OF_TEXT if any(getattr(one, "text", None) is False for one in (mine, theirs)) else ()
    return [
        line
        for name in (field.name for field in dataclasses.fields(mine) if field.name not in left_out)
        if not _harmless(name, getattr(mine, name), getattr(theirs, name), init)
        for line in _changed(getattr(mine, name), getattr(theirs, name), f"{where}.{name}", init)
    ]


def _harmless(name: str, mine: Any, theirs: Any, init: Pretrained) -> bool:
    """Whether a field may differ; where the shapes of parameters depend on it, those tell."""
    if name == "context":
        return mine <= theirs  # within the positions that were trained
    if name == "vocab" and init.grow:
        return mine >= theirs
    if name == "depth" and init.shorten:
        return mine <= theirs
    size_of_images = name == "image" and not dataclasses.is_dataclass(mine)
    return name in (*NO_MATTER, *init.differs) or size_of_images or (name in PRESENT and isinstance(mine, bool))


def _of_type(value: Any, kind: type) -> Iterator[Any]:
    """Every configuration of that kind in a tree."""
    if type(value) is kind:
        yield value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _of_type(getattr(value, field.name), kind)

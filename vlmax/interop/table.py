"""Tables of names: which foreign tensor is which array of ours, and what is wrong where they do not fit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from vlmax.errors import InputError, nearest
from vlmax.interop.layout import Fitted, Sizes, fit
from vlmax.interop.tensors import Tensors

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      own: path of our array, with `/`.
      foreign: name of the foreign tensor. With `{layer}` our array is stacked over layers and there is one for each.
      layout: how the one lies in the other, for one layer (`layout.py`); in most rows both are the same.
      part: which of several arrays in one foreign tensor is ours.
      first: the number that the foreign names give to our first layer.
      step: how much larger the number of each next one is.
    """

    own: str
    foreign: str
    layout: str
    part: int = 0
    first: int = 0
    step: int = 1


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one array of ours, or one layer of it, comes from and goes to.

    Attributes:
      own: path of our array.
      layer: index on its first dimension; None: it is not stacked.
      foreign: name of the tensor.
      fitted: the layout, with sizes.
    """

    own: str
    layer: int | None
    foreign: str
    fitted: Fitted


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Foreign tensors that have no array of ours.

    Attributes:
      pattern: of their whole names.
      reason: why, for whoever converts; None: constants that the code computes, which nobody misses.
    """

    pattern: str
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Absent:
    """Arrays of ours that have no foreign tensor, in the format at all or in some of its files.

    A file that has one of a rule's tensors must have them all.

    Attributes:
      pattern: of our whole paths.
      what: what they are, for whoever converts; None: constants, which nobody misses.
      begins: they can begin anew, for what the model is loaded for does not need them; else it is no whole model.
    """

    pattern: str
    what: str | None = None
    begins: bool = True


def absent(rules: Sequence[Absent], rows: Sequence[Row], shapes: Shapes, names: Iterable[str]) -> dict[str, Absent]:
    """Path of an array that has no tensor -> the rule that says so.

    Args:
      rules: of the family.
      rows: of the family.
      shapes: of our arrays, by path.
      names: of the tensors of a checkpoint.
    """
    there = {re.sub(r"\d+", "0", name) for name in names}
    stored = {row.own for row in rows if re.sub(r"\d+", "0", row.foreign.replace("{layer}", "0")) in there}
    found: dict[str, Absent] = {}
    for rule in rules:
        own = [path for path in shapes if re.fullmatch(rule.pattern, path)]
        if not stored & set(own):
            found |= dict.fromkeys((path for path in own if path not in found), rule)
    return found


def under(own: str, foreign: str, rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows with something before their names."""
    return tuple(dataclasses.replace(row, own=own + row.own, foreign=foreign + row.foreign) for row in rows)


def linear(own: str, foreign: str, layout: str, bias: str | None = None, **more: int) -> tuple[Row, ...]:
    """The kernel and the bias of a torch Linear or Conv; where the model has no bias the row is not used."""
    kernel = Row(f"{own}/kernel", f"{foreign}.weight", layout, **more)
    return (kernel,) if bias is None else (kernel, Row(f"{own}/bias", f"{foreign}.bias", bias, **more))


def thirds(leaf: str, foreign: str, layout: str) -> tuple[Row, ...]:
    """The kernels or biases of queries, keys and values that lie in this order in one tensor."""
    names = enumerate(("query", "key", "value"))
    return tuple(Row(f"attention/{name}/{leaf}", foreign, layout, part=part) for part, name in names)


def norm(own: str, foreign: str, **more: int) -> tuple[Row, ...]:
    """The scale and the bias of a norm."""
    return (
        Row(f"{own}/scale", f"{foreign}.weight", "D = D", **more),
        Row(f"{own}/bias", f"{foreign}.bias", "D = D", **more),
    )


def places(rows: Sequence[Row], shapes: Shapes, sizes: Sizes) -> list[Place]:
    """All places of a model, one a layer; rows for arrays that it does not have are not used.

    Args:
      rows: of the family.
      shapes: of our arrays, by path.
      sizes: see `layout.fit`.

    Raises:
      ValueError: the table lacks one of our arrays, which is an error in the table.
    """
    found = []
    for row in rows:
        if row.own not in shapes:
            continue
        shape = shapes[row.own]
        if "{layer}" not in row.foreign:
            found.append(Place(row.own, None, row.foreign, fit(row.layout, shape, sizes, row.part)))
            continue
        fitted = fit(row.layout, shape[1:], sizes, row.part)
        for layer in range(shape[0]):
            found.append(Place(row.own, layer, row.foreign.format(layer=layer * row.step + row.first), fitted))
    missing = sorted(set(shapes) - {place.own for place in found})
    if missing:
        raise ValueError(f"the table has no row for {', '.join(missing)}")
    return found


def renamed(tensors: Tensors, rules: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The name that the table has for every tensor -> the name in the file.

    Raises:
      InputError: two tensors would get the same name.
    """
    names: dict[str, str] = {}
    for found in tensors:
        name = found
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name in names:
            raise InputError(
                f"reading {tensors[found].path}: {names[name]} and {found} are both {name}; remove one of them"
            )
        names[name] = found
    return names


def check(
    found: Sequence[Place], tensors: Tensors, names: Mapping[str, str], left_out: Sequence[LeftOut], what: str
) -> list[str]:
    """Holds the places of a model against the tensors of a checkpoint; returns notes on what is left out.

    Args:
      found: the places.
      tensors: of the checkpoint.
      names: the table's name -> the checkpoint's.
      left_out: of the family.
      what: the checkpoint, for messages.

    Raises:
      InputError: lists the tensors that nothing takes, the arrays that nothing fills, and the shapes that do not fit.
    """
    wanted = {place.foreign: place for place in found}
    skipped: dict[str, list[str]] = {}
    unused = []
    for name in sorted(set(names) - set(wanted)):
        rule = next((rule for rule in left_out if re.fullmatch(rule.pattern, name)), None)
        if rule is None:
            unused.append(name)
        elif rule.reason:
            skipped.setdefault(rule.reason, []).append(name)
    missing = [name for name in wanted if name not in names]
    shapes = {name: tensors[names[name]].shape for name in (*wanted, *unused) if name in names}
    misfits = [name for name in wanted if name in names and shapes[name] != wanted[name].fitted.foreign_shape]
    if problems := len(missing) + len(unused) + len(misfits):
        lines = [
            *(_missing(name, wanted[name], unused or list(names)) for name in missing[:SHOWN]),
            *(
                f"  {name} {list(shapes[name])} belongs to nothing in the model; {_nearest(name, missing)}"
                for name in unused[:SHOWN]
            ),
            *(_shapes_differ(name, wanted[name], shapes[name]) for name in misfits[:SHOWN]),
        ]
        raise InputError(
            f"reading {what}: its tensors are not those of the model that its configuration describes:\n"
            + "\n".join(lines)
            + (f"\n  and {problems - len(lines)} more" if problems > len(lines) else "")
            + "\nmake weights and config.json agree"
        )
    return [f"{reason}: {_several(names_)}" for reason, names_ in skipped.items()]


SHOWN = 20
"""Problems of each kind that an error lists."""


def _missing(name: str, place: Place, others: Sequence[str]) -> str:
    """What an array of ours lacks."""
    shape = list(place.fitted.foreign_shape)
    return f"  {name} {shape} is not there, so that {_own(place)} stays empty; {_nearest(name, others)}"


def _shapes_differ(name: str, place: Place, shape: tuple[int, ...]) -> str:
    """Both shapes, and why they may differ."""
    wanted = place.fitted.foreign_shape
    rank = len(shape) == len(wanted)
    differ = {group for group, a, b in zip(place.fitted.right, wanted, shape, strict=True) if a != b} if rank else set()
    letters = {letter for group in differ for letter in group}
    reason = "another kind of layer or of file"
    if not rank:
        reason = "another layout of the same weights"
    elif shape == wanted[::-1] and len(shape) == 2:
        reason = "the matrix is transposed"
    elif letters & {"V", "U"}:
        reason = "another vocabulary size (`vocab_size`), such as one with added tokens"
    elif "T" in letters:
        reason = "another number of positions: another longest text, image size or patch size"
    elif letters & {"H", "G", "K"}:
        reason = "another number or width of heads"
    elif "F" in letters:
        reason = "another width of the feed-forward part"
    elif "D" in letters:
        reason = "another width of the model"
    return f"  {name} is {list(shape)}, the configuration makes it {list(wanted)} ({_own(place)}); likely {reason}"


def _own(place: Place) -> str:
    return place.own if place.layer is None else f"{place.own}, layer {place.layer}"


def _nearest(name: str, others: Sequence[str]) -> str:
    return nearest(name, others) if len(others) <= 500 else nearest(name, others[:500])


def _several(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

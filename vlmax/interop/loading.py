"""A model from a folder, whoever wrote it, onto a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from vlmax.errors import InputError, nearest
from vlmax.interop import anew, checkpoint, folder, reading, trained
from vlmax.interop.families import of_config
from vlmax.interop.family import Family
from vlmax.interop.model import Outline, outline
from vlmax.interop.table import Absent, LeftOut, Place, absent, check, places, renamed
from vlmax.interop.tensors import Stored, check_floating
from vlmax.interop.trained import Trained
from vlmax.sharding.rules import Rules


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model whose values are still on disk.

    Attributes:
      config: our configuration.
      family: what it was stored as, or for a folder of ours one that knows the model.
      outline: its arrays.
      places: where each of them lies.
      tensors: by the names that the places have.
      notes: what of the checkpoint has no place in our model.
      files: the folder with the files that travel along, such as the tokenizer's.
      absent: the arrays that are not stored, by path.
    """

    config: Any
    family: Family
    outline: Outline
    places: list[Place]
    tensors: dict[str, Stored]
    notes: list[str]
    files: Path
    absent: Mapping[str, Absent] = dataclasses.field(default_factory=dict)

    def arrays(
        self, mesh: jax.sharding.Mesh | None = None, dtype: DTypeLike | None = None, rules: Rules = ()
    ) -> dict[str, jax.Array]:
        """All arrays by path, on the mesh (without one on the first device), in their own dtype unless one is given."""
        dtypes = None if dtype is None else dict.fromkeys(self.outline.boxed, np.dtype(dtype))
        return self.read(self.outline.shardings(mesh, rules), dtypes)

    def read(
        self, shardings: Mapping[str, jax.sharding.Sharding], dtypes: Mapping[str, np.dtype] | None = None
    ) -> dict[str, jax.Array]:
        """The arrays that have a sharding; dtypes as they are stored unless they are given.

        Raises:
          InputError: some of them are of a part that the checkpoint does not hold.
        """
        anew.check_whole(self.absent, shardings, str(self.files))
        wanted = [place for place in self.places if place.own in shardings]
        found = reading.arrays(wanted, self.tensors, self.outline.shapes(), shardings, dtypes)
        begin = {path: sharding for path, sharding in shardings.items() if path in self.absent}
        return found | anew.begun(self.config, self.family, begin, dtypes)

    def dtype(self) -> np.dtype:
        """What most values are stored as."""
        sizes: dict[str, int] = {}
        for place in self.places:
            tensor = self.tensors[place.foreign]
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
        return reading.DTYPES[max(sizes, key=lambda kind: sizes[kind])]


def open_model(
    path: str | Path, family: str | None = None, changes: Mapping[str, Any] | None = None
) -> Opened | Trained:
    """Reads a folder, or one file of OpenAI's, but for the values, and checks it from end to end.

    Args:
      path: of a foreign checkpoint, a folder of ours, or a run's directory.
      family: see `checkpoint.open_checkpoint`.
      changes: fields of the configuration that shall be others, such as `vocab_multiple` or `remat`.

    Raises:
      InputError: there is nothing, it is of no known family, it is damaged, or weights and configuration do not agree.
    """
    path = Path(path)
    if family is not None and (trained.is_run(path) or folder.is_model(path)):
        raise InputError(f"reading {path}: it is of vlmax, and the family was given as {family!r}; give none")
    if trained.is_run(path):
        if changes:
            raise InputError(f"reading {path}: of a run's model, {', '.join(changes)} cannot be changed")
        return trained.open_run(path)
    if folder.is_model(path):
        config, tensors = folder.read(path)
        config = changed(config, changes or {})
        known = of_config(config)
        shape = outline(config, known)
        found = folder.own_places(shape, known.sizes(config))
        check(found, tensors, {name: name for name in tensors}, (), str(path))
        return Opened(config, known, shape, found, tensors, [], path / folder.FOREIGN)
    foreign = checkpoint.open_checkpoint(path, family)
    known, config = foreign.family, changed(foreign.config, changes or {})
    shape, table = outline(config, known), known.table(config)
    names = renamed(foreign.tensors, known.renamed)
    empty = absent(known.absent, table, shape.shapes(), names)
    stored = {path: size for path, size in shape.shapes().items() if path not in empty}
    found = places(table, stored, known.sizes(config))
    wanted, same = {place.foreign for place in found}, known.tied(config)
    tied = {name: same[name] for name in set(names) - wanted if same.get(name) in wanted}
    notes = check(found, foreign.tensors, names, (*known.left_out, *(LeftOut(name) for name in tied)), str(path))
    tensors = {name: foreign.tensors[names[name]] for name in {*wanted, *tied}}
    check_floating(tensors)
    for name, other in tied.items():
        check_same(name, tensors[name], other, tensors[other])
    return Opened(config, known, shape, found, tensors, notes, path if path.is_dir() else path.parent, empty)


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """The configuration with other fields; raises InputError for one that it does not have."""
    fields = [field.name for field in dataclasses.fields(config)]
    for name in changes:
        if name not in fields:
            kind = type(config).__name__
            raise InputError(f"changing the model: {kind} has no field {name!r}; {nearest(name, fields)}")
    return dataclasses.replace(config, **changes)


def check_same(name: str, tensor: Stored, other_name: str, other: Stored) -> None:
    """Raises InputError where a tied matrix is stored twice with different values."""
    differ = tensor.shape != other.shape or tensor.dtype != other.dtype
    if not differ and (tensor.path, tensor.offset) != (other.path, other.offset):
        step = max(1, reading.PIECE_BYTES // max(1, 4 * tensor.size // max(1, tensor.shape[0])))
        pieces: Sequence[int] = range(0, tensor.shape[0], step)
        ends = [(start, min(start + step, tensor.shape[0])) for start in pieces]
        differ = any(tensor.rows(*end).tobytes() != other.rows(*end).tobytes() for end in ends)
    if differ:
        raise InputError(
            f"reading {tensor.path}: the configuration says that {name} is {other_name} (tied), but the checkpoint "
            "holds both and they differ; set `tie_word_embeddings` to false in config.json if they are two"
        )

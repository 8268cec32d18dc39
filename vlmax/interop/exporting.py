"""A model of ours as a foreign checkpoint: weights, configuration, and the files that travel along."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from vlmax.errors import InputError
from vlmax.interop import anew, folder, writing
from vlmax.interop.ends import with_ends
from vlmax.interop.families import CONFIG, OPEN_CLIP_CONFIG, read_json, that_writes
from vlmax.interop.family import Family, write_json
from vlmax.interop.model import Outline, outline
from vlmax.interop.table import Absent, absent, places
from vlmax.interop.tokenizer import marks, tokenizer_config

GENERATION = "generation_config.json"
MARKS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id")


def export(
    to: Path,
    config: Any,
    arrays: Mapping[str, Array],
    files: Path | None = None,
    form: str = "huggingface",
    shard_bytes: int = writing.SHARD_BYTES,
) -> Family:
    """Writes a checkpoint.

    Args:
      to: a folder that is not there yet, or is empty.
      config: our configuration.
      arrays: by path.
      files: a folder with files that shall travel along: tokenizer, config.json, generation_config.json.
      form: see `families.that_writes`.
      shard_bytes: the largest file of weights.

    Raises:
      InputError: the format cannot express the model, the arrays are not its, or the folder holds something.
    """
    family, described = that_writes(config, form)
    check_empty(to)
    shape = outline(config, family)
    check_arrays(to, shape, arrays)
    behind = left_behind(config, family, shape)
    stored = {path: size for path, size in shape.shapes().items() if path not in behind}
    found = places(family.table(config), stored, family.sizes(config))
    tensors = writing.sources(found, arrays)
    for name, values in family.written(config, list(tensors)).items():
        tensors[name] = (values.shape, values.dtype, functools.partial(np.asarray, values))
    with finished(to) as part:
        open_clip = not family.model_types
        writing.write(part, tensors, shard_bytes, "open_clip_model" if open_clip else "model")
        if jax.process_index() == 0:
            copy_files(files, part, family.files)
            name = OPEN_CLIP_CONFIG if open_clip else CONFIG
            dtype = jax.numpy.result_type(*{arrays[path].dtype for path in stored}).name  # in which none loses
            before = read_json(part / name) if (part / name).is_file() else {}
            described |= {} if before else marks_of(config, described, family, part)
            content = merged(before, described, family) | ({} if open_clip else {"dtype": dtype})
            write_json(part / name, content)
            write_beside(part, config, family, content)
    return family


def left_behind(config: Any, family: Family, shape: Outline) -> dict[str, Absent]:
    """The arrays that the format has no tensor for."""
    table = family.table(config)
    return absent(family.absent, table, shape.shapes(), [row.foreign.replace("{layer}", "0") for row in table])


def losses(config: Any, family: Family) -> list[str]:
    """What a written checkpoint lacks of the model, or has otherwise, for whoever converts."""
    behind = left_behind(config, family, outline(config, family))
    lost = [f"left out, as the format has no place for it: {note}" for note in anew.notes(behind)]
    return [*lost, *family.remarks(config)]


def marks_of(config: Any, described: Mapping[str, Any], family: Family, files: Path) -> dict[str, Any]:
    """The ids of a decoder's marks, of the tokenizer that goes with it; T5 starts what it writes with its padding."""
    if family.marks is not None:
        tokenizer = tokenizer_config(files)
        return {} if tokenizer is None else family.marks(described, with_ends(tokenizer.open(), files))
    found = marks(files) if hasattr(config, "empty_cache") else {}
    start = {"decoder_start_token_id": found["pad_token_id"]} if found and "decoder_start_token_id" in described else {}
    return {**found, **start}


def save(to: Path, config: Any, family: Family, arrays: Mapping[str, Array], files: Path | None = None) -> None:
    """Writes a folder of ours; raises InputError where there is one already, or the arrays are not the model's."""
    check_empty(to)
    shape = outline(config, family)
    check_arrays(to, shape, arrays)
    with finished(to) as part:
        folder.save(part, config, shape, family.sizes(config), arrays)
        if jax.process_index() == 0 and files is not None:
            (part / folder.FOREIGN).mkdir()
            copy_files(files, part / folder.FOREIGN, family.files)


def write_beside(part: Path, config: Any, family: Family, content: Mapping[str, Any]) -> None:
    """What a complete checkpoint has beside it where nothing travelled along."""
    ids = {name: content[name] for name in MARKS if content.get(name) is not None}
    # Without an end mark nothing is written: transformers then goes by its own defaults.
    if hasattr(config, "empty_cache") and "eos_token_id" in ids and not (part / GENERATION).is_file():
        write_json(part / GENERATION, ids)
    family.beside(part, config, content)


def merged(before: Mapping[str, Any], described: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """A configuration that travelled along, where it describes the model, if need be with ours put over it.

    So it keeps what we do not know, such as ids of marks. Of another model it is not used.
    """
    kept = {name: value for name, value in before.items() if name not in STALE}
    if kept.get("model_type") == described.get("model_type"):
        kept |= {name: described[name] for name in ("architectures",) if name in described}
        candidates = [kept, over(kept, described)]
    else:
        candidates = [kept] if kept.get("model_type") in family.model_types else []
    wanted = family.read(described)
    return next((candidate for candidate in candidates if reads_as(candidate, family, wanted)), dict(described))


STALE = ("torch_dtype", "quantization_config", "_name_or_path")
"""Fields that say how the weights were stored before."""


def over(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The new fields over the old ones, inside the parts too; marks stay as they were."""
    nested = {name: over(old[name], new[name]) for name in new if _both(old, new, name)}
    return {**old, **new, **nested, **{name: old[name] for name in MARKS if name in old}}


def _both(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> bool:
    return name.endswith(("_config", "_cfg")) and isinstance(old.get(name), dict) and isinstance(new[name], dict)


def reads_as(found: Mapping[str, Any], family: Family, wanted: Any) -> bool:
    """Whether a configuration file describes that model; one that cannot be read does not."""
    try:
        return family.read(found) == wanted
    except InputError:
        return False


def copy_files(files: Path | None, to: Path, names: tuple[str, ...]) -> None:
    """Copies those of the files that are there."""
    for name in names if files is not None else ():
        if files is not None and (files / name).is_file():
            (to / name).parent.mkdir(exist_ok=True)  # a second tokenizer lies in a folder of its own
            shutil.copyfile(files / name, to / name)


def check_arrays(to: Path, shape: Outline, arrays: Mapping[str, Array]) -> None:
    """Raises InputError where the arrays are not those of the model, such as adapters beside kernels."""
    wanted = shape.shapes()
    wrong = [f"{path} {list(wanted[path])} is missing" for path in wanted if path not in arrays]
    wrong += [f"{path} {list(arrays[path].shape)} has no place in it" for path in arrays if path not in wanted]
    wrong += [
        f"{path} is {list(arrays[path].shape)} and should be {list(size)}"
        for path, size in wanted.items()
        if path in arrays and arrays[path].shape != size
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(
            f"writing {to}: the arrays are not those of the model: {'; '.join(wrong[:3])}{more}; write those that its "
            "configuration describes, with adapters merged into their kernels (vlmax.models.lora.merge)"
        )


def check_empty(to: Path) -> None:
    """Raises InputError where the folder holds something, or cannot be made."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"writing {to}: there is something already; name a folder that is not there yet (--to)")


@contextlib.contextmanager
def finished(to: Path) -> Iterator[Path]:
    """Gives a folder beside `to` to write into, which becomes `to` when all has been written."""
    first, part = jax.process_index() == 0, to.with_name(to.name + ".part")
    if first:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    try:
        yield part
        if first:
            if to.is_dir():
                to.rmdir()
            part.rename(to)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"written: {to}")  # so that none looks for it too early
    finally:
        if first:
            shutil.rmtree(part, ignore_errors=True)

"""A source from one word on a command line."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmax.data.example import Source
from vlmax.data.sources.array_record import ArrayRecord
from vlmax.data.sources.files import braces, exists, find, join
from vlmax.data.sources.parquet import Parquet
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.table import Table
from vlmax.data.sources.tfds import INFO, TFDS
from vlmax.data.sources.webdataset import WebDataset
from vlmax.errors import InputError, nearest

FORMS = (
    "shapes[/SPLIT]; tfds:NAME[/SPLIT]; a folder with dataset_info.json (FOLDER[/SPLIT]); files (paths, globs, brace "
    "lists) ending in .tar, .jsonl, .csv, .tsv, .parquet or with .array_record in the name; FILE.py[:VARIANT]"
)


def open_source(spec: str, **options: Any) -> Source:
    """The source that `spec` names; it is not opened yet.

    Args:
      spec: one of `FORMS`.
      **options: fields of the source to set, such as `image`, `texts`, `key`, `fields`, `where`.

    Raises:
      InputError: nothing of the kind is known or there, or the source has no such field.
    """
    source = _recognise(spec)
    known = [f.name for f in dataclasses.fields(source)]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            kind = type(source).__name__
            raise InputError(f"--{option} does not belong to {kind} ({spec}), {nearest(option, known)}")
    return dataclasses.replace(source, **options)  # type: ignore[type-var]


def _recognise(spec: str) -> Source:
    if spec.startswith("tfds:"):
        name, split = _with_split(spec.removeprefix("tfds:"))
        return TFDS(name, split, name=name.replace("/", "_").replace(":", "_"))
    if spec == "shapes" or spec.startswith("shapes/"):
        split = spec.partition("/")[2] or "train"
        if split not in ("train", "test"):
            raise InputError(f"source {spec!r}: shapes has no split {split!r}, {nearest(split, ('train', 'test'))}")
        return Shapes(split=split)  # type: ignore[arg-type]
    if re.search(r"\.py(:[^/:]*)?$", spec):
        return _from_python(spec)
    if make := _by_ending(spec):
        return make((spec,))
    for folder, split in ((spec, "train"), _folder_and_split(spec)):
        if folder and exists(join(folder, INFO)):
            return TFDS(folder, split, name=f"{os.path.basename(folder.rstrip('/'))}-{split}")
    there = "" if exists(spec) else " (there is no such file or folder)"
    raise InputError(f"source {spec!r} is none that vlmax knows{there}; --source is {FORMS}")


def _by_ending(spec: str) -> Callable[[tuple[str, ...]], Source] | None:
    """What makes a source of files by how the first one's name ends."""
    first = braces(spec)[0]
    base = first.rsplit("/", 1)[-1]
    name = re.sub(r"[^\w-]+", "_", base.split(".")[0]).strip("_-") or "source"
    if ".array_record" in base:
        return lambda paths: ArrayRecord(paths, name)
    made = {".tar": WebDataset, ".parquet": Parquet, ".jsonl": Table, ".ndjson": Table, ".csv": Table, ".tsv": Table}
    form = made.get(os.path.splitext(base.lower())[1])
    return None if form is None else lambda paths: form(paths, name)


def _with_split(name: str) -> tuple[str, str]:
    """`coco_captions/2014:1.1.0/val` as name and split: the split follows the version, or is one of the usual words."""
    match = re.fullmatch(r"(.+)/((?:train|test|val|validation|dev|all)\b[^/]*)", name)
    match = match or re.fullmatch(r"(.+:\d+\.\d+\.\d+)/([^/]+)", name)
    return (match[1], match[2]) if match else (name, "train")


def _folder_and_split(spec: str) -> tuple[str, str]:
    folder, _, split = spec.rstrip("/").rpartition("/")
    return folder, split


def _from_python(spec: str) -> Source:
    """The source that `get_source(variant)` of a Python file gives."""
    path, _, variant = spec.partition(".py")
    path, variant = f"{path}.py", variant.removeprefix(":")
    file = find(path, spec, "--source")[0]
    name = f"vlmax_source_{Path(path).stem}_{hashlib.sha256(file.path.encode()).hexdigest()[:8]}"
    loaded = importlib.util.spec_from_file_location(name, file.path)
    if loaded is None or loaded.loader is None:
        raise InputError(f"source {spec!r}: {file.path} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    if not callable(getattr(module, "get_source", None)):
        raise InputError(f"source {spec!r}: {file.path} has no get_source(variant); write one that returns a source")
    source = module.get_source(variant) if variant else module.get_source()
    if not isinstance(source, Source):
        raise InputError(f"source {spec!r}: get_source of {file.path} returns a {type(source).__name__}, not a source")
    return source

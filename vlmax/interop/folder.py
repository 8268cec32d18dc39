"""A model of ours in a folder: what `python -m vlmax.convert` makes of a foreign checkpoint.

model.json            our configuration, and what the model was made from
params.safetensors    our arrays by path, in several files where they are large
foreign/              files that came along and go with it again: tokenizer, config.json, generation_config.json
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array

from vlmax.described import rebuilt, resolved
from vlmax.errors import InputError
from vlmax.interop import safetensors, writing
from vlmax.interop.families import read_json
from vlmax.interop.model import Outline
from vlmax.interop.table import Place, Row, places
from vlmax.interop.tensors import Stored

FILE, PARAMS, FOREIGN = "model.json", "params", "foreign"
FORMAT = 1
"""Raised when an older vlmax could no longer read it."""


def is_model(path: Path) -> bool:
    """Whether the folder is one of ours."""
    return (path / FILE).is_file()


def rows(outline: Outline) -> tuple[Row, ...]:
    """The table of a model with itself; the vocabulary is stored without what pads it."""

    def letters(path: str) -> str:
        return " ".join("V" if axis == "vocab" else f"d{i}" for i, axis in enumerate(outline.axes(path)))

    return tuple(Row(path, path, f"{letters(path)} = {letters(path)}") for path in outline.boxed)


def own_places(outline: Outline, sizes: Mapping[str, int]) -> list[Place]:
    """Where every array lies in the folder's files; of two vocabularies (V and U) what pads them is stored, too."""
    return places(rows(outline), outline.shapes(), {"V": sizes["V"]} if "V" in sizes and "U" not in sizes else {})


def save(path: Path, config: Any, outline: Outline, sizes: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
    """Writes configuration and arrays into an empty folder."""
    tensors = writing.sources(own_places(outline, sizes), arrays)
    writing.write(path, tensors, stem=PARAMS)
    if jax.process_index() == 0:
        content = {"format": FORMAT, "model": resolved(config)}
        (path / FILE).write_text(json.dumps(content, indent=2) + "\n")


def read(path: Path) -> tuple[Any, dict[str, Stored]]:
    """The configuration and the tensors of a folder of ours.

    Raises:
      InputError: a newer vlmax wrote it, or it is damaged.
    """
    found = read_json(path / FILE)
    if found.get("format", 0) > FORMAT:
        raise InputError(f"reading {path}: it has format {found['format']}, and this vlmax reads up to {FORMAT}")
    if "model" not in found:
        raise InputError(f"reading {path / FILE}: it does not say what model this is; convert the model anew")
    config = rebuilt(found["model"])
    if not dataclasses.is_dataclass(config):
        raise InputError(f"reading {path / FILE}: its model is no configuration; convert the model anew")
    index, file = path / f"{PARAMS}.safetensors.index.json", path / f"{PARAMS}.safetensors"
    if index.is_file():
        return config, safetensors.read_sharded(index)
    if not file.is_file():
        raise InputError(f"reading {path}: it has no weights, {file.name}; convert the model anew")
    return config, safetensors.read(file)

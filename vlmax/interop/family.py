"""What a family of foreign checkpoints is: its configuration in both directions, and its table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmax.data.tokenizers import Tokenizer, TokenizerConfig
from vlmax.errors import InputError, nearest
from vlmax.interop.table import Absent, LeftOut, Row
from vlmax.models.layers.mlp import Activation

Json = Mapping[str, Any]

MODEL_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)
PIXELS, PROCESSOR = "preprocessor_config.json", "processor_config.json"
IMAGE_FILES = (PIXELS, PROCESSOR)


@dataclasses.dataclass(frozen=True)
class Family:
    """One layout of checkpoints, and our model that it is.

    Attributes:
      name: as messages and `--format` call it.
      model_types: those of config.json that it reads; none where checkpoints have no such file.
      architectures: those of config.json that it reads, where models of one type differ; none: all.
      config: our configuration's class.
      read: config.json -> our configuration; raises `InputError` for what ours cannot express.
      write: our configuration -> config.json; raises `InputError` for what theirs cannot express.
      rows: the table; of our configuration where models of the family differ in it.
      sizes: our configuration -> sizes of letters that our shapes do not tell (`layout.fit`).
      arguments: our configuration -> what its module is called with, for its parameters to be known.
      renamed: names that only some files have, as patterns and what replaces them, in order.
      left_out: tensors that ours has no array for.
      absent: arrays of ours that the format, or some of its files, has no tensor for.
      same: tensors that only some files have, and those that they must be equal to (tied matrices); of our
        configuration where models of the family differ in it.
      written: tensors that the format wants beside the table's, of our configuration and the table's names.
      files: what travels along.
      pixels: where the model itself normalises images: our configuration with another mean and standard deviation.
      beside: what a complete checkpoint has beside weights and config.json: writes those files that did not travel
        along; is given the folder, our configuration and the content of config.json.
      ends: config.json -> the part of it that says, as `eos_token_id`, what ends a text, where it is not the whole or
        generation_config.json.
      marks: what config.json says of a tokenizer's marks beside what `write` gives; of its content and the tokenizer.
      tokenizer: what the model needs of a tokenizer beyond what lies beside it.
      remarks: in what the written checkpoint is not exactly the model, for whoever converts.
    """

    name: str
    model_types: tuple[str, ...]
    config: type
    read: Callable[[Json], Any]
    write: Callable[[Any], dict[str, Any]]
    rows: Sequence[Row] | Callable[[Any], Sequence[Row]]
    sizes: Callable[[Any], dict[str, int]] = lambda config: {}
    arguments: Callable[[Any], dict[str, Any]] = lambda config: {}
    renamed: tuple[tuple[str, str], ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    absent: tuple[Absent, ...] = ()
    same: Mapping[str, str] | Callable[[Any], Mapping[str, str]] = dataclasses.field(default_factory=dict)
    written: Callable[[Any, Sequence[str]], dict[str, np.ndarray]] = lambda config, names: {}
    files: tuple[str, ...] = (*MODEL_FILES, *TOKENIZER_FILES)
    architectures: tuple[str, ...] = ()
    pixels: Callable[[Any, Mapping[str, tuple[float, ...]]], Any] | None = None
    beside: Callable[[Path, Any, Json], None] = lambda folder, config, content: None
    ends: Callable[[Json], Json] | None = None
    marks: Callable[[Json, Tokenizer], dict[str, Any]] | None = None
    tokenizer: Callable[[TokenizerConfig], TokenizerConfig] = lambda found: found
    remarks: Callable[[Any], Sequence[str]] = lambda config: ()

    def tied(self, config: Any) -> Mapping[str, str]:
        """`same`, for a configuration."""
        return self.same(config) if callable(self.same) else self.same

    def table(self, config: Any) -> Sequence[Row]:
        """The rows for a configuration."""
        return self.rows(config) if callable(self.rows) else self.rows


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file for people, too."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_pixels(folder: Path, content: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]) -> None:
    """preprocessor_config.json, unless the folder says already what happens to an image."""
    if not any((folder / name).is_file() for name in IMAGE_FILES):
        write_json(folder / PIXELS, {**content, "resample": 3, "image_mean": list(mean), "image_std": list(std)})


def field(found: Json, name: str, *defaults: Any) -> Any:
    """A field of config.json; raises InputError where it is missing and has no default."""
    if name in found and found[name] is not None:
        return found[name]
    if defaults:
        return defaults[0]
    raise InputError(f"config.json has no {name!r}, which this family needs; {nearest(name, found)}")


def only(found: Json, name: str, allowed: Sequence[Any], default: Any) -> None:
    """Raises InputError where a field has a value that our model cannot express."""
    value = found.get(name, default)
    if value not in allowed:
        raise InputError(
            f"config.json: {name} is {value!r}, which vlmax's model cannot express; it reads "
            f"{' or '.join(map(repr, allowed))}"
        )


def cannot(fits: bool, what: str, family: str) -> None:
    """Raises InputError where a model does not fit, because of `what` its configuration says, into the format."""
    if not fits:
        raise InputError(f"writing a {family} checkpoint: that format cannot express {what}; choose another --format")


ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
"""Hugging Face's names of activations."""


def activation(found: Json, name: str, default: str) -> Activation:
    """An activation of config.json; raises InputError where ours has none such."""
    only(found, name, tuple(ACTIVATIONS), default)
    return ACTIVATIONS[found.get(name, default)]


def name_of(found: Activation, tanh: str = "gelu_new") -> str:
    """Hugging Face's name of an activation; `tanh` is what the family calls GELU by tanh."""
    return tanh if found == "gelu_tanh" else found

"""`vlmax.load`: a model ready to run, from whatever folder holds one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from vlmax.data.tokenizers import Tokenizer, TokenizerConfig
from vlmax.errors import InputError
from vlmax.interop.ends import with_ends
from vlmax.interop.loading import Opened, open_model
from vlmax.interop.tokenizer import check_tokenizer, tokenizer_config
from vlmax.interop.trained import Trained
from vlmax.systems.system import System

DTYPES = ("float32", "bfloat16")


def load(
    path: str | Path,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
    *,
    family: str | None = None,
    **changes: Any,
) -> tuple[nn.Module | System, PyTree, Tokenizer | None]:
    """Loads a model, its parameters and its tokenizer.

        model, params, tokenizer = vlmax.load("path/to/folder", mesh=mesh, dtype="bfloat16")
        output = model.apply(params, tokens)

    Each host reads what its own devices hold, straight into sharded arrays.

    Args:
      path: a folder as Hugging Face or OpenCLIP write it, a file of OpenAI's CLIP or of BLIP's authors, or a folder
        that `python -m vlmax.convert` wrote, or the directory of a run of `python -m vlmax.train`.
      mesh: as `vlmax.sharding.mesh.Mesh(...).build()` gives it; without one all is on the first device.
      dtype: of the parameters and of what the model computes in, float32 or bfloat16. None: parameters as they are
        stored, and bfloat16 for computing unless they are wider.
      family: `open_clip`, `openai`, `blip_pth` or `lavis`, where folder or file do not say it by themselves.
      **changes: fields of the model's configuration to change, such as `vocab_multiple=128` or `remat="full"`.

    Returns:
      The module, or for CLIP, SigLIP, BLIP and BLIP-2 the system; its variables (`{"params": ...}`, as `model.apply`
      takes them); its tokenizer, None where none lies beside the model or the model reads no text.

    Raises:
      InputError: says what is wrong with the folder, its files, or how model and mesh fit.
    """
    found = load_beside(path, mesh, dtype, family, changes)
    return found.model, found.variables, found.tokenizer


class Loaded(NamedTuple):
    """What `load` gives, and the folder with the model's other files, such as a second tokenizer."""

    model: nn.Module | System
    variables: PyTree
    tokenizer: Tokenizer | None
    files: Path


def load_beside(
    path: str | Path,
    mesh: jax.sharding.Mesh | None,
    dtype: str | None,
    family: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Loaded:
    """See `load`."""
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"loading {path}: dtype is {dtype!r}; it must be float32, bfloat16 or None")
    opened = open_model(path, family, changes)
    described = tokenizer_of(opened)
    tokenizer = None if described is None else with_ends(described.open(), opened.files, opened.family.ends)
    if tokenizer is not None:
        check_tokenizer(tokenizer, opened.config, opened.files)
    computing = dtype or ("float32" if opened.dtype().itemsize > 2 else "bfloat16")
    variables = opened.outline.variables(opened.arrays(mesh, dtype))
    if isinstance(opened.config, System):
        return Loaded(computing_in(opened.config, computing), variables, tokenizer, opened.files)
    return Loaded(opened.config.build(jnp.dtype(computing)), variables, tokenizer, opened.files)


def tokenizer_of(opened: Opened | Trained) -> TokenizerConfig | None:
    """What opens a model's tokenizer; None where there is none."""
    if isinstance(opened, Trained):
        return opened.tokenizer
    found = tokenizer_config(opened.files)
    return None if found is None else opened.family.tokenizer(found)


def computing_in(system: Any, dtype: str) -> Any:
    """The system that computes in a dtype, which is a field of its own or of its model's."""
    if any(field.name == "dtype" for field in dataclasses.fields(system)):
        return dataclasses.replace(system, dtype=dtype)
    return dataclasses.replace(system, model=dataclasses.replace(system.model, dtype=dtype))

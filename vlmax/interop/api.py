"""`vlmax.load`: a model ready to run, from whatever folder holds one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from vlmax.data.tokenizers import Tokenizer
from vlmax.errors import InputError
from vlmax.interop.ends import with_ends
from vlmax.interop.loading import changed, open_model
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
      path: a folder as Hugging Face or OpenCLIP write it, a file of OpenAI's CLIP, or a folder that
        `python -m vlmax.convert` wrote, or the directory of a run of `python -m vlmax.train`.
      mesh: as `vlmax.sharding.mesh.Mesh(...).build()` gives it; without one all is on the first device.
      dtype: of the parameters and of what the model computes in, float32 or bfloat16. None: parameters as they are
        stored, and bfloat16 for computing unless they are wider.
      family: `open_clip` or `openai`, where the folder does not say it by itself.
      **changes: fields of the model's configuration to change, such as `vocab_multiple=128` or `remat="full"`.

    Returns:
      The module, or for CLIP and SigLIP the system; its variables (`{"params": ...}`, as `model.apply` takes them); its
      tokenizer, None where none lies beside the model or the model reads no text.

    Raises:
      InputError: says what is wrong with the folder, its files, or how model and mesh fit.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"loading {path}: dtype is {dtype!r}; it must be float32, bfloat16 or None")
    opened = open_model(path, family, changes)
    described = opened.tokenizer if isinstance(opened, Trained) else tokenizer_config(opened.files)
    tokenizer = None if described is None else with_ends(described.open(), opened.files)
    if tokenizer is not None:
        check_tokenizer(tokenizer, opened.config, opened.files)
    computing = dtype or ("float32" if opened.dtype().itemsize > 2 else "bfloat16")
    variables = opened.outline.variables(opened.arrays(mesh, dtype))
    if isinstance(opened.config, System):
        return changed(opened.config, {"dtype": computing}), variables, tokenizer
    return opened.config.build(jnp.dtype(computing)), variables, tokenizer

"""Which tokens end what a model writes: a chat model has several, and its generation_config.json lists them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmax.data.tokenizers import Tokenizer
from vlmax.errors import InputError
from vlmax.interop.families import CONFIG, read_json
from vlmax.interop.family import Json

FILES = ("generation_config.json", CONFIG)
"""The first that is there says it, as in transformers."""


def with_ends(tokenizer: Tokenizer, folder: Path, part: Callable[[Json], Json] | None = None) -> Tokenizer:
    """The tokenizer that also ends texts with what the model's files name.

    Args:
      tokenizer: the model's.
      folder: with its files.
      part: see `Family.ends`.

    Raises:
      InputError: they name something that is no token.
    """
    names = FILES if part is None else (CONFIG,)
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    told = {} if file is None else read_json(file)
    found = (told if part is None else part(told)).get("eos_token_id")
    ends = found if isinstance(found, list) else [] if found is None else [found]
    wrong = [end for end in ends if isinstance(end, bool) or not isinstance(end, int) or end < 0]
    if wrong:
        raise InputError(f"reading {file}: eos_token_id is {found!r}; it must be an id, or a list of ids")
    changes: dict[str, Any] = {"further_ends": tuple(end for end in ends if end != tokenizer.eos)}
    return dataclasses.replace(tokenizer, **changes)  # type: ignore[type-var]

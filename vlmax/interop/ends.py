"""Which tokens end what a model writes: a chat model has several, and its generation_config.json lists them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vlmax.data.tokenizers import Tokenizer
from vlmax.errors import InputError
from vlmax.interop.families import read_json

FILES = ("generation_config.json", "config.json")
"""The first that is there says it, as in transformers."""


def with_ends(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """The tokenizer that also ends texts with what the model's files name.

    Raises:
      InputError: they name something that is no token.
    """
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    found = None if file is None else read_json(file).get("eos_token_id")
    ends = found if isinstance(found, list) else [] if found is None else [found]
    wrong = [end for end in ends if isinstance(end, bool) or not isinstance(end, int) or end < 0]
    if wrong:
        raise InputError(f"reading {file}: eos_token_id is {found!r}; it must be an id, or a list of ids")
    changes: dict[str, Any] = {"further_ends": tuple(end for end in ends if end != tokenizer.eos)}
    return dataclasses.replace(tokenizer, **changes)  # type: ignore[type-var]

"""From one folder to another."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vlmax.errors import InputError
from vlmax.interop import anew
from vlmax.interop.exporting import GENERATION, check_empty, export, losses, save
from vlmax.interop.family import write_json
from vlmax.interop.instructblip import INSTRUCTION_FILES
from vlmax.interop.loading import open_model
from vlmax.interop.tokenizer import write
from vlmax.interop.trained import Trained
from vlmax.interop.writing import SHARD_BYTES

OURS = "vlmax"


def convert(
    source: str | Path,
    to: Path,
    form: str = OURS,
    family: str | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Iterator[str]:
    """Converts a checkpoint, and says what was done.

    Args:
      source: what `vlmax.load` takes.
      to: a folder that is not there yet.
      form: `vlmax`, or as `families.that_writes` takes it.
      family: see `vlmax.load`.
      dtype: of what is written; None: as it was.
      shard_bytes: the largest file of weights of a foreign checkpoint.

    Raises:
      InputError: see `vlmax.load` and `exporting.export`.
    """
    if shard_bytes < 1:
        raise InputError(f"--shard-gb makes files of {shard_bytes} bytes; it must be above 0")
    check_empty(to)
    opened = open_model(source, family)
    for note in opened.notes:
        yield f"left out: {note}"
    for note in anew.notes(opened.absent):
        yield f"begins anew, as the checkpoint has none: {note}"
    arrays = opened.arrays(dtype=dtype)
    with contextlib.ExitStack() as stack:
        files = opened.files
        if isinstance(opened, Trained) and opened.tokenizer is not None:
            files = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            yield from _write_tokenizers(opened, files)
        if form == OURS:
            save(to, opened.config, opened.family, arrays, files)
            written = opened.family
        else:
            written = export(to, opened.config, arrays, files, form, shard_bytes)
            yield from losses(opened.config, written)
    count = sum(array.size for array in arrays.values())
    yield f"{source} -> {to}: {type(opened.config).__name__} ({written.name}), {count:,} parameters"


def _write_tokenizers(opened: Trained, files: Path) -> Iterator[str]:
    """Those of a run into a folder, as a foreign checkpoint has them, and what ends the texts that its model writes."""
    if reason := write(opened.tokenizer, files):
        yield f"left out: the tokenizer: {reason}"
    if opened.instruction is not None:
        (files / INSTRUCTION_FILES).mkdir()
        if reason := write(opened.instruction, files / INSTRUCTION_FILES):
            yield f"left out: the tokenizer of instructions: {reason}"
    if opened.end is not None:
        tokenizer = opened.tokenizer.open()
        ends = tokenizer.encode(opened.end)
        if len(ends) == 1:
            write_json(files / GENERATION, {"eos_token_id": ends})
        else:
            yield f"left out: {opened.end!r}, which ends a text and is {len(ends)} tokens"

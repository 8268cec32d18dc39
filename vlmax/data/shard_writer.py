"""One shard of a data set that is being prepared: written whole or not at all, and what is in it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from array_record.python import array_record_module  # type: ignore[attr-defined]

from vlmax.data import decode, tf_examples
from vlmax.data.example import BadRecord, Example, Reader
from vlmax.errors import InputError


class LeftOut(Exception):
    """A sound record that is not to be written."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard to write: records `start` to `stop` into `path`, and what was written into `state`."""

    path: Path
    state: Path
    start: int
    stop: int
    decode: bool
    kinds: dict[str, tf_examples.Kind]


def write_shard(source: str, reader: Reader, shard: Shard, one_done: Callable[[], None]) -> dict[str, Any]:
    """Writes one shard and its state, whole or not at all; leaves out records that raise `LeftOut`.

    Returns:
      The state: how many records and bytes, what was damaged. Or, where a record does not fit the features that the
      shard was to have, `widened`: features that fit, and nothing is written.
    """
    temporary = shard.path.with_name(f".{shard.path.name}.tmp")
    kinds, damaged, count, size = shard.kinds, [], 0, 0
    try:
        with _full_disk(shard.path):
            writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        for index in range(shard.start, shard.stop):
            try:
                example = reader[index]
                kinds = tf_examples.widen(kinds, tf_examples.kinds_of_example(example))
                if shard.decode:
                    check_image(example)
                if kinds == shard.kinds:
                    record = tf_examples.encode(example, kinds)
                    with _full_disk(shard.path):
                        writer.write(record)
                    count, size = count + 1, size + len(record)
            except LeftOut:
                pass
            except BadRecord as error:
                damaged.append({"source": source, "key": error.key or f"#{index}", "reason": str(error)})
            one_done()
        with _full_disk(shard.path):
            writer.close()
        if kinds != shard.kinds:
            return {"widened": kinds}
        os.replace(temporary, shard.path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    file = shard.path.stat().st_size
    state = {"kinds": _digest(shard.kinds), "read": shard.stop - shard.start, "records": count, "bytes": size}
    state |= {"file": file, "damaged": damaged}
    write_whole(shard.state, json.dumps(state, ensure_ascii=False))
    return state


@contextlib.contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    """Turns what the writer cannot write into an error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(f"writing {path}: {error}; what is finished stays: make room, then run it again") from error


def check_image(example: Example) -> None:
    """Decodes the example's image; raises `BadRecord` with its key where that fails."""
    try:
        if example.image is not None:
            decode.decode(example.image)
    except BadRecord as error:
        error.key = example.key
        raise


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, path)


def read_state(shard: Shard) -> dict[str, Any] | None:
    """What is in a shard; None where it is not finished, or has other features than it is to have now."""
    try:
        state = json.loads(shard.state.read_text(encoding="utf-8"))
        whole = shard.path.stat().st_size == state["file"]
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return state if whole and state["kinds"] == _digest(shard.kinds) else None


def _digest(kinds: Mapping[str, tf_examples.Kind]) -> str:
    described = {n: dataclasses.asdict(k) for n, k in kinds.items()}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]

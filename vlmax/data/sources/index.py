"""Where the records of a source lie: a table in an Arrow file, made once, memory-mapped ever after.

An index is a list of parts, one for each file of the source, and is kept in `.vlmax_index` beside the file, or in
the cache folder where that cannot be written. A part is made again when the size or the time of its file changes. A
source of many files has a second table with all parts in one file, so that opening it again reads one small header.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from vlmax.data.sources.files import File, OpenFiles, cache_folder, is_remote

_VERSION = 1
_log = logging.getLogger(__name__)


class Index:
    """A memory-mapped table in parts. Pickles as its path; the memory it takes does not grow with its length."""

    def __init__(self, path: str):
        self.path = path
        self._mapped: tuple[Any, np.ndarray] | None = None
        self._parts: OpenFiles[pa.RecordBatch] = OpenFiles(256)

    def _open(self) -> tuple[Any, np.ndarray]:
        if self._mapped is None:
            reader = pa.ipc.open_file(pa.memory_map(self.path))
            self._mapped = reader, np.frombuffer(reader.schema.metadata[b"ends"], np.int64)
        return self._mapped

    def __len__(self) -> int:
        ends = self._open()[1]
        return int(ends[-1]) if len(ends) else 0

    @property
    def parts(self) -> int:
        """How many parts there are, one for each file."""
        return len(self._open()[1])

    def part(self, file: int) -> pa.RecordBatch:
        """The table of one file, not copied."""
        reader, _ = self._open()
        return self._parts.get(file, lambda: reader.get_batch(file))

    def locate(self, index: int) -> tuple[int, int]:
        """The file and the row in its part where record `index` is; raises `IndexError` outside."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        ends = self._open()[1]
        file = int(np.searchsorted(ends, index, side="right"))
        return file, index - (int(ends[file - 1]) if file else 0)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Index.__init__(self, state["path"])


def open_index(files: Sequence[File], kind: str, schema: pa.Schema, make: Callable[[File], pa.RecordBatch]) -> Index:
    """The index of `files`, made where it is not there or out of date.

    Args:
      files: the source's files, in order.
      kind: names what is indexed and every option that changes the result; part of the file's name.
      schema: the columns.
      make: reads one file and gives its part.
    """
    if len(files) == 1:
        return Index(_part(files[0], kind, schema, make))
    stamp = _digest([kind, str(schema), *([f.path, f.size, f.modified] for f in files)])
    name = f"{kind}-{_digest([f.path for f in files])}.arrow"
    for folder in _folders(files[0]):
        if _stamp(os.path.join(folder, name)) == stamp:
            return Index(os.path.join(folder, name))
    _log.info("indexing %d files (%s), once", len(files), kind)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda f: _part(f, kind, schema, make), files))
    ends = np.cumsum([len(Index(p)) for p in parts], dtype=np.int64)
    return Index(_write(_folders(files[0]), name, schema, stamp, ends, (Index(p).part(0) for p in parts)))


def open_joined(
    files: Sequence[File], kind: str, schema: pa.Schema, make: Callable[[], Iterable[pa.RecordBatch]]
) -> Index:
    """The index of files that make one table together, such as questions and their answers, in parts of any length.

    Args:
      files: the source's files.
      kind: names what is indexed and every option that changes the result; part of the file's name.
      schema: the columns.
      make: reads the files and gives the parts.
    """
    stamp = _digest([kind, str(schema), *([f.path, f.size, f.modified] for f in files)])
    name = f"{kind}-{_digest([f.path for f in files])}.arrow"
    for folder in _folders(files[0]):
        if _stamp(os.path.join(folder, name)) == stamp:
            return Index(os.path.join(folder, name))
    parts = list(make())
    ends = np.cumsum([part.num_rows for part in parts], dtype=np.int64)
    return Index(_write(_folders(files[0]), name, schema, stamp, ends, parts))


def _part(file: File, kind: str, schema: pa.Schema, make: Callable[[File], pa.RecordBatch]) -> str:
    """The path of one file's part, made where it has to be."""
    stamp = _digest([kind, str(schema), file.size, file.modified])
    name = f"{os.path.basename(file.path)}.{kind}.arrow"
    beside, cached = _folders(file)
    names = {beside: name, cached: f"{_digest([file.path])}-{name}"}
    for folder in (beside, cached):
        if _stamp(os.path.join(folder, names[folder])) == stamp:
            return os.path.join(folder, names[folder])
    part = make(file)
    ends = np.asarray([part.num_rows], np.int64)
    try:
        if is_remote(file.path):
            raise OSError("an index is not written into an object store")
        return _write((beside,), name, schema, stamp, ends, [part])
    except OSError:
        return _write((cached,), names[cached], schema, stamp, ends, [part])


def _write(
    folders: Iterable[str], name: str, schema: pa.Schema, stamp: str, ends: np.ndarray, parts: Iterable[pa.RecordBatch]
) -> str:
    """Writes an index into the first folder that takes it, whole or not at all; gives its path."""
    folder = _writable(folders)
    schema = schema.with_metadata({"stamp": stamp, "ends": ends.tobytes()})
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "wb") as out, pa.ipc.new_file(out, schema) as writer:
            for part in parts:
                writer.write_batch(part.replace_schema_metadata(schema.metadata))
        os.replace(temporary, os.path.join(folder, name))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return os.path.join(folder, name)


def _folders(file: File) -> tuple[str, str]:
    """Beside the file, and in the cache folder; the latter twice for an object store."""
    cached = os.path.join(cache_folder(), "index")
    return (cached if is_remote(file.path) else os.path.join(os.path.dirname(file.path), ".vlmax_index")), cached


def _writable(folders: Iterable[str]) -> str:
    """The first folder that can be made and written; raises the last one's `OSError`."""
    problem: OSError | None = None
    for folder in folders:
        try:
            home = folder if os.path.isdir(folder) else os.path.dirname(folder)
            if os.path.isdir(home) and not os.stat(home).st_mode & 0o222:  # root may write there, but is not meant to
                raise PermissionError(f"{home} is read-only")
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            problem = error
    raise problem or OSError("no folder for the index")


def _stamp(path: str) -> str | None:
    """The stamp that an index was written with; None where it is not there or not whole."""
    try:
        with pa.memory_map(path) as mapped:
            return pa.ipc.open_file(mapped).schema.metadata[b"stamp"].decode()
    except (OSError, pa.ArrowInvalid):
        return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps([_VERSION, value]).encode()).hexdigest()[:16]

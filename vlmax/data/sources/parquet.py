"""Parquet files with the images inside, as Hugging Face writes them."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlmax.data.example import BadRecord, Example
from vlmax.data.sources import rows
from vlmax.data.sources.files import File, OpenFiles, find, open_file, wrong
from vlmax.data.sources.index import Index, open_index
from vlmax.errors import nearest

SCHEMA = pa.schema([("rows", pa.int64())])  # one line for each row group


@dataclasses.dataclass(frozen=True)
class Parquet:
    """Rows of Parquet files that hold encoded images.

    A row is read with its whole row group, so small row groups read fast in random order; `vlmax.prepare` makes a set
    without them.

    Attributes:
      paths: the files: paths, globs, brace lists, on disk or in an object store.
      name: what the source is called in metrics, quarantine.jsonl and messages.
      image: the column with the encoded image: bytes, or a struct `{bytes, path}`; None for text only.
      texts: columns with texts: a string or a list of strings; null is left out.
      key: the column that names the record; by default `file:row`, counted from 0.
      fields: further columns to keep; `*` for all that are not used otherwise.
      cached_row_groups: how many row groups each process keeps decoded.
    """

    paths: tuple[str, ...]
    name: str = "parquet"
    image: str | None = "image"
    texts: tuple[str, ...] = ("caption",)
    key: str | None = None
    fields: tuple[str, ...] = ()
    cached_row_groups: int = 4

    def open(self) -> ParquetReader:
        """Finds the files and makes or reads their index; raises `InputError` where one is missing, empty or other."""
        files = find(self.paths, self.name)
        index = open_index(files, "parquet", SCHEMA, lambda file: _index(file, self.name))
        known = _columns(files[0], self.name)
        columns = dict.fromkeys(self.texts, "texts") | {f: "fields" for f in self.fields if f != rows.ALL}
        columns |= ({self.image: "image"} if self.image else {}) | ({self.key: "key"} if self.key else {})
        for column, field in columns.items():
            if column not in known:
                raise wrong(self.name, field, f"no column {column!r} in {files[0].path}, {nearest(column, known)}")
        read = known if rows.ALL in self.fields else list(columns)
        reader = ParquetReader(self, tuple(f.path for f in files), index, read)
        if not len(reader):
            raise wrong(self.name, "paths", f"no row in {', '.join(self.paths)}")
        return reader


class ParquetReader:
    """Random access to rows by way of their row groups, of which some stay decoded."""

    def __init__(self, source: Parquet, paths: tuple[str, ...], index: Index, columns: list[str]):
        self.source = source
        self.index = index
        self.paths = paths
        self.columns = columns
        self._files: OpenFiles[pq.ParquetFile] = OpenFiles(32)
        self._groups: OpenFiles[pa.Table] = OpenFiles(max(source.cached_row_groups, 1))
        self._ends: tuple[np.ndarray, np.ndarray] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        ends = self._row_groups()[0]
        return int(ends[-1]) if len(ends) else 0

    def __getitem__(self, index: int) -> Example:
        """The record at `index`; raises `BadRecord` where it or its row group is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        ends, firsts = self._row_groups()
        group = int(np.searchsorted(ends, index, side="right"))
        file, number = self.index.locate(group)
        before = int(ends[firsts[file] - 1]) if firsts[file] else 0
        place = f"{os.path.basename(self.paths[file])}:{index - before}"
        with rows.named(place):
            table = self._group(file, number)
            if table is None:
                raise BadRecord(f"row group {number} of the file is damaged")
            row = table.slice(index - (int(ends[group - 1]) if group else 0), 1)
            row = self._values(row)
            key = rows.key_of(row, self.source.key, place)
        with rows.named(key):
            source = self.source
            fields = rows.fields_of(row, source.fields, (*source.texts, source.key, source.image))
            return Example(key, self._image(row), rows.texts_of(row, source.texts), fields)

    def _values(self, row: pa.Table) -> Mapping[str, Any]:
        """One row as Python values; strings that are not UTF-8 come as bytes, so that only their users find damage."""
        values = {}
        for name, column in zip(row.column_names, row.columns, strict=True):
            try:
                values[name] = column[0].as_py()
            except UnicodeDecodeError:
                values[name] = column.cast(pa.binary())[0].as_py() if pa.types.is_string(column.type) else b"\xff"
        return values

    def _image(self, row: Mapping[str, Any]) -> bytes | None:
        if self.source.image is None:
            return None
        value = rows.value_of(row, self.source.image)
        return rows.image_of(value.get("bytes") if isinstance(value, dict) else value, self.source.image)

    def _group(self, file: int, number: int) -> pa.Table | None:
        """A row group's columns; None where it cannot be decoded."""

        def read() -> pa.Table | None:
            with self._lock:  # one at a time, so that threads neither read the same group twice nor share a handle
                opened = self._files.get(file, lambda: pq.ParquetFile(open_file(self.paths[file])))
                try:
                    return opened.read_row_group(number, columns=self.columns, use_threads=False)
                except (pa.ArrowException, OSError) as error:
                    if getattr(error, "errno", None):  # the file system's error, not the file's
                        raise
                    return None

        return self._groups.get((file, number), read)

    def _row_groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each row group ends, in rows, and the number of each file's first row group."""
        if self._ends is None:
            parts = [self.index.part(i).column(0).to_numpy() for i in range(self.index.parts)]
            firsts = np.cumsum([0, *(len(p) for p in parts)])[:-1]
            self._ends = np.cumsum(np.concatenate(parts)), firsts
        return self._ends

    def __getstate__(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("source", "paths", "index", "columns")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(type(self)(**state).__dict__)


def _index(file: File, source: str) -> pa.RecordBatch:
    """The rows of each row group."""
    footer = _footer(file, source)
    counts = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
    return pa.RecordBatch.from_arrays([pa.array(counts, pa.int64())], schema=SCHEMA)


def _columns(file: File, source: str) -> list[str]:
    return _footer(file, source).schema.to_arrow_schema().names


def _footer(file: File, source: str) -> pq.FileMetaData:
    try:
        with open_file(file.path) as handle:
            return pq.read_metadata(handle)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise wrong(source, "paths", f"{file.path} is no Parquet file, or cut off ({reason})") from None

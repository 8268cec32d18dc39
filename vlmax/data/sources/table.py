"""JSON lines, CSV or TSV, with pictures in a folder, an object store or zip files. Rows by their byte offsets."""

from __future__ import annotations

import array
import csv
import dataclasses
import hashlib
import io
import json
import os
import string
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
import pyarrow as pa

from vlmax.data.example import BadRecord, Example
from vlmax.data.sources import rows
from vlmax.data.sources.files import File, Ranges, find, open_file, parent, wrong
from vlmax.data.sources.index import Index, open_index
from vlmax.data.sources.pictures import Pictures
from vlmax.errors import InputError, nearest

SCHEMA = pa.schema([("offset", pa.int64()), ("size", pa.int64()), ("line", pa.int64())])
Header = tuple[str, ...] | None  # a CSV file's columns
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_FIRST = 16  # rows looked at when a source is opened
_LONGEST = 1000  # lines of one CSV row


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of `.jsonl`, `.csv` or `.tsv` files that name a picture and have its texts.

    Attributes:
      paths: the files: paths, globs, brace lists, on disk or in an object store. By their ending they are CSV (`,`),
        TSV (tab), or else JSON lines. The first line of a CSV or TSV file has the names of the columns.
      name: what the source is called in metrics, quarantine.jsonl and messages.
      image: a template of the picture's path over the row's columns, `{file}` or `{split}/{id}.jpg`; a member of a zip
        file is `zip://{member}::{archive}.zip` as fsspec writes it. None for text only.
      root: what the picture's path is relative to: a folder or a URL; by default the folder of the first file.
      texts: columns with texts: a string, or (in JSON) a list of strings; null is left out.
      key: the column that names the record; by default `file:line`, counted from 1.
      fields: further columns to keep; `*` for all that are not texts or key.
      where: keeps only rows whose column has one of the values: `(("vendor", ("noto", "twemoji")),)`.
    """

    paths: tuple[str, ...]
    name: str = "table"
    image: str | None = "{image}"
    root: str | None = None
    texts: tuple[str, ...] = ("caption",)
    key: str | None = None
    fields: tuple[str, ...] = ()
    where: rows.Where = ()

    def open(self) -> TableReader:
        """Finds the files, makes or reads their index and tries the first rows.

        Raises:
          InputError: a file is missing or empty, no row is left, a column does not exist, or none of the first rows'
            pictures is there.
        """
        files = find(self.paths, self.name)
        headers = tuple(_header(f, self.name) for f in files)
        kind = "table"
        if self.where:
            kind += "-" + hashlib.sha256(json.dumps(self.where).encode()).hexdigest()[:8]
        by_path = {f.path: h for f, h in zip(files, headers, strict=True)}
        index = open_index(files, kind, SCHEMA, lambda f: _index(f, by_path[f.path], self.where))
        if not len(index):
            raise wrong(
                self.name,
                "where",
                f"no row in {', '.join(self.paths)}{f' where {dict(self.where)}' if self.where else ''}",
            )
        reader = TableReader(self, tuple(f.path for f in files), headers, index)
        _try_first(reader)
        return reader


class TableReader:
    """Random access to the rows of a table and their pictures."""

    def __init__(self, source: Table, paths: tuple[str, ...], headers: tuple[Header, ...], index: Index):
        self.source = source
        self.index = index
        self.headers = headers
        self._ranges = Ranges(paths)
        self._pictures = Pictures(parent(paths[0]) if source.root is None else source.root)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Example:
        """The record at `index`; raises `BadRecord` where the row or its picture is damaged or missing."""
        place, row = self._row_at(index)
        with rows.named(place):
            if isinstance(row, BadRecord):
                raise row
            key = rows.key_of(row, self.source.key, place)
        with rows.named(key):
            texts = rows.texts_of(row, self.source.texts)
            fields = rows.fields_of(row, self.source.fields, (*self.source.texts, self.source.key))
            return Example(key, self._image(row), texts, fields)

    def row(self, index: int) -> Mapping[str, Any]:
        """The row at `index` as it is in the table, without its picture; raises `BadRecord` where it is damaged."""
        row = self._row_at(index)[1]
        if isinstance(row, BadRecord):
            raise row
        return row

    def _row_at(self, index: int) -> tuple[str, Mapping[str, Any] | BadRecord]:
        """The row's place, its key where it has no other, and the row or what is wrong with it."""
        file, number = self.index.locate(index)
        offset, size, number = (c[number].as_py() for c in self.index.part(file).columns)
        line = self._ranges.read(file, offset, size)
        place = f"{os.path.basename(self._ranges.paths[file])}:{number}"
        try:
            return place, _parse(line, self._ranges.paths[file], self.headers[file])
        except BadRecord as error:
            return place, error

    def _image(self, row: Mapping[str, Any]) -> bytes | None:
        template = self.source.image
        if template is None:
            return None
        for column in columns_of(template):
            if rows.value_of(row, column) is None:
                raise BadRecord(f"no value in {column!r}, which names the picture")
        try:
            path = template.format_map(row)
        except (ValueError, TypeError) as error:
            raise BadRecord(f"the row's values do not make a path by {template!r}: {error}") from None
        return rows.image_of(self._pictures.read(path), "the picture")


def columns_of(template: str) -> list[str]:
    """The columns that a template names; raises `InputError` where it is not one."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise InputError(f"image {template!r} is not a template ({error}); {{column}} is a column's value") from None


def delimiter(path: str) -> str | None:
    """What divides the columns, by the file's ending; None for JSON lines."""
    return _DELIMITERS.get(os.path.splitext(path.lower())[1])


def _try_first(reader: TableReader) -> None:
    """Finds mistakes in the source's columns and paths, which would make every record a damaged one."""
    source, seen = reader.source, {}
    for index in range(min(_FIRST, len(reader))):
        try:
            seen[index] = reader.row(index)
        except BadRecord:
            continue
    known = {name for row in seen.values() for name in row}
    columns = dict.fromkeys(source.texts, "texts") | ({source.key: "key"} if source.key else {})
    columns |= dict.fromkeys(columns_of(source.image), "image") if source.image else {}
    columns |= {f: "fields" for f in source.fields if f != rows.ALL} if reader.headers[0] else {}
    for column, field in columns.items():
        if seen and column not in known:
            raise wrong(
                source.name, field, f"no column {column!r} in {reader._ranges.paths[0]}, {nearest(column, known)}"
            )
    problems = []
    for row in seen.values():
        try:
            reader._image(row)
            return
        except BadRecord as error:
            problems.append(str(error))
    if problems:
        raise wrong(
            source.name,
            "image",
            f"none of the first {len(problems)} pictures can be read (see also `root`), the first: {problems[0]}",
        )


def _parse(line: bytes, path: str, header: Header) -> dict[str, Any]:
    """A row as values by column; raises `BadRecord` where it is not a whole row."""
    text = rows.text_of(line, "the row")
    if header is None:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"the row is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise BadRecord(f"the row is a JSON {type(row).__name__}, not an object")
        return row
    try:
        values = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter(path) or ",", strict=True), [])
    except csv.Error as error:
        raise BadRecord(f"the row is not CSV: {error}") from None
    if len(values) != len(header):
        raise BadRecord(f"the row has {len(values)} columns, the header {len(header)}")
    return dict(zip(header, values, strict=True))


def _header(file: File, source: str) -> Header:
    """The columns' names; None for JSON lines."""
    divide = delimiter(file.path)
    if divide is None:
        return None
    with open_file(file.path) as handle:
        line = next((line for _, _, line in _lines(handle, quoted=True)), b"")
    try:
        names = next(csv.reader(io.StringIO(line.decode("utf-8-sig"), newline=""), delimiter=divide), [])
    except UnicodeDecodeError as error:
        raise wrong(source, "paths", f"the first line of {file.path} is not UTF-8 ({error})") from None
    if len(set(names)) != len(names) or not all(names):
        raise wrong(source, "paths", f"the first line of {file.path} must name the columns, each once, and is {names}")
    return tuple(names)


def _index(file: File, header: Header, where: rows.Where) -> pa.RecordBatch:
    """Offset, size and line number of each row that passes `where`; a damaged row stays, to be reported."""
    columns = array.array("q"), array.array("q"), array.array("q")
    with open_file(file.path) as handle:
        lines = _lines(handle, quoted=header is not None)
        if header is not None:
            next(lines, None)
        for offset, number, line in lines:
            if _passes(line, file.path, header, where):
                for column, value in zip(columns, (offset, len(line), number), strict=True):
                    column.append(value)
    return pa.RecordBatch.from_arrays([pa.array(np.array(c, np.int64)) for c in columns], schema=SCHEMA)


def _passes(line: bytes, path: str, header: Header, where: rows.Where) -> bool:
    if not where:
        return True
    try:
        row = _parse(line, path, header)
    except BadRecord:
        return True
    return rows.passes(row, where)


def _lines(handle: IO[bytes], quoted: bool) -> Iterator[tuple[int, int, bytes]]:
    """Rows with their offsets and line numbers, blank lines left out; a line may end inside a quoted CSV value.

    A quote that nobody closes makes one damaged row of its line, not of the rest of the file.
    """
    offset, number = 0, 1
    while row := handle.readline():
        following, quotes = [row], row.count(b'"') if quoted else 0
        while quotes % 2 and len(following) <= _LONGEST and (line := handle.readline()):
            following.append(line)
            quotes += line.count(b'"')
        if quotes % 2:
            handle.seek(offset + len(row))
            following = [row]
        else:
            row = b"".join(following)
        if row.strip():
            yield offset, number, row.rstrip(b"\r\n")
        offset, number = offset + len(row), number + len(following)

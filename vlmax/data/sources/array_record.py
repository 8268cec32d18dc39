"""ArrayRecord files of serialized `tf.train.Example`s, and their records as bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

import fsspec
import numpy as np
from array_record.python import array_record_module  # type: ignore[attr-defined]

from vlmax.data import tf_examples
from vlmax.data.example import BadRecord, Example
from vlmax.data.sources import rows
from vlmax.data.sources.files import OpenFiles, cache_folder, exists, find, is_remote, join, parent, read_bytes, wrong
from vlmax.errors import nearest

_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access
_FIRST = 16  # records looked at when a source is opened


@dataclasses.dataclass(frozen=True)
class ArrayRecord:
    """ArrayRecord files of serialized `tf.train.Example`s; a features.json beside the first says what they hold.

    Attributes:
      paths: the files: paths, globs, brace lists. Files in an object store are copied into the cache folder, each at
        its first record; where the disk is smaller than the set, mount the bucket instead.
      name: what the source is called in metrics, quarantine.jsonl and messages.
      image: the feature with the encoded image; None for text only.
      texts: features with texts, one or several each.
      key: the feature that names the record; by default `file:record`, counted from 0.
      fields: further features to keep; `*` for all that are not used otherwise.
    """

    paths: tuple[str, ...]
    name: str = "array_record"
    image: str | None = "image"
    texts: tuple[str, ...] = ("texts",)
    key: str | None = None
    fields: tuple[str, ...] = ()

    def open(self) -> ArrayRecordReader:
        """Finds the files; raises `InputError` where one is missing or no ArrayRecord, or a feature is not there."""
        paths = tuple(f.path for f in find(self.paths, self.name))
        described = join(parent(paths[0]), "features.json")
        kinds = tf_examples.kinds_in(read_bytes(described)) if exists(described) else None
        reader = ArrayRecordReader(self, Records(paths, [(0, count(p, self.name, "paths")) for p in paths]), kinds)
        if not len(reader):
            raise wrong(self.name, "paths", f"no record in {', '.join(self.paths)}")
        check_features(reader)
        return reader


class ArrayRecordReader:
    """Random access to the examples of ArrayRecord files.

    Attributes:
      source: names the features that make an example: image, texts, key, fields.
      records: the serialized examples.
      kinds: what each feature holds, where a description says so: `tf_examples.Kinds`.
    """

    def __init__(self, source: Any, records: Records, kinds: tf_examples.Kinds | None):
        self.source = source
        self.records = records
        self.kinds = kinds

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`; raises `BadRecord` where its bytes are damaged."""
        source, place = self.source, self.records.place(index)
        with rows.named(place):
            row = tf_examples.decode(self.records[index], self.kinds)
            key = rows.key_of(row, source.key, place)
        with rows.named(key):
            texts = rows.texts_of(row, source.texts) if any(rows.value_of(row, t) != [] for t in source.texts) else ()
            fields = rows.fields_of(row, source.fields, (*source.texts, source.key, source.image))
            return Example(key, self._image(row), texts, fields)

    def _image(self, row: dict[str, Any]) -> bytes | None:
        name = self.source.image
        if name is None or (rows.value_of(row, name) == b"" and self.kinds and self.kinds[name].optional):
            return None
        return rows.image_of(row[name], name)


class Records:
    """The records of ArrayRecord files as bytes. Picklable; a bounded number of files is open in each process.

    Args:
      paths: the files, on disk or in an object store.
      spans: the first record of each file that counts, and how many.
    """

    def __init__(self, paths: Sequence[str], spans: Sequence[tuple[int, int]]):
        self.paths = tuple(paths)
        self.starts = np.asarray([s for s, _ in spans], np.int64)
        self.ends = np.cumsum([n for _, n in spans], dtype=np.int64)
        self._open: OpenFiles[tuple[Any, threading.Lock]] = OpenFiles(128)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def place(self, index: int) -> str:
        """`file:record` of a record."""
        file, number = self._locate(index)
        return f"{os.path.basename(self.paths[file])}:{number}"

    def __getitem__(self, index: int) -> bytes:
        """The record's bytes; raises `BadRecord` where the file is damaged there."""
        file, number = self._locate(index)
        reader, lock = self._open.get(file, lambda: (_reader(self.paths[file]), threading.Lock()))
        with lock:  # a range is read a hundred times faster than a list of numbers, and not by several threads at once
            try:
                return reader.read(number, number + 1)[0]
            except (RuntimeError, ValueError, IndexError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                self._open.drop(file)  # a reader that failed once does not recover
                raise BadRecord(f"damaged record: {reason}") from None

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        file = int(np.searchsorted(self.ends, index, side="right"))
        return file, int(self.starts[file]) + index - (int(self.ends[file - 1]) if file else 0)


def check_features(reader: ArrayRecordReader) -> None:
    """Raises `InputError` where a feature that the source names is in none of the first records."""
    source, known = reader.source, set()
    for index in range(min(_FIRST, len(reader))):
        with contextlib.suppress(BadRecord):
            known |= set(tf_examples.decode(reader.records[index], reader.kinds))
    wanted = dict.fromkeys(source.texts, "texts") | ({source.image: "image"} if source.image else {})
    wanted |= ({source.key: "key"} if source.key else {}) | {f: "fields" for f in source.fields if f != rows.ALL}
    for feature, field in wanted.items():
        if known and feature not in known:
            raise wrong(source.name, field, f"no feature {feature!r} in its records, {nearest(feature, known)}")


def count(path: str, source: str, field: str) -> int:
    """How many records a file has; raises `InputError` where it is no ArrayRecord file or cut off."""
    reader = _reader(path)
    number = reader.num_records()
    if not reader.ok():
        raise wrong(source, field, f"{path} is no ArrayRecord file, or cut off")
    return number


def _reader(path: str) -> Any:
    return array_record_module.ArrayRecordReader(_on_disk(path), options=_OPTIONS, file_reader_buffer_size=32768)


def _on_disk(path: str) -> str:
    """The file itself, or its copy in the cache folder, made whole or not at all."""
    if not is_remote(path):
        return path
    store, inner = fsspec.core.url_to_fs(path)
    stamp = hashlib.sha256(f"{path} {store.info(inner)}".encode()).hexdigest()[:16]
    folder = os.path.join(cache_folder(), "array_record")
    copy = os.path.join(folder, f"{stamp}-{os.path.basename(path)}")
    if not os.path.exists(copy):
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder)
        os.close(handle)
        try:
            store.get_file(inner, temporary)
            os.replace(temporary, copy)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    return copy

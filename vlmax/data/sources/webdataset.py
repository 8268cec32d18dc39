"""WebDataset tar shards: a record is the files that follow each other with the same stem. Random access by an index."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tarfile
from typing import IO, Any

import pyarrow as pa

from vlmax.data.example import BadRecord, Example
from vlmax.data.sources import rows
from vlmax.data.sources.files import File, Ranges, find, open_file, wrong
from vlmax.data.sources.index import Index, open_index

BLOCK = 512
Member = tuple[str, int, int]  # ending, offset, size
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("ends", pa.list_(pa.string())),  # what follows the first dot of each member's name
        ("offsets", pa.list_(pa.int64())),  # of the members' bytes in the shard
        ("sizes", pa.list_(pa.int64())),
        ("damage", pa.string()),  # why the record cannot be read; null where it can
    ]
)
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class WebDataset:
    """Tar shards of files that belong together by their stem: `0001.jpg 0001.txt 0001.json 0002.jpg ...`.

    Keys are `shard/stem`, since stems may repeat from shard to shard.

    Attributes:
      paths: the shards: paths, globs, brace lists (`cc-{00000..00331}.tar`), on disk or in an object store; not
        compressed, since a compressed tar has no random access (the images inside are compressed already).
      name: what the source is called in metrics, quarantine.jsonl and messages.
      image: the endings an image has, the first that is there is taken; () for text only.
      texts: where texts are: an ending (`txt`), or a key of a JSON member (`json/caption`: a string or a list).
      fields: keys of the `json` member to keep; `*` for all.
    """

    paths: tuple[str, ...]
    name: str = "webdataset"
    image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    texts: tuple[str, ...] = ("txt",)
    fields: tuple[str, ...] = ()

    def open(self) -> WebDatasetReader:
        """Finds the shards and makes or reads their index; raises `InputError` where one is missing or no tar."""
        files = find(self.paths, self.name)
        index = open_index(files, "webdataset", SCHEMA, lambda file: _index(file, self.name))
        if not len(index):
            raise wrong(self.name, "paths", f"the {len(files)} tar files have no records")
        return WebDatasetReader(self, tuple(f.path for f in files), index)


class WebDatasetReader:
    """Random access to the records of tar shards: one range read each."""

    def __init__(self, source: WebDataset, paths: tuple[str, ...], index: Index):
        self.source = source
        self.index = index
        self._ranges = Ranges(paths)
        self._shards = tuple(os.path.basename(p).removesuffix(".tar") for p in paths)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Example:
        """The record at `index`; raises `BadRecord` where it is damaged."""
        file, row = self.index.locate(index)
        record = {c: v[0] for c, v in self.index.part(file).slice(row, 1).to_pydict().items()}
        key = f"{self._shards[file]}/{record['key']}"
        with rows.named(key):
            return self._example(key, file, record)

    def _example(self, key: str, file: int, record: dict[str, Any]) -> Example:
        if record["damage"]:
            raise BadRecord(record["damage"])
        source, places = (
            self.source,
            dict(zip(record["ends"], zip(record["offsets"], record["sizes"], strict=True), strict=True)),
        )
        image = next((e for e in source.image if e in places), None)
        if source.image and image is None:
            raise BadRecord(f"no {', '.join(source.image)} in the record")
        json_ends = {t.split("/", 1)[0] for t in source.texts if "/" in t} | ({"json"} if source.fields else set())
        wanted = json_ends | set(source.texts) | {image}
        parts = self._members(file, {e: p for e, p in places.items() if e in wanted})
        documents = {e: _document(b, e) for e, b in parts.items() if e in json_ends}
        texts = tuple(t for place in source.texts for t in _texts(place, parts, documents))
        if source.texts and not texts:
            raise BadRecord(f"no text in {', '.join(source.texts)}")
        used = [t.split("/", 1)[1] for t in source.texts if t.startswith("json/")]
        fields = rows.fields_of(documents.get("json", {}), source.fields, used)
        return Example(key, rows.image_of(parts[image], image) if image else None, texts, fields)

    def _members(self, file: int, places: dict[str, tuple[int, int]]) -> dict[str, bytes]:
        """The bytes of members of one record, in one read since they follow each other."""
        if not places:
            return {}
        start = min(o for o, _ in places.values())
        data = self._ranges.read(file, start, max(o + s for o, s in places.values()) - start)
        for end, (offset, size) in places.items():
            if offset - start + size > len(data):
                have = max(len(data) - (offset - start), 0)
                raise BadRecord(f"the shard is cut off: {have} of the {size} bytes of {end!r} are there")
        return {e: data[o - start : o - start + s] for e, (o, s) in places.items()}


def _texts(place: str, parts: dict[str, bytes], documents: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """The texts at `txt` or `json/caption` of one record; none where it has no such member."""
    end, _, key = place.partition("/")
    if end not in parts:
        return ()
    if not key:
        return (rows.text_of(parts[end], end),)
    return rows.texts_of(documents[end], (key,)) if documents[end].get(key) else ()


def _document(data: bytes, end: str) -> dict[str, Any]:
    """A JSON object; raises `BadRecord` where it is not one."""
    try:
        document = json.loads(rows.text_of(data, end))
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{end} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadRecord(f"{end} is a JSON {type(document).__name__}, not an object")
    return document


def _index(file: File, source: str) -> pa.RecordBatch:
    """Where the records of one shard lie; a damaged header becomes a record that says so, and reading goes on."""
    table: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    with open_file(file.path) as handle:
        position = 0
        while position < file.size:
            end, problem = _walk(handle, position, table)
            if problem is None:
                break
            if position == 0 and not table["key"]:
                raise wrong(source, "paths", f"{file.path} is no tar file, or a compressed one: gunzip it ({problem})")
            reason = f"damaged tar header at byte {end} of the shard"
            _add(table, f"@{end}", [], reason)
            _log.warning("source %r: %s: %s", source, file.path, reason)
            position = _next_header(handle, end + BLOCK, file.size)
    return pa.RecordBatch.from_pydict(table, SCHEMA)


def _walk(handle: IO[bytes], position: int, table: dict[str, list[Any]]) -> tuple[int, str | None]:
    """Adds the records from `position` on; gives where it ended and what was wrong there, None at the archive's end."""
    handle.seek(position)
    group: tuple[str, list[Member]] = ("", [])
    problem, tar = None, None
    try:
        tar = tarfile.open(fileobj=handle, mode="r:")  # noqa: SIM115
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # the tar file would remember them all
            if not member.isreg():
                continue
            stem, ending = _split(member.name)
            if stem != group[0]:
                _add(table, *group)
                group = (stem, [])
            group[1].append((ending, member.offset_data, member.size))
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        problem = str(error) or type(error).__name__
    _add(table, *group)
    end = tar.offset if tar else position
    if problem == "unexpected end of data":  # the last member is cut off, and reading it says so
        return end, None
    handle.seek(end)
    rest = handle.read(BLOCK)
    if problem is None and rest.strip(b"\0"):  # tarfile ends without a word at a damaged header
        problem = "bad header"
    return end, problem


def _next_header(handle: IO[bytes], position: int, size: int) -> int:
    """The next block that is a sound tar header, or the file's end."""
    handle.seek(position)
    while position < size:
        block = handle.read(BLOCK)
        if len(block) == BLOCK and block[257:262] == b"ustar":
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                return position
            except tarfile.HeaderError:
                pass
        position += BLOCK
    return size


def _add(table: dict[str, list[Any]], stem: str, members: list[Member], damage: str | None = None) -> None:
    """Adds a record, unless it has neither members nor damage."""
    if not members and damage is None:
        return
    table["key"].append(stem.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
    for column, values in zip(
        ("ends", "offsets", "sizes"), zip(*members, strict=True) if members else ((), (), ()), strict=True
    ):
        table[column].append(list(values))
    table["damage"].append(damage)


def _split(name: str) -> tuple[str, str]:
    """`a/b.seg.png` as `a/b` and `seg.png`: the ending is all after the first dot of the last part."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, end = base.partition(".")
    end = end.lower().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return folder + slash + stem, end

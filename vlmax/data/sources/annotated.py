"""Pictures in folders and JSON files about them, as data sets are published: what their sources share.

A source reads its files once, from front to back, and gives a `Record` for each example. The records, a few hundred
bytes each, go into a memory-mapped index; pictures are read when they are asked for. What is wrong with the files is
gathered, counted and told at once when the source is opened.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from vlmax.data.example import BadRecord, Example
from vlmax.data.sources import rows
from vlmax.data.sources.annotation_forms import recognised
from vlmax.data.sources.files import File, open_file, wrong
from vlmax.data.sources.index import Index, open_joined
from vlmax.data.sources.json_members import members
from vlmax.data.sources.pictures import Pictures, Places
from vlmax.errors import InputError

SCHEMA = pa.schema([("record", pa.large_string())])
SECOND = "second_image"
"""The field with the bytes of the second picture, of records that have two."""
ID = (int, str)
"""What an id may be."""
EVERY = ""
"""In `Wanted`: every member."""
Needs = Mapping[str, type | tuple[type, ...]]
Wanted = Mapping[str | None, Needs]
_PART = 4096  # records
_SHOWN = 5  # of each problem


class Annotated(Protocol):
    """What sources of this kind have in common."""

    @property
    def name(self) -> str:
        """What the source is called in metrics, quarantine.jsonl and messages."""

    @property
    def images(self) -> tuple[str, ...]:
        """Where pictures are looked for, in order; see `Places`."""

    @property
    def subset(self) -> bool:
        """Whether records are left out whose picture is not there; else that is an error."""


class Record(NamedTuple):
    """One example before its pictures are read.

    Attributes:
      key: unique among the source's records.
      pictures: one or two paths in the places of the source.
      texts: captions, or the question.
      fields: JSON values by name.
    """

    key: str
    pictures: tuple[str, ...]
    texts: tuple[str, ...]
    fields: dict[str, Any]


class Problems:
    """What is wrong with a source's files: how often, and the first few."""

    def __init__(self, source: str):
        self._source = source
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._first: dict[tuple[str, str], list[str]] = collections.defaultdict(list)

    def add(self, field: str, what: str, which: Any) -> None:
        """Notes one thing; `field` is the source's field to change, `what` the problem in the plural."""
        self._counts[field, what] += 1
        if len(self._first[field, what]) < _SHOWN:
            self._first[field, what].append(str(which))

    def check(self) -> None:
        """Raises `InputError` where there are any."""
        if not self._counts:
            return
        told = [
            f"{count} {what}: {', '.join(self._first[field, what])}{', ...' if count > _SHOWN else ''}"
            for (field, what), count in self._counts.items()
        ]
        raise wrong(self._source, " and ".join(dict.fromkeys(f for f, _ in self._counts)), "; ".join(told))


def read_members(
    files: Iterable[File], source: str, field: str, wanted: Wanted, form: str
) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """The elements that are wanted of some JSON files, each with the name of the member that it is in.

    Args:
      files: the files.
      source: the source's name, for messages.
      field: the source's field that names the files.
      wanted: names of members, None for an outermost list, and what each element must have: values of
        these types.
      form: what the files must be, in words of `annotation_forms`.

    Raises:
      InputError: a file is not JSON, not of this form, or an element lacks something.
    """
    for file in files:
        found: set[str | None] = set()
        for number, (name, element) in enumerate(_elements(file, source, field)):
            needs = wanted.get(name, wanted.get(EVERY))
            if needs is None:
                continue
            found.add(name)
            if lacks := _lacks(element, needs):
                place = f"element {number}" if name is None else f"element {number}, in {name!r},"
                raise _other_form(file, source, field, form, f"{place} {lacks}")
            yield name, element
        absent = [name for name in wanted if name not in found and name != EVERY]
        if absent or not found:
            lacks = f"it has no {absent[0]!r}" if absent and absent[0] else "it holds nothing"
            raise _other_form(file, source, field, form, lacks)


def member(file: File, source: str, field: str, name: str) -> Any:
    """The value of one member of a JSON file, the first element of one that is a list; None where it has none."""
    return next((value for found, value in _elements(file, source, field) if found == name), None)


def read_lines(files: Iterable[File], source: str, field: str, needs: Needs, form: str) -> Iterator[dict[str, Any]]:
    """The objects of files with one JSON object a line; see `read_members`."""
    for file in files:
        empty = True
        with open_file(file.path) as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if lacks := _lacks(row, needs):
                    raise _other_form(file, source, field, form, f"line {number} {lacks}")
                empty = False
                yield row
        if empty:
            raise _other_form(file, source, field, form, "it holds nothing")


def open_annotated(
    source: Annotated, files: Sequence[File], field: str, make: Callable[[Problems], Iterator[Record]]
) -> AnnotatedReader:
    """A reader of the records that `make` gives.

    Args:
      source: what is opened.
      files: what the records are made of.
      field: the source's field that names the records.
      make: gives the records, and notes what is wrong.

    Raises:
      InputError: something is wrong with the files, a picture or a text is missing, or no record is left.
    """
    if not source.images or not all(source.images):
        told = f"images is {source.images!r}: name the folders, or zip files, that hold the pictures"
        raise wrong(source.name, "images", told)
    places = Places(source.images)

    def checked() -> Iterator[pa.RecordBatch]:
        problems = Problems(source.name)
        found = _with_pictures(make(problems), places, problems, field, source.subset)
        while part := list(itertools.islice(found, _PART)):
            yield pa.RecordBatch.from_arrays([pa.array(part, pa.large_string())], schema=SCHEMA)
        problems.check()

    kind = f"{type(source).__name__.lower()}-{_digest([repr(source), places.places])}"
    if source.subset:  # which pictures are there is looked up at every start: the index is named by what it holds
        parts = list(checked())
        content = hashlib.sha256()
        for part in parts:
            content.update("".join(part.column(0).to_pylist()).encode())
        index = open_joined(files, f"{kind}-{content.hexdigest()[:16]}", SCHEMA, lambda: parts)
    else:
        index = open_joined(files, kind, SCHEMA, checked)
    if not len(index):
        told = f"none of the pictures that {files[0].path} names is in {', '.join(source.images)}"
        raise wrong(source.name, "images", told)
    return AnnotatedReader(index)


class AnnotatedReader:
    """Random access to the examples of an index of records."""

    def __init__(self, index: Index):
        self.index = index
        self._pictures = Pictures("")

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`; raises `BadRecord` where a picture is gone since the source was opened."""
        part, row = self.index.locate(index)
        record = json.loads(self.index.part(part).column(0)[row].as_py())
        with rows.named(record["key"]):
            pictures = [rows.image_of(self._pictures.read(path), path) for path in record["pictures"]]
            fields = record["fields"] | ({SECOND: pictures[1]} if len(pictures) > 1 else {})
            return Example(record["key"], pictures[0], tuple(record["texts"]), fields)


def text_in(element: Any, name: str, problems: Problems, field: str, which: Any) -> str | None:
    """The text that an element has under a name; None, and noted, where it is none or empty."""
    value = element.get(name) if isinstance(element, Mapping) else None
    if isinstance(value, str) and value.strip():
        try:
            return rows.text_of(value, name)
        except BadRecord:
            pass
    problems.add(field, f"elements whose {name!r} is no text or empty", which)
    return None


def _with_pictures(
    records: Iterator[Record], places: Places, problems: Problems, field: str, subset: bool
) -> Iterator[str]:
    """The records as they are stored, those that are sound; notes the others."""
    keys: set[str] = set()
    for record in records:
        if record.key in keys:
            problems.add(field, "ids that occur more than once", record.key)
        keys.add(record.key)
        paths = [places.find(path) for path in record.pictures]
        if None not in paths:
            stored = record._asdict() | {"pictures": paths}
            yield json.dumps(stored, ensure_ascii=False, separators=(",", ":"))
        elif not subset:
            problems.add("images", "pictures are missing", record.pictures[paths.index(None)])


def _elements(file: File, source: str, field: str) -> Iterator[tuple[str | None, Any]]:
    """What a JSON file holds; raises `InputError` where it is not JSON."""
    with open_file(file.path) as handle:
        reading = members(handle)
        while True:
            try:
                found = next(reading, None)
            except ValueError as error:
                raise wrong(source, field, f"{file.path} cannot be read as JSON: {error}") from None
            if found is None:
                return
            yield found


def _lacks(element: Any, needs: Needs) -> str | None:
    """What an element lacks, in words."""
    if not isinstance(element, dict):
        return "is no object"
    for name, kinds in needs.items():
        if name not in element:
            return f"has no {name!r}"
        if not isinstance(element[name], kinds):
            return f"has {json.dumps(element[name])[:40]} as {name!r}"
    return None


def _other_form(file: File, source: str, field: str, form: str, lacks: str) -> InputError:
    """The error for a file that is not what its field asks for: says what it is, where it is known."""
    with open_file(file.path) as handle:
        told = recognised(handle)
    if told == form:
        return wrong(source, field, f"{file.path} is damaged: {lacks}")
    return wrong(source, field, f"{file.path} is {told}, and `{field}` must name {form}; {lacks}")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]

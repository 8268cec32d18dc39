"""What is common to records that are rows of named values: their key, texts and further fields."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmax.data.example import BadRecord

ALL = "*"  # in `fields`: every column that is not used otherwise
Where = tuple[tuple[str, tuple[str, ...]], ...]
"""Which rows are kept: those whose columns each have one of the values, `(("vendor", ("noto", "twemoji")),)`."""


@contextlib.contextmanager
def named(key: str) -> Iterator[None]:
    """Gives a `BadRecord` raised inside the record's key, as its attribute `key`."""
    try:
        yield
    except BadRecord as error:
        error.key = key
        raise


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column; raises `BadRecord` where the row does not have it."""
    if column not in row:
        raise BadRecord(f"no {column!r} in the record")
    return row[column]


def texts_of(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    """The texts of some columns in order: each a string, a list of strings, or null.

    Raises:
      BadRecord: one is something else or not UTF-8, or columns are named and none has a text.
    """
    texts: list[str] = []
    for column in columns:
        value = value_of(row, column)
        for text in value if isinstance(value, list | tuple) else () if value is None else (value,):
            texts.append(text_of(text, column))
    if columns and not texts:
        raise BadRecord(f"no text in {', '.join(columns)}")
    return tuple(texts)


def text_of(value: Any, what: str) -> str:
    """A text, decoded where it is bytes; raises `BadRecord` where it is not text."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRecord(f"{what} is not UTF-8 at byte {error.start}") from None
    if not isinstance(value, str):
        raise BadRecord(f"{what} is {type(value).__name__}, not text")
    if not value.isascii():
        try:
            value.encode("utf-8")  # JSON can write half of a surrogate pair, which no tokenizer takes
        except UnicodeEncodeError as error:
            raise BadRecord(f"{what} is not Unicode text at character {error.start}") from None
    return value


def image_of(value: Any, what: str) -> bytes:
    """Encoded image bytes; raises `BadRecord` where there are none."""
    if not isinstance(value, bytes):
        raise BadRecord(f"{what} is {type(value).__name__}, not image bytes")
    if not value:
        raise BadRecord(f"{what} has zero bytes")
    return value


def fields_of(row: Mapping[str, Any], fields: Sequence[str], used: Sequence[str | None]) -> dict[str, Any]:
    """The further fields by name, None where the row has none; `*` stands for all columns but the ones in `used`."""
    if ALL in fields:
        return {k: v for k, v in row.items() if k not in used}
    return {name: row.get(name) for name in fields}


def key_of(row: Mapping[str, Any], column: str | None, otherwise: str) -> str:
    """The record's key: a column's value as text, or its place."""
    if column is None:
        return otherwise
    value = value_of(row, column)
    return value if isinstance(value, str) else text_of(value, column) if isinstance(value, bytes) else str(value)


def passes(row: Mapping[str, Any], where: Where) -> bool:
    """Whether a row is kept."""
    return all(str(row.get(column)) in values for column, values in where)

"""Some examples of a source: the first, for a quick evaluation, or chosen ones in an order of their own."""

from __future__ import annotations

import dataclasses

from vlmax.data.example import Example, Reader, Source
from vlmax.errors import InputError


@dataclasses.dataclass(frozen=True)
class First:
    """The first `count` examples of a source, or all where it has fewer."""

    source: Source
    count: int

    @property
    def name(self) -> str:
        """The source's own name."""
        return self.source.name

    def open(self) -> Reader:
        """Opens the source."""
        return FirstReader(self.source.open(), self.count)


@dataclasses.dataclass(frozen=True)
class FirstReader:
    """Random access to the first `count` examples."""

    reader: Reader
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.reader))

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self.reader[index]


def first(source: Source, limit: int | None, where: str) -> Source:
    """The source itself where there is no limit; raises `InputError` for a limit below 1."""
    if limit is None:
        return source
    if limit < 1:
        raise InputError(f"{where}: limit is {limit}; it must be at least 1, or None for all examples")
    return First(source, limit)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The examples of a source at some places, in their order."""

    source: Source
    places: tuple[int, ...]

    @property
    def name(self) -> str:
        """The source's own name."""
        return self.source.name

    def open(self) -> Reader:
        """Opens the source."""
        return ChosenReader(self.source.open(), self.places)


@dataclasses.dataclass(frozen=True)
class ChosenReader:
    """Random access to the examples at some places."""

    reader: Reader
    places: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self.reader[self.places[index]]

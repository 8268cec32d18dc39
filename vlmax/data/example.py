"""What a source gives: one raw record, before any decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np


class BadRecord(Exception):
    """A record that cannot be read or decoded. It is skipped, counted and quarantined; it never stops a run.

    The message is the reason, one line, the same at every try.

    Attributes:
      key: the record's key, where whoever raises it knows it.
    """

    key: str | None = None


@dataclasses.dataclass(frozen=True)
class Example:
    """One record of a source.

    Attributes:
      key: names the record in its source, the same at every read; unique there.
      image: encoded bytes (JPEG, PNG, WebP) or uint8 `[height, width, 3]`; None for text only.
      texts: the record's captions, at least one for image-text training.
      fields: anything else by name: labels, class names, groups, further captions.
    """

    key: str
    image: bytes | np.ndarray | None
    texts: tuple[str, ...] = ()
    fields: Mapping[str, object] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Reader(Protocol):
    """Random access to examples. Must be picklable: it travels into worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """The example at `index`; raises `BadRecord` where the stored bytes are damaged."""
        ...


@runtime_checkable
class Source(Protocol):
    """The frozen configuration of a source, what an experiment holds."""

    if (
        TYPE_CHECKING
    ):  # command-line overrides narrow a field by its protocol's methods, so there are no others at run time

        @property
        def name(self) -> str:
            """What the source is called in metrics, quarantine.jsonl and messages."""
            ...

    def open(self) -> Reader:
        """Finds the files, makes or reads the index; raises `InputError` where the source is empty or missing."""
        ...


Features = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Feature:
    """What one array of a batch looks like, without the batch dimension.

    Attributes:
      shape: the shape of one example.
      dtype: NumPy name; images travel as `uint8`, tokens as `int32`.
      axes: logical axis names of the example's dimensions (the batch dimension is `batch`).
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...] = ()


@runtime_checkable
class Preprocess(Protocol):
    """Turns an example into features: pure, seeded by the example's index. Frozen and picklable."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """The features of one example; raises `BadRecord` where it cannot be decoded."""
        ...

    def features(self) -> Mapping[str, Feature]:
        """The names, shapes and dtypes that `__call__` gives."""
        ...


@runtime_checkable
class Tokenizes(Protocol):
    """A preprocess whose texts can be made and read apart from any example."""

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Texts as the model reads them: int32 `[n, T]`."""
        ...

    def detokenize(self, tokens: np.ndarray) -> list[str]:
        """The texts of int32 `[n, T]`, for people."""
        ...


@runtime_checkable
class Packs(Protocol):
    """A preprocess that puts several examples into one row; called with one, it gives a row of that alone.

    Attributes:
      documents: how many examples are read for a row.
    """

    documents: int

    def document(self, example: Example, rng: np.random.Generator) -> Features:
        """What one example brings, of any length; raises `BadRecord` where it brings nothing."""
        ...

    def pack(self, documents: Sequence[Features]) -> Features:
        """The features of a row that holds these documents in their order."""
        ...

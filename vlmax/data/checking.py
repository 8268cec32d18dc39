"""Reads a whole source and says what is wrong with it."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from vlmax.data import decode
from vlmax.data.example import BadRecord, Reader
from vlmax.data.parallel import Work, run

CHUNK = 256  # records of one task
SHOWN = 10  # duplicate keys that are looked up


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found in some records.

    Attributes:
      damaged: source, key and reason of the records that cannot be read or whose image cannot be decoded.
      empty: keys of records of which a text is empty.
      without: keys of records that have no text at all.
      keys: `[records, 2]`: a hash of each readable record's key, and where the record is.
      sizes: `[images, 2]`: width and height.
      lengths: `[texts]`: characters.
    """

    damaged: list[dict[str, str]]
    empty: list[str]
    without: list[str]
    keys: np.ndarray
    sizes: np.ndarray
    lengths: np.ndarray


@dataclasses.dataclass(frozen=True)
class Report:
    """What a source is like and what is wrong with it.

    Attributes:
      records: how many were read.
      damaged: source, key and reason of those that cannot be read or whose image cannot be decoded.
      empty: keys of records with an empty text.
      without: keys of records without a text, unless none has any.
      duplicates: keys that several records have: the first ones with their counts, and how many keys there are.
      images: width, height and shorter side over longer side: least, 5th percentile, median, 95th and largest.
      texts: the same for the texts' characters; how many texts a record has on average is `texts_per_record`.
      texts_per_record: texts over readable records.
    """

    records: int
    damaged: list[dict[str, str]]
    empty: list[str]
    without: list[str]
    duplicates: tuple[dict[str, int], int]
    images: dict[str, list[float]]
    texts: list[float]
    texts_per_record: float

    @property
    def fine(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.damaged or self.empty or self.without or self.duplicates[1])


def check(
    work: Work,
    workers: int = 1,
    max_records: int | None = None,
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> Report:
    """Reads every record and decodes every image.

    Args:
      work: the source.
      workers: how many processes.
      max_records: reads only the first ones.
      tick: is called with the numbers of records done and to do.

    Raises:
      InputError: the source cannot be opened.
    """
    reader = work.open()[1]
    records = len(reader) if max_records is None else min(max_records, len(reader))
    chunks = [(start, min(start + CHUNK, records)) for start in range(0, records, CHUNK)]
    found: dict[int, Found] = {}
    for (start, _), result in run(
        work, check_chunk, chunks, max(1, min(workers, len(chunks))), lambda done: tick(done, records)
    ):
        found[start] = result
    ordered = [found[start] for start, _ in chunks]
    readable = sum(len(f.keys) for f in ordered)
    sizes, lengths = np.concatenate([f.sizes for f in ordered]), np.concatenate([f.lengths for f in ordered])
    without = [k for f in ordered for k in f.without]
    sides = {"width": sizes[:, 0], "height": sizes[:, 1], "shape": sizes.min(1) / np.maximum(sizes.max(1), 1)}
    return Report(
        records,
        [d for f in ordered for d in f.damaged],
        [k for f in ordered for k in f.empty],
        without if len(without) < readable else [],
        _duplicates(reader, np.concatenate([f.keys for f in ordered])),
        {name: _spread(values) for name, values in sides.items()},
        _spread(lengths),
        len(lengths) / max(readable, 1),
    )


def check_chunk(source: str, reader: Reader, chunk: tuple[int, int], one_done: Callable[[], None]) -> Found:
    """What is found in records `start` to `stop`."""
    damaged, empty, without, keys, sizes, lengths = [], [], [], [], [], []
    for index in range(*chunk):
        key = f"#{index}"
        try:
            example = reader[index]
            key = example.key
            keys.append((_hash_of(key), index))
            if not example.texts:
                without.append(key)
            if any(not text.strip() for text in example.texts):
                empty.append(key)
            lengths += [len(text) for text in example.texts]
            if example.image is not None:
                height, width = decode.decode(example.image).shape[:2]
                sizes.append((width, height))
        except BadRecord as error:
            damaged.append({"source": source, "key": error.key or key, "reason": str(error)})
        one_done()
    pairs, sides = np.array(keys, np.int64).reshape(-1, 2), np.array(sizes, np.int32).reshape(-1, 2)
    return Found(damaged, empty, without, pairs, sides, np.array(lengths, np.int32))


def _duplicates(reader: Reader, keys: np.ndarray) -> tuple[dict[str, int], int]:
    """The first keys that several records have, and how many there are; `keys` are hashes and places."""
    hashes, places = keys[:, 0], keys[:, 1]
    values, counts = np.unique(hashes, return_counts=True)
    repeated = values[counts > 1]
    first = np.sort(places[np.isin(hashes, repeated)])
    shown: collections.Counter[str] = collections.Counter()
    for index in first[: 100 * SHOWN]:
        shown[reader[int(index)].key] += 1
    several = {key: int(counts[values == _hash_of(key)][0]) for key in list(shown)[:SHOWN]}
    return several, len(repeated)


def _hash_of(key: str) -> int:
    return int.from_bytes(hashlib.sha1(key.encode()).digest()[:8], "big", signed=True)


def _spread(values: np.ndarray) -> list[float]:
    return [round(float(v), 3) for v in np.percentile(values, [0, 5, 50, 95, 100])] if len(values) else []

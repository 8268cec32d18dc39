"""What becomes of a record: its texts with where each is from, how well it fits, and whether it is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vlmax.data.example import BadRecord, Example, Reader
from vlmax.data.shard_writer import LeftOut, check_image, write_whole

Origin = Literal["web", "synthetic"]
ORIGINS: tuple[Origin, ...] = ("web", "synthetic")
FIELD = "provenance"
"""The field of a record of the new set: all its texts, in the form of `Judged.told`."""


class Judged(NamedTuple):
    """A text and the verdict on it.

    Attributes:
      text: as the web or the captioner has it.
      origin: `web` or `synthetic`.
      kept: whether it is a text of the new set.
      score: the probability that it belongs to its picture; None for an empty text, which nobody judged.
    """

    text: str
    origin: Origin
    kept: bool
    score: float | None

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {"text": self.text, "from": self.origin, "kept": self.kept, "score": self.score}


class Row(NamedTuple):
    """The verdicts on one record: see `judging.Verdicts`."""

    valid: bool
    web: Sequence[float]
    written: str
    synthetic: float


def judged(example: Example, row: Row, threshold: float) -> tuple[Judged, ...]:
    """Every text of a record that was looked at, the captioner's last. A text is kept from the threshold on."""
    pairs: list[tuple[str, Origin, float]] = [(t, "web", s) for t, s in zip(example.texts, row.web, strict=False)]
    pairs.append((row.written, "synthetic", row.synthetic))
    found = []
    for text, origin, probability in pairs:
        score = round(float(probability), 6) if text.strip() else None
        found.append(Judged(text, origin, score is not None and score >= threshold, score))
    return tuple(found)


class BootstrappedReader:
    """The records of a shard with the texts that are kept; what it read is in `lines`, one JSON a record.

    Args:
      reader: the source.
      first: the number of the shard's first record.
      rows: the verdicts on the shard's records, in order.
      threshold: the least score of a text that is kept.
      fields: which of the record's fields go along.
    """

    def __init__(self, reader: Reader, first: int, rows: Sequence[Row], threshold: float, fields: Sequence[str]):
        self._reader, self._first, self._rows = reader, first, rows
        self._threshold, self._fields = threshold, tuple(fields)
        self.lines: list[str] = []

    def __len__(self) -> int:
        return self._first + len(self._rows)

    def __getitem__(self, index: int) -> Example:
        """Record `index` of the source; raises `LeftOut` where no text is kept, `BadRecord` where it is damaged."""
        example, row = self._reader[index], self._rows[index - self._first]
        if not row.valid:
            check_image(example)  # says what is wrong with it
            error = BadRecord("no image" if example.image is None else "it could not be read when it was to be judged")
            error.key = example.key
            raise error
        texts = judged(example, row, self._threshold)
        told = [text.told() for text in texts]
        beyond = max(len(example.texts) - len(row.web), 0)
        line = {"key": example.key, "index": index, "texts": told} | ({"not_judged": beyond} if beyond else {})
        self.lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        kept = tuple(text.text for text in texts if text.kept)
        if not kept:
            raise LeftOut
        return Example(example.key, example.image, kept, {**_chosen(example, self._fields), FIELD: told})


def provenance_path(out: Path, split: str, shard: int, shards: int) -> Path:
    """Where the verdicts on a shard's records lie, those without any text that is kept included."""
    return out / FIELD / f"{split}-{shard:05d}-of-{shards:05d}.jsonl"


def write_provenance(path: Path, lines: Sequence[str]) -> None:
    """Writes them, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    write_whole(path, "".join(lines))


def _chosen(example: Example, fields: Sequence[str]) -> Mapping[str, Any]:
    return {name: example.fields.get(name) for name in fields}

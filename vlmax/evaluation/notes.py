"""What a source says of its examples, known to every process: references, answers, ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int

from vlmax.data.example import BadRecord, Example, Source

ID = "image_id"
"""The field that names an image, as COCO's results do; where an example has none, its key does."""


def notes(source: Source, places: Int[np.ndarray, " n"], take: Callable[[Example], Any]) -> list[Any]:
    """What `take` gives of the examples at these places, in their order.

    With several processes each reads a share of them, and all call this together.

    Args:
      source: is opened anew.
      places: the same on every process.
      take: example -> JSON types.
    """
    reader, count, own = source.open(), jax.process_count(), jax.process_index()
    read = [take(reader[int(place)]) for place in places[own::count]]
    shares = [json.loads(text) for text in _from_all(json.dumps(read))]
    return [shares[i % count][i // count] for i in range(len(places))]


def first_example(source: Source) -> Example | None:
    """To see before a run what its examples have; None where the first is damaged."""
    try:
        return source.open()[0]
    except BadRecord:
        return None


def image_id(example: Example) -> Any:
    """An image's id in results."""
    found = example.fields.get(ID, example.key)
    return found if isinstance(found, int | str) else str(found)


def _from_all(text: str) -> list[str]:
    """The text of every process, in their order."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.array([len(own)]))).reshape(-1)
    whole = np.pad(own, (0, int(lengths.max()) - len(own)))
    rows = np.asarray(multihost_utils.process_allgather(whole)).reshape(len(lengths), -1)
    return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]

"""Several documents in one row of fixed length, so that little of it is padding.

A row is filled from documents that stand next to each other in the shuffled order: row r of the run takes the places
`r * documents` to `(r + 1) * documents - 1`. What a row holds is thus a function of (seed, step, row) like everything
else, and nothing is carried over from row to row. What finds no room is left out; the next epoch shuffles anew, and
others are left out then. `documents` is the knob: with a few more tokens than a row has room for, most rows are full.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

Tokens = Int32[np.ndarray, " n"]
Span = tuple[int, int]


def spans(lengths: Sequence[int], room: int) -> list[Span]:
    """Where documents lie in a row, (start, stop) each: one after the other in their order.

    The one that passes the end of the row is cut off there, and those after it have no place.
    """
    found: list[Span] = []
    start = 0
    for length in lengths:
        if start == room:
            break
        found.append((start, min(start + length, room)))
        start = found[-1][1]
    return found


def fits(lengths: Sequence[int], room: int) -> int:
    """How many documents, taken in their order, fit into a row without a cut."""
    totals = np.cumsum(lengths)
    return int(np.searchsorted(totals, room, side="right"))


def lay(documents: Sequence[Tokens], places: Sequence[Span], room: int, fill: int) -> Int32[np.ndarray, " room"]:
    """The row with the documents at their places and `fill` elsewhere."""
    row = np.full(room, fill, np.int32)
    for document, (start, stop) in zip(documents, places, strict=False):
        row[start:stop] = document[: stop - start]
    return row


def segments(places: Sequence[Span], room: int) -> Int32[np.ndarray, " room"]:
    """1, 2, ... at the places of the documents and 0 for padding."""
    ids = [np.full(stop - start, number, np.int32) for number, (start, stop) in enumerate(places, 1)]
    return lay(ids, places, room, 0)

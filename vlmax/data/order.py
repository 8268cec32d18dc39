"""Which example stands at which place of the run: a function of (seed, position) alone.

`position = step * batch_size + row` counts over the whole run and all hosts. There is no shuffle buffer and no table of
indices: any position is found at once, whatever its number and however long the sources are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from grain.experimental import index_shuffle

from vlmax.errors import InputError

LONGEST = 2**32 - 1  # what grain's index_shuffle can permute


def proportions(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as the smallest whole numbers in the same proportion: 0.7 and 0.3 are 7 and 3.

    Raises:
      InputError: a weight that is not above 0.
    """
    for number, weight in enumerate(weights):
        if not 0 < weight < float("inf"):
            raise InputError(
                f"mixing sources: data.sources[{number}].weight is {weight}; give one above 0, or leave the source out"
            )
    parts = [Fraction(str(w)) for w in weights]
    common = lcm(*(p.denominator for p in parts))
    whole = [int(p * common) for p in parts]
    return tuple(w // gcd(*whole) for w in whole)


def choose_source(position: int, proportions: Sequence[int]) -> tuple[int, int]:
    """The source at a position, and how many of its examples stand before it.

    Splits off one source after the other by `floor(k * p / P)`, so that among the first k positions a source with share
    p/P stands k * p/P times, to within the number of sources.
    """
    before, after = position, position + 1
    remaining = sum(proportions)
    for number, share in enumerate(proportions):
        rest_before = before * (remaining - share) // remaining
        rest_after = after * (remaining - share) // remaining
        if rest_after == rest_before:
            return number, before - rest_before
        before, after, remaining = rest_before, rest_after, remaining - share
    raise AssertionError("the last source takes what is left")


def hashed(*numbers: int) -> int:
    """64 random bits that are a function of the numbers."""
    words = b"".join(n.to_bytes(16, "little") for n in numbers)
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


def generator(seed: int, position: int, attempt: int) -> np.random.Generator:
    """Random numbers that are a function of the three."""
    key = np.array([hashed(seed, 1 << 64, attempt), position], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


class Order:
    """The order of examples over sources of the given lengths, each reshuffled as a whole every epoch."""

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int):
        for number, length in enumerate(lengths):
            if not 0 < length <= LONGEST:
                raise InputError(
                    f"shuffling sources: data.sources[{number}] has {length} records; it must have 1 to {LONGEST} "
                    "(split a longer one into several sources)"
                )
        self.lengths = tuple(lengths)
        self.proportions = proportions(weights)
        self.seed = seed

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(source number, index in the source) at a position."""
        source, count = choose_source(position, self.proportions)
        epoch, place = divmod(count, self.lengths[source])
        seed = hashed(self.seed, source, epoch) % 2**32
        return source, int(index_shuffle(place, max_index=self.lengths[source] - 1, seed=seed, rounds=4))

    def substitute(self, position: int, attempt: int) -> int:
        """Index in the same source of what stands in for a damaged record; attempt counts from 1."""
        source, _ = self[position]
        return hashed(self.seed, position, attempt) % self.lengths[source]

    def rng(self, position: int, attempt: int) -> np.random.Generator:
        """The random numbers of the transforms at a position."""
        return generator(self.seed, position, attempt)


class FixedOrder:
    """The order of an evaluation: a source from its first example to its last."""

    def __init__(self, length: int, seed: int = 0):
        self.length = length
        self.seed = seed

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(0, position)."""
        return 0, position

    def rng(self, position: int, attempt: int) -> np.random.Generator:
        """The random numbers of the transforms at a position."""
        return generator(self.seed, position, attempt)

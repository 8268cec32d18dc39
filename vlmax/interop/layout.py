"""Layouts: how one array lies in another, written as `"D H K = (H K) D"` and read in both directions.

At the left are the dimensions of our array, at the right those of the foreign one; parentheses join dimensions. A
number at the right is a dimension of that size which ours lacks: 1, or, as the 3 of `"D H K = (3 H K) D"`, that of
several arrays in one, of which `part` says which is ours.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

import numpy as np

Sizes = Mapping[str, int]
Groups = tuple[tuple[str, ...], ...]


@functools.cache
def parsed(layout: str) -> tuple[Groups, Groups]:
    """The dimensions of our array and of the foreign one, each as the letters that are joined in it."""
    ours, theirs = layout.split("=")

    def groups(side: str) -> Groups:
        return tuple(tuple(word.strip("()").split()) for word in re.findall(r"\([^)]*\)|\S+", side))

    left, right = groups(ours), groups(theirs)
    letters = [letter for group in left for letter in group]
    if sorted(letters) != sorted(letter for group in right for letter in group if not letter.isdigit()):
        raise ValueError(f"layout {layout!r}: the two sides do not have the same letters")
    if len(set(letters)) != len(letters):
        raise ValueError(f"layout {layout!r}: a letter stands twice")
    return left, right


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A layout with the size of every letter.

    Attributes:
      sizes: of the letters, in the foreign array; ours may be longer where it is padded.
      part: which of several arrays in one.
    """

    left: Groups
    right: Groups
    sizes: Sizes
    part: int

    @property
    def foreign_shape(self) -> tuple[int, ...]:
        """The shape of the foreign array."""
        return tuple(math.prod(self._size(letter) for letter in group) for group in self.right)

    @property
    def own_shape(self) -> tuple[int, ...]:
        """Our shape, without padding."""
        return tuple(math.prod(self.sizes[letter] for letter in group) for group in self.left)

    @property
    def parts(self) -> int:
        """How many arrays lie in the foreign one."""
        return math.prod(int(letter) for group in self.right for letter in group if letter.isdigit())

    @property
    def simple(self) -> bool:
        """Whether our side joins no letters, so that its slices are slices of the foreign array."""
        return all(len(group) == 1 for group in self.left)

    def axis(self, letter: str) -> int:
        """Where in our array a letter stands that is a dimension of its own there, as all are where it is `simple`."""
        return self.left.index((letter,))

    def own(self, foreign: np.ndarray) -> np.ndarray:
        """Ours out of the foreign array: a view of it where the layout is `simple`."""
        array, letters = self._ours(foreign)
        wanted = [letter for group in self.left for letter in group]
        return array.transpose([letters.index(letter) for letter in wanted]).reshape(self.own_shape)

    def put(self, own: np.ndarray, foreign: np.ndarray) -> None:
        """Writes ours, without padding, into its place in the foreign array: the inverse of `own`."""
        target, letters = self._ours(foreign)
        ours = [letter for group in self.left for letter in group]
        array = own.reshape([self.sizes[letter] for letter in ours])
        target[...] = array.transpose([ours.index(letter) for letter in letters])

    def rows(self) -> tuple[str, int, int] | None:
        """The letter that is outermost in the foreign array, and which of its rows are ours.

        Returns:
          The letter, the row at which ours begin, and how many rows a step of that letter takes; None where the foreign
          array does not begin with one of our dimensions.
        """
        letters = list(self.right[0]) if self.right else []
        part = self.part if letters and letters[0].isdigit() and letters.pop(0) != "1" else 0
        if not letters or letters[0].isdigit():
            return None
        step = math.prod(self._size(letter) for letter in letters[1:])
        return letters[0], part * self.sizes[letters[0]] * step, step

    def _ours(self, foreign: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """The part of the foreign array that is ours, a dimension a letter, and those letters."""
        letters = [letter for group in self.right for letter in group]
        array = foreign.reshape([self._size(letter) for letter in letters])
        index = tuple(slice(None) if not letter.isdigit() else 0 if letter == "1" else self.part for letter in letters)
        return array[(*index, ...)], [letter for letter in letters if not letter.isdigit()]

    def _size(self, letter: str) -> int:
        return int(letter) if letter.isdigit() else self.sizes[letter]


def fit(layout: str, own_shape: tuple[int, ...], given: Sizes, part: int = 0) -> Fitted:
    """The layout for an array of ours.

    Args:
      layout: as above.
      own_shape: of our array.
      given: sizes of letters that our shape does not tell: those joined on our side, and of dimensions that are longer
        with us, which are padded.
      part: which of several arrays in one is ours.

    Raises:
      ValueError: the layout has another number of dimensions, or the given sizes do not fit.
    """
    left, right = parsed(layout)
    if len(left) != len(own_shape):
        raise ValueError(f"layout {layout!r} has {len(left)} dimensions of ours, the array is {own_shape}")
    sizes: dict[str, int] = {}
    for group, size in zip(left, own_shape, strict=True):
        if len(group) == 1:
            letter = group[0]
            sizes[letter] = min(given.get(letter, size), size)
        else:
            sizes |= {letter: given[letter] for letter in group}
            if math.prod(sizes[letter] for letter in group) != size:
                raise ValueError(f"layout {layout!r}: {group} of sizes {sizes} do not make {size}")
    return Fitted(left, right, sizes, part)

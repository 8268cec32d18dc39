"""Arrays of a checkpoint that have another number of rows than the system's: tables of tokens and positions, stacks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from vlmax.models.layers.embeddings import resize_positions

Grid = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Fitting:
    """What makes an array of the checkpoint one of the system's.

    Attributes:
      rows: the system's.
      stored: the checkpoint's; those that the system has more begin anew, those that it has fewer are left out.
      grids: the checkpoint's and the system's grid of patches, where the rows are positions of such: they are then
        interpolated, bicubic, as BLIP and EVA do for another size of images.
    """

    rows: int
    stored: int
    grids: tuple[Grid, Grid] | None = None

    @property
    def grows(self) -> bool:
        """Whether rows begin anew."""
        return self.grids is None and self.rows > self.stored

    def __call__(self, array: Float[Array, "stored *rest"], fresh: Array | None) -> Float[Array, "rows *rest"]:
        """The system's array.

        Args:
          array: the checkpoint's.
          fresh: the rows that begin anew, where there are some.
        """
        if self.grids is not None:
            old, new = self.grids
            prefix = self.rows - math.prod(new)
            return resize_positions(array, old, new, prefix, antialias=False).astype(array.dtype)
        return array[: self.rows] if fresh is None else jnp.concatenate([array, fresh.astype(array.dtype)])


def fitting(path: str, mine: tuple[int, ...], theirs: tuple[int, ...], how: Any, grid: Grid | None) -> Fitting | None:
    """How an array is fitted; None where nothing says that it may be.

    Args:
      path: of the array in the part.
      mine: its shape.
      theirs: its shape in the checkpoint.
      how: says of a field of `Pretrained` and a path whether one of its patterns hits it.
      grid: the system's grid of patches.
    """
    if not mine or mine[1:] != theirs[1:]:
        return None
    rows, stored = mine[0], theirs[0]
    if (rows > stored and how("grow", path)) or (rows < stored and how("shorten", path)):
        return Fitting(rows, stored)
    if grid is None or not how("resize", path):
        return None
    prefix = rows - math.prod(grid)
    side = math.isqrt(max(stored - prefix, 0))
    return Fitting(rows, stored, ((side, side), grid)) if prefix >= 0 and side * side == stored - prefix else None

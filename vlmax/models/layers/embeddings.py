"""Tokens to vectors, and where they stand: learned, sine-cosine and rotary positions."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vlmax.errors import InputError
from vlmax.models.layers.axes import constrain, parameter


class TokenEmbedding(nn.Module):
    """A table `[V, D]` of vectors, looked up by token id."""

    vocab: int
    width: int
    table_init: Initializer
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The rows of `tokens`, each of which must lie in 0 .. V - 1."""
        table = parameter(self, "embedding", self.table_init, (self.vocab, self.width), ("vocab", "embed"))
        # Whole rows on every device: with rows in pieces the partitioner lets every device look up the whole batch.
        table = constrain(table.astype(self.dtype), "act_vocab", None)
        return constrain(jnp.take(table, tokens, axis=0), "batch", "tokens", "act_embed")


class Positions(nn.Module):
    """A learned table `[length, D]`, one row a position."""

    length: int
    width: int
    table_init: Initializer
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self) -> Float[Array, "N D"]:
        """The whole table."""
        table = parameter(self, "embedding", self.table_init, (self.length, self.width), ("positions", "embed"))
        return table.astype(self.dtype)


def sincos2d(grid: tuple[int, int], width: int, temperature: float = 10_000.0) -> Float[np.ndarray, "N D"]:
    """Fixed sine-cosine positions of a grid of rows x columns, row by row (MoCo v3, as in big_vision's ViT).

    Raises:
      InputError: `width` is no multiple of 4, or below 8.
    """
    if width % 4 or width < 8:
        raise InputError(f"sincos2d positions need a width of 8 or more that 4 divides, not {width}")
    y, x = np.mgrid[: grid[0], : grid[1]]
    omega = temperature ** -(np.arange(width // 4) / (width // 4 - 1))
    y, x = np.outer(y.ravel(), omega), np.outer(x.ravel(), omega)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


def resize_positions(
    table: Float[Array, "N D"], old_grid: tuple[int, int], new_grid: tuple[int, int], prefix_tokens: int = 0
) -> Float[Array, "M D"]:
    """A learned position grid for another image size: bicubic, antialiased; the first `prefix_tokens` rows stay.

    The same as `torch.nn.functional.interpolate(mode="bicubic", antialias=True, align_corners=False)` with which
    OpenCLIP resizes when it loads weights.

    Raises:
      InputError: the table does not hold `old_grid` and its prefix.
    """
    expected = prefix_tokens + old_grid[0] * old_grid[1]
    if table.shape[0] != expected:
        raise InputError(
            f"resizing positions: the table has {table.shape[0]} rows, but a grid of {old_grid[0]} x {old_grid[1]} and "
            f"{prefix_tokens} leading tokens make {expected}"
        )
    if old_grid == new_grid:
        return table
    prefix, grid = table[:prefix_tokens], table[prefix_tokens:]
    width = table.shape[1]
    grid = grid.reshape(*old_grid, width).astype(jnp.float32)
    grid = jax.image.resize(grid, (*new_grid, width), "cubic", antialias=True)
    return jnp.concatenate([prefix, grid.reshape(-1, width).astype(table.dtype)])


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary positions (Su et al. 2021) in the half-split layout of LLaMA's published weights."""

    theta: float = 10_000.0
    """Base of the wavelengths."""

    def angles(
        self, positions: Int[Array, "#B T"], head_dim: int
    ) -> tuple[Float[Array, "#B T R"], Float[Array, "#B T R"]]:
        """The cosine and sine of every position's angles, R = head_dim / 2, float32."""
        frequency = self.theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
        angle = positions[..., None].astype(jnp.float32) * frequency
        return jnp.cos(angle), jnp.sin(angle)


def apply_rotary(
    x: Float[Array, "B T H K"], cos: Float[Array, "#B T R"], sin: Float[Array, "#B T R"]
) -> Float[Array, "B T H K"]:
    """Rotates the pairs (x[i], x[i + K / 2]) of every head by its position's angles."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)

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

    def at(self, positions: Int[Array, "#B T"]) -> Float[Array, "#B T D"]:
        """The rows of positions; NaN where one is past the table."""
        return jnp.take(constrain(self(), None, None), positions, axis=0)


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
    table: Float[Array, "N D"],
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    prefix_tokens: int = 0,
    *,
    antialias: bool = True,
    offset: float = 0.0,
) -> Float[Array, "M D"]:
    """A learned position grid for another image size, bicubic; the first `prefix_tokens` rows stay.

    The same as `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` with the same `antialias`:
    OpenCLIP resizes with it when it loads weights; BLIP, EVA and DINOv2 without. `offset` is what DINOv2 adds to the
    new grid's sides before it divides them by the old ones: the grid is then sampled a little more densely.

    Raises:
      InputError: the table does not hold `old_grid` and its prefix, or an offset comes with antialiasing.
    """
    expected = prefix_tokens + old_grid[0] * old_grid[1]
    if table.shape[0] != expected:
        raise InputError(
            f"resizing positions: the table has {table.shape[0]} rows, but a grid of {old_grid[0]} x {old_grid[1]} and "
            f"{prefix_tokens} leading tokens make {expected}"
        )
    if antialias and offset:
        raise InputError(f"resizing positions: an offset of {offset} goes with antialias=False alone")
    if old_grid == new_grid:
        return table
    prefix, grid = table[:prefix_tokens], table[prefix_tokens:]
    width = table.shape[1]
    grid = grid.reshape(*old_grid, width).astype(jnp.float32)
    if antialias:
        grid = jax.image.resize(grid, (*new_grid, width), "cubic", antialias=True)
    else:
        rows, columns = (cubic_weights(*sides, offset) for sides in zip(old_grid, new_grid, strict=True))
        grid = jnp.einsum("yi,xj,ijd->yxd", rows, columns, grid)
    return jnp.concatenate([prefix, grid.reshape(-1, width).astype(table.dtype)])


def cubic_weights(old: int, new: int, offset: float = 0.0) -> Float[np.ndarray, "new old"]:
    """How much of every old point each new point takes: cubic convolution (Keys 1981, a = -0.75), edges repeated."""
    a = -0.75
    place = (np.arange(new) + 0.5) * old / (new + offset) - 0.5
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        point = np.floor(place).astype(int) + tap
        x = np.abs(place - point)
        near, far = ((a + 2) * x - (a + 3)) * x**2 + 1, a * (((x - 5) * x + 8) * x - 4)
        np.add.at(weights, (np.arange(new), point.clip(0, old - 1)), np.where(x <= 1, near, far))
    return weights.astype(np.float32)


Angles = tuple[Float[Array, "#B T R"], Float[Array, "#B T R"]]


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Positions that are `factor` times closer together (Chen et al. 2023), as in Vicuna's long models.

    Raises:
      InputError: a factor below 1.
    """

    factor: float

    def __post_init__(self):
        if self.factor < 1:
            raise InputError(f"rotary positions: the scaling's factor is {self.factor}; it must be 1 or more")

    def __call__(self, frequency: Float[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
        """The frequencies in radians a position, scaled."""
        return frequency / self.factor


@dataclasses.dataclass(frozen=True)
class LLaMA3Scaling:
    """LLaMA 3.1's longer context: slow turns are slowed by `factor`, fast ones stay, between the two it is blended.

    Fast is a wavelength below `context / high_frequency` positions, slow one above `context / low_frequency`, where
    `context` is that of the model before it was made longer.

    Raises:
      InputError: a factor below 1, or frequencies that are not 0 < low < high.
    """

    factor: float = 8.0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    context: int = 8192

    def __post_init__(self):
        if self.factor < 1 or not 0 < self.low_frequency < self.high_frequency or self.context < 1:
            raise InputError(
                f"rotary positions: the scaling's factor {self.factor} and context {self.context} must be 1 or more, "
                f"and low_frequency {self.low_frequency} above 0 and below high_frequency {self.high_frequency}"
            )

    def __call__(self, frequency: Float[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
        """The frequencies in radians a position, scaled."""
        turns = self.context * frequency / (2 * np.pi)
        fast = (turns - self.low_frequency) / (self.high_frequency - self.low_frequency)
        fast = fast.clip(0, 1)
        return fast * frequency + (1 - fast) * frequency / self.factor


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary positions (Su et al. 2021) in the half-split layout of LLaMA's published weights."""

    theta: float = 10_000.0
    """Base of the wavelengths."""
    scaling: LinearScaling | LLaMA3Scaling | None = None
    """How a model with a longer context turns than it was first trained with."""

    def angles(self, positions: Int[Array, "#B T"], head_dim: int) -> Angles:
        """The cosine and sine of every position's angles, R = head_dim / 2, float32."""
        frequency = self.theta ** -(np.arange(0, head_dim, 2) / head_dim)
        frequency = frequency if self.scaling is None else self.scaling(frequency)
        angle = positions[..., None].astype(jnp.float32) * frequency.astype(np.float32)
        return jnp.cos(angle), jnp.sin(angle)


def apply_rotary(
    x: Float[Array, "B T H K"], cos: Float[Array, "#B T R"], sin: Float[Array, "#B T R"]
) -> Float[Array, "B T H K"]:
    """Rotates the pairs (x[i], x[i + K / 2]) of every head by its position's angles."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)

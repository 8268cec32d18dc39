"""Draws the `shapes` world with integers only, so that every platform gives the same pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, UInt8, UInt16

UNIT = 1024  # a shape fills [-UNIT, UNIT] in both directions, y pointing down
SUBSAMPLES = 4  # per pixel and direction, for smooth edges

Grid = Int[np.ndarray, "rows columns"]


def _circle(x: Grid, y: Grid) -> np.ndarray:
    return x * x + y * y <= UNIT * UNIT


def _square(x: Grid, y: Grid) -> np.ndarray:
    return np.maximum(abs(x), abs(y)) <= 880


def _triangle(x: Grid, y: Grid) -> np.ndarray:
    return (y <= 850) & (abs(x) * 1850 <= 980 * (y + 1000))


def _diamond(x: Grid, y: Grid) -> np.ndarray:
    return abs(x) * 10 + abs(y) * 7 <= 7 * UNIT


def _cross(x: Grid, y: Grid) -> np.ndarray:
    return (np.minimum(abs(x), abs(y)) <= 330) & (np.maximum(abs(x), abs(y)) <= 1000)


def _ring(x: Grid, y: Grid) -> np.ndarray:
    square = x * x + y * y
    return (square <= UNIT * UNIT) & (square >= 560 * 560)


def _heart(x: Grid, y: Grid) -> np.ndarray:
    u, v = x * 290 // UNIT, 40 - y * 280 // UNIT  # (u^2 + v^2 - 1)^3 <= u^2 v^3 in units of 1/256
    return (u * u + v * v - 256 * 256) ** 3 <= u * u * v**3 * 256


def _star(x: Grid, y: Grid) -> np.ndarray:
    points = ((0, -1000), (951, -309), (588, 809), (-588, 809), (-951, -309))
    inside = [px * x + py * y <= 309 * UNIT for px, py in points]
    return np.sum(inside, axis=0) >= 4  # a pentagram: inside at least four of its five lines


INSIDE: dict[str, Callable[[Grid, Grid], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "star": _star,
}


@functools.lru_cache(maxsize=1024)
def coverage(shape: str, radius: int) -> UInt16[np.ndarray, "diameter diameter 1"]:
    """How much of each pixel the shape covers, 0 to 256; the patch is `2 * radius` pixels wide."""
    samples = np.arange(2 * radius * SUBSAMPLES, dtype=np.int64)
    line = (2 * samples + 1 - 2 * radius * SUBSAMPLES) * UNIT // (2 * radius * SUBSAMPLES)
    inside = INSIDE[shape](line[None, :], line[:, None])
    counts = inside.reshape(2 * radius, SUBSAMPLES, 2 * radius, SUBSAMPLES).sum(axis=(1, 3))
    return (counts * 256 // SUBSAMPLES**2).astype(np.uint16)[:, :, None]


def paint(
    size: int, background: Sequence[int], patches: Sequence[tuple[str, int, int, int, Sequence[int]]]
) -> UInt8[np.ndarray, "size size 3"]:
    """Paints shapes over a plain background.

    Args:
      size: width and height in pixels.
      background: its RGB, 0 to 255.
      patches: (shape, x, y, radius, RGB) in pixels, painted in this order; each must lie inside the image.
    """
    image = np.empty((size, size, 3), np.uint16)
    image[:] = background
    for shape, x, y, radius, rgb in patches:
        alpha = coverage(shape, radius)
        patch = image[y - radius : y + radius, x - radius : x + radius]
        patch[:] = (patch * (256 - alpha) + np.asarray(rgb, np.uint16) * alpha + 128) >> 8
    return image.astype(np.uint8)

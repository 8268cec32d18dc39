"""Resizing with antialiasing, two ways: Pillow's own, and one that is several times as fast and close to it.

When an image shrinks by f, a right resize widens its filter by f. OpenCV's linear and cubic do not; its area mode
averages boxes, which is neither, and slow. `resize_fast` makes up the difference with one short symmetric filter
before OpenCV's resize, fitted so that both together are Pillow's widened filter as nearly as can be.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

cv2.setNumThreads(0)  # workers are processes, one a core; threads inside them would only fight

Interpolation = Literal["bilinear", "bicubic"]
Pixels = UInt8[np.ndarray, "height width 3"]
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
OPENCV = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
STEPS = 32  # filters are fitted for factors in steps of 1/32


def resize_exact(pixels: Pixels, box: tuple[int, int, int, int], size: tuple[int, int], how: Interpolation) -> Pixels:
    """Pillow's antialiased resize of `box` (left, top, width, height) to `size` (width, height)."""
    left, top, width, height = box
    edges = (left, top, left + width, top + height)
    return np.asarray(Image.fromarray(pixels).resize(size, PILLOW[how], box=edges))


def resize_fast(pixels: Pixels, size: tuple[int, int], how: Interpolation) -> Pixels:
    """All of `pixels` to `size` (width, height), close to Pillow's antialiased resize.

    The time grows with the factor: average whole blocks before, see `mean_of_blocks`, until it is below 4.
    """
    steps_x = max(STEPS, round(STEPS * pixels.shape[1] / size[0]))
    steps_y = max(STEPS, round(STEPS * pixels.shape[0] / size[1]))
    if how == "bicubic" or max(steps_x, steps_y) > STEPS:
        filters = filter_before(steps_x, how), filter_before(steps_y, how)
        pixels = cv2.sepFilter2D(pixels, -1, *filters, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(pixels, size, interpolation=OPENCV[how])


def mean_of_blocks(pixels: Pixels, block_x: int, block_y: int) -> Pixels:
    """The mean of blocks of block_x by block_y pixels, whose multiples both sides must be."""
    if block_x == block_y == 1:
        return pixels
    height, width = pixels.shape[:2]
    return cv2.resize(pixels, (width // block_x, height // block_y), interpolation=cv2.INTER_AREA)


@functools.lru_cache(maxsize=4096)
def filter_before(steps: int, how: Interpolation) -> Float32[np.ndarray, "taps"]:
    """The filter to run before OpenCV's resize when it shrinks by steps / `STEPS`: symmetric, and sums to 1.

    Least squares between Pillow's kernel widened by the factor and the sum of shifted OpenCV kernels.
    """
    factor = steps / STEPS
    reach = math.ceil(1.5 * factor)
    x = np.arange(-3 * factor - reach, 3 * factor + reach, 1 / 64) + 1 / 128
    if how == "bilinear":
        wanted, kernel = _triangle(x / factor) / factor, _triangle
    else:  # both are Keys' cubic; Pillow has a = -0.5, OpenCV a = -0.75
        wanted, kernel = _cubic(x / factor, -0.5) / factor, functools.partial(_cubic, a=-0.75)
    shifted = [kernel(x - j) + kernel(x + j) - 2 * kernel(x) for j in range(1, reach + 1)]
    side = np.linalg.lstsq(np.stack(shifted, axis=1), wanted - kernel(x), rcond=None)[0]
    return np.concatenate([side[::-1], [1 - 2 * side.sum()], side]).astype(np.float32)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(x))


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))

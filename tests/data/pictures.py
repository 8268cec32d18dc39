"""Encoded images that tests make."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with edges, uint8 `[height, width, 3]`: noise at several scales and a disc."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((3, 60), (12, 30), (40, 12)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += weight / 60 * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    y, x = np.mgrid[:height, :width]
    total[(y - height / 3) ** 2 + (x - width / 2) ** 2 < (min(width, height) / 4) ** 2] += 50
    return (total - total.min()).clip(0, None).__mul__(255 / np.ptp(total)).clip(0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str = "JPEG", **options) -> bytes:
    """The pixels as a file of the kind that Pillow calls so."""
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, kind, **options)
    return out.getvalue()

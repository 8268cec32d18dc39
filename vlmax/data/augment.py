"""RandAugment (Cubuk et al. 2020) as BLIP uses it: a few operations on uint8 RGB, all of one strength.

Strength is a level of at most 10. Where a place beyond the image is looked at, the result is gray (128). Shears and
translations sample bilinearly; the origin of shears is the top left corner, as in BLIP's code.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import cv2
import numpy as np
from jaxtyping import UInt8

from vlmax.errors import InputError

Pixels = UInt8[np.ndarray, "height width 3"]
Operation = Literal[
    "identity", "auto_contrast", "brightness", "sharpness", "equalize",
    "shear_x", "shear_y", "translate_x", "translate_y", "rotate",
]  # fmt: skip
BLIP: tuple[Operation, ...] = (
    "identity", "auto_contrast", "brightness", "sharpness", "equalize",
    "shear_x", "shear_y", "translate_x", "translate_y", "rotate",
)  # fmt: skip
MAX_LEVEL = 10
FILL = (128, 128, 128)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Draws `count` operations with replacement and does each with probability `probability`; BLIP A4: 2, 5, 0.5.

    At level m: brightness and sharpness have the factor 0.18 m + 0.1 (so level 5 changes nothing), shears 0.03 m,
    translations m pixels whatever the image's size, rotations 3 m degrees; the sign of these last is drawn.

    Attributes:
      count: how many operations are drawn for an image.
      level: their strength, 0 to 10.
      probability: how often a drawn operation is done.
      operations: what is drawn from, all alike.
    """

    count: int = 2
    level: float = 5.0
    probability: float = 0.5
    operations: tuple[Operation, ...] = BLIP

    def __post_init__(self):
        """Raises `InputError` where a field has no meaning."""
        if self.count < 0 or not 0 <= self.level <= MAX_LEVEL or not 0 <= self.probability <= 1 or not self.operations:
            raise InputError(
                f"{self}: count must be at least 0, level 0 to {MAX_LEVEL}, probability 0 to 1 and operations not "
                "empty; change it in the experiment's image transform"
            )

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """The augmented image; the same generator state gives the same image, and `pixels` is not written to."""
        for index in rng.integers(len(self.operations), size=self.count):
            done, sign = rng.random() < self.probability, 1 if rng.random() < 0.5 else -1
            if done:
                pixels = apply(pixels, self.operations[index], self.level, sign)
        return pixels


def apply(pixels: Pixels, operation: Operation, level: float, sign: int = 1) -> Pixels:
    """One operation at a level of 0 to 10; `sign` turns shears, translations and rotations round."""
    factor = level / MAX_LEVEL * 1.8 + 0.1
    amount = sign * level / MAX_LEVEL
    match operation:
        case "identity":
            return pixels
        case "auto_contrast":
            return auto_contrast(pixels)
        case "brightness":
            return brightness(pixels, factor)
        case "sharpness":
            return sharpness(pixels, factor)
        case "equalize":
            return equalize(pixels)
        case "shear_x":
            return _warp(pixels, [[1, 0.3 * amount, 0], [0, 1, 0]])
        case "shear_y":
            return _warp(pixels, [[1, 0, 0], [0.3 * amount, 1, 0]])
        case "translate_x":
            return _warp(pixels, [[1, 0, -MAX_LEVEL * amount], [0, 1, 0]])
        case "translate_y":
            return _warp(pixels, [[1, 0, 0], [0, 1, -MAX_LEVEL * amount]])
        case "rotate":
            return rotate(pixels, 30 * amount)
    raise InputError(f"RandAugment: there is no operation {operation!r}; known: {', '.join(BLIP)}; change `operations`")


def auto_contrast(pixels: Pixels) -> Pixels:
    """Stretches each channel so that its least value is 0 and its largest 255; one with a single value stays."""
    return _by_table(pixels, _stretch)


def equalize(pixels: Pixels) -> Pixels:
    """Spreads each channel's values evenly, by Pillow's rule (`ImageOps.equalize`)."""
    return _by_table(pixels, _spread)


def brightness(pixels: Pixels, factor: float) -> Pixels:
    """Every value times `factor`, cut off at 255, rounded down."""
    return cv2.LUT(pixels, (np.arange(256) * np.float32(factor)).clip(0, 255).astype(np.uint8))


def sharpness(pixels: Pixels, factor: float) -> Pixels:
    """Away from a smoothed image (kernel 1 1 1 / 1 5 1 / 1 1 1 over 13) by `factor`; the outermost pixels stay.

    Values beyond 0 and 255 are cut off. BLIP's own code lets them wrap round, which only happens above level 5.
    """
    if min(pixels.shape[:2]) < 3:
        return pixels
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    smooth = cv2.filter2D(pixels, -1, kernel / 13)[1:-1, 1:-1].astype(np.float32)
    out = pixels.copy()
    out[1:-1, 1:-1] = (smooth + np.float32(factor) * (pixels[1:-1, 1:-1] - smooth)).clip(0, 255).astype(np.uint8)
    return out


def rotate(pixels: Pixels, degrees: float) -> Pixels:
    """Turns anticlockwise about (width / 2, height / 2)."""
    height, width = pixels.shape[:2]
    return _warp(pixels, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1))


def _warp(pixels: Pixels, matrix) -> Pixels:
    """The pixel at p goes to matrix p; bilinear."""
    height, width = pixels.shape[:2]
    return cv2.warpAffine(pixels, np.asarray(matrix, np.float64), (width, height), borderValue=FILL)


def _by_table(pixels: Pixels, table_of) -> Pixels:
    """Each channel through its own table of 256 values."""
    counts = [np.bincount(pixels[:, :, c].ravel(), minlength=256) for c in range(3)]
    return cv2.LUT(pixels, np.stack([table_of(c) for c in counts], axis=-1)[None])


def _stretch(counts: np.ndarray) -> np.ndarray:
    values = np.arange(256)
    low, high = np.flatnonzero(counts)[[0, -1]]
    if high <= low:
        return values.astype(np.uint8)
    scale = 255 / (high - low)
    return (values * scale - low * scale).clip(0, 255).astype(np.uint8)


def _spread(counts: np.ndarray) -> np.ndarray:
    step = counts[counts > 0][:-1].sum() // 255
    if step == 0:
        return np.arange(256, dtype=np.uint8)
    before = np.concatenate([[step // 2], counts[:-1]]).cumsum()
    return (before // step).clip(0, 255).astype(np.uint8)

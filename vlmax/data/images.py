"""Image transforms: encoded bytes or pixels to uint8 `[size, size, 3]`, pure functions of (image, random generator).

Where the crop lies is decided from the header, before decoding, so that a JPEG can be decoded at a half, a
quarter or an eighth where the crop stays large enough. Normalisation is not here: images travel as uint8 and are
normalised on the device.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from vlmax.data.augment import RandAugment
from vlmax.data.decode import Decoder, Picture, open_picture
from vlmax.data.example import BadRecord
from vlmax.data.resize import Interpolation, mean_of_blocks, resize_exact, resize_fast
from vlmax.errors import InputError

Square = UInt8[np.ndarray, "size size 3"]
DECODER = Decoder()
MAX_RESIZED = 64  # squares: a 10,000 x 1 picture must not become a huge one before its middle is kept
ATTEMPTS = 10  # torchvision's, before RandomResizedCrop settles for a centre crop


class Placement(NamedTuple):
    """What becomes of an image: `box` of it is resized to `size` and put at `corner` of a square canvas.

    Attributes:
      box: left, top, width, height in pixels of the image.
      size: width and height after resizing; beyond the canvas it is cut off.
      corner: left and top on the canvas; negative where the image's edge is cut off.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    corner: tuple[int, int] = (0, 0)


@runtime_checkable
class Geometry(Protocol):
    """Which part of an image is seen, and how it fills the square."""

    if TYPE_CHECKING:  # methods only at run time, so that a field of this type takes its default's fields

        @property
        def size(self) -> int:
            """Width and height of the result in pixels."""
            ...

    def __call__(self, image: bytes | np.ndarray, rng: np.random.Generator, decoder: Decoder = ...) -> Square:
        """The image as uint8 `[size, size, 3]`; raises `BadRecord` where it cannot be decoded."""
        ...


def _check(geometry: Geometry, right: bool = True, rule: str = "") -> None:
    if geometry.size < 1:
        right, rule = False, "size must be at least 1 pixel"
    if not right:
        raise InputError(f"{geometry}: {rule}; change it in the experiment's image transform")


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and aspect ratio, resized to the square: torchvision's rule.

    Attributes:
      size: width and height of the result in pixels.
      scale: least and largest share of the image's area; CLIP (0.9, 1), FLIP (0.5, 1), BLIP (0.2, 1).
      ratio: least and largest width / height of the box; its logarithm is uniform.
      interpolation: the filter, widened when the box shrinks.
      exact: decode the whole image and resize it with Pillow, instead of a reduced decode and the fast resize, which
        rounds the box to at most half a pixel of the result and is several times as fast.
    """

    size: int = 224
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    exact: bool = False

    def __post_init__(self):
        """Raises `InputError` where a range has no meaning."""
        _check(self, 0 < self.scale[0] <= self.scale[1] <= 1, "scale must be 0 < least <= largest <= 1")
        _check(self, 0 < self.ratio[0] <= self.ratio[1], "ratio must be 0 < least <= largest")

    def __call__(self, image: bytes | np.ndarray, rng: np.random.Generator, decoder: Decoder = DECODER) -> Square:
        """The crop; raises `BadRecord` where the image cannot be decoded."""
        picture = open_picture(image, decoder)
        box = random_box(picture.width, picture.height, self.scale, self.ratio, rng)
        return _render(picture, Placement(box, (self.size, self.size)), self.size, self.interpolation, self.exact)


@dataclasses.dataclass(frozen=True)
class CentreCrop:
    """The shortest side resized to `size`, the middle of the other side kept: CLIP's evaluation.

    Attributes:
      size: width and height of the result in pixels.
      interpolation: the filter, widened when the image shrinks.
      exact: as torchvision on a Pillow image, pixel for pixel; otherwise fast, see `RandomResizedCrop`.
    """

    size: int = 224
    interpolation: Interpolation = "bicubic"
    exact: bool = True

    def __post_init__(self):
        """Raises `InputError` where the size has no meaning."""
        _check(self)

    def __call__(self, image: bytes | np.ndarray, rng: np.random.Generator, decoder: Decoder = DECODER) -> Square:
        """The crop, without randomness; raises `BadRecord` where the image cannot be decoded."""
        picture = open_picture(image, decoder)
        width, height, short = picture.width, picture.height, min(picture.width, picture.height)
        size = int(self.size * width / short), int(self.size * height / short)
        corner = -round((size[0] - self.size) / 2), -round((size[1] - self.size) / 2)
        placement = Placement((0, 0, width, height), size, corner)
        return _render(picture, placement, self.size, self.interpolation, self.exact)


@dataclasses.dataclass(frozen=True)
class Pad:
    """The whole image with its aspect ratio kept, in the middle of a square of one colour: LLaVA's.

    Attributes:
      size: width and height of the result in pixels.
      color: RGB of what the image does not cover, 0 to 255; LLaVA's is CLIP's mean.
      interpolation: the filter, widened when the image shrinks.
      exact: Pillow's resize from the whole image; otherwise fast, see `RandomResizedCrop`.
    """

    size: int = 224
    color: tuple[int, int, int] = (122, 116, 104)
    interpolation: Interpolation = "bicubic"
    exact: bool = True

    def __post_init__(self):
        """Raises `InputError` where a field has no meaning."""
        _check(self, all(0 <= c <= 255 for c in self.color), "color must be three numbers from 0 to 255")

    def __call__(self, image: bytes | np.ndarray, rng: np.random.Generator, decoder: Decoder = DECODER) -> Square:
        """The padded image, without randomness; raises `BadRecord` where it cannot be decoded."""
        picture = open_picture(image, decoder)
        width, height, long = picture.width, picture.height, max(picture.width, picture.height)
        size = max(1, round(self.size * width / long)), max(1, round(self.size * height / long))
        corner = (self.size - size[0]) // 2, (self.size - size[1]) // 2
        placement = Placement((0, 0, width, height), size, corner)
        return _render(picture, placement, self.size, self.interpolation, self.exact, self.color)


@dataclasses.dataclass(frozen=True)
class Squash:
    """The whole image resized to the square, its aspect ratio given up: SigLIP's, and BLIP's evaluation.

    Attributes:
      size: width and height of the result in pixels.
      interpolation: the filter, widened when the image shrinks.
      exact: Pillow's resize from the whole image; otherwise fast, see `RandomResizedCrop`.
    """

    size: int = 224
    interpolation: Interpolation = "bicubic"
    exact: bool = True

    def __post_init__(self):
        """Raises `InputError` where the size has no meaning."""
        _check(self)

    def __call__(self, image: bytes | np.ndarray, rng: np.random.Generator, decoder: Decoder = DECODER) -> Square:
        """The squashed image, without randomness; raises `BadRecord` where it cannot be decoded."""
        picture = open_picture(image, decoder)
        placement = Placement((0, 0, picture.width, picture.height), (self.size, self.size))
        return _render(picture, placement, self.size, self.interpolation, self.exact)


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """All that happens to an image, in this order: decode, geometry, flip, augment.

    Attributes:
      geometry: what is seen of the image and how it fills the square.
      flip: how often the image is mirrored left to right, 0 to 1; CLIP 0, FLIP and BLIP 0.5.
      augment: random changes of colour and shape after that, or none.
      decoder: background colour and largest image.
    """

    geometry: Geometry = RandomResizedCrop()
    flip: float = 0.0
    augment: RandAugment | None = None
    decoder: Decoder = DECODER

    def __post_init__(self):
        """Raises `InputError` where `flip` is no probability."""
        if not 0 <= self.flip <= 1:
            raise InputError(f"an image transform mirrors with probability flip={self.flip}; it must be from 0 to 1")

    @property
    def size(self) -> int:
        """Width and height of the result in pixels."""
        return self.geometry.size

    def __call__(self, image: bytes | np.ndarray, rng: np.random.Generator) -> Square:
        """The transformed image; raises `BadRecord` where it cannot be decoded."""
        pixels = self.geometry(image, rng, self.decoder)
        if self.flip and rng.random() < self.flip:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return pixels if self.augment is None else self.augment(pixels, rng)


def random_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, width, height of a random box in an image of width x height pixels."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(ATTEMPTS):
        area, aspect = width * height * rng.uniform(*scale), math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w, h = min(width, max(1, round(height * ratio[1]))), min(height, max(1, round(width / ratio[0])))
    return (width - w) // 2, (height - h) // 2, w, h


def _render(
    picture: Picture,
    placement: Placement,
    size: int,
    interpolation: Interpolation,
    exact: bool,
    color: tuple[int, int, int] = (0, 0, 0),
) -> Square:
    """The placed image on a canvas of `color`."""
    (width, height), (x, y) = placement.size, placement.corner
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, size), min(y + height, size)
    if exact:
        if width * height > MAX_RESIZED * size * size:
            raise BadRecord(f"{picture.width} x {picture.height} pixels would be {width} x {height} after resizing")
        resized = resize_exact(picture.read(1)[0], placement.box, placement.size, interpolation)
        seen = resized[top - y : bottom - y, left - x : right - x]
    else:
        seen = _seen_fast(picture, placement, (left - x, top - y, right - x, bottom - y), interpolation)
    if seen.shape == (size, size, 3):
        return np.ascontiguousarray(seen)
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = color
    canvas[top:bottom, left:right] = seen
    return canvas


def _seen_fast(
    picture: Picture, placement: Placement, seen: tuple[int, int, int, int], interpolation: Interpolation
) -> np.ndarray:
    """The part `seen` (left, top, right, bottom of the resized image), decoded no larger than needed."""
    left, top, width, height = placement.box
    factor_x, factor_y = width / placement.size[0], height / placement.size[1]
    pixels, reduction = picture.read(_power_of_two(min(factor_x, factor_y)))
    block_x, block_y = _blocks(factor_x, factor_y, reduction)
    columns = _span(left + seen[0] * factor_x, left + seen[2] * factor_x, reduction, block_x, pixels.shape[1])
    rows = _span(top + seen[1] * factor_y, top + seen[3] * factor_y, reduction, block_y, pixels.shape[0])
    part = mean_of_blocks(pixels[rows, columns], block_x, block_y)
    return resize_fast(part, (seen[2] - seen[0], seen[3] - seen[1]), interpolation)


def _power_of_two(factor: float) -> int:
    """The largest power of two not above `factor`, at least 1."""
    return 1 << max(0, math.floor(math.log2(factor)))


def _blocks(factor_x: float, factor_y: float, reduction: int) -> tuple[int, int]:
    """Width and height of the blocks to average after a decode at 1 / reduction.

    Afterwards the smaller factor left is below 2 and the other below 4, so that the fitted filters stay short.
    """
    both = _power_of_two(min(factor_x, factor_y) / reduction)
    left_x, left_y = (_power_of_two(f / (reduction * both)) for f in (factor_x, factor_y))
    return both * max(1, left_x // 2), both * max(1, left_y // 2)


def _span(start: float, end: float, reduction: int, block: int, limit: int) -> slice:
    """The whole blocks nearest to start..end (pixels of the image) among `limit` decoded pixels."""
    unit = reduction * block
    last = min(max(round(end / unit), 1), limit // block)
    return slice(min(round(start / unit), last - 1) * block, last * block)

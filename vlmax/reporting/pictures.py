"""A sheet of pictures with their texts, to see what really reaches a model."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

_MOST = 32  # pictures on a sheet
_CELL = 208  # pixels: a picture is enlarged by a whole factor up to this width
_LARGEST = 384  # pixels: a picture wider than this is made smaller
_GAP = 12
_FONT_SIZE = 15
_LINES = 5  # of text below a picture; more is cut and marked


def contact_sheet(
    images: UInt8[np.ndarray, "B height width 3"], texts: Sequence[str]
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """A grid of at most 32 pictures, each with its number and its text below.

    Small pictures are enlarged by a whole factor with hard edges, so that every pixel can be seen.

    Raises:
      ValueError: the images are not uint8 `[B, height, width, 3]`, or there is not one text an image.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be uint8 [B, height, width, 3], not {images.dtype} {list(images.shape)}")
    if not len(images) == len(texts) > 0:
        raise ValueError(f"{len(images)} images with {len(texts)} texts; there must be one text an image")
    shown = min(len(images), _MOST)
    pictures = [_sized(image) for image in images[:shown]]
    font = ImageFont.load_default(size=_FONT_SIZE)
    cell_width = max(pictures[0].width, _CELL)
    captions = [_wrapped(f"{i}: {' '.join(text.split())}", font, cell_width) for i, text in enumerate(texts[:shown])]

    line_height = round(_FONT_SIZE * 1.3)
    square = math.ceil(math.sqrt(shown))
    columns = min(range(square, square + 3), key=lambda columns: -shown % columns)  # fewest empty cells
    rows = math.ceil(shown / columns)
    cell_height = pictures[0].height + 6 + max(c.count("\n") + 1 for c in captions) * line_height
    width, height = columns * (cell_width + _GAP) + _GAP, rows * (cell_height + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x = _GAP + i % columns * (cell_width + _GAP)
        y = _GAP + i // columns * (cell_height + _GAP)
        sheet.paste(picture, (x, y))
        draw.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=(190, 190, 190))
        for row, line in enumerate(caption.split("\n")):
            draw.text((x, y + picture.height + 4 + row * line_height), line, fill=(20, 20, 20), font=font)
    return np.asarray(sheet)


def _sized(pixels: UInt8[np.ndarray, "height width 3"]) -> Image.Image:
    image = Image.fromarray(pixels)
    factor = max(1, _CELL // image.width)
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if image.width > _LARGEST:
        return image.resize((_LARGEST, max(1, round(image.height * _LARGEST / image.width))), Image.Resampling.LANCZOS)
    return image


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text in lines of at most `width` pixels, at most `_LINES` of them."""
    letters = max(1, int(width / (font.getlength("abcdefghijklmnopqrstuvwxyz etaoin") / 33)))
    while letters > 1:
        lines = textwrap.wrap(text, letters, max_lines=_LINES, placeholder=" ...", break_on_hyphens=False) or [""]
        if all(font.getlength(line) <= width for line in lines):
            return "\n".join(lines)
        letters -= 1
    return text[:1]


def local_rows(array: jax.Array, count: int) -> np.ndarray:
    """The first rows of a global array that lie on this process's devices, in order; at most `count`.

    Raises:
      ValueError: the array is sharded over another dimension than the first.
    """
    pieces: dict[int, jax.Array] = {}
    for shard in array.addressable_shards:
        if shard.data.shape[1:] != array.shape[1:]:
            raise ValueError(f"array {array.shape} is sharded beyond its first dimension: {array.sharding}")
        pieces[shard.index[0].start or 0] = shard.data
    rows: list[np.ndarray] = []
    for start in sorted(pieces):
        if sum(map(len, rows)) < count:
            rows.append(jax.device_get(pieces[start]))
    return np.concatenate(rows)[:count]

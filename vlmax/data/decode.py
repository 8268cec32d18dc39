"""Encoded bytes to RGB pixels: the header first, the pixels only when they are wanted, and nothing damaged let through.

JPEG is decoded by libjpeg-turbo (`simplejpeg`, twice as fast as OpenCV's or Pillow's decoder), at 1/2, 1/4 or 1/8 of
its size where the caller can do with less; PNG, WebP, GIF, CMYK JPEG and rare subsamplings by Pillow.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Callable

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError, WebPImagePlugin  # noqa: F401  (WebP is registered by its import)

from vlmax.data.example import BadRecord

Pixels = UInt8[np.ndarray, "height width 3"]
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
ORIENTATION_TAG = 0x0112
# Warnings of libjpeg that every viewer ignores: the pixels are whole.
HARMLESS = re.compile(r"extraneous bytes before marker 0xd9|Invalid SOS parameters|Unknown Adobe color transform")


@dataclasses.dataclass(frozen=True)
class Decoder:
    """How encoded images become RGB.

    The EXIF orientation is honoured; colour profiles are not applied; an animation gives its first frame; 16-bit
    grayscale is scaled to 8 bits.

    Attributes:
      background: the RGB colour, 0 to 255, that shows through transparent pixels.
      max_pixels: an image with more is a bad record, known from its header before anything is allocated. The default is
        what Pillow, too, takes for safe; Pillow's formats are refused above twice that whatever is set here.
    """

    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 89_478_485


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image whose header has been read.

    Attributes:
      width: in pixels, upright.
      height: in pixels, upright.
      read: `read(reduction)` gives upright pixels and the reduction that they have: each is the mean of about
        reduction x reduction pixels of the image. It is a power of two, at most the one asked for. Raises `BadRecord`.
    """

    width: int
    height: int
    read: Callable[[int], tuple[Pixels, int]]


def open_picture(image: bytes | np.ndarray, decoder: Decoder) -> Picture:
    """Reads the header of encoded bytes, or wraps uint8 pixels `[height, width, 3]`.

    Raises:
      BadRecord: the bytes are no image, or it has more than `max_pixels`.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise BadRecord(f"pixels are {image.dtype} {list(image.shape)}, not uint8 [height, width, 3]")
        return Picture(image.shape[1], image.shape[0], lambda reduction: (image, 1))
    if not image:
        raise BadRecord("the image has no bytes")
    if image[:2] == b"\xff\xd8":
        try:
            size, colours = _jpeg_header(image)
        except ValueError:  # a damaged header, or a subsampling that TurboJPEG does not know: Pillow tells
            return _open_with_pillow(image, decoder)
        if colours in ("CMYK", "YCCK"):
            return _open_with_pillow(image, decoder)
        _check_size(*size, decoder)
        return _upright(
            *size, exif_orientation(_jpeg_exif(image)), lambda reduction: _read_jpeg(image, *size, reduction)
        )
    return _open_with_pillow(image, decoder)


def decode(image: bytes | np.ndarray, decoder: Decoder | None = None) -> Pixels:
    """The whole image, upright, as uint8 RGB `[height, width, 3]`; raises `BadRecord`."""
    return open_picture(image, decoder or Decoder()).read(1)[0]


def exif_orientation(exif: bytes) -> int:
    """The orientation 1 to 8 in an EXIF block (TIFF, with or without `Exif` in front); 1 where it says nothing."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "little", b"MM": "big"}.get(tiff[:2])
    if order is None:
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)  # type: ignore[arg-type]

    table = number(4, 4)
    for entry in range(table + 2, min(table + 2 + 12 * number(table, 2), len(tiff) - 11), 12):
        if number(entry, 2) == ORIENTATION_TAG:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def _check_size(width: int, height: int, decoder: Decoder) -> None:
    if width * height > decoder.max_pixels:
        raise BadRecord(f"{width} x {height} pixels are more than max_pixels {decoder.max_pixels}")


def _reason(error: Exception) -> str:
    """The error's message in one line that is the same at every try: no addresses."""
    lines = re.sub(r" at 0x[0-9a-fA-F]+", "", str(error)).splitlines() or [""]
    return lines[0] or type(error).__name__


def _jpeg_header(data: bytes) -> tuple[tuple[int, int], str]:
    """Width and height, and the colour space; raises `ValueError`."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    return (int(width), int(height)), str(colours)


def _read_jpeg(data: bytes, width: int, height: int, reduction: int) -> tuple[Pixels, int]:
    used = min(8, 1 << (reduction.bit_length() - 1))
    least = (math.ceil(height / used), math.ceil(width / used)) if used > 1 else (0, 0)

    def decoded(strict: bool) -> tuple[Pixels, int]:
        return simplejpeg.decode_jpeg(data, "RGB", False, False, *least, used, None, strict), used

    try:
        try:
            return decoded(strict=True)
        except ValueError as warning:  # libjpeg fills what is missing with gray and only warns
            if not HARMLESS.search(str(warning)) or b"\xff\xd9" not in data[-4096:]:
                raise
        return decoded(strict=False)
    except ValueError as error:
        raise BadRecord(f"damaged JPEG: {_reason(error)}") from None


def _jpeg_exif(data: bytes) -> bytes:
    """The EXIF block of a JPEG, empty where there is none."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1] not in (0xDA, 0xD9):
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return data[at + 4 : at + 2 + length]
        at += 2 + max(length, 2)
        if at + 1 >= len(data):
            break
    return b""


def _open_with_pillow(data: bytes, decoder: Decoder) -> Picture:
    try:
        image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    except UnidentifiedImageError:
        begin = "all zeros" if not any(data[:64]) else f"0x{data[:8].hex()}"
        raise BadRecord(f"not a JPEG, PNG, WebP or GIF image, or a damaged header; it begins with {begin}") from None
    except Exception as error:  # decoders raise anything on hostile bytes
        raise BadRecord(f"damaged image: {_reason(error)}") from None
    width, height = image.size
    _check_size(width, height, decoder)

    def read(reduction: int) -> tuple[Pixels, int]:
        try:
            return _pillow_rgb(image, decoder.background), 1
        except BadRecord:
            raise
        except Exception as error:
            raise BadRecord(f"damaged {image.format}: {_reason(error)}") from None

    return _upright(width, height, exif_orientation(image.info.get("exif", b"")), read)


def _pillow_rgb(image: Image.Image, background: tuple[int, int, int]) -> Pixels:
    image.load()
    if image.mode.startswith("I"):  # 16-bit grayscale, which convert("RGB") would clip
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return np.repeat(((wide + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        below = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(below, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _upright(width: int, height: int, orientation: int, read: Callable[[int], tuple[Pixels, int]]) -> Picture:
    """A picture turned as the EXIF orientation says."""
    if orientation == 1:
        return Picture(width, height, read)
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda p: np.rot90(p),
    }

    def turned(reduction: int) -> tuple[Pixels, int]:
        pixels, used = read(reduction)
        return np.ascontiguousarray(turns[orientation](pixels)), used

    return Picture(*((width, height) if orientation < 5 else (height, width)), turned)

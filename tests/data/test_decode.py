from __future__ import annotations

import io
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.data.pictures import encoded, photo
from vlmax.data.decode import Decoder, decode, exif_orientation, open_picture
from vlmax.data.example import BadRecord

PIXELS = photo(61, 43)
JPEG = encoded(PIXELS, quality=90)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def jpeg_with_size(width: int, height: int) -> bytes:
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}])
def test_jpeg_is_what_pillow_decodes(options):
    data = encoded(PIXELS, quality=90, **options)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


def test_lossless_formats_come_back_exactly():
    np.testing.assert_array_equal(decode(encoded(PIXELS, "PNG")), PIXELS)
    np.testing.assert_array_equal(decode(encoded(PIXELS, "WEBP", lossless=True)), PIXELS)
    np.testing.assert_array_equal(decode(PIXELS), PIXELS)


def test_grayscale_becomes_three_equal_channels():
    gray = Image.fromarray(PIXELS).convert("L")
    expected = np.repeat(np.asarray(gray)[..., None], 3, -1)
    np.testing.assert_array_equal(decode(encoded(gray, "PNG")), expected)
    assert np.abs(decode(encoded(gray, "JPEG", quality=95)).astype(int) - expected).mean() < 2


def test_sixteen_bit_grayscale_is_scaled_not_clipped():
    wide = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(wide), "PNG"))[..., 1], np.arange(256).reshape(16, 16))


def test_cmyk_jpeg_is_what_pillow_converts():
    data = encoded(Image.fromarray(PIXELS).convert("CMYK"), quality=95)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.abs(decode(data).astype(int) - PIXELS).mean() < 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 30)])
def test_transparency_shows_the_background(mode, background):
    alpha = np.zeros((43, 61), np.uint8)
    alpha[:, 20:] = 255
    image = Image.fromarray(np.dstack([PIXELS, alpha]))
    data = encoded(image.quantize(64) if mode == "P" else image.convert(mode), "PNG")
    pixels = decode(data, Decoder(background=background))
    assert (pixels[:, :20] == background).all()
    assert not (pixels[:, 20:] == background).all()


def test_half_transparent_is_mixed():
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 128))
    pixels = decode(encoded(image, "PNG"), Decoder(background=(0, 0, 100)))
    np.testing.assert_allclose(pixels[0, 0], [100, 0, 50], atol=1)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data) == (255, 0, 0)).all()
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert (decode(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PIXELS, kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    picture = open_picture(data, Decoder())
    assert (picture.height, picture.width) == expected.shape[:2]
    np.testing.assert_array_equal(picture.read(1)[0], expected)


@pytest.mark.parametrize("reduction,used", [(1, 1), (2, 2), (3, 2), (4, 4), (8, 8), (64, 8)])
def test_reduced_decode_is_the_mean_of_blocks(reduction, used):
    data = encoded(photo(640, 480), quality=95)
    pixels, got = open_picture(data, Decoder()).read(reduction)
    assert got == used and pixels.shape == (480 // used, 640 // used, 3)
    whole = decode(data).astype(np.float32)
    means = whole.reshape(480 // used, used, 640 // used, used, 3).mean((1, 3))
    assert np.abs(means - pixels).mean() < 1.5


@pytest.mark.parametrize("keep", [0, 1, 2, 20, 300, -200, -2, -1])
@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpeg_is_bad(keep, progressive):
    data = encoded(PIXELS, quality=90, progressive=progressive)
    reasons = set()
    for _ in range(2):
        with pytest.raises(BadRecord) as error:
            decode(data[:keep])
        reasons.add(str(error.value))
    assert len(reasons) == 1 and "\n" not in reasons.pop()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_other_truncated_formats_are_bad(kind, share):
    data = encoded(PIXELS, kind)
    with pytest.raises(BadRecord):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"", bytes(1000), b"hello, this is no image" * 9, JPEG[:200] + bytes(5000)])
def test_no_image_is_bad(data):
    with pytest.raises(BadRecord) as error:
        decode(data)
    assert not re.search("0x[0-9a-f]{9}", str(error.value).replace(f"0x{data[:8].hex()}", ""))  # no addresses


def test_zeroed_tail_is_bad():
    with pytest.raises(BadRecord):
        decode(JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2))


def test_bytes_after_the_end_do_no_harm():
    np.testing.assert_array_equal(decode(JPEG + b"padding" * 50), decode(JPEG))
    entropy = JPEG[:-2] + bytes(40) + JPEG[-2:]
    np.testing.assert_array_equal(decode(entropy), decode(JPEG))


@pytest.mark.parametrize("bomb", [jpeg_with_size(60_000, 60_000), png_header(60_000, 60_000)], ids=["jpeg", "png"])
def test_a_bomb_is_refused_without_allocating(bomb):
    tracemalloc.start()
    try:
        with pytest.raises(BadRecord, match="pixels"):
            decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_max_pixels_is_a_limit_and_not_less():
    decode(JPEG, Decoder(max_pixels=61 * 43))
    for data in (JPEG, encoded(PIXELS, "PNG")):
        with pytest.raises(BadRecord, match="61 x 43 pixels are more than max_pixels 2622"):
            decode(data, Decoder(max_pixels=61 * 43 - 1))


@pytest.mark.parametrize("pixels", [PIXELS.astype(np.float32), PIXELS[..., 0], PIXELS[..., :2], PIXELS[:0]])
def test_other_arrays_are_bad(pixels):
    with pytest.raises(BadRecord):
        decode(pixels)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_give_pixels_or_a_bad_record(data):
    original = data.draw(
        st.sampled_from([JPEG, encoded(PIXELS, "PNG"), encoded(PIXELS, "WEBP"), encoded(PIXELS, "GIF")])
    )
    damaged = bytearray(original)
    for at in data.draw(st.lists(st.integers(0, len(original) - 1), min_size=1, max_size=5)):
        damaged[at] = data.draw(st.integers(0, 255))
    outcomes = []
    for _ in range(2):
        try:
            pixels = decode(bytes(damaged), Decoder(max_pixels=1_000_000))
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
            outcomes.append(pixels.tobytes())
        except BadRecord as error:
            assert "\n" not in str(error)
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@given(st.binary(max_size=80))
def test_any_exif_gives_an_orientation(exif):
    assert 1 <= exif_orientation(b"Exif\0\0" + exif) <= 8
    assert 1 <= exif_orientation(b"II*\0" + exif) <= 8

from __future__ import annotations

import dataclasses
import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.pictures import encoded, photo
from vlmax.data.augment import RandAugment
from vlmax.data.decode import Decoder
from vlmax.data.example import BadRecord
from vlmax.data.images import CentreCrop, Geometry, ImageTransform, Pad, RandomResizedCrop, Squash, random_box
from vlmax.errors import InputError

JPEG = encoded(photo(640, 480), quality=90)
WHOLE = Image.open(io.BytesIO(JPEG)).convert("RGB")
BICUBIC = Image.Resampling.BICUBIC
ALL = [RandomResizedCrop, CentreCrop, Pad, Squash]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))


def torchvision_centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """Resize(size, BICUBIC) and CenterCrop(size), written out."""
    width, height = image.size
    short = min(width, height)
    image = image.resize((int(size * width / short), int(size * height / short)), BICUBIC)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("width,height", [(640, 480), (480, 640), (333, 501), (224, 224), (50, 60)])
@pytest.mark.parametrize("size", [224, 65])
def test_centre_crop_is_torchvisions(width, height, size):
    image = Image.fromarray(photo(width, height))
    expected = torchvision_centre_crop(image, size)
    np.testing.assert_array_equal(CentreCrop(size)(np.asarray(image), rng()), expected)
    np.testing.assert_array_equal(CentreCrop(size)(encoded(image, "PNG"), rng()), expected)


def test_squash_is_pillows_resize():
    np.testing.assert_array_equal(Squash(200)(JPEG, rng()), np.asarray(WHOLE.resize((200, 200), BICUBIC)))


@pytest.mark.parametrize("width,height", [(640, 480), (480, 640), (900, 10), (300, 300)])
def test_pad_keeps_the_aspect_ratio(width, height):
    pixels = Pad(224, color=(1, 2, 3), exact=True)(photo(width, height), rng())
    inner = max(1, round(224 * width / max(width, height))), max(1, round(224 * height / max(width, height)))
    left, top = (224 - inner[0]) // 2, (224 - inner[1]) // 2
    expected = Image.new("RGB", (224, 224), (1, 2, 3))
    expected.paste(Image.fromarray(photo(width, height)).resize(inner, BICUBIC), (left, top))
    np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("make", [CentreCrop, Pad, Squash])
@pytest.mark.parametrize("size", [224, 100, 64])
def test_fast_is_close_to_exact(make, size, kind):
    data = encoded(WHOLE, kind)
    fast, exact = make(size, exact=False)(data, rng()), make(size)(data, rng())
    assert difference(fast, exact) < 2.0  # of 255, root mean square
    assert abs(fast.mean() - exact.mean()) < 0.5


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_random_resized_crop_is_close_to_its_exact_form(scale, interpolation):
    fast = RandomResizedCrop(224, scale, interpolation=interpolation)
    exact = dataclasses.replace(fast, exact=True)
    errors = [difference(fast(JPEG, rng(s)), exact(JPEG, rng(s))) for s in range(12)]
    assert np.mean(errors) < 1.5 and max(errors) < 2.5  # the box is rounded to whole blocks of the reduced image


def test_exact_random_resized_crop_is_its_box_resized():
    box = random_box(640, 480, (0.3, 0.9), (3 / 4, 4 / 3), rng(3))
    left, top, width, height = box
    expected = WHOLE.resize((224, 224), BICUBIC, box=(left, top, left + width, top + height))
    pixels = RandomResizedCrop(224, (0.3, 0.9), exact=True)(JPEG, rng(3))
    np.testing.assert_array_equal(pixels, np.asarray(expected))


def test_the_box_is_where_it_should_be():
    """A ramp tells from its colours which box was seen; reduced decoding must not move it."""
    x = np.linspace(0, 255, 1280).astype(np.uint8)
    y = np.linspace(0, 255, 960).astype(np.uint8)
    ramp = np.stack([np.tile(x, (960, 1)), np.tile(y[:, None], (1, 1280)), np.zeros((960, 1280), np.uint8)], -1)
    data = encoded(ramp, quality=95, subsampling=0)
    for seed in range(8):
        left, top, width, height = random_box(1280, 960, (0.3, 1.0), (3 / 4, 4 / 3), rng(seed))
        pixels = RandomResizedCrop(100, (0.3, 1.0))(data, rng(seed)).astype(float)
        np.testing.assert_allclose(pixels[:, 50, 0].mean(), 255 * (left + 0.5 * width) / 1280, atol=2.5)
        np.testing.assert_allclose(pixels[50, :, 1].mean(), 255 * (top + 0.5 * height) / 960, atol=2.5)
        np.testing.assert_allclose(pixels[:, 99, 0].mean() - pixels[:, 0, 0].mean(), 255 * width / 1280, atol=4)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**31))
@settings(deadline=None)
def test_boxes_lie_inside(width, height, seed):
    left, top, w, h = random_box(width, height, (0.08, 1.0), (3 / 4, 4 / 3), rng(seed))
    assert w >= 1 and h >= 1 and left >= 0 and top >= 0 and left + w <= width and top + h <= height


def test_boxes_have_the_area_and_ratio_asked_for():
    boxes = np.array([random_box(2000, 2000, (0.2, 0.5), (0.5, 2.0), rng(s)) for s in range(400)])
    share, ratio = boxes[:, 2] * boxes[:, 3] / 4e6, boxes[:, 2] / boxes[:, 3]
    assert 0.199 < share.min() < 0.22 and 0.48 < share.max() < 0.501
    assert 0.49 < ratio.min() < 0.55 and 1.8 < ratio.max() < 2.02
    assert abs(np.log(ratio).mean()) < 0.08
    assert boxes[:, 0].max() > 900 and boxes[:, 1].max() > 900


def test_a_long_image_gives_the_largest_middle_box():
    assert random_box(1000, 10, (0.9, 1.0), (3 / 4, 4 / 3), rng()) == ((1000 - 13) // 2, 0, 13, 10)
    assert random_box(10, 1000, (0.9, 1.0), (3 / 4, 4 / 3), rng()) == (0, (1000 - 13) // 2, 10, 13)


@given(
    st.sampled_from(ALL), st.integers(1, 70), st.integers(1, 70), st.integers(1, 90), st.booleans(), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_size_gives_the_square_and_is_pure(make, width, height, size, exact, as_jpeg, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = pixels.copy()
    image = encoded(pixels) if as_jpeg else pixels
    transform = make(size, exact=exact)
    try:
        first = transform(image, rng(seed))
    except BadRecord as error:  # a 1 x 70 picture whose middle would need a huge resize
        assert make is CentreCrop and exact and "after resizing" in str(error)
        return
    assert first.shape == (size, size, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, transform(image, rng(seed)))
    np.testing.assert_array_equal(pixels, before)
    assert not np.shares_memory(first, pixels)


def test_extreme_shapes_do_not_explode():
    line = np.zeros((1, 200_000, 3), np.uint8)
    for make in ALL:
        assert make(32, exact=False)(line, rng()).shape == (32, 32, 3)
    with pytest.raises(BadRecord, match="after resizing"):
        CentreCrop(32)(line, rng())


def test_flip_mirrors_and_follows_its_probability():
    plain, always = ImageTransform(Squash(32)), ImageTransform(Squash(32), flip=1.0)
    np.testing.assert_array_equal(always(JPEG, rng()), plain(JPEG, rng())[:, ::-1])
    half = ImageTransform(Squash(8), flip=0.5)
    small = photo(8, 8)
    mirrored = [not np.array_equal(half(small, rng(s)), small) for s in range(200)]
    assert 70 < sum(mirrored) < 130


def test_augment_comes_after_the_geometry():
    geometry, augment = RandomResizedCrop(64), RandAugment(count=3, probability=1.0)
    generator = rng(5)
    expected = augment(geometry(JPEG, generator), generator)
    np.testing.assert_array_equal(ImageTransform(geometry, augment=augment)(JPEG, rng(5)), expected)


def test_decoder_reaches_the_image():
    clear = encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG")
    transform = ImageTransform(Squash(10), decoder=Decoder(background=(7, 8, 9)))
    assert (transform(clear, rng()) == (7, 8, 9)).all()
    with pytest.raises(BadRecord):
        ImageTransform(Squash(10), decoder=Decoder(max_pixels=399))(clear, rng())


@pytest.mark.parametrize("make", ALL)
def test_transforms_are_picklable_geometries(make):
    transform = ImageTransform(make(48), flip=0.5, augment=RandAugment())
    assert isinstance(transform.geometry, Geometry) and transform.size == 48
    again = pickle.loads(pickle.dumps(transform))
    np.testing.assert_array_equal(again(JPEG, rng(1)), transform(JPEG, rng(1)))


@pytest.mark.parametrize("make", [
    lambda: RandomResizedCrop(0), lambda: RandomResizedCrop(scale=(0.0, 1.0)),
    lambda: RandomResizedCrop(scale=(0.9, 0.5)),
    lambda: RandomResizedCrop(scale=(0.5, 1.5)), lambda: RandomResizedCrop(ratio=(2.0, 0.5)), lambda: CentreCrop(0),
    lambda: Pad(color=(0, 0, 256)), lambda: Squash(-1), lambda: ImageTransform(flip=1.5),
])  # fmt: skip
def test_values_without_a_meaning_are_refused(make):
    with pytest.raises(InputError, match="must be"):
        make()

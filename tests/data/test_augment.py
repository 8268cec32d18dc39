from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.data.pictures import photo
from vlmax.data.augment import BLIP, RandAugment, apply, auto_contrast, brightness, equalize, rotate, sharpness
from vlmax.errors import InputError

DULL = (photo(48, 40) // 2 + 40).astype(np.uint8)


def test_blip_draws_from_ten_operations_at_level_five():
    assert len(BLIP) == len(set(BLIP)) == 10
    assert RandAugment() == RandAugment(2, 5.0, 0.5, BLIP)


def test_auto_contrast_and_equalize_are_pillows():
    image = Image.fromarray(DULL)
    difference = auto_contrast(DULL).astype(int) - np.asarray(ImageOps.autocontrast(image))
    assert np.abs(difference).max() <= 1
    np.testing.assert_array_equal(equalize(DULL), np.asarray(ImageOps.equalize(image)))
    assert auto_contrast(DULL).min(axis=(0, 1)).tolist() == [0, 0, 0]
    assert auto_contrast(DULL).max(axis=(0, 1)).tolist() == [255, 255, 255]


def test_flat_channels_stay():
    flat = np.full((5, 6, 3), 77, np.uint8)
    np.testing.assert_array_equal(auto_contrast(flat), flat)
    np.testing.assert_array_equal(equalize(flat), flat)


def test_brightness_multiplies_and_cuts_off():
    np.testing.assert_array_equal(brightness(DULL, 0.5), DULL // 2)
    assert (brightness(DULL, 100.0)[DULL > 2] == 255).all()


def test_sharpness_moves_away_from_the_smoothed_image():
    point = np.zeros((5, 5, 3), np.uint8)
    point[2, 2] = 130
    smooth = sharpness(point, 0.0)
    assert smooth[2, 2, 0] == 50 and smooth[1, 1, 0] == 10 and smooth[0, 0, 0] == 0
    np.testing.assert_array_equal(sharpness(point, 1.0), point)
    assert sharpness(point, 2.0)[2, 2, 0] == 210 and sharpness(point, 2.0)[1, 2, 0] == 0
    tiny = DULL[:2]
    np.testing.assert_array_equal(sharpness(tiny, 1.9), tiny)


def test_shears_and_translations_move_pixels_by_the_amount():
    x = apply(DULL, "translate_x", 5)
    np.testing.assert_array_equal(x[:, :-5], DULL[:, 5:])  # to the left, gray comes in
    assert (x[:, -5:] == 128).all()
    np.testing.assert_array_equal(apply(DULL, "translate_y", 3, -1)[3:], DULL[:-3])
    sheared = apply(DULL, "shear_x", 10)  # 0.3: row 20 moves by 6
    np.testing.assert_array_equal(sheared[20, 6:], DULL[20, :-6])
    np.testing.assert_array_equal(sheared[0], DULL[0])
    sheared = apply(DULL, "shear_y", 10, -1)
    np.testing.assert_array_equal(sheared[:-6, 20], DULL[6:, 20])


def test_rotation_is_anticlockwise_in_degrees():
    square = photo(40, 40)
    turned = rotate(square, 90)
    difference = np.abs(turned[2:-2, 2:-2].astype(int) - np.roll(np.rot90(square), 1, axis=0)[2:-2, 2:-2])
    assert difference.mean() < 0.5
    assert np.abs(apply(square, "rotate", 5)[20, 20].astype(int) - square[20, 20]).max() < 12


def test_level_five_leaves_brightness_and_sharpness_alone():
    for operation in ("brightness", "sharpness", "identity"):
        assert np.abs(apply(DULL, operation, 5).astype(int) - DULL).max() <= 1
    assert not np.array_equal(apply(DULL, "brightness", 9), DULL)


@given(st.integers(0, 2**31), st.integers(0, 4), st.floats(0, 10), st.integers(1, 30), st.integers(1, 30))
@settings(deadline=None)
def test_pure_and_shape_keeping(seed, count, level, width, height):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = pixels.copy()
    augment = RandAugment(count, level, 0.7)
    first = augment(pixels, np.random.default_rng(seed))
    assert first.shape == pixels.shape and first.dtype == np.uint8
    np.testing.assert_array_equal(first, augment(pixels, np.random.default_rng(seed)))
    np.testing.assert_array_equal(pixels, before)


def test_how_often_something_happens():
    changed = RandAugment(1, 5.0, 0.5, ("rotate",))
    share = np.mean([not np.array_equal(changed(DULL, np.random.default_rng(s)), DULL) for s in range(400)])
    assert 0.42 < share < 0.58
    signs = {changed(DULL, np.random.default_rng(s)).tobytes() for s in range(30)}
    assert len(signs) == 3  # as it was, and turned either way
    assert RandAugment(0)(DULL, np.random.default_rng(0)) is DULL


def test_every_operation_is_drawn():
    for operation in BLIP:
        apply(DULL, operation, 7.0)
    draws = {RandAugment(1, 7.0, 1.0)(DULL, np.random.default_rng(s)).tobytes() for s in range(200)}
    assert len(draws) == 15  # 10 operations, 5 of them with two signs


@pytest.mark.parametrize("bad", [{"count": -1}, {"level": 11}, {"probability": 2}, {"operations": ()}])
def test_values_without_a_meaning_are_refused(bad):
    with pytest.raises(InputError, match="change it in"):
        RandAugment(**bad)


def test_an_unknown_operation_is_named():
    with pytest.raises(InputError, match="solarize"):
        apply(DULL, "solarize", 5)

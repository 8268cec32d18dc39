from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.pictures import photo
from vlmax.data.resize import STEPS, filter_before, mean_of_blocks, resize_exact, resize_fast

PIXELS = photo(320, 240)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Root of the mean squared difference, of 255."""
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(320, 240), (400, 300), (300, 230), (224, 224), (170, 130), (161, 121), (90, 100)])
def test_fast_is_close_to_pillow(how, size):
    rng = np.random.default_rng(1)
    noisy = np.clip(PIXELS + rng.normal(0, 12, PIXELS.shape), 0, 255).astype(np.uint8)  # detail that must not alias
    exact = resize_exact(noisy, (0, 0, 320, 240), size, how)
    fast = resize_fast(noisy, size, how)
    assert fast.shape == exact.shape
    assert difference(fast, exact) < 1.6
    assert abs(fast.mean() - exact.mean()) < 0.3
    assert abs(fast.std() / exact.std() - 1) < 0.005


def test_the_filter_is_what_makes_it_close():
    import cv2

    noisy = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    exact = resize_exact(noisy, (0, 0, 320, 240), (170, 130), "bicubic")
    plain = cv2.resize(noisy, (170, 130), interpolation=cv2.INTER_CUBIC)
    assert difference(resize_fast(noisy, (170, 130), "bicubic"), exact) < difference(plain, exact) / 3


@given(st.integers(STEPS, 4 * STEPS), st.sampled_from(["bilinear", "bicubic"]))
@settings(deadline=None)
def test_filters_are_symmetric_and_sum_to_one(steps, how):
    taps = filter_before(steps, how)
    assert taps.dtype == np.float32 and len(taps) % 2 == 1 and len(taps) <= 13
    np.testing.assert_allclose(taps.sum(), 1, atol=1e-5)
    np.testing.assert_allclose(taps, taps[::-1], atol=1e-6)


@given(st.integers(0, 255), st.integers(1, 60), st.integers(1, 60), st.integers(15, 40), st.integers(15, 40))
@settings(deadline=None)
def test_one_colour_stays_that_colour(value, width, height, to_width, to_height):
    pixels = np.full((height, width, 3), value, np.uint8)
    for how in ("bilinear", "bicubic"):
        resized = resize_fast(pixels, (to_width, to_height), how)
        assert resized.shape == (to_height, to_width, 3)
        assert np.abs(resized.astype(int) - value).max() <= 1


def test_blocks_are_averaged():
    means = mean_of_blocks(PIXELS, 4, 2)
    expected = PIXELS.reshape(120, 2, 80, 4, 3).mean((1, 3))
    assert np.abs(means - expected).max() <= 0.51
    assert mean_of_blocks(PIXELS, 1, 1) is PIXELS

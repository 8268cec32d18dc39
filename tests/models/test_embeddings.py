"""Positions: learned, resized, sine-cosine, rotary."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.golden import GOLDEN
from vlmax.errors import InputError
from vlmax.models.layers.embeddings import (
    LinearScaling,
    LLaMA3Scaling,
    Positions,
    Rotary,
    apply_rotary,
    resize_positions,
    sincos2d,
)


def test_resized_positions_are_torchs():
    with np.load(GOLDEN / "resize_positions.npz") as file:
        arrays = dict(file)
    for i in range(len(arrays) // 2):
        old, new = arrays[f"old{i}"], arrays[f"new{i}"]
        prefix = np.full((2, old.shape[2]), 7.0, np.float32)
        table = np.concatenate([prefix, old.reshape(-1, old.shape[2])])
        resized = resize_positions(table, old.shape[:2], new.shape[:2], prefix_tokens=2)
        np.testing.assert_array_equal(resized[:2], prefix)
        np.testing.assert_allclose(resized[2:], new.reshape(-1, new.shape[2]), atol=1e-5)


def test_resizing_to_the_same_grid_changes_nothing():
    table = np.random.default_rng(0).standard_normal((13, 4)).astype(np.float32)
    np.testing.assert_array_equal(resize_positions(table, (3, 4), (3, 4), 1), table)


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(InputError, match="13 rows"):
        resize_positions(jnp.zeros((13, 4)), (4, 4), (3, 3), 1)


def test_sincos2d_is_its_formula():
    table, width = sincos2d((2, 3), 16), 16
    omega = 10_000.0 ** -(np.arange(4) / 3)
    row, column = 1, 2
    expected = [np.sin(column * omega), np.cos(column * omega), np.sin(row * omega), np.cos(row * omega)]
    np.testing.assert_allclose(table[row * 3 + column], np.concatenate(expected), atol=1e-6)
    assert table.shape == (6, width) and len(np.unique(table, axis=0)) == 6
    for bad in (4, 18):
        with pytest.raises(InputError, match=str(bad)):
            sincos2d((2, 2), bad)


def test_rotary_turns_by_position_and_keeps_relative_products():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)

    def product(i, j):
        turned = [apply_rotary(x, *Rotary(100.0).angles(jnp.array([[p]]), 8)) for x, p in ((q, i), (k, j))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert abs(product(9, 4) - product(9, 5)) > 1e-3
    np.testing.assert_allclose(apply_rotary(q, *Rotary().angles(jnp.array([[0]]), 8)), q, atol=1e-7)


def test_rotary_positions_differ_by_row():
    x = np.ones((2, 3, 1, 4), np.float32)
    positions = jnp.array([[0, 1, 2], [0, 0, 1]])
    turned = apply_rotary(x, *Rotary().angles(positions, 4))
    np.testing.assert_array_equal(turned[0, :2], turned[1, 1:])
    np.testing.assert_array_equal(turned[1, 0], turned[1, 1])


def test_linear_scaling_is_positions_closer_together():
    positions = jnp.arange(40)[None]
    scaled = np.array(Rotary(100.0, LinearScaling(4.0)).angles(positions, 8))
    np.testing.assert_allclose(scaled[..., ::4, :], Rotary(100.0).angles(positions[:, :10], 8), atol=1e-6)


def test_llama3_scaling_slows_long_waves_and_leaves_short_ones():
    scaling = LLaMA3Scaling(factor=8.0, low_frequency=1.0, high_frequency=4.0, context=8192)
    waves = np.array([2048 - 1, 2048, 8192 / 2.5, 8192, 8192 + 1, 1e6])
    found = 2 * np.pi / scaling(2 * np.pi / waves)
    blended = 1 / (0.5 / waves[2] + 0.5 / (8 * waves[2]))  # half way between 1 and 4 turns in the old context
    np.testing.assert_allclose(found, [2047, 2048, blended, 8 * 8192, 8 * 8193, 8e6], rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearScaling(0.5),
        lambda: LLaMA3Scaling(factor=0.5),
        lambda: LLaMA3Scaling(low_frequency=4.0),
        lambda: LLaMA3Scaling(context=0),
    ],
)
def test_a_scaling_that_cannot_be_is_refused(make):
    with pytest.raises(InputError, match="rotary positions"):
        make()


def test_positions_past_the_table_are_no_numbers():
    module = Positions(4, 8, jax.nn.initializers.normal(1.0))
    params = module.init(jax.random.key(0))
    rows = module.apply(params, jnp.array([[1, 3, 4]]), method="at")
    np.testing.assert_array_equal(rows[0, :2], module.apply(params)[jnp.array([1, 3])])
    assert np.isnan(rows[0, 2]).all()

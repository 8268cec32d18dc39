"""The bias by distance: one value a bucket, alike along diagonals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlmax.models.layers.distances import distance_bias, distance_buckets

TABLE = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)


def test_the_bias_is_by_distance():
    causal, both = (np.asarray(distance_bias(TABLE, 0, 12, 12, 9, causal))[0] for causal in (True, False))
    for bias in (causal, both):
        for d in range(-11, 12):
            assert np.unique(np.diagonal(bias, d, 1, 2), axis=1).shape == (3, 1)
    buckets = distance_buckets(8, 9)
    np.testing.assert_array_equal(buckets, [0, 1, 2, 3, 4, 5, 6, 6, 7, 7])
    for d in range(12):
        np.testing.assert_array_equal(causal[:, d, 0], TABLE[buckets[min(d, 9)]])
        np.testing.assert_array_equal(causal[:, 0, d], TABLE[0])
        near = distance_buckets(4, 9)[min(d, 9)]
        np.testing.assert_array_equal(both[:, d, 0], TABLE[near])
        np.testing.assert_array_equal(both[:, 0, d], TABLE[near + (4 if d else 0)])


@pytest.mark.parametrize("causal", [True, False])
def test_later_queries_see_what_they_see_among_all(causal):
    whole = distance_bias(TABLE, 0, 12, 12, 9, causal)
    for first, queries in ((0, 1), (7, 1), (5, 4)):
        some = jax.jit(distance_bias, static_argnums=(2, 3, 4, 5))(TABLE, first, queries, 12, 9, causal)
        np.testing.assert_array_equal(some, whole[:, :, first : first + queries])


@pytest.mark.parametrize("causal", [True, False])
def test_the_gradient_is_that_of_a_look_up(causal):
    for queries, keys in ((5, 12), (1, 4), (8, 3), (6, 6)):
        size = 4, queries, keys, 9, causal
        weights = np.random.default_rng(1).standard_normal((1, 3, queries, keys)).astype(np.float32)
        ranks = np.asarray(distance_bias(np.arange(8.0)[:, None], *size))[0, 0].astype(int)
        found = jax.grad(lambda table, size=size, weights=weights: jnp.vdot(distance_bias(table, *size), weights))(
            TABLE
        )
        wanted = [[weights[0, head][ranks == bucket].sum() for head in range(3)] for bucket in range(8)]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_no_array_is_larger_than_a_few_biases():
    """At length 512 a bias has 4 MB, and one number for each bucket of each pair would have 34."""
    table = jnp.zeros((32, 4))
    gradient = jax.grad(lambda table: jnp.sum(jnp.sin(distance_bias(table, 0, 512, 512, 128, False))))
    memory = jax.jit(gradient).lower(table).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 4 * 512 * 512 * 4

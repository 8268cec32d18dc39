"""The bias by distance: one value a bucket, alike along diagonals."""

from __future__ import annotations

import numpy as np

from vlmax.models.layers.distances import distance_bias, distance_buckets


def test_the_bias_is_by_distance():
    table = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    distance = np.arange(12) - np.arange(12)[:, None]
    causal, both = (np.asarray(distance_bias(table, distance, 9, causal))[0] for causal in (True, False))
    for bias in (causal, both):
        for d in range(-11, 12):
            assert np.unique(np.diagonal(bias, d, 1, 2), axis=1).shape == (3, 1)
    buckets = distance_buckets(8, 9)
    np.testing.assert_array_equal(buckets, [0, 1, 2, 3, 4, 5, 6, 6, 7, 7])
    for d in range(12):
        np.testing.assert_array_equal(causal[:, d, 0], table[buckets[min(d, 9)]])
        np.testing.assert_array_equal(causal[:, 0, d], table[0])
        near = distance_buckets(4, 9)[min(d, 9)]
        np.testing.assert_array_equal(both[:, d, 0], table[near])
        np.testing.assert_array_equal(both[:, 0, d], table[near + (4 if d else 0)])

"""Scores of tokens against the training loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlmax.objectives.language import dense_next_token_loss
from vlmax.objectives.token_scores import token_scores

B, T, D, V, ROWS = 3, 7, 5, 11, 12
RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((B, T, D)).astype(np.float32)
HEAD = RNG.standard_normal((D, ROWS)).astype(np.float32)
LABELS = np.where(RNG.random((B, T)) < 0.3, -100, RNG.integers(0, V, (B, T))).astype(np.int32)


@pytest.mark.parametrize("places", [1, 3, 7, 100])
def test_the_sums_are_those_of_the_loss(places):
    nll, right = jax.jit(lambda *a: token_scores(*a, vocab=V, places=places))(HIDDEN, HEAD, LABELS)
    assert nll.shape == right.shape == (B, T)
    _, count, sums = dense_next_token_loss(HIDDEN, HEAD, LABELS, vocab=V)
    np.testing.assert_allclose(nll.sum(), sums["nll"], rtol=1e-5)
    assert int(right.sum()) == int(sums["correct"]) > 0
    assert not nll[LABELS == -100].any() and not right[LABELS == -100].any()
    first, _, _ = dense_next_token_loss(HIDDEN[:1], HEAD, LABELS[:1], vocab=V)
    np.testing.assert_allclose(nll[0].sum(), first, rtol=1e-5)
    assert int(count) == int((LABELS != -100).sum())


def test_a_label_that_is_no_token_gives_nan_and_a_tie_is_not_right():
    wrong = LABELS.copy()
    wrong[0, 0] = V
    nll, right = token_scores(HIDDEN, HEAD, wrong, vocab=V, places=4)
    assert np.isnan(nll[0, 0]) and np.isfinite(nll).sum() == B * T - 1 and not right[0, 0]
    _, right = token_scores(jnp.zeros((1, 1, D)), HEAD, np.zeros((1, 1), np.int32), vocab=V, places=1)
    assert not right[0, 0]

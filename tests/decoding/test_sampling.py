from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlmax.decoding.sampling import allowed, choose, likeliest, plan_and_knobs, with_token
from vlmax.decoding.settings import Generation

LOGITS = jnp.log(jnp.array([[0.1, 0.4, 0.05, 0.25, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2]]))


def kept(top_k=0, top_p=1.0):
    return np.isfinite(likeliest(LOGITS, jnp.int32(top_k), jnp.float32(top_p)))


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (0, 1.0, [0, 1, 2, 3, 4]),
        (1, 1.0, [1]),
        (2, 1.0, [1, 3]),
        (9, 1.0, [0, 1, 2, 3, 4]),
        (0, 0.39, [1]),
        (0, 0.41, [1, 3]),
        (0, 0.66, [1, 3, 4]),
        (0, 0.86, [0, 1, 3, 4]),
        (0, 1e-6, [1]),
        (3, 0.5, [1, 3]),  # of what is left, 0.4 / 0.85 < 0.5
        (3, 0.46, [1]),
    ],
)
def test_the_likeliest_are_kept(top_k, top_p, expected):
    assert kept(top_k, top_p)[0].nonzero()[0].tolist() == expected


def test_equal_logits_stay_together():
    assert kept(top_k=2)[1].all() and kept(top_p=0.3)[1].all()


def test_draws_follow_the_probabilities():
    plan, knobs = plan_and_knobs(Generation(temperature=2.0, top_k=3), ())
    logits = jnp.tile(LOGITS[:1], (20_000, 1))
    drawn = choose(logits, jnp.int32(0), plan, knobs)
    shares = np.bincount(drawn, minlength=5) / len(drawn)
    expected = np.sqrt([0, 0.4, 0, 0.25, 0.2])
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.02)


def test_draws_depend_on_seed_and_step():
    def drawn(seed, step):
        plan, knobs = plan_and_knobs(Generation(temperature=1.0, seed=seed), ())
        return choose(jnp.zeros((50, 1000)), jnp.int32(step), plan, knobs).tolist()

    assert drawn(0, 1) == drawn(0, 1)
    assert drawn(0, 1) != drawn(1, 1) and drawn(0, 1) != drawn(0, 2)


def test_a_penalty_makes_seen_tokens_less_likely():
    plan, knobs = plan_and_knobs(Generation(repetition_penalty=2.0), ())
    seen = jnp.array([[True, True, False, False]])
    scores = jnp.array([[3.0, -3.0, 3.0, -3.0]])
    assert allowed(scores, seen, jnp.int32(0), plan, knobs).tolist() == [[1.5, -6.0, 3.0, -3.0]]
    assert with_token(seen, jnp.array([3])).tolist() == [[True, True, False, True]]
    plan, knobs = plan_and_knobs(Generation(), ())
    assert not plan.penalises and allowed(scores, None, jnp.int32(0), plan, knobs).tolist() == scores.tolist()


def test_no_mark_of_the_end_before_the_minimum():
    plan, knobs = plan_and_knobs(Generation(min_new_tokens=2), (1, 3))
    scores = jnp.zeros((1, 4))
    for step, ends in ((0, False), (1, False), (2, True)):
        found = allowed(scores, None, jnp.int32(step), plan, knobs)
        assert np.isfinite(found).tolist() == [[True, ends, True, ends]]


def test_other_numbers_do_not_compile_anew():
    run = jax.jit(lambda logits, plan, knobs: choose(logits, jnp.int32(0), plan, knobs), static_argnums=1)
    for settings in (Generation(temperature=0.5, top_k=3), Generation(temperature=1.5, top_p=0.3, seed=2)):
        run(LOGITS, *plan_and_knobs(settings, ()))
    assert run._cache_size() == 1

"""Hard negatives that are never a row's own, rows from any device, and the loss of the pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vlmax.objectives.matching import draw_negatives, matching_loss, take_rows

B = 16
RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((B, B)).astype(np.float32)


def mesh():
    return jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def placed(mesh, x):
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))


# The draw.


def test_it_draws_by_the_softmax_of_what_does_not_belong():
    group = np.arange(4) // 2 * 10  # 0 and 1 belong together, 2 and 3 do
    logits = np.array([[9.0, 8.0, 0.0, 1.0], [0, 0, 0, 0], [1, 0, 9, 9], [2, 0, 9, 9]], np.float32)
    draws = jax.vmap(lambda key: draw_negatives(key, logits, group).index)(jax.random.split(jax.random.key(0), 4000))
    shares = np.stack([(np.asarray(draws) == column).mean(axis=0) for column in range(4)], axis=1)
    hot = np.where(group[:, None] == group[None, :], -np.inf, logits)
    np.testing.assert_allclose(shares, jax.nn.softmax(hot, axis=1), atol=0.03)


def test_its_own_is_no_negative_even_where_nothing_else_is_likely():
    logits = 1e4 * np.eye(B, dtype=np.float32)  # a softmax would underflow everywhere but on the diagonal
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        found = draw_negatives(jax.random.key(1), jnp.asarray(logits, dtype))
        assert (found.index != np.arange(B)).all() and found.exists.all()
        assert ((found.index >= 0) & (found.index < B)).all()


def test_a_row_without_any_negative_says_so():
    for group in (np.zeros(B, np.int32), np.array([0] * (B - 1) + [1])):
        found = draw_negatives(jax.random.key(0), LOGITS, group)
        alone = np.array([(group == group[i]).all() for i in range(B)])
        np.testing.assert_array_equal(found.exists, ~alone)
        assert (np.asarray(found.index)[alone] == np.arange(B)[alone]).all()
        assert (group[np.asarray(found.index)] != group)[~alone].all()


def test_the_draw_is_global_and_the_same_on_any_mesh():
    expected = draw_negatives(jax.random.key(5), LOGITS)
    with jax.set_mesh(mesh()) as _:
        found = jax.jit(draw_negatives)(jax.random.key(5), placed(mesh(), LOGITS))
    np.testing.assert_array_equal(found.index, expected.index)
    device = np.arange(B) // 4
    assert (device[np.asarray(expected.index)] != device).any()  # of another device's rows


def test_no_gradient_goes_through_the_draw():
    gradient = jax.grad(lambda x: jnp.sum(x[draw_negatives(jax.random.key(0), x).index, 0]))(jnp.asarray(LOGITS))
    assert not np.asarray(gradient)[:, 1:].any()


# Rows from any device.


@pytest.mark.parametrize("axes", [("data",), ("fsdp",), ("data", "fsdp")])
def test_rows_come_from_all_devices_with_their_gradient(axes):
    x, index = RNG.standard_normal((B, 3, 2)).astype(np.float32), RNG.integers(0, B, B)
    weights = RNG.standard_normal((B, 3, 2)).astype(np.float32)

    def total(x, axes=()):
        rows = take_rows(x, jnp.asarray(index), axes=axes)
        return jnp.sum(weights * rows), rows

    (_, expected), gradient = jax.value_and_grad(total, has_aux=True)(x)
    np.testing.assert_array_equal(expected, x[index])
    with jax.set_mesh(mesh()):
        (_, found), other = jax.jit(jax.value_and_grad(lambda x: total(x, axes), has_aux=True))(placed(mesh(), x))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(other, gradient, rtol=1e-6)


def test_integers_travel_too():
    tokens, index = RNG.integers(0, 99, (B, 5)), RNG.integers(0, B, B)
    with jax.set_mesh(mesh()):
        found = jax.jit(lambda x: take_rows(x, jnp.asarray(index), axes=("data", "fsdp")))(placed(mesh(), tokens))
    np.testing.assert_array_equal(found, tokens[index])


# The loss.


def test_the_loss_is_cross_entropy_over_the_pairs_that_exist():
    logits = RNG.standard_normal((4, 3, 2)).astype(np.float32)
    image, text = np.array([1, 1, 0, 1], bool), np.array([1, 0, 1, 1], bool)
    loss, metrics = matching_loss(logits, image, text)
    log_p = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    terms = [*(-log_p[:, 0, 1]), *(-log_p[:, 1, 0])[image], *(-log_p[:, 2, 0])[text]]
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-5)
    told = [*(logits[:, 0, 1] > logits[:, 0, 0]), *(logits[:, 1, 0] > logits[:, 1, 1])[image]]
    told += [*(logits[:, 2, 0] > logits[:, 2, 1])[text]]
    assert float(metrics["matching_accuracy"]) == pytest.approx(np.mean(told))

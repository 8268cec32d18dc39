"""Contrast with momentum against its dense form; queues, averages and ramps against NumPy."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.objectives.test_contrastive import MESHES, make_mesh
from vlmax.objectives import momentum
from vlmax.objectives.momentum import NOBODY, dense_soft_contrastive, soft_contrastive, soft_contrastive_both

B, K, E = 56, 112, 12


def features(seed: int = 0, rows: int = B, queue: int = K):
    """Unit vectors: a side's, its twin's, the other side's twin's, the queue's."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(rows, E))
    drawn = [base, base + 0.3 * rng.normal(size=base.shape), base + rng.normal(size=base.shape)]
    drawn.append(rng.normal(size=(queue, E)))
    return [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in drawn]


def groups(kind: str):
    """Ids of the batch and of the queue."""
    if kind == "own":
        return np.arange(B, dtype=np.int32), np.full(K, NOBODY, np.int32)
    rng = np.random.default_rng(5)
    return rng.integers(0, 20, B).astype(np.int32), rng.integers(-1, 20, K).astype(np.int32)


def wanted(feature, twin, others, queue, temperature, alpha, group, queue_group):
    """Value and gradients of the dense form in float64."""
    right = np.concatenate([group, queue_group])[None] == group[:, None]
    with jax.enable_x64(True):
        columns = jnp.asarray(np.concatenate([others, queue]), jnp.float64)

        def loss(feature, temperature):
            return 3 * dense_soft_contrastive(feature, jnp.asarray(twin, jnp.float64), columns, temperature, alpha,
                                              jnp.asarray(right, jnp.float64))  # fmt: skip

        arguments = jnp.asarray(feature, jnp.float64), jnp.float64(temperature)
        return jax.tree.map(np.asarray, jax.value_and_grad(loss, argnums=(0, 1))(*arguments))


@pytest.mark.parametrize("kind", ["own", "groups"])
@pytest.mark.parametrize(("name", "chunk"), [("1", 1000), ("1", 13), ("8", 20), ("2x2x2", 20), ("fsdp first", 1)])
def test_value_and_gradients_equal_the_dense_form(kind, name, chunk):
    sizes, axes = MESHES[name]
    mesh = make_mesh(sizes)
    group, queue_group = groups(kind)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec(axes))
        *vectors, ids, queue_ids = (jax.device_put(x, rows) for x in (*features(), group, queue_group))

        def loss(feature, temperature):
            value, first = soft_contrastive(feature, *vectors[1:], temperature=temperature, alpha=0.3, group=ids,
                                            queue_group=queue_ids, axes=axes, chunk=chunk)  # fmt: skip
            return 3 * value, first

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (value, first), gradients = run(vectors[0], jnp.float32(0.07))
    value_wanted, gradients_wanted = wanted(*features(), 0.07, 0.3, group, queue_group)
    np.testing.assert_allclose(value, value_wanted, rtol=1e-5)
    for found, expected in zip(gradients, gradients_wanted, strict=True):
        assert np.linalg.norm(found - expected) <= 2e-5 * np.linalg.norm(expected)
    assert gradients[0].sharding.is_equivalent_to(rows, 2)
    own, _, others, queue = features()
    logits = own @ np.concatenate([others, queue]).T
    best = np.concatenate([group, queue_group])[logits.argmax(axis=1)]
    assert float(first) == pytest.approx((best == group).mean(), abs=1e-6)


def test_no_device_holds_more_than_its_rows_of_a_chunk():
    mesh = make_mesh({"data": 8})
    shapes = [(256, E)] * 3 + [(4096, E), (256,), (4096,)]
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec("data"))
        abstract = [jax.ShapeDtypeStruct(s, jnp.float32 if len(s) > 1 else jnp.int32, sharding=rows) for s in shapes]

        def loss(feature, twin, others, queue, group, queue_group):
            return soft_contrastive(feature, twin, others, queue, temperature=0.07, alpha=0.4, group=group,
                                    queue_group=queue_group, axes=("data",), chunk=64)[0]  # fmt: skip

        compiled = jax.jit(jax.value_and_grad(loss)).lower(*abstract).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    assert memory < 256 / 8 * (256 + 4096) * 4 / 2  # half of one matrix of this device's rows in float32


def test_both_directions_and_their_mean():
    own, twin, others, queue = features()
    group, queue_group = groups("groups")
    queues = {"image": queue, "text": queue[::-1], "group": queue_group}
    options = {"temperature": 0.1, "alpha": 0.2, "group": group, "axes": (), "chunk": 50}
    loss, metrics = soft_contrastive_both(own, others, {"image": twin, "text": others}, queues, **options)
    to_text = wanted(own, twin, others, queue[::-1], 0.1, 0.2, group, queue_group)[0] / 3
    to_image = wanted(others, others, twin, queue, 0.1, 0.2, group, queue_group)[0] / 3
    assert float(metrics["image_to_text_loss"]) == pytest.approx(to_text, rel=1e-5)
    assert float(metrics["text_to_image_loss"]) == pytest.approx(to_image, rel=1e-5)
    assert float(loss) == pytest.approx((to_text + to_image) / 2, rel=1e-5)


def test_a_temperature_at_its_lowest_gives_numbers():
    group, queue_group = groups("own")
    value, gradient = jax.value_and_grad(
        lambda x: soft_contrastive(
            x, *features()[1:], temperature=0.001, alpha=0.4, group=group, queue_group=queue_group, axes=(), chunk=16
        )[0]
    )(features()[0])
    assert math.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_queue_takes_the_newest_in_the_place_of_the_oldest(dtype):
    rng = np.random.default_rng(0)
    queue = rng.integers(0, 99, (12, 3) if dtype == "float32" else 12).astype(dtype)
    found = jnp.asarray(queue)
    for step in range(7):
        new = rng.integers(0, 99, (4, *queue.shape[1:])).astype(dtype)
        place = step * 4 % 12
        queue[place : place + 4] = new
        found = jax.jit(momentum.enqueue)(found, new, place)
        np.testing.assert_array_equal(found, queue)
    assert found.dtype == dtype


def test_averages_and_ramps():
    tree = {"a": jnp.arange(3.0), "b": jnp.ones(2)}
    same = momentum.average(jax.tree.map(lambda x: x + jnp.nan_to_num(1e30), tree), tree, 0.0)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), same, tree)))
    half = momentum.average(tree, {"a": jnp.zeros(3), "b": jnp.full(2, 3.0)}, 0.5)
    np.testing.assert_array_equal(half["a"], [0, 0.5, 1])
    np.testing.assert_array_equal(half["b"], [2, 2])
    assert float(jax.grad(lambda x: momentum.average(x, x, 0.5).sum())(jnp.ones(()))) == 0.5  # of the old alone
    assert [float(momentum.ramp(jnp.int32(k), 4, 0.4)) for k in (0, 1, 4, 9)] == pytest.approx([0, 0.1, 0.4, 0.4])
    assert float(momentum.ramp(jnp.int32(0), 0, 0.4)) == pytest.approx(0.4)


def test_a_chunk_must_hold_something():
    group, queue_group = groups("own")
    with pytest.raises(ValueError, match="chunk is 0; it must be at least 1"):
        soft_contrastive(
            *features(), temperature=0.1, alpha=0.4, group=group, queue_group=queue_group, axes=(), chunk=0
        )

"""BLIP-2's contrastive loss against its definition, chunked and on meshes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vlmax.objectives.query_contrastive import query_similarity, smoothed_contrastive

B, Q, E = 16, 3, 8
RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((B, Q, E)).astype(np.float32)
TEXT = RNG.standard_normal((B, E)).astype(np.float32)


def loss(image, text, chunk=5, axes=(), group=None):
    square = query_similarity(image, text, chunk=chunk, axes=axes)
    return smoothed_contrastive(square, label_smoothing=0.1, group=group)


@pytest.mark.parametrize("chunk", [1, 5, 16, 100])
def test_the_similarity_is_that_of_the_best_query(chunk):
    expected = np.einsum("bqe,ce->bqc", IMAGE, TEXT).max(axis=1)
    np.testing.assert_allclose(query_similarity(IMAGE, TEXT, chunk=chunk), expected, atol=1e-5)


def test_the_loss_is_torch_s_cross_entropy_with_smoothing():
    logits = np.einsum("bqe,ce->bqc", IMAGE, TEXT).max(axis=1)
    sides = []
    for square in (logits, logits.T):
        log_p = jax.nn.log_softmax(square, axis=1)
        sides.append(np.mean(-0.9 * np.diagonal(log_p) - 0.1 * log_p.mean(axis=1)))
    found, metrics = loss(IMAGE, TEXT)
    assert float(found) == pytest.approx(float(np.mean(sides)), rel=1e-5)
    assert float(metrics["image_to_text_loss"]) == pytest.approx(float(sides[0]), rel=1e-5)
    right = np.mean(logits.argmax(axis=1) == np.arange(B))
    assert float(metrics["image_to_text_top1"]) == pytest.approx(right)


def test_texts_of_the_same_image_share_the_target():
    group = np.arange(B) // 2
    logits = np.einsum("bqe,ce->bqc", IMAGE, TEXT).max(axis=1)
    same = group[:, None] == group[None, :]
    target = 0.9 * same / same.sum(axis=1, keepdims=True) + 0.1 / B
    sides = [-(target * jax.nn.log_softmax(square, axis=1)).sum(axis=1).mean() for square in (logits, logits.T)]
    assert float(loss(IMAGE, TEXT, group=group)[0]) == pytest.approx(float(np.mean(sides)), rel=1e-5)
    assert float(loss(IMAGE, TEXT, group=np.arange(B) + 7)[0]) == pytest.approx(float(loss(IMAGE, TEXT)[0]), rel=1e-6)


@pytest.mark.parametrize("axes", [("data",), ("data", "fsdp")])
def test_value_and_gradient_are_those_of_one_device(axes):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def total(image, text, axes=()):
        return loss(image, text, axes=axes)[0]

    expected = jax.value_and_grad(total, argnums=(0, 1))(IMAGE, TEXT)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, PartitionSpec(axes))) for x in (IMAGE, TEXT)]
        found = jax.jit(jax.value_and_grad(lambda *x: total(*x, axes=axes), argnums=(0, 1)))(*placed)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_only_the_best_query_learns():
    gradient = jax.grad(lambda image: query_similarity(image, TEXT, chunk=4)[0, 0])(jnp.asarray(IMAGE))
    best = int((IMAGE[0] @ TEXT[0]).argmax())
    assert np.abs(gradient[0, best] - TEXT[0]).max() < 1e-6
    assert not np.delete(np.asarray(gradient[0]), best, axis=0).any() and not np.asarray(gradient[1:]).any()

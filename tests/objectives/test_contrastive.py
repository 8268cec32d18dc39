from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vlmax.objectives.contrastive import dense_sigmoid, dense_softmax, sigmoid_contrastive, softmax_contrastive

LOSSES = ("softmax", "sigmoid")
# mesh axes and the ones over which rows are sharded; 'tensor' sees the features replicated
MESHES = {
    "1": ({"data": 1}, ("data",)),
    "2": ({"data": 2}, ("data",)),
    "4": ({"data": 2, "fsdp": 2}, ("data", "fsdp")),
    "8": ({"data": 8}, ("data",)),
    "2x2x2": ({"data": 2, "fsdp": 2, "tensor": 2}, ("data", "fsdp")),
    "fsdp first": ({"data": 2, "fsdp": 4}, ("fsdp", "data")),
}


def features(rows: int, width: int = 24, seed: int = 0, dtype=np.float32):
    """Unit vectors; texts lean towards their images, as in training."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(rows, width))
    text = rng.normal(size=(rows, width)) + 0.5 * image
    return [jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype) for x in (image, text)]


def make_mesh(axes: dict[str, int]):
    devices = jax.devices()[: math.prod(axes.values())]
    return jax.make_mesh(tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes), devices=devices)


def dense(loss, image, text, log_scale, bias, group=None):
    if loss == "softmax":
        return dense_softmax(image, text, log_scale, group=group)
    return dense_sigmoid(image, text, log_scale, bias, group=group)


def chunked(loss, image, text, log_scale, bias, group=None, *, axes, chunk):
    if loss == "softmax":
        return softmax_contrastive(image, text, log_scale, axes=axes, chunk=chunk, group=group)
    return sigmoid_contrastive(image, text, log_scale, bias, axes=axes, chunk=chunk, group=group)


@functools.partial(jax.jit, static_argnames="loss")
def _dense_value_and_gradients(loss, arguments, group):
    return jax.value_and_grad(lambda *a: 3 * dense(loss, *a, group=group), argnums=(0, 1, 2, 3))(*arguments)


def dense_value_and_gradients(loss, arguments, group=None):
    with jax.enable_x64(True):  # the yardstick's own rounding must not count
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in arguments]
        return jax.tree.map(np.asarray, _dense_value_and_gradients(loss, wide, group))


def chunked_value_and_gradients(loss, arguments, group=None, *, axes, chunk):
    def objective(*a):
        value, metrics = chunked(loss, *a, group=group, axes=axes, chunk=chunk)
        return 3 * value, metrics  # 3: a cotangent that is not 1

    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2, 3), has_aux=True))(*arguments)


def assert_same(got, want, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.linalg.norm(np.asarray(a, np.float64) - b) <= tolerance * np.linalg.norm(b)


def arguments_for(loss, rows, **options):
    return (*features(rows, **options), jnp.float32(2.5), jnp.float32(-4.0))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("name", "chunk"), [*((name, 20) for name in MESHES), ("8", 1), ("2x2x2", 1000)])
def test_value_and_every_gradient_equal_the_dense_form(loss, name, chunk):
    sizes, axes = MESHES[name]
    mesh = make_mesh(sizes)
    arguments = arguments_for(loss, 56)  # 56 rows: 7 a device on 8, so that chunk 20 leaves a ragged last block
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec(axes))
        placed = (*(jax.device_put(x, rows) for x in arguments[:2]), *arguments[2:])
        (value, _), gradients = chunked_value_and_gradients(loss, placed, axes=axes, chunk=chunk)
    want_value, want_gradients = dense_value_and_gradients(loss, arguments)
    assert_same((value, gradients[:3]), (want_value, want_gradients[:3]))
    assert gradients[0].sharding.is_equivalent_to(rows, 2)
    if loss == "sigmoid":
        assert_same(gradients[3], want_gradients[3])
    else:
        assert gradients[3] == 0


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    loss=st.sampled_from(LOSSES),
    local=st.integers(1, 9),
    chunk=st.integers(1, 50),
    devices=st.sampled_from([1, 2, 4]),
    width=st.integers(1, 5),
    groups=st.none() | st.integers(1, 6),
)
def test_any_size_equals_the_dense_form(loss, local, chunk, devices, width, groups):
    rows = local * devices
    arguments = arguments_for(loss, rows, width=width, seed=rows)
    group = None if groups is None else jnp.asarray(np.random.default_rng(rows).integers(0, groups, rows), jnp.int32)
    with jax.set_mesh(make_mesh({"data": devices})):
        (value, _), gradients = chunked_value_and_gradients(loss, arguments, group, axes=("data",), chunk=chunk)
    want_value, want_gradients = dense_value_and_gradients(loss, arguments, group)
    for got, want in zip((value, *gradients), (want_value, *want_gradients), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["1", "2x2x2"])
def test_equal_groups_are_not_negatives(loss, name):
    sizes, axes = MESHES[name]
    arguments = arguments_for(loss, 24)
    group = jnp.arange(24) % 7
    with jax.set_mesh(make_mesh(sizes)):
        (value, _), gradients = chunked_value_and_gradients(loss, arguments, group, axes=axes, chunk=10)
    count = 3 if loss == "softmax" else 4
    want_value, want_gradients = dense_value_and_gradients(loss, arguments, group)
    assert_same((value, gradients[:count]), (want_value, want_gradients[:count]))
    assert abs(want_value - dense_value_and_gradients(loss, arguments)[0]) > 1e-3


def test_dense_forms_follow_the_papers():
    image, text = features(5)
    logits = 4 * np.asarray(image, np.float64) @ np.asarray(text, np.float64).T
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True), np.exp(logits) / np.exp(logits).sum(0)
    softmax = -np.mean([np.log(np.diag(p)).mean() for p in probabilities])
    np.testing.assert_allclose(dense_softmax(image, text, np.log(4)), softmax, rtol=1e-6)
    pairs = [np.log1p(np.exp(-(1 if i == j else -1) * (logits[i, j] - 3))) for i in range(5) for j in range(5)]
    np.testing.assert_allclose(dense_sigmoid(image, text, np.log(4), -3.0), np.sum(pairs) / 5, rtol=1e-6)


def test_masked_pairs_drop_out_of_the_sums():
    image, text = features(4)
    logits = np.asarray(image) @ np.asarray(text).T
    group = jnp.asarray([0, 0, 1, 2])
    counts = np.array([[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]], bool)
    mass = np.exp(logits) * counts
    want = np.mean([np.log(mass.sum(1)) - np.diag(logits), np.log(mass.sum(0)) - np.diag(logits)])
    np.testing.assert_allclose(dense_softmax(image, text, 0.0, group=group), want, rtol=1e-6)
    signs = 2 * np.eye(4) - 1
    want = (np.log1p(np.exp(-signs * logits)) * counts).sum() / 4
    np.testing.assert_allclose(dense_sigmoid(image, text, 0.0, 0.0, group=group), want, rtol=1e-6)


def test_metrics_are_those_of_the_whole_batch():
    image, text = features(40, width=6)
    scale, bias = 7.0, -3.0
    cosine = np.asarray(image, np.float64) @ np.asarray(text, np.float64).T
    with jax.set_mesh(make_mesh({"data": 4})):
        options = {"axes": ("data",), "chunk": 12}
        loss, metrics = jax.jit(lambda: softmax_contrastive(image, text, np.log(scale), **options))()
        sigmoid_loss, parts = jax.jit(lambda: sigmoid_contrastive(image, text, np.log(scale), bias, **options))()
    order = np.arange(40)
    assert 0 < metrics["image_to_text_top1"] < 1
    np.testing.assert_allclose(metrics["image_to_text_top1"], (cosine.argmax(1) == order).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["text_to_image_top1"], (cosine.argmax(0) == order).mean(), rtol=1e-6)
    for axis, name in ((1, "image_to_text_loss"), (0, "text_to_image_loss")):
        want = np.mean(np.log(np.exp(scale * cosine).sum(axis)) - scale * np.diag(cosine))
        np.testing.assert_allclose(metrics[name], want, rtol=1e-5)
    np.testing.assert_allclose(loss, (metrics["image_to_text_loss"] + metrics["text_to_image_loss"]) / 2, rtol=1e-6)
    positive = np.log1p(np.exp(-(scale * np.diag(cosine) + bias))).mean()
    np.testing.assert_allclose(parts["positive_loss"], positive, rtol=1e-5)
    np.testing.assert_allclose(sigmoid_loss, parts["positive_loss"] + parts["negative_loss"], rtol=1e-6)


def test_collapsed_embeddings_score_nothing_and_lose_the_logarithm_of_the_batch():
    row = features(1, width=33)[0]
    image = jnp.tile(row, (64, 1))
    loss, metrics = jax.jit(lambda x: softmax_contrastive(x, x, 4.6, axes=(), chunk=10))(image)
    np.testing.assert_allclose(loss, np.log(64), rtol=1e-5)
    assert metrics["image_to_text_top1"] == metrics["text_to_image_top1"] == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_a_nearly_solved_batch_keeps_its_small_loss_and_gradient(loss):
    arguments = (jnp.eye(6), jnp.eye(6), jnp.log(jnp.float32(20.0)), jnp.float32(-10.0))
    (value, _), gradients = chunked_value_and_gradients(loss, arguments, axes=(), chunk=4)
    want_value, want_gradients = dense_value_and_gradients(loss, arguments)
    assert want_value < 1e-2
    assert_same((value, gradients[:3]), (want_value, want_gradients[:3]))


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_scale_and_lone_rows_stay_finite(loss):
    for rows, group in ((1, None), (6, jnp.zeros(6, jnp.int32)), (6, None)):
        arguments = (*features(rows), jnp.log(jnp.float32(100.0)), jnp.float32(-10.0))
        result = chunked_value_and_gradients(loss, arguments, group, axes=(), chunk=4)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_features_are_summed_in_float32(loss):
    arguments = arguments_for(loss, 32, dtype=jnp.bfloat16)
    with jax.set_mesh(make_mesh({"data": 2})):
        (value, _), gradients = chunked_value_and_gradients(loss, arguments, axes=("data",), chunk=7)
    want_value, want_gradients = dense_value_and_gradients(loss, [np.asarray(a, np.float32) for a in arguments])
    assert value.dtype == jnp.float32 and gradients[0].dtype == jnp.bfloat16
    assert_same((value, gradients[2]), (want_value, want_gradients[2]))
    assert_same(gradients[:2], want_gradients[:2], tolerance=4e-3)  # rounded once, at the end


@pytest.mark.parametrize("loss", LOSSES)
def test_no_device_holds_the_square_or_its_share_of_it(loss):
    rows, chunk = 256, 64
    mesh = make_mesh({"data": 8})
    sharded = jax.ShapeDtypeStruct((rows, 8), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))

    def objective(*a):
        return chunked(loss, *a, axes=("data",), chunk=chunk)[0]

    step = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2, 3)))
    with jax.set_mesh(mesh):
        text = step.lower(sharded, sharded, 1.0, 1.0).compile().as_text()
    sizes = {math.prod(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
    assert rows // 8 * chunk in sizes  # the tile is there,
    assert max(sizes) <= rows // 8 * chunk  # and is the largest array


@pytest.mark.parametrize("loss", LOSSES)
def test_metrics_carry_no_gradient(loss):
    arguments = arguments_for(loss, 8)

    def sum_of_metrics(x):
        return sum(chunked(loss, x, *arguments[1:], axes=(), chunk=8)[1].values())

    gradient = jax.jit(jax.grad(sum_of_metrics))(arguments[0])
    assert not gradient.any()


def test_wrong_use_says_what_is_wrong():
    image, text = features(6)
    with pytest.raises(ValueError, match=r"must both be \[B, D\]"):
        softmax_contrastive(image, text[:4], 0.0, axes=(), chunk=4)
    with pytest.raises(ValueError, match="chunk is 0"):
        softmax_contrastive(image, text, 0.0, axes=(), chunk=0)
    with pytest.raises(ValueError, match="axes \\['data'\\] are not of the mesh"):
        sigmoid_contrastive(image, text, 0.0, 0.0, axes=("data",), chunk=4)
    with (
        jax.set_mesh(make_mesh({"data": 4})),
        pytest.raises(ValueError, match="batch 6 is not a multiple of the 4 devices"),
    ):
        sigmoid_contrastive(image, text, 0.0, 0.0, axes=("data",), chunk=4)

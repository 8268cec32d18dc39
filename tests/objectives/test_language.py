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

from vlmax.objectives.language import IGNORED, Axes, dense_next_token_loss, next_token_loss

# mesh axes, and which of them shard examples, positions and vocabulary
MESHES = {
    "1": ({"data": 1}, Axes()),
    "data 8": ({"data": 8}, Axes(batch=("data",))),
    "fsdp 8": ({"fsdp": 8}, Axes(batch=("fsdp",), embed=("fsdp",))),
    "head by rows": ({"fsdp": 8}, Axes(batch=("fsdp",), vocab=("fsdp",))),
    "tensor 8": ({"tensor": 8}, Axes(vocab=("tensor",))),
    "data, fsdp, tensor": (
        {"data": 2, "fsdp": 2, "tensor": 2},
        Axes(batch=("data", "fsdp"), vocab=("tensor",), embed=("fsdp",)),
    ),
    "fsdp, tensor, sequence": (
        {"fsdp": 2, "tensor": 2, "sequence": 2},
        Axes(batch=("fsdp",), tokens=("sequence",), vocab=("tensor",), embed=("fsdp",)),
    ),
}
SMOOTH = {"label_smoothing": 0.1, "z_loss": 0.01}


def arrays(batch=8, length=6, width=16, vocab=50, rows=56, dtype=np.float32, seed=0):
    """Hidden states, head with padded columns, bias and labels, a third of which are ignored."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, vocab, (batch, length))
    labels = np.where(rng.random((batch, length)) < 1 / 3, IGNORED, labels)
    hidden, head, bias = (
        jnp.asarray(rng.normal(size=shape), dtype) for shape in ((batch, length, width), (width, rows), (rows,))
    )
    return (hidden, head, bias), jnp.asarray(labels, jnp.int32)


@functools.partial(jax.jit, static_argnames=("vocab", "label_smoothing", "z_loss"))
def _dense(values, labels, **options):
    def objective(hidden, head, bias):
        loss, count, metrics = dense_next_token_loss(hidden, head, labels, bias=bias, **options)
        return 3 * loss, (count, metrics)

    return jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True)(*values)


def dense(values, labels, **options):
    """Value, gradients, count and metrics of the reference, in float64."""
    with jax.enable_x64(True):  # the yardstick's own rounding must not count
        wide = [jnp.asarray(np.asarray(x), jnp.float64) for x in values]
        return jax.tree.map(np.asarray, _dense(wide, labels, **options))


@functools.partial(jax.jit, static_argnames=("vocab", "chunk", "label_smoothing", "z_loss", "axes"))
def chunked(values, labels, **options):
    def objective(hidden, head, bias):
        loss, count, metrics = next_token_loss(hidden, head, labels, bias=bias, **options)
        return 3 * loss, (count, metrics)  # 3: a cotangent that is not 1

    return jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True)(*values)


def make_mesh(axes: dict[str, int]):
    devices = jax.devices()[: math.prod(axes.values())]
    return jax.make_mesh(tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes), devices=devices)


def assert_same(got, want, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.linalg.norm(np.asarray(a, np.float64) - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("chunk", [7, 1000])
def test_value_and_every_gradient_equal_the_dense_form(name, chunk):
    sizes, axes = MESHES[name]
    values, labels = arrays()  # 48 tokens, so that chunks of 7 leave a ragged last one on 1 device and on many
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        tokens = NamedSharding(mesh, PartitionSpec(axes.batch or None, axes.tokens or None))
        placed = [jax.device_put(values[0], tokens), *values[1:]]
        got = chunked(placed, jax.device_put(labels, tokens), vocab=50, chunk=chunk, axes=axes, **SMOOTH)
    assert_same(got, dense(values, labels, vocab=50, **SMOOTH))
    assert got[1][0].sharding.is_equivalent_to(tokens, 3)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 5),
    vocab=st.integers(1, 9),
    padding=st.integers(0, 3),
    chunk=st.integers(1, 20),
    name=st.sampled_from(["1", "fsdp 8"]),
    options=st.sampled_from([{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}]),
)
def test_any_size_equals_the_dense_form(batch, length, vocab, padding, chunk, name, options):
    sizes, axes = MESHES[name]
    batch *= 8 if axes.batch else 1
    values, labels = arrays(batch, length, 8, vocab, vocab + padding, seed=chunk)
    with jax.set_mesh(make_mesh(sizes)):
        got = chunked(values, labels, vocab=vocab, chunk=chunk, axes=axes, **options)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(dense(values, labels, vocab=vocab, **options)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_dense_form_is_the_definition():
    (hidden, head, bias), labels = arrays()
    loss, count, metrics = dense_next_token_loss(hidden, head, labels, vocab=50, bias=bias, **SMOOTH)
    total, nll, right = 0.0, 0.0, 0
    for h, label in zip(np.asarray(hidden, np.float64).reshape(-1, 16), np.asarray(labels).ravel(), strict=True):
        if label == IGNORED:
            continue
        logits = (h @ np.asarray(head, np.float64) + np.asarray(bias, np.float64))[:50]
        log_z = np.log(np.exp(logits).sum())
        target = np.full(50, 0.1 / 50)  # smoothing spreads a tenth over all classes, the right one too
        target[label] += 0.9
        total += -(target * (logits - log_z)).sum() + 0.01 * log_z**2
        nll += log_z - logits[label]
        right += logits.argmax() == label
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(metrics["nll"], nll, rtol=1e-5)
    assert count == (np.asarray(labels) != IGNORED).sum() and metrics["correct"] == right


def test_ignored_rows_and_batches_give_zeros():
    values, labels = arrays()
    none = jnp.full_like(labels, IGNORED)
    (loss, (count, metrics)), gradients = chunked(values, none, vocab=50, chunk=10, **SMOOTH)
    assert loss == count == metrics["nll"] == metrics["correct"] == 0
    assert not any(np.any(g) for g in gradients)
    some = labels.at[2:5].set(IGNORED)
    _, gradients = chunked(values, some, vocab=50, chunk=10, **SMOOTH)
    assert not gradients[0][2:5].any() and gradients[0][:2].any()


@pytest.mark.parametrize("label", [50, 55, -1, -7])
def test_a_label_that_is_no_token_makes_the_loss_nan(label):
    values, labels = arrays()
    (loss, _), gradients = chunked(values, labels.at[3, 3].set(label), vocab=50, chunk=10)
    assert np.isnan(loss) and np.isnan(gradients[1]).any()


def test_padded_columns_change_nothing_whatever_they_hold():
    (hidden, head, bias), labels = arrays()
    (loss, _), gradients = chunked((hidden, head, bias), labels, vocab=50, chunk=10, **SMOOTH)
    wild = (hidden, head.at[:, 50:].mul(1e3), bias.at[50:].set(1e6))
    (again, _), others = chunked(wild, labels, vocab=50, chunk=10, **SMOOTH)
    assert loss == again and all((a == b).all() for a, b in zip(gradients, others, strict=True))
    assert not gradients[1][:, 50:].any() and not gradients[2][50:].any()


def test_equal_logits_score_nothing_and_extreme_ones_stay_finite():
    (hidden, head, bias), labels = arrays()
    (loss, (count, metrics)), _ = chunked((hidden, 0 * head, 0 * bias), labels, vocab=50, chunk=10)
    np.testing.assert_allclose(loss, 3 * count * np.log(50), rtol=1e-6)
    assert metrics["correct"] == 0
    got = chunked((1e4 * hidden, head, bias), labels, vocab=50, chunk=10, **SMOOTH)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))


def test_bfloat16_is_summed_in_float32():
    values, labels = arrays(dtype=jnp.bfloat16)
    sizes, axes = MESHES["data, fsdp, tensor"]
    with jax.set_mesh(make_mesh(sizes)):
        (loss, (_, metrics)), gradients = chunked(values, labels, vocab=50, chunk=12, axes=axes, **SMOOTH)
    (want, (_, want_metrics)), want_gradients = dense([np.asarray(x, np.float32) for x in values], labels, vocab=50,
                                                      **SMOOTH)  # fmt: skip
    assert loss.dtype == jnp.float32 and {g.dtype for g in gradients} == {jnp.dtype(jnp.bfloat16)}
    assert_same((loss, metrics), (want, want_metrics))
    assert_same(gradients, want_gradients, tolerance=8e-3)  # d(logits) is rounded, and the sums once at the end


def test_float32_head_and_bfloat16_tokens_give_a_float32_gradient():
    (hidden, head, bias), labels = arrays()
    rounded = (hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16).astype(jnp.float32), bias)
    (loss, _), gradients = chunked(rounded, labels, vocab=50, chunk=12)
    (want, _), want_gradients = dense([np.asarray(x, np.float32) for x in rounded], labels, vocab=50)
    assert gradients[1].dtype == jnp.float32
    assert_same(loss, want)
    assert_same(gradients, want_gradients, tolerance=8e-3)


def test_a_frozen_head_costs_no_gradient():
    (hidden, head, bias), labels = arrays(width=24)

    def products(*argnums):
        def objective(hidden, head, bias):
            return next_token_loss(hidden, head, labels, bias=bias, vocab=50, chunk=12)[0]

        function = jax.grad(objective, argnums=argnums) if argnums else objective
        return len(re.findall("dot_general", str(jax.make_jaxpr(function)(hidden, head, bias))))

    assert (products(), products(0), products(1), products(0, 1)) == (1, 2, 2, 3)


def test_no_device_holds_the_logits():
    sizes, axes = MESHES["data, fsdp, tensor"]
    (hidden, head, bias), labels = arrays(batch=16, length=32, width=4, vocab=512, rows=512)
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        tokens = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        placed = [jax.device_put(hidden, tokens), head, bias]
        options = {"vocab": 512, "chunk": 16, "axes": axes}
        text = chunked.lower(placed, jax.device_put(labels, tokens), **options).compile().as_text()
    arrays_of = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
    assert (16, 128) in arrays_of  # the chunk of 2 x 8 tokens over a quarter of the vocabulary is there,
    assert max(map(math.prod, arrays_of)) <= 16 * 128  # and no array is larger


def test_metrics_carry_no_gradient():
    (hidden, head, bias), labels = arrays()

    def metrics(hidden):
        return sum(next_token_loss(hidden, head, labels, bias=bias, vocab=50, chunk=12)[2].values())

    assert not jax.jit(jax.grad(metrics))(hidden).any()


def test_wrong_use_says_what_is_wrong():
    (hidden, head, _), labels = arrays()
    options = {"vocab": 50, "chunk": 4}
    with pytest.raises(ValueError, match=r"must be \[B, T, D\]"):
        next_token_loss(hidden, head.T, labels, **options)
    with pytest.raises(ValueError, match="vocab is 57"):
        next_token_loss(hidden, head, labels, vocab=57, chunk=4)
    with pytest.raises(ValueError, match="chunk is 0"):
        next_token_loss(hidden, head, labels, vocab=50, chunk=0)
    with pytest.raises(ValueError, match="label_smoothing 1"):
        next_token_loss(hidden, head, labels, label_smoothing=1.0, **options)
    with pytest.raises(ValueError, match="not of the mesh"):
        next_token_loss(hidden, head, labels, axes=Axes(batch=("data",)), **options)
    with jax.set_mesh(make_mesh({"fsdp": 4})):
        with pytest.raises(ValueError, match="T 6 is not a multiple of the 4 devices"):
            next_token_loss(hidden, head, labels, axes=Axes(tokens=("fsdp",)), **options)
        with pytest.raises(ValueError, match="names an axis twice"):
            next_token_loss(hidden, head, labels, axes=Axes(("fsdp",), ("fsdp",)), **options)


@pytest.mark.parametrize("name", ["1", "data, fsdp, tensor", "fsdp, tensor, sequence"])
def test_weights_multiply_every_positions_loss_and_its_gradient(name):
    sizes, axes = MESHES[name]
    values, labels = arrays()
    weights = np.random.default_rng(3).random(labels.shape).astype(np.float32) * (np.arange(labels.shape[1]) != 2)

    def of(loss, values, weights, **options):
        def objective(*values):
            hidden, head, bias = values
            total, count, metrics = loss(hidden, head, labels, bias=bias, weights=weights, vocab=50, **options)
            return 3 * total, (count, metrics)

        return jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True)(*values)

    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x), jnp.float64) for x in (*values, weights)]
        want = jax.tree.map(np.asarray, of(dense_next_token_loss, wide[:3], wide[3], **SMOOTH))
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        tokens = NamedSharding(mesh, PartitionSpec(axes.batch or None, axes.tokens or None))
        placed = [jax.device_put(values[0], tokens), *values[1:]]
        run = jax.jit(functools.partial(of, next_token_loss, chunk=7, axes=axes, **SMOOTH))
        got = run(placed, jax.device_put(weights, tokens))
    assert_same(got, want)
    assert int(got[0][1][0]) == int((labels != IGNORED).sum())  # of all that are learned, whatever their weight
    ones, plain = (
        of(next_token_loss, values, given, chunk=1000)[0][0] for given in (np.ones(labels.shape, np.float32), None)
    )
    assert float(ones) == float(plain)
    with pytest.raises(ValueError, match=r"weights \(8,\) and labels \(8, 6\) must both be"):
        of(next_token_loss, values, weights[:, 0], chunk=7)

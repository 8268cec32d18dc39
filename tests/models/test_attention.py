"""The attention function against a plain NumPy softmax, and what its mask hides."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmax.models.layers.attention import Attention, Mask, attention
from vlmax.models.layers.embeddings import Rotary

B, T, H, K = 2, 7, 4, 8
jitted = jax.jit(attention, static_argnames="scale")


def arrays(seed=0, heads=H, kv_heads=H, queries=T, keys=T, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = [(B, queries, heads, K), (B, keys, kv_heads, K), (B, keys, kv_heads, K)]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def by_hand(q, k, v, visible=None, bias=None, scale=None):
    """Row by row in float64; rows that see nothing are zeros."""
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(*q.shape[:3]):
        group = h // (q.shape[2] // k.shape[2])
        scores = k[b, :, group].astype(float) @ q[b, i, h] * (q.shape[-1] ** -0.5 if scale is None else scale)
        if bias is not None:
            scores = scores + bias[b % bias.shape[0], h % bias.shape[1], i]
        seen = np.ones(len(scores), bool) if visible is None else visible[b, i]
        if seen.any():
            weights = np.exp(scores[seen] - scores[seen].max())
            out[b, i, h] = weights / weights.sum() @ v[b, seen, group]
    return out


def visible_by_hand(mask: Mask, queries=T, keys=T):
    """The mask's definition, one pair at a time."""
    seen = np.zeros((B, queries, keys), bool)
    for b, i, j in np.ndindex(*seen.shape):
        ok = True
        if mask.causal:
            ok = j <= i and (mask.window is None or i - j < mask.window)
            if mask.prefix_length is not None:
                ok = ok or j < mask.prefix_length[b]
        if mask.query_segments is not None:
            ok = ok and mask.query_segments[b, i] == mask.key_segments[b, j]
        seen[b, i, j] = ok
    return seen


SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 3, 3, 3]], np.int32)
MASKS = {
    "all": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=3),
    "prefix": Mask(causal=True, prefix_length=np.array([0, 4], np.int32)),
    "packed": Mask(causal=True, query_segments=SEGMENTS, key_segments=SEGMENTS),
    "packed prefix": Mask(
        causal=True, prefix_length=np.array([2, 7], np.int32), query_segments=SEGMENTS, key_segments=SEGMENTS
    ),
    "segments": Mask(query_segments=SEGMENTS, key_segments=np.roll(SEGMENTS, 1, axis=1)),
    "padding": Mask.padding(np.array([[1, 1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]], bool), T),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_what_their_definition_says(name):
    q, k, v = arrays()
    mask = MASKS[name]
    expected = visible_by_hand(mask)
    dense = mask.dense(T, T)
    assert (dense is None and expected.all()) or np.array_equal(np.broadcast_to(dense, (B, 1, T, T))[:, 0], expected)
    np.testing.assert_allclose(jitted(q, k, v, mask), by_hand(q, k, v, expected), atol=2e-6)


def test_a_row_that_sees_nothing_is_zero_and_has_a_finite_gradient():
    q, k, v = arrays()
    mask = Mask.padding(np.array([[True] * T, [False] * T]), T)
    out, gradients = jax.value_and_grad(lambda *x: jnp.sum(attention(*x, mask)[..., :3] ** 2), (0, 1, 2))(q, k, v)
    assert np.isfinite(out)
    assert not np.any(jitted(q, k, v, mask)[1])
    assert all(np.isfinite(g).all() and not np.any(g[1]) and np.any(g[0]) for g in gradients)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_queries_equal_repeated_heads(kv_heads):
    q, k, v = arrays(kv_heads=kv_heads, keys=5)
    repeated = [np.repeat(x, H // kv_heads, axis=2) for x in (k, v)]
    np.testing.assert_allclose(jitted(q, k, v), jitted(q, *repeated), atol=1e-6)
    np.testing.assert_allclose(jitted(q, k, v), by_hand(q, k, v), atol=2e-6)


@pytest.mark.parametrize("shape", [(1, H, T, T), (B, H, T, T), (1, 1, T, T)])
def test_bias_and_scale(shape):
    q, k, v = arrays(kv_heads=2)
    bias = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected = by_hand(q, k, v, visible_by_hand(MASKS["causal"]), bias, scale=0.5)
    np.testing.assert_allclose(jitted(q, k, v, MASKS["causal"], bias=bias, scale=0.5), expected, atol=2e-6)


def test_bfloat16_stays_near_float32_and_keeps_its_type():
    q, k, v = arrays()
    low = jitted(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), MASKS["causal"])
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), jitted(q, k, v, MASKS["causal"]), atol=0.03)


def test_large_scores_do_not_overflow():
    q, k, v = arrays()
    out = jitted(q * 1e4, k * 1e4, v, MASKS["packed"])
    assert np.isfinite(out).all()


@pytest.mark.parametrize("name", [name for name, mask in MASKS.items() if mask.causal])
def test_an_offset_stands_for_the_queries_before(name):
    mask = MASKS[name]
    late = dataclasses.replace(mask, offset=jnp.int32(4))
    if mask.query_segments is not None:
        late = dataclasses.replace(late, query_segments=mask.query_segments[:, 4:])
    np.testing.assert_array_equal(late.dense(T - 4, T), mask.dense(T, T)[:, :, 4:])
    q, k, v = arrays()
    np.testing.assert_allclose(jitted(q[:, 4:], k, v, late), jitted(q, k, v, mask)[:, 4:], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_an_unseen_token_changes_nothing(data):
    """Editing a key and its value changes exactly the queries that see it."""
    name = data.draw(st.sampled_from(sorted(MASKS)))
    b, j = data.draw(st.integers(0, B - 1)), data.draw(st.integers(0, T - 1))
    q, k, v = arrays(data.draw(st.integers(0, 99)))
    k2, v2 = k.copy(), v.copy()
    k2[b, j] += 1.0
    v2[b, j] -= 3.0
    before, after = (np.asarray(jitted(q, *x, MASKS[name])) for x in ((k, v), (k2, v2)))
    changed = np.any(before != after, axis=(2, 3))
    expected = np.zeros((B, T), bool)
    expected[b] = visible_by_hand(MASKS[name])[b, :, j]
    np.testing.assert_array_equal(changed, expected)


def test_a_mask_is_a_pytree_with_static_parts():
    leaves, tree = jax.tree.flatten(MASKS["packed prefix"])
    assert len(leaves) == 3
    assert dataclasses.asdict(jax.tree.unflatten(tree, leaves))["causal"] is True
    assert jax.tree.structure(MASKS["window"]) != jax.tree.structure(MASKS["causal"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mask(window=3),
        lambda: Mask(prefix_length=np.zeros(2, np.int32)),
        lambda: Mask(causal=True, window=3, prefix_length=np.zeros(2, np.int32)),
        lambda: Mask(causal=True, window=0),
        lambda: Mask(query_segments=SEGMENTS),
        lambda: Mask(causal=True).dense(3, 4),
        lambda: Mask(offset=np.int32(3)),
        lambda: attention(*arrays(kv_heads=3)),
    ],
)
def test_what_is_not_defined_is_refused(make):
    with pytest.raises(ValueError, match=r"mask|attention"):
        make()


def test_keys_and_values_made_before_stand_for_the_context():
    x = np.random.default_rng(0).standard_normal((B, T, 32))
    module = Attention(4, 2, 8, jax.nn.initializers.normal(0.3), jax.nn.initializers.normal(0.3))
    params = jax.jit(module.init)(jax.random.key(0), x)
    rotary = Rotary(100.0).angles(jnp.arange(T)[None], 8)
    made = module.apply(params, x, rotary, method="keys_values")
    expected = module.apply(params, x, None, MASKS["causal"], rotary)
    np.testing.assert_array_equal(module.apply(params, x, made, MASKS["causal"], rotary), expected)


def test_the_module_projects_attends_and_projects():
    rng = np.random.default_rng(0)
    x, context = rng.standard_normal((B, T, 32)), rng.standard_normal((B, 5, 12))
    normal = jax.nn.initializers.normal(0.3)
    module = Attention(4, 2, 8, normal, normal)
    params = jax.tree.map(np.asarray, jax.jit(module.init)(jax.random.key(0), x, context))["params"]
    params = jax.tree.map(lambda p: rng.standard_normal(p.value.shape).astype(np.float32), params, is_leaf=boxed)
    projected = [
        np.einsum("btd,dhk->bthk", source, params[name]["kernel"]) + params[name]["bias"]
        for name, source in (("query", x), ("key", context), ("value", context))
    ]
    expected = np.einsum("bthk,hkd->btd", by_hand(*projected), params["out"]["kernel"]) + params["out"]["bias"]
    out = jax.jit(module.apply)({"params": params}, x, context)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def boxed(leaf):
    return hasattr(leaf, "names")

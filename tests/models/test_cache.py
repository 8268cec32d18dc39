"""The cache: what it holds, that it is updated in place, and keys and values of a context read once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_transformer import BERT, CONTEXT, LLAMA, B, D, N, T, X, parameters
from vlmax.errors import InputError
from vlmax.models.layers import kernels
from vlmax.models.layers.attention import Mask
from vlmax.models.layers.cache import Cache, CacheInLoop, KeysValues, of_all_layers
from vlmax.models.layers.layer_by_layer import layer_by_layer
from vlmax.models.layers.transformer import TransformerModule


def empty(config, slots, batch=B):
    heads = config.kv_heads or config.heads
    return Cache.empty(config.depth, batch, slots, heads, config.head_width, jnp.float32)


def admitted(cache, length):
    """The cache with `length` new tokens in every row, and the mask of their queries."""
    ones = np.ones((cache.valid.shape[0], length), np.int32)
    cache = cache.admit(ones)
    return cache, Mask(causal=True, query_segments=ones, key_segments=cache.valid, offset=cache.index)


def test_an_empty_cache_holds_nothing():
    cache = Cache.empty(3, 2, 5, 1, 4, jnp.bfloat16)
    assert cache.keys.shape == cache.values.shape == (3, 2, 1, 5, 4) and cache.keys.dtype == jnp.bfloat16
    assert cache.slots == 5 and cache.index == 0 and not np.any(cache.valid) and cache.cross is None


def test_tokens_are_admitted_at_the_index():
    cache = dataclasses.replace(Cache.empty(1, 2, 5, 1, 1, jnp.float32), index=jnp.int32(1))
    cache = cache.admit(np.array([[0, 1], [1, 2]]))
    assert cache.valid.tolist() == [[0, 0, 1, 0, 0], [0, 1, 2, 0, 0]] and cache.index == 1
    with pytest.raises(InputError, match="6 tokens do not fit into a cache of 5 slots"):
        cache.admit(np.ones((2, 6), np.int32))


def test_a_layer_writes_its_own_slots_and_sees_all_of_them():
    keys = jnp.arange(3 * 4, dtype=jnp.bfloat16).reshape(3, 1, 1, 4, 1)
    loop = CacheInLoop(keys, -keys, jnp.int32(2), jnp.int32(1))
    after, seen = loop.put(KeysValues(jnp.full((1, 1, 1, 1), 50.0), jnp.full((1, 1, 1, 1), 60.0)))
    assert seen.keys.ravel().tolist() == [4, 5, 50, 7] and seen.values.ravel().tolist() == [-4, -5, 60, -7]
    assert seen.keys.dtype == jnp.float32 and after.keys.dtype == jnp.bfloat16
    assert after.layer == 2 and after.index == 2
    assert after.keys.ravel().tolist() == [0, 1, 2, 3, 4, 5, 50, 7, 8, 9, 10, 11]


def test_layers_that_do_not_hand_on_a_cache_have_one_each():
    keys = jnp.arange(3 * 4, dtype=jnp.float32).reshape(3, 1, 1, 4, 1)
    caches = CacheInLoop(keys, -keys, jnp.int32(2), jnp.int32(0)).by_layer()
    caches[1], seen = caches[1].put(KeysValues(jnp.full((1, 1, 1, 1), 50.0), jnp.full((1, 1, 1, 1), 60.0)))
    assert seen.keys.ravel().tolist() == [4, 5, 50, 7] and seen.values.ravel().tolist() == [-4, -5, 60, -7]
    together = of_all_layers(caches)
    assert [kept.shape for kept in together.keys] == [(1, 1, 4, 1)] * 3 and together.index == 2
    assert jnp.stack(together.keys).ravel().tolist() == [0, 1, 2, 3, 4, 5, 50, 7, 8, 9, 10, 11]
    for first, second in zip(together.by_layer(), caches, strict=True):
        assert first.keys is second.keys and first.values is second.values


@pytest.mark.parametrize("layout", [lambda params: params, layer_by_layer])
def test_the_stack_with_a_cache_equals_the_stack(layout):
    params, module = parameters(LLAMA), TransformerModule(LLAMA)
    whole, states = module.apply(params, X, Mask(causal=True), hidden=True)
    params = layout(params)

    @jax.jit
    def step(params, x, cache):
        cache, mask = admitted(cache, x.shape[1])
        return module.apply(params, x, mask, hidden=True, cache=cache)

    cache = empty(LLAMA, T + 3)
    for start, stop in ((0, 3), (3, 4), (4, 5), (5, 6)):
        out, hidden, cache = step(params, X[:, start:stop], cache)
        np.testing.assert_allclose(out, whole[:, start:stop], atol=1e-5)
        np.testing.assert_allclose(hidden, states[:, :, start:stop], atol=1e-5)
    assert cache.index == T and not any(np.any(keys[..., T:, :]) for keys in jax.tree.leaves(cache.keys))


@pytest.mark.parametrize("layout", [lambda params: params, layer_by_layer])
def test_the_cache_is_updated_in_place(layout):
    """A step's temporaries hold a layer of the cache at most a few times, and never all layers."""
    config = dataclasses.replace(LLAMA, depth=16)
    params, cache = layout(parameters(config)), empty(config, 2048, batch=2)

    def step(params, x, cache):
        cache, mask = admitted(cache, 1)
        return TransformerModule(config).apply(params, x, mask, cache=cache)

    _, _, cache = step(params, X[:2, :1], cache)
    compiled = jax.jit(step, donate_argnums=2).lower(params, X[:2, :1], cache).compile()
    memory, size = compiled.memory_analysis(), sum(x.nbytes for x in jax.tree.leaves((cache.keys, cache.values)))
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 4
    for _ in range(2):
        before, (_, _, cache) = cache, compiled(params, X[:2, :1], cache)
        assert all(x.is_deleted() for x in jax.tree.leaves((before.keys, before.values)))
    assert cache.index == 3


@pytest.mark.parametrize("layout", [lambda params: params, layer_by_layer])
def test_a_context_is_read_once(layout):
    config, params, module = BERT, parameters(BERT), TransformerModule(BERT)
    seen = Mask.padding(np.arange(N)[None] < np.array([[5], [2], [3], [4]]), T)
    whole, _ = module.apply(params, X, Mask(causal=True), context=CONTEXT, context_mask=seen)

    def narrowed(length):
        return dataclasses.replace(seen, query_segments=seen.query_segments[:, :length])

    looped, params = params, layout(params)
    cache, mask = admitted(empty(config, T), 2)
    first, _, cache = module.apply(params, X[:, :2], mask, context=CONTEXT, context_mask=narrowed(2), cache=cache)
    np.testing.assert_allclose(first, whole[:, :2], atol=1e-5)
    each = (B, config.heads, N, D // config.heads)
    if params is looped:
        assert cache.cross.keys.shape == cache.cross.values.shape == (config.depth, *each)
    else:
        assert [x.shape for x in jax.tree.leaves(cache.cross)] == [each] * 2 * config.depth

    @jax.jit
    def step(params, x, cache):
        cache, mask = admitted(cache, 1)
        return module.apply(params, x, mask, context_mask=narrowed(1), cache=cache)

    for i in range(2, T):
        out, _, cache = step(params, X[:, i : i + 1], cache)
        np.testing.assert_allclose(out, whole[:, i : i + 1], atol=1e-5)
    with pytest.raises(ValueError, match="context is missing"):
        module.apply(params, X[:, :1], cache=empty(config, T))


def test_layers_apart_go_on_from_a_loop_s_context():
    params, module = parameters(BERT), TransformerModule(BERT)
    whole, _ = module.apply(params, X, Mask(causal=True), context=CONTEXT)
    cache, mask = admitted(empty(BERT, T), 2)
    _, _, cache = module.apply(params, X[:, :2], mask, context=CONTEXT, cache=cache)
    cache, mask = admitted(cache, T - 2)
    rest, _, after = module.apply(layer_by_layer(params), X[:, 2:], mask, cache=cache)
    np.testing.assert_allclose(rest, whole[:, 2:], atol=1e-5)
    assert after.cross is cache.cross


def test_layers_apart_read_a_context_where_it_lies():
    """A step's temporaries hold no layer's keys or values of the context, let alone those of all."""
    config, length = dataclasses.replace(BERT, heads=2, depth=4), 4096
    params, module = layer_by_layer(parameters(config)), TransformerModule(config)

    def step(params, x, cache, context=None):
        cache, mask = admitted(cache, 1)
        return module.apply(params, x, mask, context=context, cache=cache)

    context = np.ones((2, length, 12), np.float32)
    _, _, cache = jax.eval_shape(step, params, X[:2, :1], empty(config, 8, batch=2), context)
    compiled = jax.jit(step, donate_argnums=2).lower(params, X[:2, :1], cache).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < cache.cross[0].keys.size * 4


def test_a_cache_is_fresh_until_the_first_tokens_which_see_each_other_alone(monkeypatch):
    params, module, seen = parameters(LLAMA), TransformerModule(LLAMA), []
    monkeypatch.setattr(kernels, "fused", lambda q, k, *_: seen.append(k.shape[1]))
    whole, _ = module.apply(params, X[:, :3], Mask(causal=True))
    cache = empty(LLAMA, T).admit(np.ones((B, 3), np.int32))
    assert cache.fresh
    first, _, after = module.apply(params, X[:, :3], Mask(causal=True), cache=cache)
    np.testing.assert_array_equal(first, whole)
    assert set(seen) == {3}
    seen.clear()
    cache, mask = admitted(after, 2)
    _, _, later = module.apply(params, X[:, 3:5], mask, cache=cache)
    assert set(seen) == {T}
    assert not after.fresh and jax.tree.structure(after) == jax.tree.structure(later)
    with pytest.raises(ValueError, match="mask has no offset"):
        module.apply(params, X[:, 3:5], Mask(causal=True), cache=cache)

"""The Q-Former: who sees whom in each of its three masks, what it shares with BERT, and its options."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlmax.errors import InputError
from vlmax.models.connectors.qformer import TEXT_BRANCH, QFormer, apart, together, writing
from vlmax.models.decoders.bert import BERT
from vlmax.models.layers.attention import Mask
from vlmax.training import patterns

TINY = QFormer(width=16, depth=4, heads=2, mlp=24, queries=3, cross_width=10, vocab=30, context=12, norm_epsilon=1e-6)
B, T, N, Q = 2, 6, 5, TINY.queries
RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((B, N, 10)).astype(np.float32)
TEXT = RNG.integers(0, 30, (B, T)).astype(np.int32)
REAL = (np.arange(T) < np.array([[6], [4]])).astype(np.int32)


@functools.cache
def parameters(config=TINY):
    """Random values everywhere, so that nothing is tested at its neutral value."""
    shapes = nn.unbox(jax.eval_shape(lambda key: config.build().init(key, IMAGE), jax.random.key(0)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: (0.4 * rng.standard_normal(s.shape)).astype(np.float32), shapes)


@functools.cache
def passes(config=TINY):
    """Every way to run it, jitted once: what the queries find, a text alone, both together, a text that is written."""
    module = config.build()

    @jax.jit
    def run(params, image, text, real):
        alone = module.apply(params, image, keep=True)
        joint = module.apply(params, image, text, real)
        return {
            "queries": alone.queries,
            "read": module.apply(params, text, real, method="read"),
            "together": jnp.concatenate([joint.queries, joint.text], axis=1),
            "written": module.apply(params, text, alone.kept, real, method="write"),
        }

    return run


def changed(name, image=IMAGE, text=TEXT, real=REAL):
    """Which tokens `[B, T]` of a pass differ from those of the unchanged input."""
    before, after = passes()(parameters(), IMAGE, TEXT, real), passes()(parameters(), image, text, real)
    return np.any(np.asarray(before[name]) != np.asarray(after[name]), axis=-1)


def edited(places):
    return np.where(places, (TEXT + 7) % 30, TEXT).astype(np.int32)


OTHER_IMAGE = np.concatenate([IMAGE[:1] + 1.0, IMAGE[1:]])
AT = [(np.arange(T) == i)[None] & np.ones((B, 1), bool) for i in range(T)]


# Apart: the contrastive loss.


def test_apart_queries_see_the_image_and_no_text():
    assert changed("queries", image=OTHER_IMAGE).tolist() == [[True] * Q, [False] * Q]
    assert not changed("queries", text=edited(np.ones((B, T), bool))).any()


def test_apart_a_text_sees_all_of_itself_and_neither_image_nor_padding():
    assert not changed("read", image=OTHER_IMAGE).any()
    assert not changed("read", text=edited(REAL == 0))[REAL == 1].any()
    for i in range(T):
        found = changed("read", text=edited(AT[i] & (REAL == 1)))
        for row in range(B):
            assert found[row][REAL[row] == 1].all() == bool(REAL[row, i])


def test_apart_the_mask_is_that_of_padding():
    dense = np.asarray(apart(jnp.asarray(REAL)).dense(T, T))[:, 0]
    np.testing.assert_array_equal(dense, REAL[:, :, None] == REAL[:, None, :])


# Together: matching, and the instruction.


def test_together_queries_and_text_see_image_and_all_of_both_but_no_padding():
    seen = np.concatenate([np.ones((B, Q), np.int32), REAL], axis=1) == 1
    found = changed("together", image=OTHER_IMAGE)
    assert found[0][seen[0]].all() and not found[1].any()
    assert not changed("together", text=edited(REAL == 0))[seen].any()
    for i in range(T):
        found = changed("together", text=edited(AT[i] & (REAL == 1)))
        for row in range(B):
            assert found[row][seen[row]].all() == bool(REAL[row, i])


def test_together_the_mask_joins_queries_and_text():
    joint = np.concatenate([np.ones((B, Q), np.int32), REAL], axis=1)
    dense = np.asarray(together(jnp.asarray(REAL), Q).dense(Q + T, Q + T))[:, 0]
    np.testing.assert_array_equal(dense, joint[:, :, None] == joint[:, None, :])


# Writing: captions.


def test_writing_a_token_sees_the_queries_and_those_before_it():
    found = changed("written", image=OTHER_IMAGE)
    assert found[0].all() and not found[1].any()
    for i in range(T):
        found = changed("written", text=edited(AT[i]), real=np.ones_like(REAL))
        assert found.tolist() == [[place >= i for place in range(T)]] * B


def test_writing_padding_is_not_seen():
    # Padding at the left and in the middle, too: causality alone would hide it at the right.
    real = np.array([[0, 1, 1, 1, 0, 0], [1, 1, 0, 1, 1, 1]], np.int32)
    assert not changed("written", text=edited(real == 0), real=real)[real == 1].any()


def test_writing_the_mask_has_the_queries_before_the_text():
    dense = np.asarray(writing(jnp.asarray(REAL), Q).dense(T, Q + T))[:, 0]
    text = (REAL[:, :, None] == REAL[:, None, :]) & np.tril(np.ones((T, T), bool))
    queries = np.repeat(REAL[:, :, None] == 1, Q, axis=2)
    np.testing.assert_array_equal(dense, np.concatenate([queries, text], axis=2))


def test_writing_is_one_pass_in_which_queries_do_not_see_the_text():
    module, params = TINY.build(), parameters()

    def joint(module, image, text):
        queries = jnp.broadcast_to(module.query_tokens, (B, Q, 16))
        x = module.start(jnp.concatenate([queries, module.embed(text)], axis=1), True)
        mask = Mask(causal=True, prefix_length=jnp.full(B, Q))
        return module.transformer(x, Q, mask, context=module.context_norm(image))[0]

    whole = module.apply(params, IMAGE, TEXT, method=joint)
    found = passes()(params, IMAGE, TEXT, np.ones_like(REAL))
    np.testing.assert_allclose(whole[:, :Q], found["queries"], atol=1e-5)
    np.testing.assert_allclose(whole[:, Q:], found["written"], atol=1e-5)


def test_queries_that_saw_a_text_cannot_be_kept_for_it():
    with pytest.raises(ValueError, match="must not be kept"):
        TINY.build().apply(parameters(), IMAGE, TEXT, keep=True)


# Layers and parameters.


def test_it_has_the_parameters_of_a_bert_under_its_paths():
    bert = BERT(width=16, depth=4, heads=2, mlp=24, vocab=30, context=12, token_types=0)
    theirs = nn.unbox(jax.eval_shape(lambda key: bert.build().init(key, TEXT), jax.random.key(0)))["params"]
    ours = {path: leaf.shape for path, leaf in patterns.flatten(parameters()["params"]).items()}
    assert {path: leaf.shape for path, leaf in patterns.flatten(theirs).items()}.items() <= ours.items()
    rest = ours.keys() - patterns.flatten(theirs).keys()
    kinds = ("query_tokens", "context_norm/", "transformer/layers/query_mlp", "transformer/cross_layers/")
    assert all(path.startswith(kinds) for path in rest)
    assert ours["transformer/cross_layers/cross_attention/key/kernel"] == (2, 10, 2, 8)
    assert ours["transformer/layers/query_mlp/up/kernel"] == (4, 16, 24)


def test_the_second_stage_lacks_the_text_branch_alone():
    small = dataclasses.replace(TINY, text=False, predicts=False)
    ours, less = (patterns.flatten(parameters(config)["params"]) for config in (TINY, small))
    assert ours.keys() - less.keys() == patterns.union(TEXT_BRANCH, ours, "text branch")
    kept = {"params": patterns.unflatten({path: ours[path] for path in less})}
    alone = small.build().apply(kept, IMAGE).queries
    np.testing.assert_array_equal(alone, TINY.build().apply(parameters(), IMAGE).queries)
    with pytest.raises(InputError, match="no text branch"):
        small.build().apply(kept, IMAGE, TEXT)


def test_only_one_layer_of_two_reads_the_image():
    whole = parameters()["params"]["transformer"]["cross_layers"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(whole)} == {2}
    every = dataclasses.replace(TINY, cross_every=1)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(parameters(every)["params"]["transformer"])} == {4}
    assert passes(every)(parameters(every), IMAGE, TEXT, REAL)["queries"].shape == (B, Q, 16)


@pytest.mark.parametrize("options", [{"unroll": 4}, {"remat": "full"}, {"remat": "dots", "unroll": 2}])
def test_loop_and_recomputation_change_no_value_and_no_gradient(options):
    def loss(config):
        module = config.build()

        def total(params):
            found = module.apply(params, IMAGE, keep=True)
            written = module.apply(params, TEXT, found.kept, REAL, method="write")
            joint = module.apply(params, IMAGE, TEXT, REAL)
            return sum(jnp.sum(jnp.sin(x)) for x in (found.queries, written, joint.queries, joint.text))

        return jax.jit(jax.value_and_grad(total))(parameters())

    (plain, gradient), (other, others) = loss(TINY), loss(dataclasses.replace(TINY, **options))
    np.testing.assert_allclose(other, plain, rtol=1e-5)
    for path, leaf in patterns.flatten(gradient).items():
        difference = np.abs(patterns.flatten(others)[path] - leaf).max()
        assert difference <= 1e-4 * max(np.abs(leaf).max(), 1e-2), path  # rounding alone moves biases of keys


def test_dropout_needs_an_rng_and_differs_between_layers_and_calls():
    config = dataclasses.replace(TINY, dropout=0.3)
    module, params = config.build(), parameters()

    def run(seed):
        return module.apply(params, IMAGE, deterministic=False, rngs={"dropout": jax.random.key(seed)}).queries

    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 1e-3
    np.testing.assert_array_equal(module.apply(params, IMAGE).queries, TINY.build().apply(params, IMAGE).queries)
    with pytest.raises(Exception, match="dropout"):
        module.apply(params, IMAGE, deterministic=False)


def test_bfloat16_is_near_float32():
    low = TINY.build(jnp.bfloat16).apply(parameters(), IMAGE, TEXT, REAL).queries
    high = TINY.build().apply(parameters(), IMAGE, TEXT, REAL).queries
    assert low.dtype == jnp.bfloat16 and np.abs(low.astype(jnp.float32) - high).max() < 0.1 * np.abs(high).max()


def test_logits_are_bert_s_head():
    module, params = TINY.build(), parameters()
    x = RNG.standard_normal((B, T, 16)).astype(np.float32)
    inputs = module.apply(params, x, method="head_inputs")
    head, bias = (module.apply(params, method=name) for name in ("head", "head_bias"))
    np.testing.assert_allclose(module.apply(params, x, method="logits"), inputs @ head + bias, atol=1e-4)


def test_sizes_of_the_published_model():
    config = QFormer()
    shapes = nn.unbox(jax.eval_shape(lambda key: config.build().init(key, jnp.zeros((1, 2, 1408))), jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    head = 768 * 768 + 768 + 2 * 768 + 30_523  # which the paper's 188 million count, or not: the table is shared
    assert round((count - head) / 1e6) in (186, 187, 188)
    assert config.tokens(257) == 32 and config.output_width == 768


def test_flops_are_those_of_its_products():
    d, f, n, q, t = 768, 3072, 257, 32, 32
    layers = 12 * (8 * q * d * d + 4 * q * d * f + 4 * q * q * d)
    cross = 6 * (4 * q * d * d + 4 * n * 1408 * d + 4 * q * n * d)
    assert QFormer().flops(n) == layers + cross
    assert QFormer().text_flops(t, seen=q) - QFormer().text_flops(t) == 12 * 4 * t * q * d


def test_what_cannot_be_is_refused_by_name():
    for changes, words in (
        ({"cross_every": 3}, "cross_every divide the 4 layers"),
        ({"queries": 0}, "queries 0"),
        ({"text": False}, "predicts is True and text False"),
        ({"heads": 3}, "width 16 does not divide over 3 heads"),
    ):
        with pytest.raises(InputError, match=words):
            dataclasses.replace(TINY, **changes)
    with pytest.raises(InputError, match="13 tokens, but `context` is 12"):
        TINY.build().apply(parameters(), IMAGE, np.zeros((B, 13), np.int32))

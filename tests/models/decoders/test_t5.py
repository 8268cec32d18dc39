"""T5 against the reference's golden outputs, its cache, packed documents, distances and sizes."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from tests.models import golden
from tests.models.test_transformer import RULES
from tests.parity.t5 import assert_same, difference
from vlmax.errors import InputError
from vlmax.models.decoders import t5
from vlmax.models.decoders.t5 import T5
from vlmax.models.layers.layer_by_layer import layer_by_layer

SIZES = {"width": 16, "heads": 2, "head_dim": 6, "mlp": 24, "vocab": 30, "context": 12}
TINY = T5(**SIZES, depth=2, decoder_depth=3, buckets=8, max_distance=9)
N, T = 7, 6
RNG = np.random.default_rng(0)
INPUTS = RNG.integers(0, 30, (4, N)).astype(np.int32)
TARGETS = RNG.integers(0, 30, (4, T)).astype(np.int32)
SEGMENTS = (np.arange(N) < np.array([[7], [5], [6], [3]])).astype(np.int32)


def parameters(config=TINY):
    """Random values everywhere, so that nothing is tested at its neutral value."""
    shapes = nn.unbox(jax.eval_shape(config.build().init, jax.random.key(0), INPUTS, TARGETS))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: (0.4 * rng.standard_normal(s.shape)).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return parameters()


def run(config, params, inputs=INPUTS, targets=TARGETS, **segments):
    """The logits of a whole pass."""

    @jax.jit
    def apply(params, inputs, targets, segments):
        bound = config.build().bind(params)
        return bound.logits(bound(inputs, targets, **segments).tokens)

    return np.asarray(apply(params, inputs, targets, segments))


@pytest.fixture(scope="module")
def logits(params):
    return run(TINY, params, segments=SEGMENTS)


@pytest.mark.parametrize("kind", ["t5", "t5_first"])
def test_golden(kind):
    assert_same(golden.encoder(kind))


def test_the_golden_comparison_can_fail():
    found = golden.encoder("t5")
    found["config"]["relative_attention_max_distance"] = 7
    with pytest.raises(AssertionError):
        assert_same(found)


def step(params, tokens, cache, encoded=None, context_segments=None, segments=None):
    bound = TINY.build().bind(params)
    out = bound.decode(tokens, encoded, segments=segments, context_segments=context_segments, cache=cache)
    return bound.logits(out.tokens), out.cache


def test_token_by_token_is_the_whole_text(params, logits):
    """The context is read, and its padding known, by the first call alone."""
    encoded = jax.jit(lambda p: TINY.build().apply(p, INPUTS, segments=SEGMENTS, method="encode").tokens)(params)
    next_token = jax.jit(step)
    first, cache = next_token(params, TARGETS[:, :2], TINY.empty_cache(4, 9), encoded, SEGMENTS)
    np.testing.assert_allclose(first, logits[:, :2], atol=1e-4)
    for i in range(2, T):
        one, cache = next_token(params, TARGETS[:, i : i + 1], cache)
        np.testing.assert_allclose(one[:, 0], logits[:, i], atol=1e-4)
    assert next_token._cache_size() == 2


def test_layers_may_lie_one_by_one(params, logits):
    """Without a cache, and with one at the first call and at a later one."""
    apart = layer_by_layer(params)
    assert {"layers_0", "layers_1", "layers_2"} < set(apart["params"]["decoder"])
    np.testing.assert_allclose(run(TINY, apart, segments=SEGMENTS), logits, atol=1e-4)
    encoded = jax.jit(lambda p: TINY.build().apply(p, INPUTS, segments=SEGMENTS, method="encode").tokens)(apart)
    next_token = jax.jit(step)
    _, cache = next_token(apart, TARGETS[:, :5], TINY.empty_cache(4, 9), encoded, SEGMENTS)
    np.testing.assert_allclose(next_token(apart, TARGETS[:, 5:], cache)[0], logits[:, 5:], atol=1e-4)


def test_padding_at_the_left_changes_nothing(params, logits):
    pad = 3
    targets = np.pad(TARGETS, ((0, 0), (pad, 0)))
    shown = np.pad(np.ones_like(TARGETS), ((0, 0), (pad, 0)))
    inputs = np.pad(INPUTS, ((0, 0), (pad, 0)), constant_values=5)
    known = np.pad(SEGMENTS, ((0, 0), (pad, 0)))
    padded = run(TINY, params, inputs, targets, segments=known, target_segments=shown)
    np.testing.assert_allclose(padded[:, pad:], logits, atol=1e-4)


def test_packed_documents_know_nothing_of_each_other(params):
    segments = np.tile([1, 1, 1, 2, 2, 2, 0], (4, 1))
    targets = np.tile([1, 1, 2, 2, 2, 0], (4, 1))
    packed = run(TINY, params, segments=segments, target_segments=targets)
    changed, shifted = INPUTS.copy(), TARGETS.copy()
    changed[:, 1], changed[:, 6], shifted[:, 0], shifted[:, 5] = 3, 3, 3, 3
    after = run(TINY, params, changed, shifted, segments=segments, target_segments=targets)
    assert (np.abs(after - packed)[:, :2].max((0, 2)) > 0).all()
    np.testing.assert_array_equal(after[:, 2:5], packed[:, 2:5])
    alone = run(TINY, params, INPUTS[:, 3:6], TARGETS[:, 2:5])
    np.testing.assert_allclose(packed[:, 2:5], alone, atol=1e-4)


def test_embeddings_stand_for_tokens(params, logits):
    embed = jax.jit(lambda p, tokens: TINY.build().apply(p, tokens, method="embed"))
    found = run(TINY, params, embed(params, INPUTS), embed(params, TARGETS), segments=SEGMENTS)
    np.testing.assert_allclose(found, logits, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_gives_the_logits_whatever_the_padding_of_the_vocabulary(tied):
    config = dataclasses.replace(TINY, tied=tied)
    params = parameters(config)
    tokens = RNG.standard_normal((2, 3, 16)).astype(np.float32)
    expected = config.build().apply(params, tokens, method="logits")
    head = config.build().apply(params, method="head")
    np.testing.assert_allclose(tokens @ head, expected, atol=1e-5)
    wide = dataclasses.replace(config, vocab_multiple=8)
    more = {"embedding": ((0, 2), (0, 0)), "output": ((0, 0), (0, 2))}
    tables = params["params"]["vocabulary"]
    tables = {name: np.pad(table, more[name], constant_values=9.0) for name, table in tables.items()}
    padded = {"params": {**params["params"], "vocabulary": tables}}
    np.testing.assert_array_equal(wide.build().apply(padded, tokens, method="logits"), expected)
    assert wide.build().apply(padded, method="head").shape == (16, 32)


def test_remat_and_unroll_change_no_value_and_no_gradient(params):
    def gradient(**changes):
        module = dataclasses.replace(TINY, dropout=0.2, **changes).build()

        def loss(params):
            rngs = {"dropout": jax.random.key(0, impl="rbg")}
            out = module.apply(params, INPUTS, TARGETS, segments=SEGMENTS, deterministic=False, rngs=rngs)
            return jnp.mean(jnp.sin(out.tokens))

        return jax.jit(jax.value_and_grad(loss))(params)

    expected, found = gradient(), gradient(remat="full", unroll=2)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves({**expected[1]["params"], "vocabulary": 1.0}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), found, expected)


def test_dropout_needs_training(params, logits):
    config = dataclasses.replace(TINY, dropout=0.5)
    np.testing.assert_array_equal(run(config, params, segments=SEGMENTS), logits)


def test_sharded_equals_unsharded(params):
    config = dataclasses.replace(TINY, vocab_multiple=32)
    params = parameters(config)
    mesh = jax.make_mesh((2, 2, 2, 1), ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)
    module = config.build()

    def gradient(params):
        def loss(params):
            bound = module.bind(params)
            return jnp.mean(jnp.sin(bound.logits(bound(INPUTS, TARGETS, segments=SEGMENTS).tokens)))

        return jax.value_and_grad(loss)(params)

    expected = jax.jit(gradient)(params)
    boxes = jax.eval_shape(module.init, jax.random.key(0), INPUTS, TARGETS)
    layout = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxes), mesh, RULES)
    assert "tensor" in str(layout["params"]["decoder"]["relative_bias"].spec)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        found = jax.jit(gradient, out_shardings=(None, layout))(jax.device_put(params, layout))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


def test_bfloat16_computes_low(params):
    out = jax.eval_shape(lambda p: TINY.build(jnp.bfloat16).apply(p, INPUTS, TARGETS), params)
    assert out.tokens.dtype == jnp.bfloat16
    assert 1e-3 < difference(golden.encoder("t5"), jnp.bfloat16) < 0.1  # as far off as the reference in bfloat16


def test_every_parameter_has_names():
    boxes = jax.eval_shape(TINY.build().init, jax.random.key(0), INPUTS, TARGETS)
    for path, box in jax.tree.leaves_with_path(boxes, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)):
        assert isinstance(box, nn.LogicallyPartitioned) and len(box.names) == len(box.value.shape), path


def test_initial_logits_are_moderate():
    """Of a deviation near 1, tied or not: so that training from scratch starts near the uniform loss."""
    for tied in (False, True):
        config = T5(width=128, depth=1, heads=2, mlp=64, vocab=400, tied=tied)
        params = nn.unbox(jax.jit(config.build().init)(jax.random.key(0, impl="rbg"), INPUTS, TARGETS))
        assert 0.5 < run(config, params).std() < 2


PUBLISHED = {  # parameters in millions, as published with the weights
    "flan_t5_small": 76.96,
    "flan_t5_base": 247.58,
    "flan_t5_large": 783.15,
    "flan_t5_xl": 2849.76,
    "flan_t5_xxl": 11135.33,
    "t5_base": 222.90,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_sizes(name):
    config = getattr(t5, name)(vocab_multiple=1)
    shapes = nn.unbox(jax.eval_shape(config.build().init, jax.random.key(0), INPUTS, TARGETS))
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    assert count / 1e6 == pytest.approx(PUBLISHED[name], abs=0.006)
    table = (1 if config.tied else 2) * config.vocab * config.width
    # One token in and one out meet every matrix once, the tables apart.
    assert config.flops(1, 1) == pytest.approx(2 * (count - table) + 2 * config.vocab * config.width, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"heads": 0}, "heads"),
        ({"decoder_depth": 0}, "decoder_depth"),
        ({"head_dim": 0}, "head_dim"),
        ({"buckets": 6}, "buckets"),
        ({"max_distance": 4}, "max_distance"),
        ({"unroll": 3}, "unroll"),
        ({"dropout": 1.0}, "dropout"),
        ({"vocab_multiple": 0}, "vocab_multiple"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, named):
    with pytest.raises(InputError, match=named):
        dataclasses.replace(TINY, **changes)


def test_what_does_not_fit_is_refused(params):
    long = np.zeros((1, 13), np.int32)
    for method, arguments in (("encode", (long,)), ("decode", (long, np.zeros((1, 2, 16), np.float32)))):
        with pytest.raises(InputError, match="context"):
            TINY.build().apply(params, *arguments, method=method)
    with pytest.raises(InputError, match="slots"):
        step(params, TARGETS, TINY.empty_cache(4, 5), np.zeros((4, 2, 16), np.float32))
    with pytest.raises(ValueError, match="context"):
        step(params, TARGETS, TINY.empty_cache(4, 9))
    with pytest.raises(ValueError, match="context_segments"):
        step(params, TARGETS, TINY.empty_cache(4, 9), context_segments=SEGMENTS)


def test_a_cache_that_overflows_gives_nan(params):
    encoded = np.zeros((4, 2, 16), np.float32)
    jitted = jax.jit(step)
    _, cache = jitted(params, TARGETS[:, :4], TINY.empty_cache(4, 5), encoded)
    logits, cache = jitted(params, TARGETS[:, :1], cache)
    assert np.isfinite(logits).all()
    assert np.isnan(jitted(params, TARGETS[:, :1], cache)[0]).all()

"""BERT against the reference's golden outputs, its uses on the same parameters, its cache and its sizes."""

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
from tests.parity.bert import assert_same, difference
from vlmax.errors import InputError
from vlmax.models.decoders import bert
from vlmax.models.decoders.bert import BERT
from vlmax.objectives.language import next_token_loss

TINY = BERT(width=16, depth=2, heads=2, mlp=24, vocab=30, context=12, pooler=True)
IMAGE = dataclasses.replace(TINY, token_types=0, cross_width=10)
DECODER = dataclasses.replace(IMAGE, causal=True)
B, T, N = 4, 6, 5
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 30, (B, T)).astype(np.int32)
CONTEXT = RNG.standard_normal((B, N, 10)).astype(np.float32)
SEEN = (np.arange(N) < np.array([[5], [3], [4], [1]])).astype(np.int32)


def parameters(config):
    """Random values everywhere, so that nothing is tested at its neutral value."""
    context = None if config.cross_width is None else CONTEXT
    shapes = nn.unbox(jax.eval_shape(lambda key: config.build().init(key, TOKENS, context=context), jax.random.key(0)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: (0.4 * rng.standard_normal(s.shape)).astype(np.float32), shapes)


def logits_of(config):
    """The jitted pass: logits and the output."""
    module = config.build()

    @jax.jit
    def run(params, tokens, **options):
        out = module.apply(params, tokens, **options)
        return module.apply(params, out.tokens, method="logits"), out

    return run


@pytest.fixture(scope="module")
def encoder():
    return logits_of(TINY), parameters(TINY)


@pytest.fixture(scope="module")
def grounded():
    """Parameters for encoder and decoder alike."""
    return logits_of(IMAGE), logits_of(DECODER), parameters(IMAGE)


@pytest.mark.parametrize("kind", ["bert", "bert_causal", "blip_text", "blip_text_causal"])
def test_golden(kind):
    assert_same(golden.encoder(kind))


def test_the_golden_comparison_can_fail():
    found = golden.encoder("bert")
    found["token_types"][:, 0] = (found["token_types"][:, 0] + 1) % 3
    with pytest.raises(AssertionError):
        assert_same(found)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_and_packed_documents_change_nothing_in_another(encoder, causal):
    run, params = encoder
    run = logits_of(dataclasses.replace(TINY, causal=True)) if causal else run
    segments = np.array([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 2, 0], [0, 1, 1, 2, 2, 2], [1, 1, 0, 0, 2, 2]], np.int32)
    before = np.asarray(run(params, TOKENS, segments=segments)[0])
    for document in (0, 1, 2):
        edited = np.where(segments == document, (TOKENS + 7) % 30, TOKENS)
        after = np.asarray(run(params, edited, segments=segments)[0])
        np.testing.assert_array_equal(np.any(after != before, axis=-1), segments == document)
    alone = run(params, TOKENS[:1, 3:], positions=np.arange(3)[None])[0]
    np.testing.assert_allclose(before[:1, 3:], alone, atol=1e-4)


def test_the_decoder_steps_through_its_cache_with_prompts_of_unequal_length(grounded):
    _, run, params = grounded
    whole = run(params, TOKENS, context=CONTEXT, context_segments=SEEN)[0]
    shown = (np.arange(3) >= np.array([[0], [1], [2], [0]])).astype(np.int32)
    lengths = shown.sum(1)
    prompts = np.zeros((B, 3), np.int32)
    for row, length in enumerate(lengths):
        prompts[row, 3 - length :] = TOKENS[row, :length]
    options = {"context": CONTEXT, "context_segments": SEEN}
    logits, out = run(params, prompts, segments=shown, cache=DECODER.empty_cache(B, 8), **options)
    for i in range(4):
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(logits[row, -1], whole[row, length - 1 + i], atol=1e-4)
        if i < 3:
            new = np.stack([TOKENS[row, [length + i]] for row, length in enumerate(lengths)])
            logits, out = run(params, new, cache=out.cache)
    assert out.cache.index == 6


def test_encoder_and_decoder_are_uses_of_the_same_parameters(grounded):
    encode, decode, params = grounded
    later = np.concatenate([TOKENS[:, :-1], (TOKENS[:, -1:] + 7) % 30], axis=1)
    for run, sees_ahead in ((encode, True), (decode, False)):
        one, two = (run(params, tokens, context=CONTEXT)[1].tokens for tokens in (TOKENS, later))
        np.testing.assert_array_equal(np.any(one != two, axis=(0, 2)), [sees_ahead] * (T - 1) + [True])
    text = dataclasses.replace(IMAGE, cross_width=None)
    alone = logits_of(text)(params, TOKENS)[1].tokens
    layers = params["params"]["transformer"]["layers"]
    assert {name.removesuffix("_norm") for name in layers} == {"attention", "cross_attention", "mlp"}
    kept = {name: tree for name, tree in layers.items() if "cross" not in name}
    pruned = {"params": {**params["params"], "transformer": {"layers": kept}}}
    np.testing.assert_array_equal(logits_of(text)(pruned, TOKENS)[1].tokens, alone)


def test_token_types_positions_and_embeddings(encoder):
    run, params = encoder
    tokens = run(params, TOKENS)[1].tokens
    np.testing.assert_array_equal(run(params, TOKENS, token_types=np.zeros((1, T), np.int32))[1].tokens, tokens)
    assert np.abs(run(params, TOKENS, token_types=np.ones((1, T), np.int32))[1].tokens - tokens).max() > 1e-2
    assert np.abs(run(params, TOKENS, positions=np.arange(T)[None] + 3)[1].tokens - tokens).max() > 1e-2
    embeddings = TINY.build().apply(params, TOKENS, method="embed")
    np.testing.assert_allclose(run(params, embeddings)[1].tokens, tokens, atol=1e-5)
    assert np.isnan(run(params, TOKENS, positions=np.arange(T)[None] + 7)[1].tokens).any()


def test_the_head_gives_the_logits_and_the_loss(encoder):
    run, params = encoder
    wide = dataclasses.replace(TINY, vocab_multiple=16)
    inside = params["params"]
    table = np.pad(inside["vocabulary"]["embedding"], ((0, 2), (0, 0)), constant_values=9.0)
    bias = np.pad(inside["output_bias"], (0, 2), constant_values=9.0)
    bound = wide.build().bind({"params": {**inside, "vocabulary": {"embedding": table}, "output_bias": bias}})
    logits, out = run(params, TOKENS)
    np.testing.assert_allclose(bound.logits(out.tokens), logits, atol=1e-5)
    inputs, head, bias = bound.head_inputs(out.tokens), bound.head(), bound.head_bias()
    assert head.shape == (16, 32)
    np.testing.assert_allclose((inputs @ head + bias)[..., :30], logits, atol=1e-5)
    labels = np.where(TOKENS > 10, TOKENS, -100)
    total, count, _ = next_token_loss(inputs, head, labels, vocab=30, chunk=8, bias=bias)
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), TOKENS[..., None], -1)[..., 0]
    np.testing.assert_allclose(total / count, -chosen[TOKENS > 10].mean(), rtol=1e-4)


def test_sharded_equals_unsharded(grounded):
    module, params = DECODER.build(), grounded[2]
    mesh = jax.make_mesh((2, 2, 2, 1), ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)

    def gradient(params):
        def loss(params):
            out = module.apply(params, TOKENS, context=CONTEXT, context_segments=SEEN)
            return jnp.mean(jnp.sin(module.apply(params, out.tokens, method="logits")))

        return jax.value_and_grad(loss)(params)

    expected = jax.jit(gradient)(params)
    boxes = jax.eval_shape(lambda key: module.init(key, TOKENS, context=CONTEXT), jax.random.key(0))
    layout = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxes), mesh, RULES)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        found = jax.jit(gradient, out_shardings=(None, layout))(jax.device_put(params, layout))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_bfloat16_computes_low(encoder):
    module = TINY.build(jnp.bfloat16)
    tokens = jax.eval_shape(lambda p: module.apply(p, TOKENS).tokens, encoder[1])
    assert tokens.dtype == jnp.bfloat16
    assert 1e-3 < difference(golden.encoder("bert_causal"), jnp.bfloat16) < 0.05


def test_dropout_acts_in_training_alone(encoder):
    run, params = encoder
    config = dataclasses.replace(TINY, dropout=0.5)
    np.testing.assert_array_equal(logits_of(config)(params, TOKENS)[0], run(params, TOKENS)[0])
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 2)
    apply = jax.jit(lambda key: config.build().apply(params, TOKENS, deterministic=False, rngs={"dropout": key}).tokens)
    assert np.abs(apply(keys[0]) - apply(keys[1])).max() > 1e-2


def test_every_parameter_has_names():
    boxes = jax.eval_shape(lambda key: DECODER.build().init(key, TOKENS, context=CONTEXT), jax.random.key(0))
    for path, box in jax.tree.leaves_with_path(boxes, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)):
        assert isinstance(box, nn.LogicallyPartitioned) and len(box.names) == len(box.value.shape), path


PUBLISHED = {  # parameters as published, with pooler: of the model alone, and with the head that predicts
    "bert_base": (109_482_240, 110_104_890),
    "bert_large": (335_141_888, 336_224_058),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_sizes(name):
    for predicts, expected in zip((False, True), PUBLISHED[name], strict=True):
        config = getattr(bert, name)(pooler=True, predicts=predicts)
        shapes = nn.unbox(jax.eval_shape(config.build().init, jax.random.key(0), TOKENS))
        assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == expected


def test_flops():
    stack, head = IMAGE.stack().flops(T, N), 2 * T * 16 * (16 + 30)
    assert IMAGE.flops(T, N) == stack + head
    assert dataclasses.replace(IMAGE, predicts=False).flops(T, N) == stack


def test_blip_text_is_bert_base_without_token_types():
    config = bert.blip_text(cross_width=768, causal=True)
    assert (config.vocab, config.token_types, config.width) == (30_524, 0, 768)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"heads": 3}, "heads"),
        ({"token_types": -1}, "token_types"),
        ({"cross_width": 0}, "cross_width"),
        ({"vocab": 0}, "vocab"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, named):
    with pytest.raises(InputError, match=named):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize(
    ("config", "arguments", "named"),
    [
        (TINY, {"prefix_length": np.ones(B, np.int32)}, "prefix_length"),
        (TINY, {"cache": TINY.empty_cache(B, 8)}, "cache"),
        (TINY, {"context": CONTEXT}, "cross_width"),
        (IMAGE, {}, "context"),
        (IMAGE, {"context": CONTEXT, "token_types": np.zeros((1, T), np.int32)}, "token types"),
    ],
)
def test_what_has_no_use_is_refused(config, arguments, named):
    with pytest.raises(ValueError, match=named):
        config.build().init(jax.random.key(0), TOKENS, **arguments)


def test_a_text_longer_than_the_context_is_refused(encoder):
    with pytest.raises(InputError, match="context"):
        encoder[0](encoder[1], np.zeros((1, 13), np.int32))

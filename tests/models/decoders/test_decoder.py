"""What holds for every decoder: packed texts, padding, the cache, embeddings as inputs, vocabularies, layouts."""

from __future__ import annotations

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from tests.models.test_transformer import RULES, load_flops
from tests.shared import shared
from vlmax.errors import InputError
from vlmax.models.decoders import decoder
from vlmax.models.decoders.gpt2 import GPT2
from vlmax.models.decoders.llama import LLaMA
from vlmax.models.decoders.opt import OPT
from vlmax.models.layers.embeddings import Rotary

SIZES = {"width": 16, "depth": 2, "heads": 4, "mlp": 24, "vocab": 30, "context": 24}
GROUPED = LLaMA(**SIZES, kv_heads=2, rotary=Rotary(100.0))
DECODERS = {
    "llama": GROUPED,
    "mistral": dataclasses.replace(GROUPED, window=3),
    "qwen2": dataclasses.replace(GROUPED, head_dim=6, tied=True, qkv_bias=True),
    "gpt2": GPT2(**SIZES),
    "opt": OPT(**SIZES),
    "opt_350m": OPT(**SIZES, token_width=10, post_norm=True),
}
B, T, SLOTS = 4, 12, 14
TOKENS = np.random.default_rng(0).integers(0, 30, (B, T)).astype(np.int32)
every = pytest.mark.parametrize("name", DECODERS)


def random_params(config, seed=1):
    """Random values everywhere, so that nothing is tested at its neutral value."""
    shapes = nn.unbox(jax.eval_shape(config.build().init, jax.random.key(0), TOKENS))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: (0.4 * rng.standard_normal(s.shape)).astype(np.float32), shapes)


def logits_of(config, dtype=jnp.float32):
    """Parameters, inputs and the module's other arguments -> logits and the cache."""
    module = config.build(dtype)

    @jax.jit
    def run(params, inputs, **options):
        out = module.apply(params, inputs, **options)
        return module.apply(params, out.tokens, method="logits"), out.cache

    return run


@functools.cache
def built(name):
    """The jitted decoder, its parameters, its configuration; the same calls compile once for all tests."""
    config = DECODERS[name]
    return logits_of(config), random_params(config), config


LENGTHS, PROMPT = np.array([7, 3, 1, 5]), 7
PLACES = np.arange(PROMPT) - (PROMPT - LENGTHS)[:, None]
LEFT = (PLACES >= 0).astype(np.int32)


def prompts(padding):
    """The first tokens of every text, as many as LENGTHS says, padded left."""
    tokens = np.full((B, PROMPT), padding, np.int32)
    for row, length in enumerate(LENGTHS):
        tokens[row, PROMPT - length :] = TOKENS[row, :length]
    return tokens


# Three documents, the last of one token; no padding, then padding right, left and between.
SEGMENTS = np.array(
    [
        [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3],
        [1, 1, 1, 2, 2, 2, 2, 3, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3],
        [1, 1, 1, 0, 0, 2, 2, 2, 2, 2, 0, 3],
    ],
    np.int32,
)


@every
@pytest.mark.parametrize("document", [1, 2, 3])
def test_editing_one_document_changes_no_logit_of_another(name, document):
    run, params, _ = built(name)
    edited = np.where(document == SEGMENTS, (TOKENS + 7) % 30, TOKENS)
    before, after = (run(params, tokens, segments=SEGMENTS)[0] for tokens in (TOKENS, edited))
    changed = np.any(before != after, axis=-1)
    np.testing.assert_array_equal(changed, document == SEGMENTS)


@every
def test_a_packed_document_is_read_as_if_it_were_alone(name):
    run, params, _ = built(name)
    packed = run(params, TOKENS, segments=SEGMENTS)[0]
    for row, document in ((0, 1), (0, 2), (2, 1), (3, 2)):
        here = SEGMENTS[row] == document
        alone = np.zeros((B, T), np.int32)
        alone[0, : here.sum()] = TOKENS[row, here]  # what follows is not seen
        np.testing.assert_allclose(run(params, alone)[0][0, : here.sum()], packed[row, here], atol=1e-5)


@every
def test_left_padded_prompts_and_steps_through_the_cache_equal_the_whole(name):
    run, params, config = built(name)
    whole = run(params, TOKENS)[0]
    logits, cache = run(params, prompts(29), segments=LEFT, cache=config.empty_cache(B, SLOTS))
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(logits[row, PROMPT - length :], whole[row, :length], atol=1e-5)
    for i in range(5):
        logits, cache = run(params, TOKENS[np.arange(B), LENGTHS + i][:, None], cache=cache)
        np.testing.assert_allclose(logits[:, 0], whole[np.arange(B), LENGTHS + i], atol=1e-5)
    assert cache.index == PROMPT + 5


@every
def test_padding_changes_no_bit(name):
    run, params, config = built(name)

    def read(padding):
        logits, cache = run(params, prompts(padding), segments=LEFT, cache=config.empty_cache(B, SLOTS))
        return np.where(LEFT[..., None], logits, 0), run(params, TOKENS[:, :1], cache=cache)[0]

    jax.tree.map(np.testing.assert_array_equal, read(0), read(17))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_positions_may_be_given(name):
    run, params, config = built(name)

    def read(shift):
        """With the positions that are counted otherwise, all of them moved."""
        before, after = PLACES.clip(0) + shift, LENGTHS[:, None] + shift
        cache = config.empty_cache(B, SLOTS)
        _, cache = run(params, prompts(0), segments=LEFT, positions=before, cache=cache)
        return run(params, TOKENS[:, :1], positions=after, cache=cache)[0]

    _, cache = run(params, prompts(0), segments=LEFT, cache=config.empty_cache(B, SLOTS))
    counted, _ = run(params, TOKENS[:, :1], cache=cache)
    np.testing.assert_allclose(read(0), counted, atol=1e-5)
    moved = np.abs(read(3) - counted).max()
    assert moved < 1e-5 if name == "llama" else moved > 1e-2  # rotary positions are relative


@every
def test_several_tokens_at_a_time_are_read_too(name):
    run, params, config = built(name)
    first, cache = run(params, TOKENS[:, :7], segments=np.ones((B, 7), np.int32), cache=config.empty_cache(B, SLOTS))
    then, _ = run(params, TOKENS[:, 7:], cache=cache)
    np.testing.assert_allclose(np.concatenate([first, then], axis=1), run(params, TOKENS)[0], atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt_350m"])
def test_a_prefix_is_seen_whole_with_and_without_a_cache(name):
    run, params, config = built(name)
    prefix = np.array([0, 3, 5, 1], np.int32)
    options = {"prefix_length": prefix}
    whole = run(params, TOKENS, **options)[0]
    edited = TOKENS.copy()
    edited[:, 4] = (edited[:, 4] + 5) % 30
    changed = np.any(whole != run(params, edited, **options)[0], axis=-1)
    np.testing.assert_array_equal(changed[:, 0], prefix > 4)
    assert changed[:, 4:].all()
    first, cache = run(params, TOKENS[:, :7], cache=config.empty_cache(B, SLOTS), **options)
    np.testing.assert_allclose(first, whole[:, :7], atol=1e-5)
    np.testing.assert_allclose(run(params, TOKENS[:, 7:], cache=cache)[0], whole[:, 7:], atol=1e-5)


@every
def test_embeddings_are_read_as_their_tokens(name):
    run, params, config = built(name)
    module = config.build()
    vectors = module.apply(params, TOKENS, method="embed")
    assert vectors.shape == (B, T, config.embed_width)
    np.testing.assert_allclose(run(params, vectors)[0], run(params, TOKENS)[0], atol=1e-6)
    fresh = [jax.eval_shape(module.init, jax.random.key(0), inputs) for inputs in (TOKENS, vectors)]
    assert jax.tree.structure(fresh[0]) == jax.tree.structure(fresh[1])
    with pytest.raises(ValueError, match="wide"):
        module.apply(params, np.zeros((B, T, 11), np.float32))


@every
def test_hidden_states_and_logits_fit_together(name):
    run, params, config = built(name)
    module = config.build()
    out = jax.jit(lambda p, t: module.apply(p, t, hidden=True))(params, TOKENS)
    assert out.hidden.shape == (2, B, T, 16) and out.tokens.shape == (B, T, config.embed_width) and out.cache is None
    head = module.apply(params, method="head")
    np.testing.assert_allclose(out.tokens @ head, run(params, TOKENS)[0], atol=1e-5)


def test_positions_are_counted_within_a_segment_and_across_padding():
    counted = decoder.read(TOKENS, 24, segments=SEGMENTS).positions
    assert counted[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 0]
    hole = np.array([[0, 1, 1, 0, 0, 1, 1, 0, 2, 0, 2, 2]], np.int32)
    counted = decoder.read(TOKENS[:1], 24, segments=hole).positions
    assert counted[0][hole[0] > 0].tolist() == [0, 1, 2, 3, 0, 1, 2]
    np.testing.assert_array_equal(decoder.read(TOKENS, 24).positions, np.arange(T)[None])


def test_a_text_longer_than_the_context_or_the_cache_is_refused():
    run, params, config = built("opt")
    long = np.zeros((1, 25), np.int32)
    with pytest.raises(InputError, match="25 tokens, but `context` is 24"):
        run(params, long)
    with pytest.raises(InputError, match="12 tokens do not fit into a cache of 11 slots"):
        run(params, TOKENS, cache=config.empty_cache(B, 11))
    positions = np.arange(25)[None]
    assert np.isnan(run(params, long, positions=positions)[0][0, -1]).all()  # no row of the table


def test_a_cache_that_overflows_gives_nan():
    run, params, config = built("llama")
    cache = config.empty_cache(B, SLOTS)
    for _ in range(2):
        logits, cache = run(params, TOKENS[:, :7], segments=np.ones((B, 7), np.int32), cache=cache)
        assert np.isfinite(logits).all()
    assert cache.index == SLOTS
    assert np.isnan(run(params, TOKENS[:, :1], cache=cache)[0]).all()


@every
def test_bfloat16_stays_near_float32(name):
    run, params, config = built(name)
    exact = run(params, TOKENS)[0]
    low, cache = logits_of(config, jnp.bfloat16)(params, TOKENS, cache=config.empty_cache(B, T, jnp.bfloat16))
    assert low.dtype == jnp.float32 and cache.keys.dtype == jnp.bfloat16
    assert np.abs(low - exact).max() < 0.05 * np.abs(exact).max()


def placed(config, params):
    """A mesh of eight devices, the layout of the parameters there, and the parameters laid out."""
    mesh = jax.make_mesh((2, 2, 2, 1), ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)
    boxes = jax.eval_shape(config.build().init, jax.random.key(0), TOKENS)
    layout = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxes), mesh, RULES)
    return mesh, layout, jax.device_put(params, layout)


def test_steps_over_a_mesh_equal_those_of_one_device():
    run, params, config = built("llama")
    mesh, _, params_there = placed(config, params)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        split = logits_of(config)
        _, cache = split(params_there, TOKENS[:, :7], cache=config.empty_cache(B, SLOTS))
        logits, cache = split(params_there, TOKENS[:, 7:], cache=cache)
    spec = cache.keys.sharding.spec
    assert spec[1] == ("data", "fsdp") and spec[2] == "tensor"
    np.testing.assert_allclose(logits, run(params, TOKENS)[0][:, 7:], atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2", "opt_350m"])
def test_gradients_over_a_mesh_equal_those_of_one_device(name):
    _, params, config = built(name)
    config = dataclasses.replace(config, depth=1)
    params, module = random_params(config), config.build()

    def loss(params, tokens):
        out = module.apply(params, tokens, segments=SEGMENTS)
        return jnp.mean(jnp.sin(module.apply(params, out.tokens, method="logits")))

    expected = jax.jit(jax.value_and_grad(loss))(params, TOKENS)
    mesh, layout, params = placed(config, params)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        value, gradient = jax.jit(jax.value_and_grad(loss), out_shardings=(None, layout))(params, TOKENS)
    np.testing.assert_allclose(value, expected[0], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), gradient, expected[1])


def test_flops_are_those_of_the_benchmarks():
    flops = load_flops()
    for name, workload in json.loads(shared("bench", "workloads.json").read_text()).items():
        if "llm" not in workload:
            continue
        llm = workload["llm"]
        sizes = {key: llm[key] for key in ("width", "depth", "heads", "vocab")}
        if llm.get("family") == "opt":
            config = OPT(**sizes, mlp=llm["ffn"])
        else:
            config = LLaMA(**sizes, mlp=llm["ffn"], kv_heads=llm["kv_heads"])
        assert config.flops(37) == flops.llm_forward(llm, 37), name
        head = 2 * 36 * llm["width"] * llm["vocab"]  # decode() gives logits for the prompt's last token alone
        steps = config.flops(37) - head + sum(config.flops(1, 37 + i - 1) for i in range(1, 5))
        assert steps == flops.decode(llm, 37, 5), name
    assert GPT2(**SIZES).flops(9) == OPT(**SIZES).flops(9)
    projected = 4 * 9 * 10 * 16 - 2 * 9 * 6 * 30
    assert DECODERS["opt_350m"].flops(9) == OPT(**SIZES).flops(9) + projected


@pytest.mark.parametrize("changes", [{"vocab": 0}, {"vocab_multiple": 0}, {"context": 0}, {"heads": 3}])
@every
def test_what_cannot_be_is_refused_by_name(name, changes):
    if name == "qwen2" and "heads" in changes:
        changes = {"kv_heads": 3}
    with pytest.raises(InputError, match=next(iter(changes))):
        dataclasses.replace(DECODERS[name], **changes)

"""The text encoders against the reference's golden outputs, and what their masks and pools see."""

from __future__ import annotations

import dataclasses
import json
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from tests.models import golden
from tests.models.test_transformer import RULES, load_flops
from tests.parity.huggingface import assert_same
from tests.shared import shared
from vlmax.errors import InputError
from vlmax.models.encoders import text
from vlmax.models.encoders.text import TextEncoder

TINY = TextEncoder(width=16, depth=2, heads=2, mlp=24, vocab=30, context=8)
SIGLIP = dataclasses.replace(TINY, causal=False, pool="last", head_width=12, init="xavier")
TOKENS = np.array([[1, 5, 29, 0, 0, 0, 0, 0], [1, 5, 9, 9, 2, 7, 29, 0], [1, 29, 0, 0, 0, 0, 0, 0]] * 4, np.int32)[:8]


@pytest.fixture(scope="module")
def built():
    """Config name -> (jitted apply, parameters)."""
    out = {}
    for name, config in {"clip": TINY, "siglip": SIGLIP}.items():
        module = config.build()
        out[name] = jax.jit(module.apply), nn.unbox(jax.jit(module.init)(jax.random.key(0), TOKENS))
    return out


@pytest.mark.parametrize("kind", ["clip_text", "siglip_text"])
def test_golden(kind):
    assert_same(golden.encoder(kind))


def test_clip_reads_up_to_the_end_of_text(built):
    run, params = built["clip"]
    out, ends = run(params, TOKENS), TOKENS.argmax(1)
    np.testing.assert_allclose(out.pooled, out.tokens[np.arange(8), ends], atol=1e-6)
    padded = np.where(np.arange(8) > ends[:, None], 17, TOKENS)
    np.testing.assert_allclose(run(params, padded).pooled, out.pooled, atol=1e-6)
    earlier = TOKENS.copy()
    earlier[:, 0] = 3
    assert np.abs(run(params, earlier).pooled - out.pooled).min(axis=1).max() > 0
    assert (np.abs(run(params, earlier).pooled - out.pooled).max(axis=1) > 1e-4).all()


def test_siglip_reads_the_whole_text_at_the_last_token(built):
    run, params = built["siglip"]
    out = run(params, TOKENS)
    assert out.pooled.shape == (8, SIGLIP.output_width) == (8, 12)
    head = params["params"]["head"]
    np.testing.assert_allclose(out.pooled, out.tokens[:, -1] @ head["kernel"] + head["bias"], atol=1e-5)
    changed = TOKENS.copy()
    changed[:, 3] = 11
    assert np.abs(run(params, changed).tokens[:, 0] - out.tokens[:, 0]).max() > 1e-4


def test_the_mean_of_all_tokens_is_normalised():
    module = dataclasses.replace(TINY, causal=False, pool="mean").build()
    params = module.init(jax.random.key(0), TOKENS)
    out = module.apply(params, TOKENS, hidden=True)
    mean = np.mean(out.hidden[-1], axis=1)
    normalised = (mean - mean.mean(1, keepdims=True)) / np.sqrt(mean.var(1, keepdims=True) + TINY.norm_epsilon)
    np.testing.assert_allclose(out.pooled, normalised, atol=1e-5)  # scale 1 and bias 0, as initialised


def test_a_shorter_text_is_encoded_as_it_stands(built):
    run, params = built["clip"]
    short = run(params, TOKENS[:, :3])
    np.testing.assert_allclose(short.tokens, run(params, TOKENS).tokens[:, :3], atol=1e-5)
    with pytest.raises(InputError, match="context"):
        TINY.build().init(jax.random.key(0), np.zeros((1, 9), np.int32))


def lowered(config, tokens):
    """The gradient of a scalar for one device, the same compiled for 2 x 2 x 2 devices, and the layout there."""
    mesh = jax.make_mesh((2, 2, 2, 1), ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)
    module = config.build()

    def gradient(params, tokens):
        return jax.grad(lambda p: (module.apply(p, tokens).pooled ** 2 * np.arange(config.width)).mean())(params)

    boxes = jax.eval_shape(module.init, jax.random.key(0), tokens)
    layout = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxes), mesh, RULES)
    batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    shapes = nn.unbox(boxes)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        split = jax.jit(gradient, in_shardings=(layout, batch), out_shardings=layout).lower(shapes, tokens).compile()
    return jax.jit(gradient), split, (layout, batch)


def test_sharded_equals_unsharded(built):
    params = built["clip"][1]
    whole, split, layout = lowered(TINY, TOKENS)
    found = split(*jax.device_put((params, TOKENS), layout))
    assert (
        found["params"]["token_embedding"]["embedding"].sharding == layout[0]["params"]["token_embedding"]["embedding"]
    )
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(whole(params, TOKENS)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)  # the largest is 20


def test_no_device_holds_vectors_of_the_whole_batch():
    config = dataclasses.replace(TINY, width=64, vocab=256)
    program = lowered(config, np.zeros((16, 8), np.int32))[1].as_text()
    assert "f32[4,8,64]" in program
    assert not re.findall(r"f32\[16,8,\d+\]", program)


def test_initial_values():
    config = TextEncoder(width=64, depth=1, heads=1, mlp=64, vocab=500, context=77)
    for init, token, position in (("clip", 0.02, 0.01), ("xavier", 1 / 8, 1 / 8)):
        module = dataclasses.replace(config, init=init).build()
        params = nn.unbox(jax.jit(module.init)(jax.random.key(0), np.zeros((1, 77), np.int32)))["params"]
        assert np.std(params["token_embedding"]["embedding"]) == pytest.approx(token, rel=0.05)
        assert np.std(params["positions"]["embedding"]) == pytest.approx(position, rel=0.05)


PRESETS = {  # parameters in millions with the projection into the joint space; GMACs of OpenCLIP's table
    "clip_text_b": (512, 63.43, 2.98),
    "clip_text_l": (768, 123.65, 6.66),
    "clip_text_h": (1024, 354.03, 23.57),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_sizes(name):
    embed, millions, gmacs = PRESETS[name]
    config = getattr(text, name)()
    assert count(config) / 1e6 + config.width * embed / 1e6 == pytest.approx(millions, abs=0.01)
    assert config.flops() / 2e9 == pytest.approx(gmacs, rel=0.03)


def test_siglip_preset_has_the_published_size():
    assert count(text.siglip_text_b()) == 110_271_744


def count(config):
    tokens = np.zeros((1, config.context), np.int32)
    shapes = nn.unbox(jax.eval_shape(config.build().init, jax.random.key(0), tokens))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def test_flops_are_those_of_the_benchmarks():
    flops = load_flops()
    workloads = json.loads(shared("bench", "workloads.json").read_text())
    for name, workload in workloads.items():
        if workload["kind"] == "clip":
            t = workload["text"]
            config = TextEncoder(t["width"], t["depth"], t["heads"], t["ffn"], t["vocab"], t["context"])
            assert config.flops() == t["depth"] * flops.block(t["context"], t), name


@pytest.mark.parametrize("changes", [{"vocab": 0}, {"context": 0}, {"head_width": 0}, {"heads": 3}])
def test_what_cannot_be_is_refused_by_name(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        dataclasses.replace(TINY, **changes)

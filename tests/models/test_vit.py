"""The vision transformer against the reference's golden outputs, and its own properties."""

from __future__ import annotations

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from tests.models import golden
from tests.models.test_transformer import RULES, load_flops
from tests.parity import image_encoders
from tests.parity.huggingface import assert_same, vit_config, vit_params
from tests.shared import shared
from vlmax.errors import InputError
from vlmax.models.encoders import vit
from vlmax.models.encoders.vit import ViT, drop_patches, patchify

TINY = ViT(width=16, depth=2, heads=2, mlp=24, patch=4, image=(10, 16))
IMAGES = np.random.default_rng(0).standard_normal((4, 10, 16, 3)).astype(np.float32)
KEY = jax.random.key(0, impl="rbg")


def build(config, images=IMAGES):
    module = config.build()
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), images))
    return module, params


@pytest.mark.parametrize("kind", ["clip_vision", "siglip_vision"])
def test_golden(kind):
    assert_same(golden.encoder(kind))


@pytest.mark.parametrize("kind", ["blip_vision", "blip_2_vision", "vit"])
def test_golden_without_a_norm_before_the_stack(kind):
    """BLIP's, EVA as BLIP-2 has it, without a norm after the stack either, and the plain one."""
    image_encoders.assert_same(golden.encoder(kind))


def test_the_layer_before_the_last_is_a_shallower_encoder_without_final_norm():
    found = golden.encoder("clip_vision")
    whole = vit_config(found["config"])
    params = vit_params(found["weights"], whole)["params"]
    stack = {"layers": jax.tree.map(lambda p: p[:-1], params["transformer"]["layers"])}
    kept = {name: tree for name, tree in params.items() if name != "final_norm"} | {"transformer": stack}
    config = dataclasses.replace(whole, depth=whole.depth - 1, final_norm=False)
    out = jax.jit(config.build().apply)({"params": kept}, found["inputs"])
    np.testing.assert_allclose(out.tokens, found["hidden"][-2], atol=1e-4 * np.abs(found["hidden"][-2]).max())
    np.testing.assert_array_equal(out.pooled, out.tokens[:, 0])


def test_the_golden_comparison_can_fail():
    found = golden.encoder("clip_vision")
    found["config"]["hidden_act"] = "gelu"
    with pytest.raises(AssertionError):
        assert_same(found)


def test_the_patch_embedding_is_a_convolution():
    kernel = np.random.default_rng(1).standard_normal((4, 4, 3, 5)).astype(np.float32)
    conv = jax.lax.conv_general_dilated(IMAGES, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    ours = patchify(IMAGES, 4) @ kernel.reshape(-1, 5)
    assert ours.shape == (4, 2 * 4, 5)
    np.testing.assert_allclose(ours, conv.reshape(4, 8, 5), atol=1e-4)


@pytest.mark.parametrize("pool", ["class", "mean", "map"])
@pytest.mark.parametrize("positions", ["learned", "sincos2d"])
def test_pools_and_positions(pool, positions):
    config = dataclasses.replace(TINY, pool=pool, positions=positions, pre_norm=pool != "map")
    module, params = build(config)
    out = jax.jit(module.apply)(params, IMAGES)
    assert out.tokens.shape == (4, config.tokens, 16) and config.tokens == 8 + (pool == "class")
    assert out.pooled.shape == (4, config.output_width)
    assert out.hidden is None
    assert ("positions" in params["params"]) == (positions == "learned")
    if pool == "class":
        np.testing.assert_allclose(out.pooled, out.tokens[:, 0], atol=1e-6)
    if pool == "mean":
        np.testing.assert_allclose(out.pooled, out.tokens.mean(1), atol=1e-6)
    # Where a patch stands matters: exchange the first two.
    swapped = IMAGES.copy()
    swapped[:, :4, :4], swapped[:, :4, 4:8] = IMAGES[:, :4, 4:8], IMAGES[:, :4, :4]
    assert np.abs(jax.jit(module.apply)(params, swapped).pooled - out.pooled).max() > 1e-3


def test_patch_dropout_keeps_an_exact_random_share_in_order():
    x = np.broadcast_to(np.arange(1.0, 10.0)[None, :, None], (512, 9, 1))
    kept = np.asarray(jax.jit(lambda x: drop_patches(x, KEY, 4, 1))(x))[..., 0]
    assert kept.shape == (512, 5)
    assert (kept[:, 0] == 1).all()
    assert (np.diff(kept, axis=1) > 0).all()
    counts = np.bincount(kept[:, 1:].astype(int).ravel(), minlength=10)[2:]
    assert abs(counts / 512 - 0.5).max() < 0.08
    assert len(np.unique(kept, axis=0)) > 40  # of the 70 choices; every example has its own


def test_patch_dropout_acts_in_training_alone():
    config = dataclasses.replace(TINY, patch_keep=0.5)
    module, params = build(config)
    whole = jax.jit(module.apply)(params, IMAGES)
    np.testing.assert_array_equal(whole.pooled, jax.jit(TINY.build().apply)(params, IMAGES).pooled)
    train = jax.jit(lambda p, x, key: module.apply(p, x, deterministic=False, rngs={"dropout": key}))
    one, two = train(params, IMAGES, KEY), train(params, IMAGES, jax.random.key(1, impl="rbg"))
    assert one.tokens.shape == (4, 5, 16) and config.kept_patches == 4
    assert np.abs(one.pooled - two.pooled).max() > 1e-3
    np.testing.assert_array_equal(one.pooled, train(params, IMAGES, KEY).pooled)
    # Less work by just what the stack is spared.
    stack = config.stack()
    assert TINY.flops() - config.flops() == stack.flops(9) - stack.flops(5)


def test_sharded_equals_unsharded():
    """In training, with the same patches dropped."""
    config = dataclasses.replace(TINY, pool="map", patch_keep=0.5)
    module, params = build(config)
    mesh = jax.make_mesh((2, 2, 2, 1), ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)

    def gradient(params, images):
        def loss(params):
            rngs = {"dropout": jax.random.key(3)}
            return jnp.sum(jnp.sin(module.apply(params, images, deterministic=False, rngs=rngs).pooled))

        return jax.value_and_grad(loss)(params)

    expected = jax.jit(gradient)(params, IMAGES)
    boxes = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    layout = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxes), mesh, RULES)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        found = jax.jit(gradient, out_shardings=(None, layout))(jax.device_put(params, layout), IMAGES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_kept_patches_never_reach_zero():
    assert dataclasses.replace(TINY, patch_keep=0.01).kept_patches == 1


def test_bfloat16_computes_low_and_keeps_float32_parameters():
    module, params = build(TINY)
    low = jax.jit(TINY.build(jnp.bfloat16).apply)(params, IMAGES)
    assert low.pooled.dtype == low.tokens.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(low.pooled.astype(np.float32), jax.jit(module.apply)(params, IMAGES).pooled, atol=0.1)


def test_initial_values():
    config = ViT(width=128, depth=1, heads=2, mlp=256, patch=8, image=64)
    params = build(config, np.zeros((1, 64, 64, 3), np.float32))[1]["params"]
    assert np.std(params["positions"]["embedding"]) == pytest.approx(128**-0.5, rel=0.05)
    assert np.std(params["class_token"]) == pytest.approx(128**-0.5, rel=0.3)
    assert np.std(params["patch_embedding"]["kernel"]) == pytest.approx(192**-0.5, rel=0.05)


@pytest.mark.parametrize("pool", ["class", "map"])
def test_every_parameter_has_names(pool):
    boxes = jax.eval_shape(dataclasses.replace(TINY, pool=pool).build().init, jax.random.key(0), IMAGES)
    for path, box in jax.tree.leaves_with_path(boxes, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)):
        assert isinstance(box, nn.LogicallyPartitioned) and len(box.names) == len(box.value.shape), path


PRESETS = {  # parameters in millions with the projection into the joint space; GMACs of OpenCLIP's table
    "vit_b32": (512, 87.85, 4.41),
    "vit_b16": (512, 86.19, 17.58),
    "vit_l14": (768, 303.97, 81.08),
    "vit_h14": (1024, 632.08, 167.40),
    "vit_g14": (1024, 1012.65, 267.18),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_sizes(name):
    embed, millions, gmacs = PRESETS[name]
    config = getattr(vit, name)()
    shapes = nn.unbox(jax.eval_shape(config.build().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) + config.width * embed
    assert count / 1e6 == pytest.approx(millions, abs=0.01)
    assert config.flops() / 2e9 == pytest.approx(gmacs, rel=0.03)


def test_siglip_preset_has_the_published_size():
    config = vit.siglip_vit_b16()
    shapes = nn.unbox(jax.eval_shape(config.build().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 92_884_224


RELEASED = {  # parameters as published; those of ViT without its classifier
    "plain_vit_b16": 85_798_656,
    "blip_vit_b16": 85_798_656,
    "blip_vit_l16": 303_301_632,
    "eva_vit_g14": 985_949_440,  # with the biases of keys, zeros, and without BLIP-2's norm of the features
    "penultimate_vit_l14": 303_179_776 - 12_596_224 - 2 * 1024,  # CLIP's without a layer and the norm
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_presets_have_the_published_sizes(name):
    config = getattr(vit, name)()
    shapes = nn.unbox(jax.eval_shape(config.build().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == RELEASED[name]


def test_eva_returns_every_token():
    assert vit.eva_vit_g14().tokens == 257


def test_a_preset_takes_changes():
    assert vit.vit_b16(image=384).grid == (24, 24)


def test_flops_are_those_of_the_benchmarks():
    flops = load_flops()
    workloads = json.loads(shared("bench", "workloads.json").read_text())
    for name, workload in workloads.items():
        if "vision" in workload:
            v = workload["vision"]
            config = ViT(v["width"], v["depth"], v["heads"], v["ffn"], v["patch"], v["image"])
            assert config.flops() == flops.vit(v), name


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"patch": 11}, "patch"),
        ({"patch": 0}, "patch"),
        ({"patch_keep": 0.0}, "patch_keep"),
        ({"patch_keep": 1.1}, "patch_keep"),
        ({"width": 18, "heads": 2, "positions": "sincos2d"}, "sincos2d"),
        ({"heads": 3}, "heads"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, named):
    with pytest.raises(InputError, match=named):
        dataclasses.replace(TINY, **changes)


def test_images_of_another_size_are_refused():
    with pytest.raises(InputError, match="image"):
        TINY.build().init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))

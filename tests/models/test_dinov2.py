"""DINOv2 against the reference's golden outputs, its positions, registers and sizes."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import golden
from tests.parity.image_encoders import assert_same
from vlmax.errors import InputError
from vlmax.models.encoders import dinov2
from vlmax.models.encoders.dinov2 import DINOv2, with_registers
from vlmax.models.layers.embeddings import cubic_weights, resize_positions

TINY = DINOv2(width=16, depth=2, heads=2, mlp=24, patch=4, image=(10, 16), table_image=20, layer_scale=0.3)
IMAGES = np.random.default_rng(0).standard_normal((3, 10, 16, 3)).astype(np.float32)


def build(config):
    module = config.build()
    return jax.jit(module.apply), nn.unbox(jax.jit(module.init)(jax.random.key(0, impl="rbg"), IMAGES))


@pytest.fixture(scope="module")
def built():
    return build(TINY)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers"])
def test_golden(kind):
    assert_same(golden.encoder(kind))


def test_the_golden_comparison_can_fail():
    found = golden.encoder("dinov2")
    found["weights"]["encoder.layer.0.layer_scale1.lambda1"] = np.ones(12, np.float32)
    with pytest.raises(AssertionError):
        assert_same(found)


def test_what_comes_out(built):
    run, params = built
    out = run(params, IMAGES)
    assert out.tokens.shape == (3, TINY.tokens, 16) and TINY.tokens == 1 + 2 * 4
    np.testing.assert_allclose(out.pooled, out.tokens[:, 0], atol=1e-6)
    layers = params["params"]["transformer"]["layers"]
    assert params["params"]["positions"]["embedding"].shape == (26, 16)
    np.testing.assert_array_equal(layers["attention_scale"], np.full((2, 16), 0.3, np.float32))


def test_registers_are_tokens_that_come_out_before_the_patches():
    config = with_registers(TINY, 3)
    run, params = build(config)
    assert run(params, IMAGES).tokens.shape == (3, config.tokens, 16) and config.tokens == 12
    assert config.prefix_tokens == 4 and params["params"]["registers"].shape == (3, 16)


def test_positions_are_interpolated_with_the_offset():
    table = np.random.default_rng(1).standard_normal((26, 16)).astype(np.float32)
    exact, shifted = (
        resize_positions(table, (5, 5), (2, 4), 1, antialias=False, offset=offset) for offset in (0.0, 0.1)
    )
    assert 1e-3 < np.abs(exact - shifted).max() < 0.5
    for old, new in ((5, 2), (2, 5), (37, 16)):
        np.testing.assert_allclose(cubic_weights(old, new, 0.1).sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(cubic_weights(4, 4), np.eye(4))
    np.testing.assert_array_equal(resize_positions(table, (5, 5), (5, 5), 1, antialias=False, offset=0.1), table)
    with pytest.raises(InputError, match="offset"):
        resize_positions(table, (5, 5), (2, 4), 1, offset=0.1)


def test_bfloat16_computes_low_and_keeps_float32_parameters(built):
    run, params = built
    low = jax.jit(TINY.build(jnp.bfloat16).apply)(params, IMAGES)
    assert low.pooled.dtype == low.tokens.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(low.pooled.astype(np.float32), run(params, IMAGES).pooled, atol=0.1)


def test_every_parameter_has_names():
    config = dataclasses.replace(with_registers(TINY), swiglu=True)
    boxes = jax.eval_shape(config.build().init, jax.random.key(0), IMAGES)
    for path, box in jax.tree.leaves_with_path(boxes, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)):
        assert isinstance(box, nn.LogicallyPartitioned) and len(box.names) == len(box.value.shape), path


PUBLISHED = {  # parameters as published, without the mask token that only pretraining uses
    "dinov2_s14": 22_056_576 - 384,
    "dinov2_b14": 86_580_480 - 768,
    "dinov2_l14": 304_368_640 - 1024,
    "dinov2_g14": 1_136_480_768 - 1536,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_sizes(name):
    config = getattr(dinov2, name)()
    shapes = nn.unbox(jax.eval_shape(config.build().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == PUBLISHED[name]
    assert config.tokens == 257 and with_registers(config).tokens == 261


def test_flops():
    assert TINY.flops() == 2 * 8 * 48 * 16 + TINY.stack().flops(9)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"patch": 11}, "patch"),
        ({"table_image": 3}, "table_image"),
        ({"registers": -1}, "registers"),
        ({"antialias": True}, "position_offset"),
        ({"heads": 3}, "heads"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, named):
    with pytest.raises(InputError, match=named):
        dataclasses.replace(TINY, **changes)


def test_images_of_another_size_are_refused():
    with pytest.raises(InputError, match="image"):
        TINY.build().init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))

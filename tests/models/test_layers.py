"""Norms, feed-forward and dense layers against their formulas."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlmax.models.layers.dense import Dense
from vlmax.models.layers.mlp import ACTIVATIONS, MLP
from vlmax.models.layers.norms import LayerNorm, RMSNorm

X = np.random.default_rng(0).standard_normal((3, 5, 16)).astype(np.float32) * 4 + 2
normal = nn.initializers.normal(0.5)


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])
def test_norms(kind):
    centre = X - X.mean(-1, keepdims=True) if kind is LayerNorm else X
    expected = centre / np.sqrt((centre**2).mean(-1, keepdims=True) + 0.1)
    params = nn.unbox(kind(0.1).init(jax.random.key(0), X))
    np.testing.assert_allclose(kind(0.1).apply(params, X), expected, atol=1e-5)
    params = jax.tree.map(lambda p: p * 3 + 0.5, params)
    shift = 0.5 if kind is LayerNorm else 0.0
    np.testing.assert_allclose(kind(0.1).apply(params, X), expected * 3.5 + shift, atol=1e-5)


def test_norms_compute_in_float32():
    """A large mean would swamp the variance in bfloat16, and in a difference of squares."""
    x = (1000 + np.array([[0.0, 4.0, 8.0, -12.0]])).astype(np.float32)
    params = nn.unbox(LayerNorm().init(jax.random.key(0), x))
    out = LayerNorm(dtype=jnp.bfloat16).apply(params, jnp.asarray(x, jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32)[0], (x[0] - 1000) / np.sqrt(56), atol=0.01)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("quick_gelu", lambda x: x / (1 + math.exp(-1.702 * x))),
        ("relu", lambda x: max(x, 0.0)),
        ("silu", lambda x: x / (1 + math.exp(-x))),
    ],
)
def test_activations(name, formula):
    points = np.linspace(-6, 6, 41, dtype=np.float32)
    np.testing.assert_allclose(ACTIVATIONS[name](points), [formula(float(x)) for x in points], atol=2e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_mlp(gated):
    module = MLP(12, "relu", normal, normal, normal, gated=gated)
    params = nn.unbox(module.init(jax.random.key(0), X))
    p = params["params"]
    up = X @ p["up"]["kernel"] + p["up"]["bias"]
    hidden = np.maximum(X @ p["gate"]["kernel"] + p["gate"]["bias"], 0) * up if gated else np.maximum(up, 0)
    expected = hidden @ p["down"]["kernel"] + p["down"]["bias"]
    np.testing.assert_allclose(module.apply(params, X), expected, rtol=1e-4, atol=1e-4)


def test_dense_over_several_dimensions():
    x = X.reshape(3, 5, 2, 8)
    module = Dense((4, 6), ("heads", "head_dim"), ("a", "b"), nn.initializers.xavier_uniform(), normal)
    boxed = module.init(jax.random.key(0), x)["params"]
    assert boxed["kernel"].names == ("heads", "head_dim", "a", "b") and boxed["bias"].names == ("a", "b")
    p = nn.unbox(boxed)
    assert np.abs(p["kernel"]).max() <= np.sqrt(6 / (16 + 24))  # the fans are those of the flat matrix
    expected = np.einsum("nthk,hkab->ntab", x, p["kernel"]) + p["bias"]
    np.testing.assert_allclose(module.apply({"params": p}, x), expected, rtol=1e-4, atol=1e-4)
    no_bias = Dense((4,), ("embed",), ("mlp",), normal, use_bias=False)
    assert set(no_bias.init(jax.random.key(0), X)["params"]) == {"kernel"}

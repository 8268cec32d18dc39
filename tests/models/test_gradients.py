"""The gradients that the layers write by hand, against automatic differentiation of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlmax.models.layers.attention import Mask, attention
from vlmax.models.layers.dense import product
from vlmax.models.layers.mlp import quick_gelu
from vlmax.models.layers.norms import layer_norm


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def check(function, plain, *arguments):
    """Value and all gradients of the two agree."""
    weight = normal(99, *jax.eval_shape(function, *arguments).shape)

    @jax.jit
    def both(*arguments):
        every = tuple(range(len(arguments)))
        return [
            jax.value_and_grad(lambda *a, f=f: jnp.sum(f(*a) * weight), argnums=every)(*arguments)
            for f in (function, plain)
        ]

    got, expected = both(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, expected)


def test_layer_norm():
    def plain(x, scale, bias):
        variance = jnp.var(x, axis=-1, keepdims=True)
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(variance + 1e-5) * scale + bias

    check(lambda *a: layer_norm(*a, 1e-5), plain, 3 * normal(0, 2, 3, 8) + 1, normal(1, 8), normal(2, 8))


def test_quick_gelu():
    check(quick_gelu, lambda x: x / (1 + jnp.exp(-1.702 * x)), jnp.linspace(-20, 20, 101))


def test_product():
    check(product, lambda x, w: jnp.einsum("btd,df->btf", x, w), normal(0, 2, 3, 5), normal(1, 5, 4))


MASKS = {
    "all": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=2),
    "prefix": Mask(causal=True, prefix_length=jnp.asarray([0, 3])),
    "blind rows": Mask.padding(jnp.asarray([[True, False, True, True, False], [False] * 5]), 5),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["multi-head", "grouped"])
def test_attention(mask, heads):
    def plain(q, k, v, bias):
        k, v = (jnp.repeat(x, heads[0] // heads[1], axis=2) for x in (k, v))
        scores = jnp.einsum("bqhk,bshk->bhqs", q, k) / jnp.sqrt(q.shape[-1]) + bias
        visible = mask.dense(5, 5)
        if visible is None:
            return jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(scores), v)
        seen = jnp.where(visible, jnp.exp(scores), 0)
        weights = seen / jnp.maximum(seen.sum(-1, keepdims=True), 1e-30)
        return jnp.einsum("bhqs,bshk->bqhk", weights, v)

    q, k, v = normal(0, 2, 5, heads[0], 6), normal(1, 2, 5, heads[1], 6), normal(2, 2, 5, heads[1], 6)
    for bias in (normal(3, 1, heads[0], 5, 5), normal(4, 2, 1, 1, 5)):
        check(lambda q, k, v, b: attention(q, k, v, mask, bias=b), plain, q, k, v, bias)

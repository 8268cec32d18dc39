"""The loops over tokens are compiled with what is faster for a few rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vlmax.decoding.compiled import TokenLoop


def sums(scale, x):
    """A sum over a few rows, as a norm has it."""
    return x * scale / jnp.sum(jnp.square(x), axis=-1, keepdims=True)


def test_the_cpu_library_has_no_sums():
    loop, x = functools.partial(TokenLoop, static=(), used_up="x")(sums), jnp.ones((8, 768))
    mine = loop.compiled.lower(2.0, x).compile().as_text()
    usual = jax.jit(sums).lower(2.0, x).compile().as_text()
    assert "ynn_fusion" in usual  # else the option has become needless
    assert "ynn_fusion" not in mine
    np.testing.assert_allclose(loop(2.0, jnp.ones((8, 768))), np.full((8, 768), 2 / 768), rtol=1e-6)

"""Projections into a language model's embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlmax.errors import InputError
from vlmax.models.connectors.projection import Projection
from vlmax.sharding.rules import unboxed

X = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_it_is_a_plain_network_of_so_many_layers(layers):
    module = Projection(layers).build(7)
    params = unboxed(module.init(jax.random.key(0), X))["params"]
    expected = X
    for i in range(layers):
        expected = np.asarray(jax.nn.gelu(expected, approximate=False)) if i else expected
        expected = expected @ params[f"layer_{i}"]["kernel"] + params[f"layer_{i}"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, X), expected, atol=1e-5)
    assert module.apply({"params": params}, X).shape == (2, 3, 7)


def test_flops_and_errors():
    assert Projection(2).flops(10, 5, 7) == 2 * 10 * (5 * 7 + 7 * 7)
    assert Projection().build(7, jnp.bfloat16).init_with_output(jax.random.key(0), X)[0].dtype == jnp.bfloat16
    with pytest.raises(InputError, match="layers is 0"):
        Projection(0)

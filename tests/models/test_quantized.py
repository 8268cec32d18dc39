"""Kernels in few bits: what they are worth, where they lie, and adapters over them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("qwix")

from vlmax.errors import InputError
from vlmax.models.encoders.text import TextEncoder
from vlmax.models.layers.dense import dequantized
from vlmax.models.lora import LoRA, merge
from vlmax.models.projections import noted
from vlmax.models.quantized import Quantized
from vlmax.training import patterns

MODULE = TextEncoder(width=32, depth=2, heads=2, mlp=64, vocab=32, context=6).build()
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 32, (4, 6)), jnp.int32)
ALL = (r"transformer/layers/.*",)


@pytest.fixture(scope="module")
def boxed():
    with noted() as projections:
        params = MODULE.init(jax.random.key(0), TOKENS)["params"]
    return params, projections


@jax.jit
def run(params):
    return MODULE.apply({"params": params}, TOKENS).tokens


@pytest.mark.parametrize("bits,error", [(8, 0.007), (4, 0.13)])
def test_values_are_near_and_the_rest_is_untouched(bits, error, boxed):
    params, projections = boxed
    stored = nn.unbox(Quantized(ALL, bits=bits, block=16).store(params, projections))
    plain = nn.unbox(params)
    for path in projections:
        node, before = stored, plain
        for name in path.split("/"):
            node, before = node[name], before[name]
        kernel, want = node["kernel"], before["kernel"]
        assert kernel["values"].dtype == jnp.dtype(f"int{bits}") and kernel["values"].shape == want.shape
        assert kernel["scale"].size == want.size // 16
        got = dequantized(kernel, jnp.float32)
        assert jnp.abs(got - want).mean() <= error * jnp.abs(want).mean()
        assert jnp.array_equal(node["bias"], before["bias"])
    want = run(plain)
    assert jnp.abs(run(stored) - want).mean() <= 2 * error * jnp.abs(want).mean()


def test_a_stored_kernel_is_what_the_layer_computes_with(boxed):
    params, projections = boxed
    stored = nn.unbox(Quantized(ALL, bits=4).store(params, projections))
    some = LoRA((r".*/query",)).add(jax.random.key(1), stored, projections)
    again = merge(nn.unbox(some))  # float kernels, beside fresh adapters and without
    assert not any("values" in path for path in patterns.flatten(again))
    np.testing.assert_allclose(run(again), run(stored), atol=1e-5)


def test_adapters_learn_over_a_stored_base(boxed):
    params, projections = boxed
    stored = Quantized(ALL, bits=4).store(params, projections)
    both = nn.unbox(LoRA(ALL, rank=2, alpha=4.0).add(jax.random.key(1), stored, projections))
    leaves = patterns.flatten(both)
    trains = {path: leaf for path, leaf in leaves.items() if path.endswith(("lora/a", "lora/b"))}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in trains}
    assert len(trains) == 2 * len(projections)

    target = jax.random.normal(jax.random.key(2), (4, 6, 32))
    optimizer = optax.adam(3e-2)

    def loss(trains):
        return jnp.square(run(patterns.unflatten({**frozen, **trains})) - target).mean()

    @jax.jit
    def step(trains, state):
        value, gradients = jax.value_and_grad(loss)(trains)
        updates, state = optimizer.update(gradients, state)
        return value, optax.apply_updates(trains, updates), state

    state, values = optimizer.init(trains), []
    for _ in range(30):
        value, trains, state = step(trains, state)
        values.append(value)
    assert values[-1] < 0.8 * values[0]
    np.testing.assert_allclose(
        run(merge(patterns.unflatten({**frozen, **trains}))), run(patterns.unflatten({**frozen, **trains})), atol=1e-5
    )


def test_blocks_are_sharded_as_their_kernels(boxed):
    params, projections = boxed
    leaves = patterns.flatten(Quantized(ALL, block=16).store(params, projections))
    query = "transformer/layers/attention/query/kernel"
    assert leaves[f"{query}/values"].names == ("layers", "embed", "heads", "head_dim")
    assert leaves[f"{query}/scale"].value.shape == (2, 2, 2, 16)
    assert leaves[f"{query}/scale"].names == ("layers", "embed", "heads", "head_dim")
    out = leaves["transformer/layers/attention/out/kernel/scale"]
    assert out.value.shape == (2, 2, 1, 32) and out.names == ("layers", "heads", None, "embed")


def test_wrong_use_says_what_is_wrong(boxed):
    params, projections = boxed
    for fields in ({"patterns": ()}, {"patterns": ALL, "block": 0}, {"patterns": ALL, "bits": 3}):
        with pytest.raises(InputError, match="quantized: patterns are"):
            Quantized(**fields)
    with pytest.raises(InputError, match=r"quantized.patterns\[0\].*no projection"):
        Quantized(("token_embedding",)).store(params, projections)
    with pytest.raises(InputError, match=r"blocks of quantized.block 24 do not divide its inputs, 32"):
        Quantized((r".*/mlp/up",), block=24).store(params, projections)
    stored = Quantized(ALL).store(params, projections)
    with pytest.raises(InputError, match="few bits already"):
        Quantized(ALL).store(stored, projections)

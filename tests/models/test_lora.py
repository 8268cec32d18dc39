"""Adapters against arithmetic, in training, over a mesh."""

from __future__ import annotations

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests import tiny
from vlmax.errors import InputError
from vlmax.models.encoders.text import TextEncoder
from vlmax.models.layers.dense import Dense
from vlmax.models.lora import LoRA, merge, unmerge
from vlmax.models.projections import noted
from vlmax.sharding.mesh import Mesh
from vlmax.systems.clip import CLIP
from vlmax.training import patterns
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Constant
from vlmax.training.setup import device_context, prepare

ENCODER = TextEncoder(width=16, depth=3, heads=2, mlp=24, vocab=32, context=6)
EVERYWHERE = LoRA((r"transformer/layers/attention/.*", r".*/mlp/(up|down)"), rank=4, alpha=6.0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 32, (4, 6)), jnp.int32)


def randomised(params, seed=0):
    """Another `b` than zero, so that the adapters act."""
    leaves = patterns.flatten(params)
    rng = np.random.default_rng(seed)
    return patterns.unflatten(
        {path: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype) if path.endswith("lora/b") else leaf
         for path, leaf in leaves.items()}
    )  # fmt: skip


def adapted(lora, dtype=jnp.float32):
    module = ENCODER.build(dtype)
    with noted() as projections:
        params = module.init(jax.random.key(0), TOKENS)["params"]
    params = lora.add(jax.random.key(1), params, projections)
    return module, nn.unbox(params), params


@pytest.fixture(scope="module")
def everywhere():
    module, params, boxed = adapted(EVERYWHERE)
    run = jax.jit(lambda params, rngs: module.apply({"params": params}, TOKENS, rngs=rngs).tokens)
    return run, params, boxed


def test_adapters_lie_beside_their_kernels_with_their_axes(everywhere):
    _, params, boxed = everywhere
    leaves = patterns.flatten(boxed)
    found = {path.removesuffix("/lora/a") for path in leaves if path.endswith("/lora/a")}
    parts = ("attention/query", "attention/key", "attention/value", "attention/out", "mlp/up", "mlp/down")
    assert found == {f"transformer/layers/{part}" for part in parts}
    query, out = (leaves[f"transformer/layers/attention/{name}/lora/a"] for name in ("query", "out"))
    assert query.value.shape == (3, 16, 4) and query.names == ("layers", "embed", None)
    assert out.value.shape == (3, 2, 8, 4) and out.names == ("layers", "heads", "head_dim", None)
    b = leaves["transformer/layers/attention/query/lora/b"]
    assert b.value.shape == (3, 4, 2, 8) and b.names == ("layers", None, "heads", "head_dim")
    a = params["transformer"]["layers"]["mlp"]["down"]["lora"]["a"]
    assert 0.9 * 24**-0.5 < jnp.abs(a).max() <= 24**-0.5 and not jnp.array_equal(a[0], a[1])


def test_fresh_adapters_change_nothing(everywhere):
    run, params, _ = everywhere
    plain = ENCODER.build().init(jax.random.key(0), TOKENS)["params"]
    assert jnp.array_equal(run(params, {}), run(nn.unbox(plain), {}))


def test_merged_equals_unmerged_and_back(everywhere):
    run, params, _ = everywhere
    params = randomised(params)
    merged = jax.jit(merge)(params)
    assert not any("lora" in path for path in patterns.flatten(merged))
    want = run(params, {})
    assert np.abs(run(merged, {}) - want).max() <= 1e-5 * np.abs(want).max()
    assert np.abs(run(merge(adapted(EVERYWHERE)[1]), {}) - want).max() > 0.1  # and the adapters did act
    again = jax.jit(unmerge)(merged, params)
    for path, leaf in patterns.flatten(params).items():
        np.testing.assert_allclose(patterns.flatten(again)[path], leaf, atol=1e-6)


def test_one_projection_is_the_definition():
    layer = Dense((3, 2), ("heads", "head_dim"), ("heads", "head_dim"), nn.initializers.normal(1.0))
    module = nn.Sequential([layer])
    x = jnp.asarray(np.random.default_rng(3).normal(size=(5, 2, 4)), jnp.float32)
    with noted() as projections:
        params = module.init(jax.random.key(0), x)["params"]
    params = LoRA(("layers_0",), rank=3, alpha=2.0).add(jax.random.key(1), nn.unbox(params), projections)
    params = randomised(params)
    lora = params["layers_0"]["lora"]
    assert lora["a"].shape == (2, 4, 3) and lora["b"].shape == (3, 3, 2) and lora["alpha"].shape == ()
    want = jnp.einsum("nij,ijkl->nkl", x, params["layers_0"]["kernel"])
    want += 2 / 3 * jnp.einsum("nij,ijr,rkl->nkl", x, lora["a"], lora["b"])
    np.testing.assert_allclose(module.apply({"params": params}, x), want, atol=1e-5)


def test_dropout_acts_on_the_adapters_alone_and_only_with_an_rng(everywhere):
    run, without, _ = everywhere
    _, params, _ = adapted(dataclasses.replace(EVERYWHERE, dropout=0.5))
    assert params["transformer"]["layers"]["attention"]["out"]["lora"]["dropout"].shape == (3,)
    rngs = [{"dropout": jax.random.key(seed)} for seed in (0, 1)]
    assert jnp.array_equal(run(params, rngs[0]), run(without, {}))  # b is zero: the base drops nothing
    acting = randomised(params)
    assert not jnp.allclose(run(acting, rngs[0]), run(acting, rngs[1]))
    assert jnp.array_equal(run(acting, {}), run(randomised(without), {}))


def test_dropout_keeps_the_mean():
    module = nn.Sequential([Dense((1,), ("embed",), ("mlp",), nn.initializers.zeros)])
    lora = LoRA(("layers_0",), rank=1, alpha=1.0, dropout=0.25)
    x = jnp.ones((4000, 8))
    with noted() as projections:
        params = module.init(jax.random.key(0), x)["params"]
    params = lora.add(jax.random.key(1), nn.unbox(params), projections)
    params["layers_0"]["lora"] |= {"a": jnp.ones((8, 1)), "b": jnp.ones((1, 1))}
    out = module.apply({"params": params}, x, rngs={"dropout": jax.random.key(2)})
    np.testing.assert_allclose(out.mean(), 8, atol=0.1)
    np.testing.assert_allclose(out.var(), 8 * 0.25 / 0.75, rtol=0.1)


def test_bfloat16_base_merges_in_float32(everywhere):
    _, params, _ = everywhere
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), merge(params))
    kernel = merge(unmerge(half, randomised(params)))["transformer"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.dtype == jnp.bfloat16


@dataclasses.dataclass(frozen=True)
class AdaptedCLIP(CLIP):
    """CLIP whose text encoder learns through adapters, and nothing else does."""

    lora: LoRA = LoRA((r"text/.*/attention/(query|value)", r"text/.*/mlp/.*"), rank=2, alpha=8.0, dropout=0.1)

    def init(self, rng, batch):
        with noted() as projections:
            params, carried = CLIP.init(self, rng, batch)
        return self.lora.add(jax.random.fold_in(rng, 1), params, projections), carried

    def locked(self):
        return (LoRA.BASE,)


@pytest.fixture(scope="module")
def trained():
    """The run on eight devices, and its state before and after ten steps."""
    system = AdaptedCLIP(image=tiny.vit(), text=tiny.text(depth=2), embed=8, dtype="float32")
    algorithm = AdamW(weight_decay=0.1)
    experiment = tiny.experiment(
        system=system,
        mesh=Mesh(data=2, fsdp=2, tensor=2),
        optimizer=Optimizer(algorithm, Constant(peak=1e-2), decay_multipliers=((".*", 1.0),)),
        frozen_dtype="bfloat16",
    )
    with device_context(experiment) as mesh:
        run = prepare(experiment, mesh)
        state = run.init()
        before = tiny.copied(state)
        for seed in range(10):
            batch = jax.device_put(tiny.batch(32, seed=seed), run.batch_sharding)
            state, metrics = run.step(state, batch)
    return run, before, state, metrics


def test_ten_steps_leave_the_base_bit_equal(trained):
    _, before, after, _ = trained
    frozen = patterns.flatten(after.frozen)
    assert "text/transformer/layers/attention/query/lora/alpha" in frozen
    assert "text/transformer/layers/attention/query/kernel" in frozen and "image/final_norm/scale" in frozen
    for path, leaf in patterns.flatten(before.frozen).items():
        assert np.asarray(frozen[path]).tobytes() == leaf.tobytes(), path


def test_only_the_adapters_train_and_have_a_state(trained):
    _, before, after, metrics = trained
    paths = set(patterns.flatten(after.trainable))
    projections = ("attention/query", "attention/value", "mlp/up", "mlp/down")
    assert paths == {f"text/transformer/layers/{name}/lora/{side}" for name in projections for side in "ab"}
    for path, leaf in patterns.flatten(after.trainable).items():
        assert not np.array_equal(leaf, patterns.flatten(before.trainable)[path]), path
    stated = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(after.optimizer)
              if leaf.ndim]  # fmt: skip
    assert len(stated) == 2 * len(paths) and all(re.search(r"lora'\]\['[ab]'\]$", path) for path in stated)
    assert np.isfinite(metrics["loss"])


def test_adapters_are_sharded_as_their_kernels(trained):
    run, _, after, _ = trained
    specs = {path: sharding.spec for path, sharding in patterns.flatten(run.param_shardings).items()}
    layers = "text/transformer/layers"
    assert specs[f"{layers}/attention/query/kernel"] == PartitionSpec(None, "fsdp", "tensor", None)
    assert specs[f"{layers}/attention/query/lora/a"] == PartitionSpec(None, "fsdp", None)
    assert specs[f"{layers}/attention/query/lora/b"] == PartitionSpec(None, None, "tensor", None)
    assert specs[f"{layers}/mlp/down/lora/a"] == PartitionSpec(None, "tensor", None)
    a = after.trainable["text"]["transformer"]["layers"]["mlp"]["down"]["lora"]["a"]
    assert a.sharding.is_equivalent_to(
        run.param_shardings["text"]["transformer"]["layers"]["mlp"]["down"]["lora"]["a"], 3
    )


@pytest.mark.parametrize("fields,words", [
    ({"patterns": ()}, ["lora.patterns is empty"]),
    ({"rank": 0}, ["rank is 0"]),
    ({"alpha": 0.0}, ["alpha 0.0"]),
    ({"dropout": 1.0}, ["dropout 1.0"]),
])  # fmt: skip
def test_impossible_numbers_are_refused(fields, words):
    with pytest.raises(InputError) as error:
        LoRA(**{"patterns": (".*",), **fields})
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("pattern,words", [
    (r".*/attention/querry", ["lora.patterns[1]", "no projection", "transformer/layers/attention/query"]),
    (r"token_embedding", ["no projection"]),  # a table, not a projection: nothing would read an adapter there
    (r"query", ["whole path"]),
    (r"(", ["not a regular expression"]),
])  # fmt: skip
def test_a_pattern_that_hits_no_projection_is_named(pattern, words):
    with pytest.raises(InputError) as error:
        adapted(LoRA((r".*/mlp/up", pattern)))
    assert all(word in str(error.value) for word in words)

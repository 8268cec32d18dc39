"""The scanned stack against a loop over its layers, its options and its layout over a mesh."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from tests.shared import shared
from vlmax.errors import InputError
from vlmax.models.layers.attention import Mask
from vlmax.models.layers.embeddings import Rotary
from vlmax.models.layers.transformer import Layer, LayerInputs, OwnInputs, Transformer, TransformerModule

B, T, N, D = 4, 6, 5, 16
CLIP = Transformer(width=D, depth=3, heads=4, mlp=32, init="clip")
BERT = Transformer(width=D, depth=2, heads=4, mlp=32, norm_position="post", norm_epsilon=1e-12, cross_width=12)
LLAMA = Transformer(
    width=D,
    depth=3,
    heads=4,
    kv_heads=2,
    head_dim=6,
    mlp=24,
    norm="rms",
    norm_epsilon=1e-6,
    activation="silu",
    gated=True,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    rotary=Rotary(theta=100.0),
)
FAMILIES = {"clip": CLIP, "bert": BERT, "llama": LLAMA}
X = np.random.default_rng(0).standard_normal((B, T, D)).astype(np.float32)
CONTEXT = np.random.default_rng(1).standard_normal((B, N, 12)).astype(np.float32)
CAUSAL = Mask(causal=True)
KEY = jax.random.key(0, impl="rbg")  # compiles much faster than threefry
RULES = (
    ("batch", ("data", "fsdp")),
    ("tokens", "sequence"),
    ("embed", "fsdp"),
    *(
        (name, "tensor")
        for name in ("vocab", "mlp", "heads", "kv_heads", "act_vocab", "act_mlp", "act_heads", "act_kv_heads")
    ),
)


def context_of(config):
    return CONTEXT if config.cross_width else None


def parameters(config, scale=0.3):
    """Random values everywhere, biases and norms too, so that nothing is tested at its neutral value."""
    module = TransformerModule(config)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), X, CAUSAL, context=context_of(config)))
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda s: (scale * rng.standard_normal(s.shape)).astype(np.float32), shapes)


def apply(config, params, x=X, mask=CAUSAL, **options):
    def run(params, x, mask):
        return TransformerModule(config).apply(params, x, mask, context=context_of(config), **options)

    return jax.jit(run)(params, x, mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_scan_equals_a_loop_over_layers(family):
    config = FAMILIES[family]
    params = parameters(config)
    out, states = apply(config, params, hidden=True)
    rotary = config.rotary.angles(jnp.arange(T)[None], config.head_width) if config.rotary else None
    inputs = LayerInputs(CAUSAL, rotary, context_of(config), Mask())
    layer, x = Layer(config, jnp.float32, deterministic=True), X
    own = OwnInputs(jnp.float32(0))
    step = jax.jit(lambda params, x: layer.apply({"params": params}, (x, None), own, inputs)[0][0])
    for i in range(config.depth):
        x = step(jax.tree.map(lambda p, i=i: p[i], params["params"]["layers"]), x)
        np.testing.assert_allclose(states[i], x, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(states[-1], out)
    assert apply(config, params)[1] is None


def reference_layer(config, p, x, mask, context):
    """One layer in NumPy, float64, from the papers."""

    def normalise(name, x):
        x = x - x.mean(-1, keepdims=True) if config.norm == "layer" else x
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * p[name]["scale"]
        return x + p[name].get("bias", 0)

    def dense(p, x, inputs=1):
        return np.tensordot(x, np.asarray(p["kernel"], np.float64), inputs) + p.get("bias", 0)

    def rotate(x):
        half = x.shape[-1] // 2
        angle = np.arange(T)[:, None, None] * config.rotary.theta ** -(np.arange(half) / half)
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
        return np.concatenate([turned.real, turned.imag], -1)

    def attend(name, x, context, visible):
        q, k, v = (dense(p[name][part], y) for part, y in (("query", x), ("key", context), ("value", context)))
        if config.rotary and name == "attention":
            q, k = rotate(q), rotate(k)
        k, v = (np.repeat(y, config.heads // y.shape[2], axis=2) for y in (k, v))
        scores = np.einsum("bqhk,bshk->bhqs", q, k) / np.sqrt(config.head_width)
        weights = np.exp(np.where(visible, scores, -np.inf))
        weights /= weights.sum(-1, keepdims=True)
        return dense(p[name]["out"], np.einsum("bhqs,bshk->bqhk", weights, v), 2)

    def mlp(x):
        up = dense(p["mlp"]["up"], x)
        if config.gated:
            gate = dense(p["mlp"]["gate"], x)
            return dense(p["mlp"]["down"], gate / (1 + np.exp(-gate)) * up)
        return dense(p["mlp"]["down"], np.asarray(jax.nn.gelu(up.astype(np.float32), approximate=False), np.float64))

    parts = [("attention", lambda y: attend("attention", y, y, np.tri(T, dtype=bool)))]
    if context is not None:
        parts.append(("cross_attention", lambda y: attend("cross_attention", y, context, True)))
    for name, part in [*parts, ("mlp", mlp)]:
        if config.norm_position == "pre":
            x = x + part(normalise(f"{name}_norm", x))
        else:
            x = normalise(f"{name}_norm", x + part(x))
    return x


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_is_the_papers(family):
    config = FAMILIES[family]
    params = parameters(config)
    states = apply(config, params, hidden=True)[1]
    first = jax.tree.map(lambda p: p[0].astype(np.float64), params["params"]["layers"])
    expected = reference_layer(config, first, X.astype(np.float64), CAUSAL, context_of(config))
    np.testing.assert_allclose(states[0], expected, atol=2e-5, rtol=2e-5)


def test_remat_and_unroll_change_no_value_and_no_gradient():
    config = dataclasses.replace(LLAMA, depth=2, dropout=0.2)
    params = parameters(config)

    def value_and_gradient(remat, unroll=1):
        module = TransformerModule(dataclasses.replace(config, remat=remat, unroll=unroll))

        def loss(params):
            out, _ = module.apply(params, X, CAUSAL, deterministic=False, rngs={"dropout": KEY})
            return jnp.mean(jnp.sin(out))

        return jax.jit(jax.value_and_grad(loss))(params)

    expected = value_and_gradient("none")
    for choice in (("full",), ("dots",), ("dots_no_batch",), ("none", 2)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5), expected, value_and_gradient(*choice)
        )


def test_remat_saves_less():
    params = parameters(CLIP)
    sizes = {}
    for remat in ("none", "dots", "full"):
        module = TransformerModule(dataclasses.replace(CLIP, remat=remat))
        gradient = jax.jit(jax.grad(lambda p, x, module=module: jnp.sum(module.apply(p, x)[0])))
        x = np.zeros((64, 64, D), np.float32)
        sizes[remat] = gradient.lower(params, x).compile().memory_analysis().temp_size_in_bytes
    assert sizes["full"] < sizes["dots"] < sizes["none"]


def test_an_unseen_token_changes_nothing_through_the_whole_stack():
    params = parameters(LLAMA)
    segments = np.array([[1, 1, 1, 2, 2, 2]] * B, np.int32)
    mask = Mask(causal=True, query_segments=segments, key_segments=segments)
    changed = X.copy()
    changed[:, 1] += 1
    before, after = apply(LLAMA, params, X, mask)[0], apply(LLAMA, params, changed, mask)[0]
    differs = np.any(before != after, axis=(0, 2))
    np.testing.assert_array_equal(differs, [False, True, True, False, False, False])


def test_rotary_sees_only_relative_positions():
    params, positions = parameters(LLAMA), np.arange(T)[None]
    near, far = (apply(LLAMA, params, positions=positions + shift)[0] for shift in (0, 50))
    np.testing.assert_allclose(near, far, atol=1e-4)
    stretched = apply(LLAMA, params, positions=positions * 2)[0]
    assert np.abs(stretched - near).max() > 1e-2


def test_dropout_and_drop_path():
    params = parameters(CLIP)
    key = {"dropout": KEY}
    plain = apply(CLIP, params)[0]
    for changes in ({"dropout": 0.5}, {"drop_path": 0.5}):
        config = dataclasses.replace(CLIP, **changes)
        np.testing.assert_array_equal(apply(config, params)[0], plain)
        assert np.abs(apply(config, params, deterministic=False, rngs=key)[0] - plain).max() > 0.1


def test_drop_path_skips_whole_parts_of_some_examples_and_keeps_the_mean():
    config = dataclasses.replace(CLIP, depth=2, drop_path=0.5)
    params = parameters(config)
    x = np.repeat(X[:1], 512, axis=0)
    run = jax.jit(
        lambda p, x, key: TransformerModule(config).apply(
            p, x, hidden=True, deterministic=False, rngs={"dropout": key}
        )[1]
    )
    first, second = run(params, x, KEY)
    np.testing.assert_allclose(first, np.broadcast_to(first[:1], first.shape), atol=1e-6)  # rate 0 at the first layer
    untouched = np.all(np.asarray(first == second), axis=(1, 2))
    assert 0.18 < untouched.mean() < 0.32  # both parts skipped: 0.5 ** 2
    assert len(np.unique(np.asarray(second).round(3), axis=0)) == 4


def test_hidden_states_are_those_of_a_shorter_stack():
    params = parameters(CLIP)
    states = apply(CLIP, params, hidden=True)[1]
    shorter = jax.tree.map(lambda p: p[:2], params)
    np.testing.assert_allclose(apply(dataclasses.replace(CLIP, depth=2), shorter)[0], states[1], atol=1e-6)


def kernels(config):
    module = TransformerModule(config)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), np.zeros((1, 2, config.width), np.float32)))
    return params["params"]["layers"]


def test_initial_values():
    width, depth = 128, 6
    config = Transformer(width=width, depth=depth, heads=4, mlp=512, init="clip")
    layers = kernels(config)
    projection = width**-0.5 * (2 * depth) ** -0.5
    expected = {
        ("attention", "query"): width**-0.5,
        ("attention", "key"): width**-0.5,
        ("attention", "value"): width**-0.5,
        ("attention", "out"): projection,
        ("mlp", "up"): (2 * width) ** -0.5,
        ("mlp", "down"): projection,
    }
    for (part, name), std in expected.items():
        for kernel in layers[part][name]["kernel"]:
            assert np.std(kernel) == pytest.approx(std, rel=0.05)
        assert not np.any(layers[part][name]["bias"])
    query = layers["attention"]["query"]["kernel"]
    assert np.abs(np.corrcoef(query[0].ravel(), query[1].ravel())[0, 1]) < 0.05  # layers differ
    layers = kernels(dataclasses.replace(config, init="xavier"))
    for part, name, total in (
        ("attention", "key", 2 * width),
        ("attention", "out", 2 * width),
        ("mlp", "down", width + 512),
    ):
        kernel = layers[part][name]["kernel"]
        assert np.max(np.abs(kernel)) == pytest.approx(np.sqrt(6 / total), rel=0.01)
        assert np.std(kernel) == pytest.approx(np.sqrt(2 / total), rel=0.02)
    assert np.std(layers["mlp"]["up"]["bias"]) == pytest.approx(1e-6, rel=0.1)
    for init, added in (("normal", 0.02), ("gpt2", 0.02 / np.sqrt(2 * depth))):
        layers = kernels(dataclasses.replace(config, init=init))
        assert np.std(layers["mlp"]["up"]["kernel"]) == pytest.approx(0.02, rel=0.02)
        assert np.std(layers["mlp"]["down"]["kernel"]) == pytest.approx(added, rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_name_for_every_dimension(family):
    config = FAMILIES[family]
    boxes = jax.eval_shape(TransformerModule(config).init, jax.random.key(0), X, CAUSAL, context=context_of(config))
    for path, box in jax.tree.leaves_with_path(boxes, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)):
        assert isinstance(box, nn.LogicallyPartitioned), path
        assert len(box.names) == len(box.value.shape) and box.names[0] == "layers" and None not in box.names, path


@pytest.mark.parametrize("shape", [(2, 2, 2, 1), (2, 1, 2, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_equals_unsharded(family, shape):
    config = FAMILIES[family]
    params = parameters(config)
    module = TransformerModule(config)

    def loss(params, x):
        return jnp.mean(jnp.sin(module.apply(params, x, CAUSAL, context=context_of(config))[0]))

    expected = jax.jit(jax.value_and_grad(loss))(params, X)
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)
    boxes = jax.eval_shape(module.init, jax.random.key(0), X, CAUSAL, context=context_of(config))
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxes), mesh, RULES)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        placed = jax.device_put(params, shardings)
        value, gradient = jax.jit(jax.value_and_grad(loss), out_shardings=(None, shardings))(placed, X)
    assert gradient["params"]["layers"]["mlp"]["up"]["kernel"].sharding.num_devices == 8
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), gradient, expected[1])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"heads": 3}, "heads"),
        ({"heads": 0}, "heads"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"heads": 16, "rotary": Rotary()}, "even"),
        ({"depth": 0}, "depth"),
        ({"dropout": 1.0}, "dropout"),
        ({"drop_path": -0.1}, "drop_path"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, named):
    with pytest.raises(InputError, match=named):
        dataclasses.replace(CLIP, **changes)


def test_a_context_and_positions_need_a_stack_that_reads_them():
    with pytest.raises(ValueError, match="context"):
        TransformerModule(CLIP).init(jax.random.key(0), X, context=CONTEXT)
    with pytest.raises(ValueError, match="context"):
        TransformerModule(BERT).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="positions"):
        TransformerModule(CLIP).init(jax.random.key(0), X, positions=np.arange(T)[None])


def test_flops_are_those_of_the_benchmarks():
    flops = load_flops()
    opt = {"family": "opt", "width": 256, "depth": 4, "heads": 8, "ffn": 1024}
    llama = {"width": 256, "depth": 4, "heads": 8, "kv_heads": 2, "ffn": 688}
    ours = Transformer(width=256, depth=4, heads=8, mlp=1024)
    assert ours.flops(37) == 4 * flops.llm_layer(37, 37, opt) == 4 * flops.block(37, opt)
    ours = Transformer(width=256, depth=4, heads=8, kv_heads=2, mlp=688, gated=True)
    assert ours.flops(37) == 4 * flops.llm_layer(37, 37, llama)
    wide = dataclasses.replace(ours, head_dim=64)
    assert wide.flops(37) - ours.flops(37) == 4 * (2 * 37 * 256 * 2 * (256 + 64) + 4 * 37 * 37 * 256)
    qformer = {
        "vision": {"image": 112, "patch": 14, "width": 96},
        "qformer": {"queries": 32, "width": 256, "depth": 4, "heads": 4, "ffn": 1024, "cross_every": 1},
    }
    assert Transformer(width=256, depth=4, heads=4, mlp=1024, cross_width=96).flops(32, 65) == flops.qformer(qformer)


def load_flops():
    """The benchmarks' own formulas."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("bench_flops", shared("bench", "flops.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

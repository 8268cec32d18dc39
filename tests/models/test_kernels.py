"""Attention kernels against XLA's products: the same numbers, gradients and masks."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from vlmax.errors import InputError
from vlmax.models.layers import kernels
from vlmax.models.layers.attention import Mask, attention

B, T, H, KV, K = 2, 256, 4, 2, 16
SEGMENTS = jnp.asarray(np.repeat([[1, 1, 2, 3], [1, 2, 2, 0]], T // 4, axis=1), jnp.int32)
KEYS = jnp.asarray(np.repeat([[1, 1, 0, 0], [0, 0, 0, 0]], T // 4, axis=1), bool)  # the second row sees nothing
MASKS = {
    "all": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=100),
    "packed": Mask(causal=True, query_segments=SEGMENTS, key_segments=SEGMENTS),
    "padded": Mask.padding(KEYS, T),
}


def arrays(kv=KV, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(B, T, heads, K)), jnp.float32) for heads in (H, kv, kv)]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """`attention` is the yardstick: XLA's products."""
    monkeypatch.setenv(kernels.VARIABLE, "xla")


def both(function, *arrays):
    """Value and gradients of a function of q, k and v."""
    weights = jnp.cos(jnp.arange(B * T * H * K, dtype=jnp.float32)).reshape(B, T, H, K)
    return jax.jit(jax.value_and_grad(lambda *a: jnp.vdot(function(*a), weights), argnums=(0, 1, 2)))(*arrays)


def assert_same(got, want, tolerance=1e-4):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def splash(mask):
    def run(q, k, v):
        return kernels._blind_as_zeros(kernels.splash(q * K**-0.5, k, v, mask, interpret=True), mask, T)

    return run


@pytest.mark.parametrize("name", MASKS)
def test_splash_equals_the_products(name):
    mask = MASKS[name]
    q, k, v = arrays()
    want = attention(q, k, v, mask)
    got = jax.jit(splash(mask))(q, k, v)
    assert_same(got, want)
    if name == "padded":
        assert not got[1].any()


@pytest.mark.parametrize("name", ["packed", "padded"])
def test_splash_has_the_gradients_of_the_products(name):
    mask = MASKS[name]
    assert_same(both(splash(mask), *arrays()), both(lambda q, k, v: attention(q, k, v, mask), *arrays()))


def test_editing_a_document_changes_no_other_under_splash():
    q, k, v = arrays()
    run = jax.jit(splash(MASKS["packed"]))
    before = run(q, k, v)
    other = SEGMENTS != 2
    edited = [jnp.where(other[..., None, None], x, 3 * x + 1) for x in (q, k, v)]
    after = run(*edited)
    assert jnp.array_equal(after[other], before[other]) and not jnp.array_equal(after, before)


def test_splash_over_a_mesh_equals_one_device():
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), (AxisType.Auto,) * 2, devices=jax.devices()[:4])
    rules = (("batch", "data"), ("act_heads", "tensor"), ("act_kv_heads", "tensor"))
    want = splash(MASKS["packed"])(*arrays())
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        got = jax.jit(splash(MASKS["packed"]))(*arrays())
    assert_same(got, want, 1e-6)


@pytest.mark.parametrize("rules", [(("batch", "data"),), ()])
def test_splash_is_on_its_own_on_every_device(rules, monkeypatch):
    """Over all axes, those too that split nothing or have one device: else no TPU takes the kernel."""
    mesh = jax.make_mesh((2, 1, 2), ("data", "tensor", "there"), (AxisType.Auto,) * 3, devices=jax.devices()[:4])
    asked, shard_map = [], jax.shard_map
    monkeypatch.setattr(jax, "shard_map", lambda f, **options: asked.append(options) or shard_map(f, **options))
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        jax.eval_shape(lambda *a: kernels.splash(*a, Mask()), *arrays())
    assert [set(options.get("axis_names") or mesh.axis_names) for options in asked] == [set(mesh.axis_names)]


@pytest.mark.parametrize("name", [*MASKS, "prefix", "cache"])
def test_the_arguments_for_cudnn_are_those_of_the_mask(name):
    """Its own products stand for cuDNN, which needs a GPU: what is held is how a mask is put to the library."""
    prefix, cache = Mask(causal=True, prefix_length=jnp.asarray([3, 200])), Mask(causal=True, offset=jnp.asarray(5))
    mask = {**MASKS, "prefix": prefix, "cache": cache}[name]
    q, k, v = arrays()
    got = kernels._blind_as_zeros(kernels._library(q * K**-0.5, k, v, mask, "xla"), mask, T)
    assert_same(got, attention(q, k, v, mask))


def on(platform: str) -> AbstractMesh:
    device = AbstractDevice(device_kind="any", num_cores=None, platform=platform)
    return AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)


@pytest.mark.parametrize("platform,wanted", [("tpu", "splash"), ("gpu", "cudnn"), ("cpu", "xla")])
def test_the_mesh_decides_unless_the_environment_does(platform, wanted, monkeypatch):
    monkeypatch.delenv(kernels.VARIABLE)
    monkeypatch.setattr(kernels, "_generation", lambda: 8)
    assert kernels.kernel() == "xla"  # these tests run on a CPU
    with jax.sharding.use_abstract_mesh(on(platform)):
        assert kernels.kernel() == wanted
        monkeypatch.setenv(kernels.VARIABLE, "xla")
        assert kernels.kernel() == "xla"


class Gpu:
    def __init__(self, capability):
        if capability is not None:
            self.compute_capability = capability


@pytest.mark.parametrize(
    ("capabilities", "wanted"),
    [
        (["8.0"], "cudnn"),
        (["12.1"], "cudnn"),
        (["7.5"], "xla"),
        (["9.0", "7.0"], "xla"),
        (["gfx90a"], "xla"),
        ([None], "xla"),
    ],
)
def test_a_gpu_gets_cudnn_where_cudnn_serves_it(capabilities, wanted, monkeypatch):
    monkeypatch.delenv(kernels.VARIABLE)
    monkeypatch.setattr(jax, "local_devices", lambda backend: [Gpu(capability) for capability in capabilities])
    monkeypatch.setattr(kernels, "_generation", kernels._generation.__wrapped__)  # it remembers
    with jax.sharding.use_abstract_mesh(on("gpu")):
        assert kernels.kernel() == wanted


def test_a_program_for_a_gpu_that_is_not_here_gets_the_products(monkeypatch):
    monkeypatch.delenv(kernels.VARIABLE)
    with jax.sharding.use_abstract_mesh(on("gpu")):
        assert kernels.kernel() == "xla"


def test_an_unknown_name_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "splsh")
    with pytest.raises(InputError, match=r"VLMAX_ATTENTION is 'splsh'; did you mean 'splash'"):
        kernels.kernel()


UNFIT = {
    "a bias": (T, Mask(), jnp.ones((1, 1, T, T))),
    "a cache": (T, Mask(causal=True, offset=jnp.asarray(0)), None),
    "a prefix": (T, Mask(causal=True, prefix_length=jnp.asarray([1, 2])), None),
    "a length": (T - 1, Mask(), None),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_splash_cannot_express_goes_to_the_products(name, monkeypatch):
    length, mask, bias = UNFIT[name]
    q, k, v = (x[:, :length] for x in arrays())
    want = attention(q, k, v, mask, bias=bias)
    monkeypatch.setenv(kernels.VARIABLE, "splash")
    assert kernels.fused(q, k, v, mask, bias) is None
    assert jnp.array_equal(attention(q, k, v, mask, bias=bias), want)


def test_cudnn_is_asked_only_for_what_it_takes(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "cudnn")
    q, k, v = arrays()
    assert kernels.fused(q, k, v, Mask(), None) is None  # float32
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    assert kernels.fused(*half, Mask(), jnp.zeros((1, 1, T, T))) is None
    assert kernels.fused(*(x[:, :7] for x in half), Mask(), None) is None


@pytest.mark.parametrize(
    ("rules", "kv"),
    [
        ((("tokens", "there"),), KV),
        ((("act_heads", "there"),), KV),
        ((("act_heads", "there"), ("act_kv_heads", "there")), 1),
    ],
)
@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_what_a_mesh_takes_apart_goes_to_the_products(kernel, rules, kv, monkeypatch):
    """Queries in pieces, and heads whose keys are elsewhere; cuDNN's partitioner refuses them."""
    monkeypatch.setenv(kernels.VARIABLE, kernel)
    mesh = jax.make_mesh((2,), ("there",), (AxisType.Auto,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        assert kernels.fused(*(x.astype(jnp.bfloat16) for x in arrays(kv)), Mask(), None) is None


@pytest.mark.parametrize("name", MASKS)
def test_a_program_for_a_gpu_calls_cudnn(name, monkeypatch):
    """As far as it goes without one: the library takes the arguments and puts its calls into the program."""
    library = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(library, "check_cudnn_version", lambda: 91_100)
    monkeypatch.setenv(kernels.VARIABLE, "cudnn")
    half = [x.astype(jnp.bfloat16) for x in arrays()]
    gradient = jax.grad(lambda q, k, v: attention(q, k, v, MASKS[name]).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    text = jax.jit(gradient).trace(*half).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call @__cudnn$fmha") == 2  # forward and backward

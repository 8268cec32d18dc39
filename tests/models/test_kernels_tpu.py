"""The attention that a TPU gets, compiled by libtpu with no TPU at hand."""

from __future__ import annotations

import importlib.util
import os

import pytest

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed: pip install 'jax[tpu]'", allow_module_level=True)
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlmax.models.decoders.llama import LLaMA
from vlmax.models.layers import kernels
from vlmax.models.layers.attention import Mask, attention

RULES = (("batch", ("data", "fsdp")), ("act_heads", "tensor"), ("act_kv_heads", "tensor"))
B, T, H, KV = 8, 2048, 32, 8


def eight_chips(*sizes: int) -> Mesh:
    devices = topologies.get_topology_desc(topology_name="v5e:2x4", platform="tpu").devices
    sizes = sizes or (2, 2, 2)
    names = ("data", "fsdp", "tensor", "sequence")[: len(sizes)]
    return jax.make_mesh(sizes, names, (AxisType.Auto,) * len(sizes), devices=devices)


def compiled(mask_of, width=128, mesh=None):
    """Value and gradients of attention with heads of LLaMA 3 8B, on eight chips."""
    mesh = mesh or eight_chips()
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    q, k = (jax.ShapeDtypeStruct((B, T, heads, width), jnp.bfloat16, sharding=rows) for heads in (H, KV))
    segments = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))

    def loss(q, k, v, segments):
        return attention(q, k, v, mask_of(segments)).astype(jnp.float32).sum()

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(RULES):
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(q, k, k, segments).compile()


MASKS = {
    "packed": lambda segments: Mask(causal=True, query_segments=segments, key_segments=segments),
    "window": lambda segments: Mask(causal=True, window=1024),
    "all": lambda segments: Mask(),
}


@pytest.mark.parametrize("name,width", [("packed", 128), ("window", 64), ("all", 72)])
def test_a_tpu_gets_splash_attention_without_the_square(name, width, monkeypatch):
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    program = compiled(MASKS[name], width)
    assert calls(program) == 3  # forward, d(q), and d(k) with d(v)
    scores = B // 4 * H // 2 * T * T * 2  # bytes of one device's scores in bfloat16
    assert program.memory_analysis().temp_size_in_bytes < scores
    if name == "packed":
        monkeypatch.setenv(kernels.VARIABLE, "xla")
        other = compiled(MASKS[name])
        assert calls(other) == 0
        assert other.memory_analysis().temp_size_in_bytes >= scores


def test_a_mesh_may_have_axes_that_split_nothing(monkeypatch):
    """As the package's own meshes have, one of a single device, and here one of two, too."""
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    assert calls(compiled(MASKS["packed"], mesh=eight_chips(4, 1, 1, 2))) == 3


def calls(program) -> int:
    return program.as_text().count('custom_call_target="tpu_custom_call"')


@pytest.mark.parametrize("remat,wanted", [("dots", 3), ("full", 4)])
def test_a_decoder_trains_with_splash_attention(remat, wanted, monkeypatch):
    """In a scan, over a mesh, and `dots` keeps what spares its backward pass a second forward one."""
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    config = LLaMA(width=256, depth=2, heads=4, kv_heads=2, mlp=256, vocab=256, context=256, remat=remat)
    module, mesh = config.build(jnp.bfloat16), eight_chips()
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    tokens = jax.ShapeDtypeStruct((B, 256), jnp.int32, sharding=rows)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((B, 256), jnp.int32)))
    whole = NamedSharding(mesh, PartitionSpec())
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes)

    def loss(params, tokens, segments):
        return module.apply(params, tokens, segments=segments).tokens.astype(jnp.float32).sum()

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(RULES):
        program = jax.jit(jax.grad(loss)).lower(params, tokens, tokens).compile()
    assert calls(program) == wanted

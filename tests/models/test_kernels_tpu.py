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
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vlmax.models.layers import kernels
from vlmax.models.layers.attention import Mask, attention

RULES = (("batch", ("data", "fsdp")), ("act_heads", "tensor"), ("act_kv_heads", "tensor"))
B, T, H, KV, K = 8, 2048, 32, 8, 128


def compiled(mask_of):
    """Value and gradients of attention with packed documents, as LLaMA 3 8B has it, on eight chips."""
    devices = topologies.get_topology_desc(topology_name="v5e:2x4", platform="tpu").devices
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=devices)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    q, k = (jax.ShapeDtypeStruct((B, T, heads, K), jnp.bfloat16, sharding=rows) for heads in (H, KV))
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


@pytest.mark.parametrize("name", MASKS)
def test_a_tpu_gets_splash_attention_without_the_square(name, monkeypatch):
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    program = compiled(MASKS[name])
    assert program.as_text().count("tpu_custom_call") >= 3  # forward, d(q), d(k) and d(v)
    scores = B // 4 * H // 2 * T * T * 2  # bytes of one device's scores in bfloat16
    assert program.memory_analysis().temp_size_in_bytes < scores
    if name == "packed":
        monkeypatch.setenv(kernels.VARIABLE, "xla")
        other = compiled(MASKS[name])
        assert "tpu_custom_call" not in other.as_text()
        assert other.memory_analysis().temp_size_in_bytes >= scores

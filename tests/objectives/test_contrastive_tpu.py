"""The bar of memory on a pod: 32,768 x 512 over 256 chips, compiled by libtpu with no TPU at hand."""

from __future__ import annotations

import importlib.util
import sys

import jax.numpy as jnp
import pytest

from tests.shared import REPOSITORY

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed: pip install 'jax[tpu]'", allow_module_level=True)

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import contrastive_memory

BATCH, WIDTH = 32768, 512


@pytest.fixture(scope="module")
def meshes():
    return {
        "data=256": contrastive_memory.tpu_mesh("v5e:16x16"),
        "data=64 x fsdp=4": contrastive_memory.tpu_mesh("v5p:8x8x4", {"data": 64, "fsdp": 4}),
    }


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", [pytest.param("data=256", marks=pytest.mark.slow), "data=64 x fsdp=4"])
def test_value_and_gradient_fit_in_64_mib_without_the_square(loss, name, meshes):
    program = contrastive_memory.compile_loss(loss, meshes[name], BATCH, WIDTH, 4096, jnp.float32)
    assert program.temporary_bytes <= 64 * 2**20
    assert program.peak_bytes <= 64 * 2**20  # on-chip memory counts here too
    assert not program.has_square(BATCH)
    assert ("f32", (BATCH // 256, BATCH)) not in program.arrays
    assert ("f32", (BATCH // 256, 4096)) in program.arrays

"""The bar of memory at the size of LLaMA 3: 8 x 2,048 x 128,256, compiled by libtpu with no TPU at hand."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed: pip install 'jax[tpu]'", allow_module_level=True)

from benchmarks import language_memory


@pytest.mark.parametrize("head", ["trained", "frozen"])
@pytest.mark.parametrize("mesh", ["1 chip", "data=8", "fsdp=8", "fsdp=8, over the vocabulary", "tensor=8"])
def test_value_and_gradient_fit_in_256_mib(mesh, head):
    program = language_memory.compile_loss("v5e:2x4", mesh, head == "trained")
    assert program.temporary_bytes <= 256 * 2**20

"""GPT-2 against the reference's golden outputs, its published sizes and its initial values."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.models import golden
from tests.models.decoders.sizes import count
from tests.parity.decoders import assert_same
from vlmax.models.decoders import gpt2
from vlmax.models.decoders.gpt2 import GPT2


def test_golden():
    assert_same(golden.encoder("gpt2"))


PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_have_the_published_sizes(name):
    assert count(getattr(gpt2, name)()) == PARAMETERS[name]


def test_what_is_added_to_the_residual_stream_starts_smaller():
    module = GPT2(width=64, depth=8, heads=2, mlp=128, vocab=100, context=50).build()
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), np.zeros((1, 2), np.int32)))["params"]
    layers = params["transformer"]["layers"]
    for matrix in (layers["attention"]["query"], layers["mlp"]["up"]):
        assert np.std(matrix["kernel"]) == pytest.approx(0.02, rel=0.03)
    for matrix in (layers["attention"]["out"], layers["mlp"]["down"]):
        assert np.std(matrix["kernel"]) == pytest.approx(0.02 / 4, rel=0.03)
    for table in (params["vocabulary"], params["positions"]):
        assert np.std(table["embedding"]) == pytest.approx(0.02, rel=0.05)

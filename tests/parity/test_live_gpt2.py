"""Our GPT-2 beside transformers', with random weights and several shapes."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.parity.decoders import assert_same
from tests.parity.make_golden_decoders import MODELS
from tests.parity.reference_decoders import run

GPT2 = MODELS["gpt2"][1]
SHAPES = {
    "golden": {},
    "one layer, one head": {"n_layer": 1, "n_head": 1},
    "deep": {"n_layer": 5, "n_embd": 96, "n_head": 12, "n_inner": None},
    "as long as the context": {"n_positions": 12},
    "another epsilon": {"layer_norm_epsilon": 1e-2},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_hidden_states(shape):
    assert_same(run("gpt2", seed=3, **{**GPT2, **SHAPES[shape]}))

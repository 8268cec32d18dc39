"""Our Q-Former beside transformers', with random weights and several shapes."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.parity.qformer import difference, reference

SHAPES = {
    "small": {},
    "one head, two layers": {"num_hidden_layers": 2, "num_attention_heads": 1, "hidden_size": 8},
    "attention to the image in every layer": {"cross_attention_frequency": 1},
    "in one of four layers": {"cross_attention_frequency": 4},
    "larger": {"hidden_size": 96, "num_attention_heads": 4, "num_hidden_layers": 6, "intermediate_size": 300},
    "another epsilon": {"layer_norm_eps": 1e-3},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_queries_alone_with_a_text_and_a_text_alone(shape):
    for use, found in difference(reference(seed=3, **SHAPES[shape])).items():
        assert found <= 1e-4, use

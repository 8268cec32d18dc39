"""Our BERT beside transformers' BERT and BLIP text models, with random weights and several shapes."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.parity.bert import assert_same
from tests.parity.make_golden_bert import MODELS
from tests.parity.reference_bert import run

LARGE = {"hidden_size": 160, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 333}
SHAPES = {
    "golden": {},
    "one layer, one head": {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8},
    "deep, long": {**LARGE, "max_position_embeddings": 130, "length": 130},
    "embeddings in": {"embeddings": True},
    "another epsilon and activation": {"layer_norm_eps": 1e-3, "hidden_act": "relu"},
}
CASES = [(kind, shape) for kind in MODELS for shape in SHAPES]


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_hidden_states_and_logits(kind, shape):
    assert_same(run(seed=3, **{**MODELS[kind], **SHAPES[shape]}))
